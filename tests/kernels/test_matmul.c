/* Matrix products and column sums of the CPU backend against sums in double, on every instruction set of this machine.
 */
#include "kernels/cpu/cpu.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const ISA[] = {"plain", "avx2", "avx512", "avx512-bf16"};
enum { ISA_COUNT = 4, GUARD = 5 }; // GUARD: columns between the rows of C that must stay as they are

typedef struct Shape {
    int64_t m, n, k, batch;
    bool a_transposed, b_transposed, bias, add;
    Dtype in, out;
} Shape;

typedef struct Case {
    Matmul p;
    void *a, *b, *c, *before; // c before the product
    float *bias;
    int64_t a_count, b_count, c_count;
} Case;

static double value_at(const void *x, int64_t i, Dtype t) {
    return t == F32 ? (double)((const float *)x)[i] : (double)bf16_to_f32(((const uint16_t *)x)[i]);
}

static void set_value(void *x, int64_t i, Dtype t, float v) {
    if (t == F32)
        ((float *)x)[i] = v;
    else
        ((uint16_t *)x)[i] = f32_to_bf16(v);
}

// Uniform in (-1, 1). A short generator, since the numbers of a run are many.
static void *random_array(uint64_t *state, int64_t count, Dtype t) {
    if (count < 0) count = 0;
    void *x = malloc((size_t)count * dtype_size(t) + 1);
    for (int64_t i = 0; i < count; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        set_value(x, i, t, (float)((double)(int64_t)*state * 0x1p-63));
    }
    return x;
}

// Leading dimensions are wider than the rows, so that a kernel that confuses the two is found. Exactly as many elements
// as the last row needs are allocated: the address sanitizer sees every read past the end.
static Case case_new(const Shape *s, uint64_t seed) {
    uint64_t rng = seed + 1;
    Case c = {0};
    int64_t a_lines = s->a_transposed ? s->k : s->m, a_width = s->a_transposed ? s->m : s->k;
    int64_t b_lines = s->b_transposed ? s->n : s->k, b_width = s->b_transposed ? s->k : s->n;
    int64_t a_step = a_width + 3, b_step = b_width + 1, c_step = s->n + GUARD;
    c.a_count = (s->batch * a_lines - 1) * a_step + a_width;
    c.b_count = (s->batch * b_lines - 1) * b_step + b_width;
    c.c_count = s->batch * s->m * c_step;
    c.a = random_array(&rng, c.a_count, s->in);
    c.b = random_array(&rng, c.b_count, s->in);
    c.c = random_array(&rng, c.c_count, s->out);
    c.before = malloc((size_t)c.c_count * dtype_size(s->out) + 1);
    memcpy(c.before, c.c, (size_t)c.c_count * dtype_size(s->out));
    c.bias = s->bias ? random_array(&rng, s->n, F32) : NULL;
    c.p = (Matmul){.m = s->m, .n = s->n, .k = s->k, .batch = s->batch, .a = c.a, .b = c.b, .c = c.c, .bias = c.bias};
    c.p.a_row = s->a_transposed ? 1 : a_step, c.p.a_column = s->a_transposed ? a_step : 1;
    c.p.b_row = s->b_transposed ? 1 : b_step, c.p.b_column = s->b_transposed ? b_step : 1;
    c.p.c_row = c_step;
    c.p.a_batch = a_lines * a_step, c.p.b_batch = b_lines * b_step, c.p.c_batch = s->m * c_step;
    c.p.in = s->in, c.p.out = s->out, c.p.add = s->add;
    return c;
}

static void case_free(Case *c) {
    free(c->a);
    free(c->b);
    free(c->c);
    free(c->before);
    free(c->bias);
}

static void restore(Case *c) { memcpy(c->c, c->before, (size_t)c->c_count * dtype_size(c->p.out)); }

// The result of a product must lie this close to the sum in double: rounding of at most k partial sums, and of bf16.
static bool close_enough(double got, double want, double magnitude, int64_t k, Dtype out) {
    double f32 = (4 + sqrt((double)k)) * 0x1p-23 * magnitude;
    double tolerance = f32 + (out == BF16 ? 0x1p-8 * (fabs(want) + f32) : 0) + 1e-37;
    return fabs(got - want) <= tolerance;
}

