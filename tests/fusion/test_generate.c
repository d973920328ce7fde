/* Generation: the cache changes nothing, batches change nothing, texts end where they must. */
#include "fusion/describe.h"
#include "fusion/generate.h"
#include "tests/support/test.h"
#include "tiny_joint.h"
#include <stdlib.h>
#include <string.h>

enum { PROMPTS = 9, NEW = 12 };

typedef struct Fixture {
    Backend *backend;
    Joint *joint;
    Tape *tape;
    Tokenizer *tokenizer;
    Arena *memory;
} Fixture;

static const char *next_text(void *context, size_t *size) {
    static const char text[] = "a red circle and two blue squares\n";
    int *calls = context;
    *size = sizeof text - 1;
    return (*calls)++ ? NULL : text;
}

static Tokenizer *tiny_tokenizer(void) {
    TokenizerTraining options = {
        .type = TOKENIZER_CHAR, .vocabulary = 100, .character_coverage = 1, .keep_whitespace = true};
    Buffer model = {0};
    Error error = {0};
    int calls = 0;
    assert_done(tokenizer_train(&options, next_text, &calls, &model, &error), &error);
    Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "tiny", &error);
    assert_done(t != NULL, &error);
    buffer_free(&model);
    return t;
}

static void open_fixture(Fixture *f, bool llama, Dtype dtype, int threads) {
    Error error = {0};
    JointConfig config = tiny_config();
    f->tokenizer = tiny_tokenizer();
    config.text.vocabulary = tokenizer_vocabulary(f->tokenizer);
    config.text.tied = false; // else a token tends to follow itself
    if (llama) {
        config.text.rope = true;
        config.text.norm = NORM_RMS;
        config.text.mlp = MLP_SWIGLU;
        config.text.bias = false;
        config.text.kv_heads = 1;
    }
    f->backend = cpu_backend_new(threads, NULL, NULL);
    f->joint = joint_new(f->backend, &config, NULL, dtype, 11, &error);
    assert_done(f->joint != NULL, &error);
    f->tape = tape_new(f->backend, false);
    f->memory = arena_new(1 << 16);
}

static void close_fixture(Fixture *f) {
    arena_free(f->memory);
    tape_free(f->tape);
    joint_free(f->joint);
    backend_free(f->backend);
    tokenizer_free(f->tokenizer);
}

// Prompts of several lengths; some with an image in front, one with an image between texts, one with two.
static void make_prompts(Fixture *f, Prompt prompts[PROMPTS]) {
    static const char *const texts[PROMPTS] = {"a red", "two",    "a red", "blue",   "squ",
                                               "",      "circle", "a red", "and two"};
    static const int images[PROMPTS] = {0, 1, 1, 0, 2, 1, 0, 1, 0};
    size_t pixels = 3 * TINY_SIDE * TINY_SIDE;
    Error error = {0};
    for (int p = 0; p < PROMPTS; p++) {
        TokenIds ids = {0};
        assert_done(tokenizer_encode(f->tokenizer, texts[p], strlen(texts[p]), &ids, &error), &error);
        int32_t *kept = arena_array(f->memory, int32_t, ids.count + 1);
        if (ids.count) memcpy(kept, ids.ids, sizeof *kept * (size_t)ids.count);
        Segment *s = arena_array(f->memory, Segment, 4);
        uint8_t *bytes = arena_array(f->memory, uint8_t, pixels * 2);
        int n = 0;
        Rng rng = rng_for(5, PURPOSE_TEST, (uint64_t)p);
        for (size_t i = 0; i < 2 * pixels; i++) bytes[i] = (uint8_t)rng_below(&rng, 256);
        if (p == 7) s[n++] = (Segment){-1, kept, 2, false};
        for (int i = 0; i < images[p]; i++) s[n++] = segment_image(i);
        if (ids.count) s[n++] = (Segment){-1, kept, ids.count, false};
        prompts[p] = (Prompt){s, n, bytes, images[p], (uint64_t)p};
        token_ids_free(&ids);
    }
}

