/* The text transformer: documents, causality, and generation with a cache. */
#include "kernels/cpu/cpu.h"
#include "tests/support/mask.h"
#include "tests/support/test.h"
#include "text/transformer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 31, CONTEXT = 32, WIDTH = 24 };

static const TextConfig gpt2 = {.vocabulary = VOCABULARY,
                                .context = CONTEXT,
                                .width = WIDTH,
                                .layers = 2,
                                .heads = 4,
                                .mlp = MLP_GELU_TANH,
                                .bias = true,
                                .tied = true,
                                .norm_epsilon = 1e-5};
static const TextConfig llama = {.vocabulary = VOCABULARY,
                                 .context = CONTEXT,
                                 .width = WIDTH,
                                 .layers = 2,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .mlp_width = 40,
                                 .norm = NORM_RMS,
                                 .mlp = MLP_SWIGLU,
                                 .rope = true,
                                 .rope_base = 10000,
                                 .norm_epsilon = 1e-5};

typedef struct Model {
    Backend *backend;
    Arena *memory;
    Parameters *parameters;
    Text text;
    Tape *tape; // does not record
} Model;

static void model_open(Model *m, const TextConfig *config, Dtype dtype) {
    Error error = {0};
    *m = (Model){.backend = cpu_backend_new(2, NULL, NULL), .memory = arena_new(1 << 16)};
    m->parameters = parameters_new(m->backend, NULL);
    m->tape = tape_new(m->backend, false);
    assert_done(text_declare(&m->text, m->parameters, m->memory, "text", config, &error), &error);
    assert_done(parameters_finish(m->parameters, dtype, 11, &error), &error);
}

static void model_close(Model *m) {
    if (tape_error(m->tape)) fail_msg("%s", tape_error(m->tape));
    tape_free(m->tape);
    parameters_free(m->parameters);
    backend_free(m->backend);
    arena_free(m->memory);
}

// ids, positions (R, T) and range (R, T, 2) of one pass; the result (R, T, C) stays readable until the next run.
static float *run(Model *m, const int32_t *ids, const int32_t *positions, const int32_t *range, int64_t rows,
                  int64_t length, KvCache *cache) {
    Tape *t = m->tape;
    BlockContext context = {.cache = cache};
    tape_reset(t);
    context.positions = tape_constant(t, I32, SHAPE(rows * length), positions);
    context.range = tape_constant(t, I32, SHAPE(rows, length, 2), range);
    Tensor *x = text_embed(t, &m->text, tape_constant(t, I32, SHAPE(rows, length), ids));
    x = text_forward(t, &m->text, x, &context);
    if (!x) fail_msg("%s", tape_error(t));
    int64_t n = rows * length * WIDTH;
    float *out = arena_allocate(m->memory, (size_t)n * sizeof *out);
    Tensor *f32 = tape_tensor(t, F32, x->rank, x->shape);
    m->backend->convert(m->backend, f32->data, F32, x->data, x->dtype, n);
    tape_read(t, f32, out);
    return out;
}

static int32_t id_at(int row, int position) {
    Rng rng = rng_for((uint64_t)row, PURPOSE_TEST, (uint64_t)position);
    return (int32_t)rng_below(&rng, VOCABULARY);
}

static void assert_near(const float *a, const float *b, int64_t n, double limit) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)b[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - b[i]) <= limit * most))
            fail_msg("element %lld: %g, expected %g", (long long)i, (double)a[i], (double)b[i]);
}

// ---- the cache ----

enum { ROWS = 3, PROMPT = 7, STEPS = 5, SLOTS = 16 };

static const int prompt_length[ROWS] = {7, 4, 2}; // padded in front to PROMPT

// Slots [first, first + count) of every row, as a pass sees them.
static float *run_slots(Model *m, int first, int count, KvCache *cache) {
    int32_t ids[ROWS * SLOTS], positions[ROWS * SLOTS], range[2 * ROWS * SLOTS];
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < count; i++) {
            int at = r * count + i, slot = first + i, padding = PROMPT - prompt_length[r];
            bool real = slot >= padding;
            ids[at] = real ? id_at(r, slot - padding) : 0;
            positions[at] = real ? slot - padding : 0;
            range[2 * at] = padding;
            range[2 * at + 1] = real ? slot + 1 : padding;
        }
    return run(m, ids, positions, range, ROWS, count, cache);
}

// Row r alone, from its first token to its last, without a cache.
static float *run_row(Model *m, int r, int length) {
    int32_t ids[CONTEXT], positions[CONTEXT], range[2 * CONTEXT];
    for (int i = 0; i < length; i++) {
        ids[i] = id_at(r, i);
        positions[i] = i;
    }
    mask_causal(range, 1, length, length);
    return run(m, ids, positions, range, 1, length, NULL);
}

static void check_cache(const TextConfig *config, Dtype dtype, double limit) {
    Model m;
    float *got[STEPS + 1];
    model_open(&m, config, dtype);
    KvCache *cache = text_cache_new(m.backend, &m.text, ROWS, SLOTS);
    got[0] = run_slots(&m, 0, PROMPT, cache);
    for (int s = 1; s <= STEPS; s++) got[s] = run_slots(&m, PROMPT + s - 1, 1, cache);
    assert_int_equal(cache->used, PROMPT + STEPS);
    for (int r = 0; r < ROWS; r++) {
        float *expected = run_row(&m, r, prompt_length[r] + STEPS);
        for (int i = 0; i < prompt_length[r]; i++)
            assert_near(got[0] + (r * PROMPT + PROMPT - prompt_length[r] + i) * WIDTH, expected + i * WIDTH, WIDTH,
                        limit);
        for (int s = 1; s <= STEPS; s++)
            assert_near(got[s] + r * WIDTH, expected + (prompt_length[r] + s - 1) * WIDTH, WIDTH, limit);
    }
    kv_cache_free(cache);
    model_close(&m);
}