static void check_element(const Case *c, int64_t z, int64_t m, int64_t n, const char *isa) {
    const Matmul *p = &c->p;
    int64_t at = z * p->c_batch + m * p->c_row + n;
    double sum = p->bias ? (double)p->bias[n] : 0, magnitude = fabs(sum);
    for (int64_t k = 0; k < p->k; k++) {
        double v = value_at(p->a, z * p->a_batch + m * p->a_row + k * p->a_column, p->in) *
                   value_at(p->b, z * p->b_batch + k * p->b_row + n * p->b_column, p->in);
        sum += v;
        magnitude += fabs(v);
    }
    if (p->add) sum += value_at(c->before, at, p->out), magnitude += fabs(value_at(c->before, at, p->out));
    double got = value_at(p->c, at, p->out);
    if (!close_enough(got, sum, magnitude, p->k, p->out))
        fail_msg("%s: C[%d][%d][%d] is %.9g, should be %.9g (M %d N %d K %d, A %s, B %s, %s -> %s)", isa, (int)z,
                 (int)m, (int)n, got, sum, (int)p->m, (int)p->n, (int)p->k, p->a_row == 1 ? "transposed" : "plain",
                 p->b_row == 1 ? "transposed" : "plain", p->in == F32 ? "f32" : "bf16", p->out == F32 ? "f32" : "bf16");
}

static void check_case(const Case *c, const char *isa) {
    const Matmul *p = &c->p;
    int64_t step = p->m * p->n * p->k > 1000000 ? 29 : 1; // large ones in part
    for (int64_t z = 0; z < p->batch; z++) {
        for (int64_t m = 0; m < p->m; m++) {
            for (int64_t n = m % step; n < p->n; n += step) check_element(c, z, m, n, isa);
            int64_t at = z * p->c_batch + m * p->c_row + p->n;
            for (int64_t i = at; i < at + GUARD; i++)
                assert_true(value_at(p->c, i, p->out) == value_at(c->before, i, p->out));
        }
    }
}

static void check_shape(Backend *b, const Shape *s, uint64_t seed) {
    Case c = case_new(s, seed);
    b->matmul(b, &c.p);
    check_case(&c, b->isa);
    case_free(&c);
}

static const Dtype TYPES[][2] = {{F32, F32}, {BF16, F32}, {BF16, BF16}};
enum { TYPE_PAIRS = 3 };

// Every order, type, bias and sum of one size.
static void check_size(Backend *b, int64_t m, int64_t n, int64_t k, int64_t batch) {
    for (int i = 0; i < 16 * TYPE_PAIRS; i++) {
        const Dtype *t = TYPES[i / 16];
        Shape s = {m, n, k, batch, i & 1, i & 2, i & 4, i & 8, t[0], t[1]};
        check_shape(b, &s, (uint64_t)i);
    }
}

static void products_of_all_orders_and_odd_sizes_agree_with_double(void **state) {
    (void)state;
    static const int64_t SIZES[][4] = {{1, 1, 1, 1},    {1, 65, 33, 1},  {3, 16, 7, 2},   {14, 32, 64, 1},
                                       {15, 33, 1, 3},  {27, 31, 17, 1}, {64, 64, 32, 5}, {100, 130, 97, 1},
                                       {13, 100, 2, 1}, {5, 3, 0, 1},    {57, 1, 50, 1}};
    for (int i = 0; i < ISA_COUNT; i++) {
        if (!cpu_has_isa(ISA[i])) continue;
        Backend *b = cpu_backend_new(2, ISA[i], NULL);
        for (size_t k = 0; k < sizeof SIZES / sizeof *SIZES; k++)
            check_size(b, SIZES[k][0], SIZES[k][1], SIZES[k][2], SIZES[k][3]);
        backend_free(b);
    }
}

// Several chunks of the inner dimension, several blocks of rows and columns, strides that alias in the cache.
static void large_products_agree_with_double(void **state) {
    (void)state;
    for (int i = 0; i < ISA_COUNT; i++) {
        if (!cpu_has_isa(ISA[i])) continue;
        Backend *b = cpu_backend_new(2, ISA[i], NULL);
        for (int k = 0; k < 4 * TYPE_PAIRS; k++) {
            const Dtype *t = TYPES[k / 4];
            Shape deep = {40, 70, 4001, 1, k & 1, k & 2, true, true, t[0], t[1]};
            Shape wide = {300, 700, 90, 1, k & 1, k & 2, true, false, t[0], t[1]};
            Shape alias = {90, 65, 1021, 1, k & 1, k & 2, false, false, t[0], t[1]}; // rows of 1024 elements
            Shape tall = {1021, 40, 1600, 1, k & 1, k & 2, false, true, t[0], t[1]};
            check_shape(b, &deep, 1);
            check_shape(b, &wide, 2);
            check_shape(b, &alias, 3);
            check_shape(b, &tall, 4);
        }
        backend_free(b);
    }
}

static void bits_do_not_depend_on_the_number_of_threads(void **state) {
    (void)state;
    static const int64_t SIZES[][4] = {{200, 300, 1700, 1}, {64, 64, 32, 24}, {7, 1000, 900, 1}, {1000, 40, 801, 1}};
    for (int i = 0; i < ISA_COUNT * TYPE_PAIRS * 16; i++) {
        const char *isa = ISA[i / (TYPE_PAIRS * 16)];
        if (!cpu_has_isa(isa)) continue;
        const Dtype *t = TYPES[i / 16 % TYPE_PAIRS];
        const int64_t *z = SIZES[i / 4 % 4];
        Shape s = {z[0], z[1], z[2], z[3], i & 1, i & 2, true, true, t[0], t[1]};
        Case c = case_new(&s, 9);
        size_t bytes = (size_t)c.c_count * dtype_size(s.out);
        void *first = malloc(bytes);
        for (int threads = 1; threads <= 4; threads *= 2) {
            Backend *b = cpu_backend_new(threads, isa, NULL);
            restore(&c);
            b->matmul(b, &c.p);
            if (threads == 1) memcpy(first, c.c, bytes);
            assert_memory_equal(first, c.c, bytes);
            backend_free(b);
        }
        free(first);
        case_free(&c);
    }
}

