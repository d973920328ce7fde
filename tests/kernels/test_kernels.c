/* Kernels that no operator reaches, or whose edges one does not: AdamW, searches and sums over buffers, conversions,
 * dropout's mask. On every instruction set that this machine has, on 1 and 4 threads. */
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { COUNT = 70001 }; // several blocks and a rest
static const char *const ISA[] = {"plain", "avx2", "avx512", "avx512-bf16"};

// Calls `run` with a backend for each instruction set and number of threads.
static void on_each_backend(void (*run)(Backend *)) {
    for (size_t set = 0; set < sizeof ISA / sizeof *ISA; set++) {
        for (int threads = 1; threads <= 4 && cpu_has_isa(ISA[set]); threads += 3) {
            Backend *b = cpu_backend_new(threads, ISA[set], NULL);
            run(b);
            backend_free(b);
        }
    }
}

static float *normals(uint64_t element, double std) { // (COUNT), to be freed
    float *x = malloc(sizeof *x * COUNT);
    Rng rng = rng_for(5, PURPOSE_TEST, element);
    for (int i = 0; i < COUNT; i++) x[i] = (float)(std * rng_normal(&rng));
    return x;
}

static void expect_near(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("%.12g, not %.12g", got, want);
}

// ---- AdamW ----

static void run_adamw(Backend *b) {
    AdamW o = {.learning_rate = 1e-3,
               .beta1 = 0.9,
               .beta2 = 0.95,
               .epsilon = 1e-8,
               .weight_decay = 0.1,
               .gradient_scale = 0.25};
    float *p = normals(0, 1), *g = normals(1, 3), *m = calloc(COUNT, sizeof *m), *v = calloc(COUNT, sizeof *v);
    uint16_t *shadow = malloc(sizeof *shadow * COUNT);
    double *want = malloc(sizeof *want * COUNT), *mean = calloc(COUNT, sizeof *mean),
           *square = calloc(COUNT, sizeof *square);
    for (int i = 0; i < COUNT; i++) want[i] = (double)p[i];
    for (int step = 1; step <= 3; step++) {
        o.correction1 = 1 - pow(o.beta1, step), o.correction2 = 1 - pow(o.beta2, step);
        b->adamw_parts(b, &(AdamWPart){p, m, v, step == 2 ? NULL : shadow, g, COUNT, true}, 1, &o, NULL);
        for (int i = 0; i < COUNT; i++) {
            double gradient = (double)g[i] * o.gradient_scale;
            mean[i] = o.beta1 * mean[i] + (1 - o.beta1) * gradient;
            square[i] = o.beta2 * square[i] + (1 - o.beta2) * gradient * gradient;
            want[i] -= o.learning_rate * o.weight_decay * want[i];
            want[i] -= o.learning_rate * (mean[i] / o.correction1) / (sqrt(square[i] / o.correction2) + o.epsilon);
        }
    }
    for (int i = 0; i < COUNT; i++) {
        expect_near((double)p[i], want[i], 1e-6 * (fabs(want[i]) + 1e-2));
        expect_near((double)m[i], mean[i], 1e-6 * (fabs(mean[i]) + 1e-2));
        expect_near((double)v[i], square[i], 1e-6 * (square[i] + 1e-4));
        assert_int_equal(shadow[i], f32_to_bf16(p[i]));
    }
    free(p), free(g), free(m), free(v), free(shadow), free(want), free(mean), free(square);
}
static void adamw_agrees_with_double_and_writes_the_shadow(void **state) {
    (void)state;
    on_each_backend(run_adamw);
}

static void run_adamw_nan(Backend *b) {
    AdamW o = {.learning_rate = 1,
               .beta1 = 0.9,
               .beta2 = 0.9,
               .epsilon = 1e-8,
               .gradient_scale = 1,
               .correction1 = 1,
               .correction2 = 1};
    float p[19] = {0}, m[19] = {0}, v[19] = {0}, g[19] = {0};
    g[3] = NAN, g[18] = INFINITY;
    b->adamw_parts(b, &(AdamWPart){p, m, v, NULL, g, 19, true}, 1, &o, NULL);
    for (int i = 0; i < 19; i++) assert_int_equal(!isfinite(p[i]), i == 3 || i == 18);
}
static void adamw_does_not_hide_a_bad_gradient(void **state) {
    (void)state;
    on_each_backend(run_adamw_nan);
}

