/* Masks as intervals of keys: what each of them allows, and that attention under a mask is attention on its pieces,
 * forward and backward, on every instruction set of this machine, in f32 and bf16. */
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/mask.h"
#include "kernels/ops.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const ISAS[] = {"plain", "avx2", "avx512", "avx512-bf16"};
enum { ISA_COUNT = 4, SIZE = 20, HEADS = 4, KV_HEADS = 2, WIDTH = HEADS * SIZE, ROW = (HEADS + 2 * KV_HEADS) * SIZE };

// ---- what masks allow ----

static void assert_range(const int32_t *range, int64_t query, int32_t first, int32_t end) {
    assert_int_equal(range[2 * query], first);
    assert_int_equal(range[2 * query + 1], end);
}

static void causal_sees_itself_and_what_came_before(void **state) {
    (void)state;
    int32_t range[2 * 2 * 3];
    mask_causal(range, 2, 3, 5);
    for (int64_t b = 0; b < 2; b++)
        for (int32_t t = 0; t < 3; t++) assert_range(range, b * 3 + t, 0, t + 3); // the last query sees the last key
}

static void full_sees_all(void **state) {
    (void)state;
    int32_t range[2 * 2 * 3];
    mask_full(range, 2, 3, 7);
    for (int64_t i = 0; i < 6; i++) assert_range(range, i, 0, 7);
}

static void a_prefix_sees_itself_whole(void **state) {
    (void)state;
    int32_t range[2 * 2 * 4], prefix[] = {0, 3};
    mask_prefix(range, 2, 4, prefix);
    for (int32_t t = 0; t < 4; t++) assert_range(range, t, 0, t + 1);
    for (int32_t t = 0; t < 3; t++) assert_range(range, 4 + t, 0, 3);
    assert_range(range, 7, 0, 4);
}

static void keys_beyond_a_length_are_hidden(void **state) {
    (void)state;
    int32_t range[2 * 2 * 2], lengths[] = {5, 0};
    mask_lengths(range, 2, 2, 6, lengths);
    for (int64_t t = 0; t < 2; t++) assert_range(range, t, 0, 5), assert_range(range, 2 + t, 0, 0);
}

static void documents_see_themselves_only(void **state) {
    (void)state;
    int32_t range[2 * 2 * 5], document[] = {0, 0, 1, 1, 2, 4, 4, 4, 4, 4};
    mask_documents(range, 2, 5, document);
    int32_t first[] = {0, 0, 2, 2, 4, 0, 0, 0, 0, 0};
    for (int32_t i = 0; i < 10; i++) assert_range(range, i, first[i], i % 5 + 1);
}

// ---- attention under them ----

typedef struct Run { // packed self-attention of one sequence, its output and the gradient of its input
    int64_t length;
    float *x, *d_out, *out, *dx; // (length, ROW), (length, WIDTH), (length, WIDTH), (length, ROW)
} Run;

static float *floats(int64_t count) {
    float *x = calloc((size_t)count, sizeof *x);
    assert_non_null(x);
    return x;
}

static float random_float(uint64_t element) {
    Rng rng = rng_for(7, PURPOSE_TEST, element);
    return bf16_to_f32(f32_to_bf16((float)rng_normal(&rng))); // the same in both precisions
}

static Run run_new(int64_t length, uint64_t seed) {
    Run r = {length, floats(length * ROW), floats(length * WIDTH), floats(length * WIDTH), floats(length * ROW)};
    for (int64_t i = 0; i < length * ROW; i++) r.x[i] = random_float(seed * 1000000 + (uint64_t)i);
    for (int64_t i = 0; i < length * WIDTH; i++) r.d_out[i] = random_float(seed * 1000000 + 500000 + (uint64_t)i);
    return r;
}

// The rows [first, first + length) of another run.
static Run run_piece(const Run *whole, int64_t first, int64_t length) {
    Run r = {length, floats(length * ROW), floats(length * WIDTH), floats(length * WIDTH), floats(length * ROW)};
    memcpy(r.x, whole->x + first * ROW, (size_t)(length * ROW) * sizeof *r.x);
    memcpy(r.d_out, whole->d_out + first * WIDTH, (size_t)(length * WIDTH) * sizeof *r.x);
    return r;
}