static void nan_and_infinity_reach_exactly_their_row_or_column(void **state) {
    (void)state;
    for (int i = 0; i < ISA_COUNT * TYPE_PAIRS * 4; i++) {
        const char *isa = ISA[i / (TYPE_PAIRS * 4)];
        if (!cpu_has_isa(isa)) continue;
        const Dtype *t = TYPES[i / 4 % TYPE_PAIRS];
        Shape s = {33, 45, 21, 1, i & 1, i & 2, false, false, t[0], t[1]};
        Case c = case_new(&s, 5);
        set_value(c.a, 16 * c.p.a_row + 20 * c.p.a_column, s.in, NAN);
        set_value(c.b, 20 * c.p.b_row + 44 * c.p.b_column, s.in, INFINITY);
        Backend *b = cpu_backend_new(2, isa, NULL);
        b->matmul(b, &c.p);
        for (int64_t m = 0; m < s.m; m++) {
            for (int64_t n = 0; n < s.n; n++) {
                double v = value_at(c.c, m * c.p.c_row + n, s.out);
                if (m == 16)
                    assert_true(isnan(v));
                else if (n == 44)
                    assert_true(isinf(v));
                else
                    assert_true(isfinite(v));
            }
        }
        backend_free(b);
        case_free(&c);
    }
}

static void column_sums_agree_with_double_on_any_number_of_threads(void **state) {
    (void)state;
    enum { ROWS = 1000, WIDTH = 301 };
    uint64_t rng = 7;
    float *start = random_array(&rng, WIDTH, F32), first[WIDTH], out[WIDTH];
    for (int i = 0; i < ISA_COUNT * 2; i++) {
        if (!cpu_has_isa(ISA[i / 2])) continue;
        Dtype t = i & 1 ? BF16 : F32;
        void *x = random_array(&rng, ROWS * WIDTH, t);
        for (int threads = 1; threads <= 4; threads *= 2) {
            Backend *b = cpu_backend_new(threads, ISA[i / 2], NULL);
            memcpy(out, start, sizeof out);
            b->sum_columns(b, out, x, ROWS, WIDTH, t, true);
            if (threads == 1) memcpy(first, out, sizeof out);
            assert_memory_equal(first, out, sizeof out);
            backend_free(b);
        }
        for (int c = 0; c < WIDTH; c++) {
            double sum = (double)start[c];
            for (int r = 0; r < ROWS; r++) sum += value_at(x, r * WIDTH + c, t);
            assert_true(close_enough((double)out[c], sum, ROWS, ROWS, F32));
        }
        free(x);
    }
    free(start);
}

static void onednn_agrees_with_double_too(void **state) {
    (void)state;
    assert_int_equal(setenv("BIFOCAL_MATMUL", "onednn", 1), 0);
    Backend *b = cpu_backend_new(2, NULL, NULL);
    assert_int_equal(unsetenv("BIFOCAL_MATMUL"), 0);
    bool has = ((CpuState *)b->state)->onednn != NULL;
    for (int i = 0; has && i < 2; i++) { // the second time from its cache
        check_size(b, 33, 65, 47, 3);
        check_size(b, 1, 9, 0, 1);
    }
    backend_free(b);
    if (!has) skip();
}

static void an_unknown_instruction_set_falls_back_to_the_best(void **state) {
    (void)state;
    Backend *best = cpu_backend_new(1, NULL, NULL), *other = cpu_backend_new(1, "avx9000", NULL);
    Backend *plain = cpu_backend_new(1, "plain", NULL);
    assert_string_equal(best->isa, other->isa);
    assert_string_equal(plain->isa, "plain");
    assert_false(cpu_has_isa("avx9000"));
    backend_free(best);
    backend_free(other);
    backend_free(plain);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_all_orders_and_odd_sizes_agree_with_double),
        cmocka_unit_test(large_products_agree_with_double),
        cmocka_unit_test(bits_do_not_depend_on_the_number_of_threads),
        cmocka_unit_test(nan_and_infinity_reach_exactly_their_row_or_column),
        cmocka_unit_test(column_sums_agree_with_double_on_any_number_of_threads),
        cmocka_unit_test(onednn_agrees_with_double_too),
        cmocka_unit_test(an_unknown_instruction_set_falls_back_to_the_best),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