// Of many parts, empty ones among them: block by block on any thread.
static void run_many_parts(Backend *b) {
    enum { PARTS = 40 };
    static const int64_t sizes[] = {3, 16384, 0, 700, 40000, 1};
    AdamW o = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.5, 0.19, 0.0975};
    AdamWPart parts[2][PARTS];
    for (int i = 0; i < PARTS; i++) {
        int64_t n = sizes[i % 6];
        for (int k = 0; k < 2; k++) {
            float *all[4];
            for (int a = 0; a < 4; a++) {
                Rng rng = rng_for(5, PURPOSE_TEST, (uint64_t)(4 * i + a));
                all[a] = malloc(sizeof(float) * (size_t)(n + 1));
                for (int64_t e = 0; e < n; e++) all[a][e] = fabsf((float)rng_normal(&rng));
            }
            uint16_t *shadow = i % 3 ? calloc((size_t)n + 1, sizeof *shadow) : NULL;
            parts[k][i] = (AdamWPart){all[0], all[1], all[2], shadow, all[3], n, i % 2 == 0};
        }
        b->adamw_parts(b, &parts[0][i], 1, &o, NULL);
    }
    b->adamw_parts(b, parts[1], PARTS, &o, NULL);
    for (int i = 0; i < PARTS; i++) {
        const AdamWPart *x = &parts[0][i], *y = &parts[1][i];
        size_t bytes = (size_t)x->n * sizeof(float);
        assert_memory_equal(x->parameter, y->parameter, bytes);
        assert_memory_equal(x->m, y->m, bytes);
        assert_memory_equal(x->v, y->v, bytes);
        if (x->shadow) assert_memory_equal(x->shadow, y->shadow, bytes / 2);
        for (int k = 0; k < 2; k++) {
            const AdamWPart *p = &parts[k][i];
            free(p->parameter), free(p->m), free(p->v), free(p->shadow), free((float *)p->gradient);
        }
    }
}
static void adamw_of_many_parts_has_the_bits_of_each_alone(void **state) {
    (void)state;
    on_each_backend(run_many_parts);
}

// ---- searches and sums ----

static void run_first_nonfinite(Backend *b) {
    float *x = normals(2, 1);
    uint16_t *half = malloc(sizeof *half * COUNT);
    const int at[] = {COUNT - 1, 65537, 20000, 16384, 130, 17, 0}; // each before the last
    x[5] = FLT_MAX, x[6] = -FLT_MIN / 4, x[7] = 0;
    b->convert(b, half, BF16, x, F32, COUNT);
    half[5] = 0x7f7f; // the largest: rounding f32's gives Inf
    assert_int_equal(b->first_nonfinite(b, x, COUNT, F32), -1);
    assert_int_equal(b->first_nonfinite(b, half, COUNT, BF16), -1);
    assert_int_equal(b->first_nonfinite(b, x, 0, F32), -1);
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        x[at[i]] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
        half[at[i]] = f32_to_bf16(x[at[i]]);
        assert_int_equal(b->first_nonfinite(b, x, COUNT, F32), at[i]);
        assert_int_equal(b->first_nonfinite(b, half, COUNT, BF16), at[i]);
    }
    free(x), free(half);
}
static void first_nonfinite_is_the_first(void **state) {
    (void)state;
    on_each_backend(run_first_nonfinite);
}