static void run_free(Run *r) { free(r->x), free(r->d_out), free(r->out), free(r->dx); }

static void convert(void *to, Dtype to_type, const void *from, Dtype from_type, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float x = from_type == F32 ? ((const float *)from)[i] : bf16_to_f32(((const uint16_t *)from)[i]);
        if (to_type == F32)
            ((float *)to)[i] = x;
        else
            ((uint16_t *)to)[i] = f32_to_bf16(x);
    }
}

static void run(Run *r, Backend *backend, Dtype t, const int32_t *range, bool causal) {
    Tape *tape = tape_new(backend, true);
    float *memory = floats(r->length * ROW);
    convert(memory, t, r->x, F32, r->length * ROW);
    Tensor *x = tape_constant(tape, t, SHAPE(1, r->length, ROW), memory);
    x->needs_grad = true;
    Tensor *mask = range ? tape_constant(tape, I32, SHAPE(1, r->length, 2), range) : NULL;
    Tensor *out = attention(tape, x, NULL, mask, (Heads){.heads = HEADS, .kv_heads = KV_HEADS, .causal = causal});
    assert_non_null(out);
    convert(r->out, F32, out->data, t, r->length * WIDTH);
    convert(memory, t, r->d_out, F32, r->length * WIDTH);
    tape_backward_from(tape, out, memory, ALL_GRADIENTS);
    convert(r->dx, F32, x->grad, t, r->length * ROW);
    free(memory);
    tape_free(tape);
}

static void assert_close(const float *a, const float *b, int64_t count, double tolerance) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    assert_true(sqrt(difference) <= tolerance * sqrt(size) + 1e-30);
}

// Calls `claim` with a backend of every instruction set, in both precisions. A tolerance is that of the precision.
static void on_all_machines(void (*claim)(Backend *, Dtype, double tolerance)) {
    for (int i = 0; i < ISA_COUNT; i++) {
        if (!cpu_has_isa(ISAS[i])) continue;
        Backend *backend = cpu_backend_new(2, ISAS[i], NULL);
        claim(backend, F32, 2e-6);
        claim(backend, BF16, 1e-2);
        backend_free(backend);
    }
}

static void packed_documents(Backend *backend, Dtype t, double tolerance) {
    const int64_t lengths[] = {1, 37, 160, 2, 13};
    int32_t document[213], range[2 * 213];
    int64_t total = 0;
    for (int d = 0; d < 5; d++)
        for (int64_t i = 0; i < lengths[d]; i++) document[total++] = d;
    mask_documents(range, 1, total, document);
    Run whole = run_new(total, 1);
    run(&whole, backend, t, range, false);
    for (int64_t d = 0, first = 0; d < 5; first += lengths[d++]) {
        Run piece = run_piece(&whole, first, lengths[d]);
        run(&piece, backend, t, NULL, true);
        assert_close(whole.out + first * WIDTH, piece.out, lengths[d] * WIDTH, tolerance);
        assert_close(whole.dx + first * ROW, piece.dx, lengths[d] * ROW, tolerance);
        run_free(&piece);
    }
    run_free(&whole);
}

static void documents_packed_together_do_not_meet(void **state) {
    (void)state;
    on_all_machines(packed_documents);
}

// A mask of lengths on the whole sequence against the short sequence: queries beyond the length do not count.
static void padded_lengths(Backend *backend, Dtype t, double tolerance) {
    const int64_t length = 150, kept = 70;
    int32_t range[2 * 150], lengths[] = {70};
    mask_lengths(range, 1, length, length, lengths);
    Run whole = run_new(length, 2);
    memset(whole.d_out + kept * WIDTH, 0, (size_t)((length - kept) * WIDTH) * sizeof(float));
    Run piece = run_piece(&whole, 0, kept);
    run(&whole, backend, t, range, false);
    run(&piece, backend, t, NULL, false);
    assert_close(whole.out, piece.out, kept * WIDTH, tolerance);
    assert_close(whole.dx, piece.dx, kept * ROW, tolerance);
    for (int64_t i = kept * ROW; i < length * ROW; i++) assert_true(whole.dx[i] == 0);
    run_free(&whole);
    run_free(&piece);
}

static void padding_changes_nothing(void **state) {
    (void)state;
    on_all_machines(padded_lengths);
}

