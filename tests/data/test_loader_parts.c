/* The loader's parts: together they are the whole batch, to the bit, however many there are. */
#include "tests/data/tiny_dataset.h"
#include <stdlib.h>
#include <string.h>

enum { LM = 1 << OBJECTIVE_LM, CAPTION = 1 << OBJECTIVE_CAPTION, MAE = 1 << OBJECTIVE_MAE };
enum { CONTRASTIVE = 1 << OBJECTIVE_CONTRASTIVE, PICTURES = CAPTION | CONTRASTIVE | MAE };
enum { SAMPLES = 23, SIDE = 8, SLOTS = 2, SOURCES = 6, PICTURE = SIDE * SIDE * 3, MOST_PARTS = 8 };

typedef struct Fixture {
    char *folder, *paths[SOURCES];
    Tokenizer *tokenizer;
    SourceConfig sources[SOURCES];
    LoaderConfig config;
} Fixture;

static SourceConfig source(const char *path, unsigned objectives, int64_t batch) {
    return (SourceConfig){.path = path,
                          .validation = path,
                          .objectives = objectives,
                          .batch = batch,
                          .text = "",
                          .question = "",
                          .answer = "",
                          .one_per = "",
                          .documents = true,
                          .crop_scale = {0.3, 1},
                          .crop_ratio = {0.75, 4.0 / 3},
                          .flip = 0.5,
                          .jitter = 0.2};
}

// Sources that overlap in some objectives and not in others, samples of several pictures, damage, both kinds of text.
static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->folder = temporary_new();
    f->tokenizer = tiny_tokenizer();
    f->paths[0] = tiny_dataset(&(TinyOptions){f->folder, "tiny", SAMPLES, 1, 0, false, 8192});
    f->paths[1] = tiny_dataset(&(TinyOptions){f->folder, "texts", SAMPLES, 0, 0, true, 1 << 20});
    f->paths[2] = tiny_dataset(&(TinyOptions){f->folder, "pairs", 7, 2, 3, false, 1 << 20});
    f->paths[3] = tiny_dataset(&(TinyOptions){f->folder, "damaged", SAMPLES, 1, 6, false, 1 << 20});
    f->sources[0] = source(f->paths[0], PICTURES, 5);
    f->sources[1] = source(f->paths[1], LM, 3);
    f->sources[2] = source(f->paths[2], CAPTION | MAE, 3);
    f->sources[3] = source(f->paths[3], CONTRASTIVE, 4);
    f->sources[4] = source(f->paths[1], LM, 2);
    f->sources[4].documents = false;
    f->sources[5] = source(f->paths[0], MAE, 5);
    f->sources[5].one_per = "class";
    f->config = (LoaderConfig){.sources = f->sources,
                               .source_count = SOURCES,
                               .side = SIDE,
                               .image_tokens = SLOTS,
                               .text_length = 16,
                               .caption_length = 32,
                               .contrastive_length = 26,
                               .seed = 7,
                               .threads = 1,
                               .ahead = 2,
                               .bad_samples_per_million = 1e6};
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    tokenizer_free(f->tokenizer);
    for (int i = 0; i < SOURCES; i++) free(f->paths[i]);
    temporary_free(f->folder);
    free(f);
    return 0;
}

static Loader *open_part(const Fixture *f, int part, int parts, bool validation) {
    Error error;
    LoaderConfig config = f->config;
    config.part = part;
    config.parts = parts;
    config.validation = validation;
    Loader *loader = loader_open(&config, f->tokenizer, NULL, &error);
    assert_done(loader != NULL, &error);
    return loader;
}

static const Batch *next(Loader *loader, int64_t step) {
    Error error;
    const Batch *batch = loader_next(loader, step, &error);
    assert_done(batch != NULL, &error);
    return batch;
}

static int find_image(const Batch *b, uint64_t number) {
    for (int i = 0; i < b->images; i++)
        if (b->image_numbers[i] == number) return i;
    fail_msg("no picture %d", (int)number);
    return -1;
}

static void assert_same_image(const Batch *part, int image, const Batch *whole, int expected) {
    assert_int_equal(part->image_numbers[image], whole->image_numbers[expected]);
    assert_int_equal(part->image_keys[image], whole->image_keys[expected]);
    assert_int_equal(part->mirrored[image], whole->mirrored[expected]);
    assert_string_equal(part->image_sources[image], whole->image_sources[expected]);
    assert_memory_equal(part->pixels + image * PICTURE, whole->pixels + expected * PICTURE, PICTURE);
}

// Row `row` of the part is row `at` of the whole, its pictures too.
static void assert_same_row(const Batch *part, const Sequences *p, int row, const Batch *whole, const Sequences *w,
                            int64_t at) {
    int64_t length = w->length, from = row * length, to = at * length;
    size_t bytes = (size_t)length * sizeof(int32_t);
    assert_int_equal(p->length, length);
    assert_memory_equal(p->tokens + from, w->tokens + to, bytes);
    assert_memory_equal(p->targets + from, w->targets + to, bytes);
    assert_memory_equal(p->positions + from, w->positions + to, bytes);
    assert_memory_equal(p->range + 2 * from, w->range + 2 * to, 2 * bytes);
    assert_int_equal(p->ends[row], w->ends[at]);
    for (int64_t t = 0; t < length; t++) {
        int32_t mine = p->image_rows[from + t], theirs = w->image_rows[to + t];
        assert_int_equal(mine < 0, theirs < 0);
        if (mine < 0) continue;
        assert_int_equal(mine % SLOTS, theirs % SLOTS);
        assert_same_image(part, mine / SLOTS, whole, theirs / SLOTS);
    }
}