// The likeliest token behind the prompt and what was said so far, from a pass over the whole row without a cache.
static int32_t uncached_next(Fixture *f, const Prompt *p, const int32_t *said, int count) {
    const JointConfig *config = joint_config(f->joint);
    SequenceIds special = sequence_ids(f->tokenizer);
    Segment segments[8];
    Sequences row;
    Error error = {0};
    int n = 0;
    for (; n < p->count; n++) segments[n] = p->segments[n];
    segments[n++] = (Segment){-1, said, count, false};
    int length = (int)prompt_length(config, p) + count;
    tape_reset(f->tape);
    sequences_new(&row, f->memory, 1, length, special);
    assert_done(sequence_put(&row, 0, segments, n, TINY_SLOTS, special, SEQUENCE_OPEN, &error), &error);
    Tensor *images = p->images ? joint_pixels(f->tape, f->joint, p->pixels, NULL, p->images) : NULL;
    if (images) images = joint_image_tokens_forward(f->tape, f->joint, images);
    Tensor *hidden = joint_hidden(f->tape, f->joint, &row, images, NULL);
    Tensor *last = gather_rows(f->tape, hidden, tape_constant(f->tape, I32, SHAPE(1), &(int32_t){length - 1}));
    Tensor *logits = joint_logits(f->tape, f->joint, last);
    assert_null(tape_error(f->tape));
    float *values = arena_array(f->memory, float, tensor_count(logits));
    tape_read(f->tape, logits, values);
    int32_t best = 0;
    for (int32_t i = 1; i < tensor_count(logits); i++)
        if (values[i] > values[best]) best = i;
    return best;
}

static void expect_same_as_uncached(bool llama) {
    Fixture f;
    Prompt prompts[PROMPTS];
    TokenIds said[PROMPTS] = {0};
    Error error = {0};
    open_fixture(&f, llama, F32, 2);
    make_prompts(&f, prompts);
    GenerateOptions options = {.sampling = {.top_p = 1}, .max_tokens = NEW, .batch = 4};
    assert_done(generate(f.tape, f.joint, f.tokenizer, prompts, PROMPTS, &options, said, &error), &error);
    int checked = 0;
    for (int p = 0; p < PROMPTS; p++) {
        for (int i = 0; i < said[p].count; i++, checked++)
            assert_int_equal(said[p].ids[i], uncached_next(&f, &prompts[p], said[p].ids, i));
        if (said[p].count < NEW)
            assert_int_equal(uncached_next(&f, &prompts[p], said[p].ids, said[p].count), tokenizer_end(f.tokenizer));
        token_ids_free(&said[p]);
    }
    assert_true(checked > PROMPTS * NEW / 2);
    close_fixture(&f);
}

static void the_cache_changes_nothing(void **state) {
    (void)state;
    expect_same_as_uncached(false);
    expect_same_as_uncached(true);
}

static void expect_equal_ids(TokenIds a[PROMPTS], TokenIds b[PROMPTS]) {
    for (int p = 0; p < PROMPTS; p++) {
        assert_int_equal(a[p].count, b[p].count);
        if (a[p].count) assert_memory_equal(a[p].ids, b[p].ids, sizeof *a[p].ids * (size_t)a[p].count);
    }
}

static void batches_and_threads_change_nothing(void **state) {
    (void)state;
    static const int64_t batches[] = {1, 2, 3, 32};
    for (int kind = 0; kind < 4; kind++) {
        TokenIds first[PROMPTS] = {0};
        for (int b = 0; b < 4; b++) {
            Fixture f;
            Prompt prompts[PROMPTS];
            TokenIds said[PROMPTS] = {0};
            Error error = {0};
            open_fixture(&f, kind > 1, kind % 2 ? BF16 : F32, 1 + b);
            make_prompts(&f, prompts);
            GenerateOptions options = {.sampling = {.temperature = 1, .top_k = 10, .top_p = 0.95, .seed = 3},
                                       .max_tokens = NEW,
                                       .batch = batches[b]};
            assert_done(generate(f.tape, f.joint, f.tokenizer, prompts, PROMPTS, &options, said, &error), &error);
            if (b) expect_equal_ids(first, said);
            for (int p = 0; p < PROMPTS; p++) {
                if (b)
                    token_ids_free(&said[p]);
                else
                    first[p] = said[p];
            }
            close_fixture(&f);
        }
        for (int p = 0; p < PROMPTS; p++) token_ids_free(&first[p]);
    }
}