// The prefix by itself is full attention; what follows is as in causal attention.
static void image_then_text(Backend *backend, Dtype t, double tolerance) {
    const int64_t length = 90;
    int32_t range[2 * 90], prefix[] = {40};
    mask_prefix(range, 1, length, prefix);
    Run whole = run_new(length, 3), piece = run_piece(&whole, 0, prefix[0]), causal = run_piece(&whole, 0, length);
    run(&whole, backend, t, range, false);
    run(&piece, backend, t, NULL, false);
    run(&causal, backend, t, NULL, true);
    assert_close(whole.out, piece.out, prefix[0] * WIDTH, tolerance);
    assert_close(whole.out + prefix[0] * WIDTH, causal.out + prefix[0] * WIDTH, (length - prefix[0]) * WIDTH,
                 tolerance);
    run_free(&whole);
    run_free(&piece);
    run_free(&causal);
}

static void a_prefix_is_full_attention_before_causal_text(void **state) {
    (void)state;
    on_all_machines(image_then_text);
}

static void some_see_nothing(Backend *backend, Dtype t, double tolerance) {
    (void)tolerance;
    const int64_t length = 60;
    int32_t range[2 * 60];
    mask_full(range, 1, length, length);
    for (int64_t i = 0; i < length; i += 3) range[2 * i] = range[2 * i + 1] = (int32_t)i; // at every place
    for (int64_t i = 30; i < 50; i++) range[2 * i] = 9, range[2 * i + 1] = 4;             // a whole panel; backwards
    Run whole = run_new(length, 4);
    run(&whole, backend, t, range, false);
    for (int64_t i = 0; i < length; i++) {
        bool empty = range[2 * i] >= range[2 * i + 1], zero = true;
        for (int64_t c = 0; c < WIDTH; c++) zero = zero && whole.out[i * WIDTH + c] == 0 && whole.dx[i * ROW + c] == 0;
        assert_true(zero == empty);
        for (int64_t c = 0; c < ROW; c++) assert_true(isfinite(whole.dx[i * ROW + c]));
    }
    run_free(&whole);
}

static void an_empty_interval_gives_zeros_and_no_gradient(void **state) {
    (void)state;
    on_all_machines(some_see_nothing);
}

static void nobody_sees(Backend *backend, Dtype t, double tolerance) {
    (void)tolerance;
    int32_t range[2 * 10] = {0};
    Run whole = run_new(10, 5);
    run(&whole, backend, t, range, false);
    for (int64_t i = 0; i < 10 * WIDTH; i++) assert_true(whole.out[i] == 0);
    for (int64_t i = 0; i < 10 * ROW; i++) assert_true(whole.dx[i] == 0);
    run_free(&whole);
}

static void a_mask_without_any_key_gives_zeros(void **state) {
    (void)state;
    on_all_machines(nobody_sees);
}

static void threads_do_not_change_a_bit(void **state) {
    (void)state;
    Run runs[3];
    int32_t range[2 * 600], prefix[] = {250};
    mask_prefix(range, 1, 600, prefix);
    for (int i = 0; i < 3; i++) {
        Backend *backend = cpu_backend_new(1 << i, NULL, NULL);
        runs[i] = run_new(600, 6);
        run(&runs[i], backend, F32, range, false);
        backend_free(backend);
        assert_memory_equal(runs[0].out, runs[i].out, 600 * WIDTH * sizeof(float));
        assert_memory_equal(runs[0].dx, runs[i].dx, 600 * ROW * sizeof(float));
    }
    for (int i = 0; i < 3; i++) run_free(&runs[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(causal_sees_itself_and_what_came_before),
        cmocka_unit_test(full_sees_all),
        cmocka_unit_test(a_prefix_sees_itself_whole),
        cmocka_unit_test(keys_beyond_a_length_are_hidden),
        cmocka_unit_test(documents_see_themselves_only),
        cmocka_unit_test(documents_packed_together_do_not_meet),
        cmocka_unit_test(padding_changes_nothing),
        cmocka_unit_test(a_prefix_is_full_attention_before_causal_text),
        cmocka_unit_test(an_empty_interval_gives_zeros_and_no_gradient),
        cmocka_unit_test(a_mask_without_any_key_gives_zeros),
        cmocka_unit_test(threads_do_not_change_a_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