static void run_sums(Backend *b) {
    enum { BLOCK = COUNT / 3 };
    float *x = normals(3, 1);
    uint16_t *half = malloc(sizeof *half * COUNT);
    b->convert(b, half, BF16, x, F32, COUNT);
    double sum = 0, half_sum = 0, squares[3] = {0}, blocks[3];
    for (int i = 0; i < COUNT; i++) sum += (double)x[i], half_sum += (double)bf16_to_f32(half[i]);
    for (int i = 0; i < 3 * BLOCK; i++) squares[i / BLOCK] += (double)x[i] * (double)x[i];
    float got;
    b->sum_into(b, &got, x, COUNT, 0.5, F32);
    expect_near((double)got, 0.5 * sum, 1e-7 * fabs(sum));
    b->sum_into(b, &got, half, COUNT, 1, BF16);
    expect_near((double)got, half_sum, 1e-7 * fabs(half_sum));
    b->block_squares(b, blocks, x, 3, BLOCK);
    for (int i = 0; i < 3; i++) expect_near(blocks[i], squares[i], 1e-12 * squares[i]);
    x[BLOCK] = NAN;
    b->block_squares(b, blocks, x, 3, BLOCK);
    assert_true(isfinite(blocks[0]) && isnan(blocks[1]) && isfinite(blocks[2]));
    free(x), free(half);
}
static void sums_are_as_exact_as_double(void **state) {
    (void)state;
    on_each_backend(run_sums);
}

// ---- conversions, copies, fills ----

static void run_convert(Backend *b) {
    float x[] = {0,      -0.0f,    1,         -1,  1.00390625f, 1.01171875f, 3.4e38f, FLT_MAX, FLT_MIN, FLT_MIN / 3,
                 1e-44f, INFINITY, -INFINITY, NAN, -NAN,        0.1f,        65504,   1e-38f,  1.5f};
    enum { N = sizeof x / sizeof *x };
    uint32_t quiet_later = 0x7f800001; // a NaN whose upper half alone would read as Inf
    memcpy(&x[18], &quiet_later, 4);
    uint16_t half[N];
    float back[N];
    b->convert(b, half, BF16, x, F32, N);
    for (int i = 0; i < N; i++) assert_int_equal(half[i], f32_to_bf16(x[i]));
    b->convert(b, back, F32, half, BF16, N);
    for (int i = 0; i < N; i++) {
        float want = bf16_to_f32(half[i]);
        assert_memory_equal(&back[i], &want, sizeof want);
    }
}
static void conversion_has_the_same_bits_everywhere(void **state) {
    (void)state;
    on_each_backend(run_convert);
}

static void run_fill_and_add(Backend *b) {
    float x[37], value = 3, more[37];
    uint16_t half[37];
    b->fill(b, x, &value, 0.5, 37, F32, false);
    b->fill(b, x, &value, 2, 37, F32, true);
    b->fill(b, half, &value, 1, 37, BF16, false);
    for (int i = 0; i < 37; i++) more[i] = (float)i;
    b->add_in_place(b, x, half, 37, F32, BF16);
    b->add_in_place(b, half, more, 37, BF16, F32);
    for (int i = 0; i < 37; i++) {
        expect_near((double)x[i], 10.5, 0);
        expect_near((double)bf16_to_f32(half[i]), 3 + i, 0);
    }
}
static void fills_and_sums_in_place_mix_types(void **state) {
    (void)state;
    on_each_backend(run_fill_and_add);
}

// ---- dropout ----

// A part of a tensor, told where it begins, has the mask of the whole: no layout changes the draw.
static void run_dropout(Backend *b) {
    float *x = malloc(sizeof *x * COUNT), *whole = malloc(sizeof *x * COUNT), *parts = malloc(sizeof *x * COUNT);
    for (int i = 0; i < COUNT; i++) x[i] = 1;
    b->dropout(b, whole, x, COUNT, &(DropoutDraws){0.3, 11, 4, 1000, NULL, 0}, F32, false);
    for (int first = 0, size = 1; first < COUNT; first += size, size = size * 3 + 2) {
        if (first + size > COUNT) size = COUNT - first;
        DropoutDraws draws = {0.3, 11, 4, 1000 + (uint64_t)first, NULL, 0};
        b->dropout(b, parts + first, x + first, size, &draws, F32, false);
    }
    assert_memory_equal(parts, whole, sizeof *x * COUNT);
    Rng rng = rng_for(11, PURPOSE_DROPOUT, 4);
    int kept = 0;
    for (int i = 0; i < 1000; i++) rng_u32(&rng);
    for (int i = 0; i < COUNT; i++) {
        bool keep = rng_u32(&rng) >= (uint32_t)(0.3 * 4294967296.0);
        assert_int_equal(whole[i] != 0, keep);
        kept += keep;
    }
    expect_near(kept / (double)COUNT, 0.7, 0.01);
    free(x), free(whole), free(parts);
}
static void dropout_does_not_depend_on_the_layout(void **state) {
    (void)state;
    on_each_backend(run_dropout);
}