static void a_text_ends_with_the_context(void **state) {
    (void)state;
    Fixture f;
    Prompt prompts[PROMPTS];
    TokenIds said[PROMPTS] = {0};
    Error error = {0};
    open_fixture(&f, false, F32, 1);
    make_prompts(&f, prompts);
    GenerateOptions options = {.sampling = {.temperature = 1, .top_p = 1}, .max_tokens = 1000, .batch = 4};
    assert_done(generate(f.tape, f.joint, f.tokenizer, prompts, PROMPTS, &options, said, &error), &error);
    for (int p = 0; p < PROMPTS; p++) {
        int64_t room = joint_config(f.joint)->text.context - prompt_length(joint_config(f.joint), &prompts[p]) + 1;
        assert_true(said[p].count <= room);
        token_ids_free(&said[p]);
    }
    int32_t *many = arena_array(f.memory, int32_t, 70);
    for (int i = 0; i < 70; i++) many[i] = 5;
    Segment segment = {-1, many, 70, false};
    Prompt wide = {&segment, 1, NULL, 0, 0};
    assert_false(generate(f.tape, f.joint, f.tokenizer, &wide, 1, &options, said, &error));
    assert_message_has(&error, "context is 64");
    token_ids_free(&said[0]);
    close_fixture(&f);
}

static void a_picture_is_described_as_it_is_generated(void **state) {
    (void)state;
    Fixture f;
    open_fixture(&f, false, F32, 1);
    uint8_t pixels[40 * 30 * 3], view[3 * TINY_SIDE * TINY_SIDE];
    for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (uint8_t)(i * 7);
    Image image = {40, 30, pixels};
    Buffer text = {0}, expected = {0};
    TokenIds said = {0}, asked = {0};
    Error error = {0};
    joint_view(joint_config(f.joint), &image, view);
    assert_done(tokenizer_encode(f.tokenizer, "two", 3, &asked, &error), &error);
    Segment segments[] = {segment_image(0), segment_text(&asked)};
    GenerateOptions options = {.sampling = {.top_p = 1}, .max_tokens = DESCRIBE_TOKENS, .batch = 1};
    for (int question = 0; question < 2; question++) {
        Prompt prompt = {segments, 1 + question, view, 1, 0};
        said.count = 0;
        buffer_clear(&expected);
        assert_done(generate(f.tape, f.joint, f.tokenizer, &prompt, 1, &options, &said, &error), &error);
        assert_done(tokenizer_decode(f.tokenizer, said.ids, said.count, &expected, &error), &error);
        assert_done(describe_image(f.tape, f.joint, f.tokenizer, &image, question ? "two" : NULL, &text, &error),
                    &error);
        assert_int_equal(text.size, expected.size);
        if (text.size) assert_memory_equal(text.data, expected.data, text.size);
    }
    buffer_free(&text);
    buffer_free(&expected);
    token_ids_free(&said);
    token_ids_free(&asked);
    close_fixture(&f);
}

static void a_model_without_captions_refuses_images(void **state) {
    (void)state;
    Fixture f = {
        .tokenizer = tiny_tokenizer(), .backend = cpu_backend_new(1, NULL, NULL), .memory = arena_new(1 << 12)};
    JointConfig config = tiny_config();
    Error error = {0};
    config.text.vocabulary = tokenizer_vocabulary(f.tokenizer);
    config.weight[OBJECTIVE_CAPTION] = 0;
    f.joint = joint_new(f.backend, &config, NULL, F32, 1, &error);
    assert_done(f.joint != NULL, &error);
    f.tape = tape_new(f.backend, false);
    Segment segment = segment_image(0);
    uint8_t view[3 * TINY_SIDE * TINY_SIDE] = {0};
    TokenIds said = {0};
    GenerateOptions options = {.sampling = {.top_p = 1}, .max_tokens = 3, .batch = 1};
    assert_false(
        generate(f.tape, f.joint, f.tokenizer, &(Prompt){&segment, 1, view, 1, 0}, 1, &options, &said, &error));
    assert_message_has(&error, "not trained to speak of images");
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cache_changes_nothing),
        cmocka_unit_test(batches_and_threads_change_nothing),
        cmocka_unit_test(a_text_ends_with_the_context),
        cmocka_unit_test(a_picture_is_described_as_it_is_generated),
        cmocka_unit_test(a_model_without_captions_refuses_images),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