// Rows [row, ...) of the whole batch are those of this part; `row` goes on behind them.
static void assert_part(const Batch *part, const Batch *whole, int64_t row[OBJECTIVES]) {
    const Sequences *own[] = {&part->lm, &part->caption, &part->contrastive};
    const Sequences *all[] = {&whole->lm, &whole->caption, &whole->contrastive};
    for (int o = 0; o < OBJECTIVES; o++) {
        assert_int_equal(part->all_rows[o], whole->all_rows[o]);
        assert_int_equal(part->first_row[o] - whole->first_row[o], row[o]);
    }
    assert_int_equal(part->all_images, whole->images);
    for (int o = 0; o < 3; o++)
        for (int r = 0; r < own[o]->rows; r++) {
            assert_true(row[o] < all[o]->rows);
            if (o == OBJECTIVE_CONTRASTIVE)
                assert_same_image(part, part->contrastive_image[r], whole, whole->contrastive_image[row[o]]);
            assert_same_row(part, own[o], r, whole, all[o], row[o]++);
        }
    for (int i = 0; i < part->mae_images; i++)
        assert_same_image(part, part->mae_image[i], whole, whole->mae_image[row[OBJECTIVE_MAE]++]);
    for (int i = 0; i < part->images; i++) {
        if (i) assert_true(part->image_numbers[i] > part->image_numbers[i - 1]);
        assert_same_image(part, i, whole, find_image(whole, part->image_numbers[i]));
    }
}

static void assert_parts_are_the_whole(const Fixture *f, int parts, bool validation, const int64_t *steps, int count) {
    Loader *whole = open_part(f, 0, 0, validation), *part[MOST_PARTS];
    for (int p = 0; p < parts; p++) part[p] = open_part(f, p, parts, validation);
    for (int i = 0; i < count; i++) {
        int64_t row[OBJECTIVES] = {0}, targets = 0, looked_at = 0;
        const Batch *b = next(whole, steps[i]);
        for (int p = 0; p < parts; p++) {
            const Batch *own = next(part[p], steps[i]);
            assert_part(own, b, row);
            targets += own->caption.target_count + own->lm.target_count;
            looked_at += own->seen;
        }
        for (int o = 0; o < OBJECTIVES; o++) assert_int_equal(row[o], b->all_rows[o]);
        assert_int_equal(looked_at, b->seen);
        assert_int_equal(targets, b->caption.target_count + b->lm.target_count);
    }
    int64_t bad, draws, bad_parts = 0, draws_parts = 0;
    loader_tried(whole, &bad, &draws);
    loader_close(whole);
    for (int p = 0; p < parts; p++) {
        int64_t own_bad, own_draws;
        loader_tried(part[p], &own_bad, &own_draws);
        bad_parts += own_bad;
        draws_parts += own_draws;
        loader_close(part[p]);
    }
    assert_true(bad > 0);
    assert_int_equal(bad, bad_parts);
    assert_int_equal(draws, draws_parts);
}

static void parts_together_are_the_whole_batch(void **state) {
    static const int parts[] = {1, 2, 3, 8};
    static const int64_t steps[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    for (int i = 0; i < 4; i++) assert_parts_are_the_whole(*state, parts[i], false, steps, 9);
}

static void parts_of_any_step_are_the_whole_batch(void **state) {
    static const int64_t steps[] = {17, 5, 6, 1000003};
    assert_parts_are_the_whole(*state, 3, false, steps, 4);
}

// The last step of validation has fewer rows than parts, so that some parts have none.
static void parts_of_validation_are_the_whole_batch(void **state) {
    static const int64_t steps[] = {0, 1, 2, 3, 4};
    assert_parts_are_the_whole(*state, 8, true, steps, 5);
    assert_parts_are_the_whole(*state, 3, true, steps, 5);
}

// Over an epoch every sample stands in one part once.
static void an_epoch_over_several_parts_loses_and_repeats_nothing(void **state) {
    const Fixture *f = *state;
    static const int parts[] = {1, 3, 8};
    for (int i = 0; i < 3; i++) {
        Fixture one = *f;
        int seen[SAMPLES] = {0};
        one.sources[0].batch = SAMPLES; // an epoch in one step
        one.config.sources = one.sources;
        one.config.source_count = 1;
        for (int p = 0; p < parts[i]; p++) {
            Loader *loader = open_part(&one, p, parts[i], false);
            const Batch *b = next(loader, 0);
            for (int r = 0; r < b->contrastive.rows; r++) {
                int number = atoi(strrchr(b->image_sources[b->contrastive_image[r]], '/') + 1);
                assert_in_range(number, 0, SAMPLES - 1);
                seen[number]++;
            }
            loader_close(loader);
        }
        for (int s = 0; s < SAMPLES; s++) assert_int_equal(seen[s], 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_together_are_the_whole_batch),
        cmocka_unit_test(parts_of_any_step_are_the_whole_batch),
        cmocka_unit_test(parts_of_validation_are_the_whole_batch),
        cmocka_unit_test(an_epoch_over_several_parts_loses_and_repeats_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