// Rows with numbers have the masks of those rows in the whole, and so has a share that begins and ends inside rows.
static void run_dropout_of_numbered_rows(Backend *b) {
    enum { ROW = 1003, ROWS = 5, FIRST = 700, SHARE = 3 * ROW };
    const int32_t numbers[ROWS] = {3, 4, 60, 0, 17};
    float *x = malloc(sizeof *x * COUNT), *whole = malloc(sizeof *x * COUNT), rows[SHARE];
    for (int i = 0; i < COUNT; i++) x[i] = 1;
    b->dropout(b, whole, x, COUNT, &(DropoutDraws){0.3, 11, 4, 0, NULL, 0}, F32, false);
    b->dropout(b, rows, x, SHARE, &(DropoutDraws){0.3, 11, 4, FIRST, numbers, ROW}, F32, false);
    for (int i = 0; i < SHARE; i++) {
        int e = FIRST + i;
        assert_true(rows[i] == whole[numbers[e / ROW] * ROW + e % ROW]);
    }
    free(x), free(whole);
}
static void dropout_of_numbered_rows_is_that_of_the_rows_in_the_whole(void **state) {
    (void)state;
    on_each_backend(run_dropout_of_numbered_rows);
}

// ---- functions at their limits ----

static double silu_of(double x) { return x / (1 + exp(-x)); }

static void run_limits(Backend *b) {
    const double x[] = {0,  -0.0, 1e-30, -1e-30, 1e-6, 0.5, -0.5, 3,    -3,   12,   -12,
                        40, -40,  88,    -88,    95,   -95, 1e4,  -1e4, 1e18, -1e18};
    enum { N = sizeof x / sizeof *x };
    float in[N], out[N];
    for (int i = 0; i < N; i++) in[i] = (float)x[i];
    b->silu_forward(b, out, in, N, F32);
    for (int i = 0; i < N; i++)
        expect_near((double)out[i], silu_of((double)in[i]), 4e-7 * fabs(silu_of((double)in[i])) + 1e-37);
    b->gelu_forward(b, out, in, N, GELU_ERF, F32);
    for (int i = 0; i < N; i++) {
        double want = (double)in[i] * 0.5 * erfc(-(double)in[i] * sqrt(0.5)),
               exponent = (double)in[i] * (double)in[i] / 2;
        expect_near((double)out[i], want, fabs(want) * (4e-7 + (exponent < 100 ? exponent * 1.2e-7 : 1)) + 1e-37);
    }
}
static void activations_are_exact_in_the_tails(void **state) {
    (void)state;
    on_each_backend(run_limits);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_agrees_with_double_and_writes_the_shadow),
        cmocka_unit_test(adamw_does_not_hide_a_bad_gradient),
        cmocka_unit_test(adamw_of_many_parts_has_the_bits_of_each_alone),
        cmocka_unit_test(first_nonfinite_is_the_first),
        cmocka_unit_test(sums_are_as_exact_as_double),
        cmocka_unit_test(conversion_has_the_same_bits_everywhere),
        cmocka_unit_test(fills_and_sums_in_place_mix_types),
        cmocka_unit_test(dropout_does_not_depend_on_the_layout),
        cmocka_unit_test(dropout_of_numbered_rows_is_that_of_the_rows_in_the_whole),
        cmocka_unit_test(activations_are_exact_in_the_tails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