static void generation_with_a_cache_equals_recomputation(void **state) {
    (void)state;
    check_cache(&gpt2, F32, 1e-5);
    check_cache(&llama, F32, 1e-5);
}

static void generation_in_bf16_is_near_recomputation(void **state) {
    (void)state;
    check_cache(&gpt2, BF16, 0.02);
    check_cache(&llama, BF16, 0.02);
}

static void a_prompt_may_come_in_pieces_and_be_taken_back(void **state) {
    (void)state;
    Model m;
    model_open(&m, &llama, F32);
    KvCache *cache = text_cache_new(m.backend, &m.text, ROWS, SLOTS);
    float *whole = run_slots(&m, 0, PROMPT + 2, cache);
    cache->used = 0;
    float *first = run_slots(&m, 0, 4, cache);
    run_slots(&m, 4, 5, cache);
    cache->used = 4; // back to the end of the first piece
    float *rest = run_slots(&m, 4, 5, cache);
    int wide = PROMPT + 2;
    assert_near(first, whole, 4 * WIDTH, 1e-5); // row 0 has no padding
    for (int r = 0; r < ROWS; r++) assert_near(rest + (r * 5 + 3) * WIDTH, whole + (r * wide + 7) * WIDTH, WIDTH, 1e-5);
    kv_cache_free(cache);
    model_close(&m);
}

// ---- masks ----

static void documents_packed_in_a_row_equal_separate_rows(void **state) {
    (void)state;
    const TextConfig *configs[] = {&gpt2, &llama};
    const int lengths[3] = {5, 9, 6};
    for (int c = 0; c < 2; c++) {
        Model m;
        int32_t ids[20], positions[20], range[40], document[20];
        model_open(&m, configs[c], F32);
        for (int d = 0, at = 0; d < 3; d++)
            for (int i = 0; i < lengths[d]; i++, at++) {
                ids[at] = id_at(d, i);
                positions[at] = i;
                document[at] = d;
            }
        mask_documents(range, 1, 20, document);
        float *packed = run(&m, ids, positions, range, 1, 20, NULL);
        for (int d = 0, at = 0; d < 3; at += lengths[d++])
            assert_near(packed + at * WIDTH, run_row(&m, d, lengths[d]), lengths[d] * WIDTH, 1e-5);
        model_close(&m);
    }
}

static void a_later_token_changes_nothing_before_it(void **state) {
    (void)state;
    Model m;
    int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8}, positions[8] = {0, 1, 2, 3, 4, 5, 6, 7}, range[16];
    model_open(&m, &gpt2, F32);
    mask_causal(range, 1, 8, 8);
    float *before = run(&m, ids, positions, range, 1, 8, NULL);
    ids[5] = 20;
    float *after = run(&m, ids, positions, range, 1, 8, NULL);
    assert_memory_equal(before, after, 5 * WIDTH * sizeof *before);
    assert_memory_not_equal(before + 5 * WIDTH, after + 5 * WIDTH, WIDTH * sizeof *before);
    model_close(&m);
}

// ---- declaration ----

static void a_tied_head_is_the_embedding_and_rope_needs_no_table(void **state) {
    (void)state;
    Model m;
    model_open(&m, &gpt2, F32);
    assert_ptr_equal(m.text.head, m.text.tokens);
    assert_non_null(parameters_find(m.parameters, "text.positions"));
    model_close(&m);
    model_open(&m, &llama, F32);
    assert_non_null(parameters_find(m.parameters, "text.head"));
    assert_null(parameters_find(m.parameters, "text.positions"));
    assert_null(parameters_find(m.parameters, "text.blocks.0.qkv.bias"));
    model_close(&m);
}

static void an_empty_vocabulary_is_refused(void **state) {
    (void)state;
    Error error = {0};
    Text text;
    TextConfig config = gpt2;
    config.vocabulary = 0;
    Arena *memory = arena_new(1 << 12);
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Parameters *parameters = parameters_new(backend, NULL);
    assert_false(text_declare(&text, parameters, memory, "text", &config, &error));
    assert_message_has(&error, "give a tokenizer");
    config.vocabulary = 9;
    config.width = 20;
    config.rope = true; // four heads of 5
    assert_false(text_declare(&text, parameters, memory, "text", &config, &error));
    assert_message_has(&error, "even head size");
    parameters_free(parameters);
    backend_free(backend);
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(generation_with_a_cache_equals_recomputation),
        cmocka_unit_test(generation_in_bf16_is_near_recomputation),
        cmocka_unit_test(a_prompt_may_come_in_pieces_and_be_taken_back),
        cmocka_unit_test(documents_packed_in_a_row_equal_separate_rows),
        cmocka_unit_test(a_later_token_changes_nothing_before_it),
        cmocka_unit_test(a_tied_head_is_the_embedding_and_rope_needs_no_table),
        cmocka_unit_test(an_empty_vocabulary_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
