/* Synthetic microbatches have the shapes of those that the loader's batches are cut into. */
#include "tests/train/tiny_run.h"
#include "train/microbatch.h"
#include "train/synthetic.h"

static LoaderConfig loader_of(const TrainConfig *c) {
    return (LoaderConfig){.sources = c->data.items,
                          .source_count = c->data.count,
                          .side = (int)c->model.vision.image_size,
                          .image_tokens = joint_image_tokens(&c->model),
                          .text_length = c->lm_length,
                          .caption_length = c->caption_length,
                          .contrastive_length = c->contrastive_length,
                          .seed = 1,
                          .parts = 1,
                          .threads = 1,
                          .ahead = 1,
                          .bad_samples_per_million = 1e6};
}

static void assert_same_rows(const Sequences *a, const Sequences *b) {
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->length, b->length);
}

// The same pictures in the same slots: those of a caption come first in its row.
static void assert_same_pictures(const Sequences *a, const Sequences *b, int slots) {
    for (int r = 0; r < a->rows; r++)
        assert_memory_equal(a->image_rows + (int64_t)r * a->length, b->image_rows + (int64_t)r * b->length,
                            sizeof(int32_t) * (size_t)slots);
}

static void assert_same_shape(const Batch *a, const Batch *b, int slots) {
    assert_int_equal(a->images, b->images);
    assert_int_equal(a->mae_images, b->mae_images);
    assert_same_rows(&a->lm, &b->lm);
    assert_same_rows(&a->caption, &b->caption);
    assert_same_rows(&a->contrastive, &b->contrastive);
    assert_same_pictures(&a->caption, &b->caption, slots);
    for (int i = 0; i < a->contrastive.rows; i++) assert_int_equal(a->contrastive_image[i], b->contrastive_image[i]);
    for (int i = 0; i < a->mae_images; i++) assert_int_equal(a->mae_image[i], b->mae_image[i]);
    for (int i = 0; i < a->images; i++) assert_int_equal(a->image_numbers[i], b->image_numbers[i]);
    assert_memory_equal(a->all_rows, b->all_rows, sizeof a->all_rows);
    assert_memory_equal(a->first_row, b->first_row, sizeof a->first_row);
    assert_int_equal(a->all_images, b->all_images);
}

static void synthetic_pieces_have_the_rows_and_pictures_of_real_ones(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 20);
    TrainConfig config;
    Error error = {0};
    tiny_config(&shared, NULL, memory, &config);
    int slots = joint_image_tokens(&config.model);
    Tokenizer *tokenizer = tokenizer_load(config.tokenizer, &error);
    LoaderConfig reading = loader_of(&config);
    Loader *loader = loader_open(&reading, tokenizer, NULL, &error);
    assert_non_null(loader);
    const Batch *whole = loader_next(loader, 0, &error);
    assert_non_null(whole);
    for (int pieces = 2; pieces <= 12; pieces++)
        for (int i = 0; i < pieces; i++) {
            Batch real = microbatch(whole, i, pieces, slots, memory);
            Batch made = synthetic_batch(&config, i, pieces, memory);
            assert_same_shape(&made, &real, slots);
        }
    loader_close(loader);
    tokenizer_free(tokenizer);
    arena_free(memory);
}

static void rows_are_full_of_text(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 20);
    TrainConfig config;
    tiny_config(&shared, NULL, memory, &config);
    Batch b = synthetic_batch(&config, 0, 1, memory);
    int slots = joint_image_tokens(&config.model);
    assert_int_equal(b.lm.target_count, b.lm.rows * config.lm_length);
    assert_int_equal(b.caption.token_count, b.caption.rows * (config.caption_length - slots));
    assert_int_equal(b.contrastive.token_count, b.contrastive.rows * config.contrastive_length);
    assert_int_equal(b.seen, 8); // five of the first source, three of the second
    assert_int_equal(b.images, 8);
    for (int64_t i = 0; i < b.lm.rows * config.lm_length; i++)
        assert_in_range(b.lm.tokens[i], 0, config.model.text.vocabulary - 1);
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(synthetic_pieces_have_the_rows_and_pictures_of_real_ones),
        cmocka_unit_test(rows_are_full_of_text),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
