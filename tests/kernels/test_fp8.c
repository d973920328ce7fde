/* Numbers of eight bits against the formats' definition, how scales follow a tensor, and linear maps in fp8. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/tensor_parallel.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- the formats, from their definition ----

typedef struct Format {
    Fp8Kind kind;
    int exponent_bits, mantissa_bits, bias;
    double largest;
} Format;

static const Format formats[] = {{FP8_E4M3, 4, 3, 7, 448}, {FP8_E5M2, 5, 2, 15, 57344}};

// NAN and INFINITY where the code means them.
static double value_of(const Format *f, int code) {
    int exponent = code >> f->mantissa_bits & ((1 << f->exponent_bits) - 1),
        rest = code & ((1 << f->mantissa_bits) - 1);
    double sign = code & 0x80 ? -1 : 1, fraction = rest / (double)(1 << f->mantissa_bits);
    bool top = exponent == (1 << f->exponent_bits) - 1;
    if (f->kind == FP8_E4M3 && top && rest == 7) return NAN;
    if (f->kind == FP8_E5M2 && top) return rest ? NAN : sign * INFINITY;
    return exponent ? sign * pow(2, exponent - f->bias) * (1 + fraction) : sign * pow(2, 1 - f->bias) * fraction;
}

// The finite code nearest to x; of two as near the even one.
static int nearest(const Format *f, double x) {
    int best = -1;
    double distance = INFINITY;
    for (int code = 0; code < 128; code++) {
        double value = value_of(f, code), off = fabs(fabs(x) - value);
        if (!isfinite(value)) continue;
        if (off < distance || (off == distance && code % 2 == 0)) best = code, distance = off;
    }
    return best | (signbit(x) ? 0x80 : 0);
}

static void every_code_is_the_number_of_its_definition(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        const Format *f = &formats[i];
        double largest = 0;
        for (int code = 0; code < 256; code++) {
            double want = value_of(f, code), got = (double)fp8_decode((uint8_t)code, f->kind);
            assert_true(isnan(want) ? isnan(got) : got == want && signbit(got) == signbit(want));
            if (isfinite(want)) assert_int_equal(fp8_encode((float)want, f->kind), code);
            if (isfinite(want) && want > largest) largest = want;
        }
        assert_true(largest == f->largest);
    }
}

static void numbers_become_the_nearest_codes(void **state) {
    (void)state;
    enum { COUNT = 200000 };
    Rng rng = rng_for(1, PURPOSE_TEST, 0);
    for (int i = 0; i < 2; i++) {
        const Format *f = &formats[i];
        for (int n = 0; n < COUNT; n++) {
            float x = (float)(rng_normal(&rng) * pow(2, 40 * rng_uniform(&rng) - 22));
            if (n % 4 == 0) { // half way between two codes
                int code = (int)(rng_uniform(&rng) * (f->kind == FP8_E4M3 ? 0x7e : 0x7b));
                x = (float)((value_of(f, code) + value_of(f, code + 1)) / 2);
            }
            assert_int_equal(fp8_encode(x, f->kind), nearest(f, (double)x));
        }
        assert_int_equal(fp8_encode(INFINITY, f->kind), nearest(f, f->largest));
        assert_int_equal(fp8_encode(-3e38F, f->kind), nearest(f, -f->largest));
        assert_true(isnan(fp8_decode(fp8_encode(NAN, f->kind), f->kind)));
        assert_int_equal(fp8_encode(1e-44F, f->kind), 0);
    }
}

static void scales_are_powers_of_two_that_fill_the_range(void **state) {
    (void)state;
    Rng rng = rng_for(2, PURPOSE_TEST, 0);
    for (int n = 0; n < 10000; n++) {
        const Format *f = &formats[n % 2];
        float most = (float)pow(2, 60 * rng_uniform(&rng) - 30), scale = fp8_scale(most, f->kind, 0, 1);
        int exponent;
        assert_true(frexpf(scale, &exponent) == 0.5F);
        assert_true((double)most * (double)scale <= f->largest && (double)most * (double)scale * 2 > f->largest);
        assert_true(fp8_scale(most, f->kind, 2, 1) == scale / 4);
    }
    assert_true(fp8_scale(448, FP8_E4M3, 0, 3) == 1);
    assert_true(fp8_scale(0, FP8_E4M3, 0, 8) == 8 && fp8_scale(NAN, FP8_E4M3, 0, 8) == 8);
    assert_true(fp8_scale(INFINITY, FP8_E5M2, 0, 8) == 8 && isfinite(fp8_scale(1e-45F, FP8_E5M2, 0, 8)));
}

static void a_scale_goes_by_the_largest_number_of_sixteen_steps(void **state) {
    (void)state;
    Fp8Scaling s = {.scale = 1, .inverse = 1};
    fp8_advance(&s, 100, FP8_E4M3, 0);
    assert_true(s.scale == 4 && s.inverse == 0.25F);
    for (int step = 0; step < FP8_HISTORY - 1; step++) {
        fp8_advance(&s, 1, FP8_E4M3, 0);
        assert_true(s.scale == 4);
    }
    fp8_advance(&s, 1, FP8_E4M3, 0);
    assert_true(s.scale == 256); // 100 is forgotten
    fp8_advance(&s, NAN, FP8_E4M3, 0);
    assert_true(s.scale == 256); // a step that went wrong says nothing
}

// ---- linear maps ----

enum { ROWS = 32, IN = 48, OUT = 16 };

typedef struct Map {
    Backend *backend;
    Tape *tape;
    Fp8Scaling scaling[FP8_SIDES];
    float most[FP8_SIDES], dw[OUT * IN];
    uint16_t weight_data[OUT * IN];
    Tensor weight, *x, *y;
} Map;

static void draw(Rng *rng, uint16_t *x, int count, double deviation) {
    for (int i = 0; i < count; i++) x[i] = f32_to_bf16((float)(deviation * rng_normal(rng)));
}

// y = x W^T and its gradients for a gradient of y of ones.
static void run_map(Map *m, bool fp8) {
    Rng rng = rng_for(3, PURPOSE_TEST, 0);
    uint16_t x[ROWS * IN], ones[ROWS * OUT];
    draw(&rng, x, ROWS * IN, 3);
    draw(&rng, m->weight_data, OUT * IN, 0.02);
    draw(&rng, ones, ROWS * OUT, 1e-4);
    for (int i = 0; i < FP8_SIDES; i++) m->most[i] = 0;
    m->backend = cpu_backend_new(1, NULL, NULL);
    m->tape = tape_new(m->backend, true);
    m->weight = (Tensor){.data = m->weight_data,
                         .grad = m->dw,
                         .shape = {OUT, IN},
                         .rank = 2,
                         .dtype = BF16,
                         .is_parameter = true,
                         .needs_grad = true,
                         .scaling = fp8 ? m->scaling : NULL,
                         .most = fp8 ? m->most : NULL};
    m->x = tape_arrival(m->tape, BF16, SHAPE(ROWS, IN), x, true);
    m->y = linear(m->tape, m->x, &m->weight, NULL);
    assert_non_null(m->y);
    tape_backward_from(m->tape, m->y, ones, ALL_GRADIENTS);
}

static void map_free(Map *m) {
    tape_free(m->tape);
    backend_free(m->backend);
}

static void linear_maps_in_fp8_are_near_those_in_bf16_once_scales_are_found(void **state) {
    (void)state;
    static Map fp8, bf16;
    static uint16_t got[ROWS * IN], want[ROWS * IN];
    for (int i = 0; i < FP8_SIDES; i++) fp8.scaling[i] = (Fp8Scaling){.scale = 1, .inverse = 1};
    run_map(&fp8, true); // finds out how large numbers are
    assert_true(fp8.most[0] > 6 && fp8.most[0] < 20 && fp8.most[1] > 0.04F && fp8.most[2] > 2e-4F &&
                fp8.most[2] < 1e-3F);
    fp8.backend->fp8_advance(fp8.backend, fp8.scaling, fp8.most, 0);
    assert_true(fp8.most[0] == 0 && fp8.scaling[2].scale > 1e6F);
    map_free(&fp8);
    run_map(&fp8, true);
    run_map(&bf16, false);
    double error = 0, size = 0;
    for (int i = 0; i < OUT * IN; i++)
        error += pow((double)(fp8.dw[i] - bf16.dw[i]), 2), size += pow((double)bf16.dw[i], 2);
    assert_true(error > 0 && error < 0.06 * 0.06 * size); // steps of 1/8 and 1/4 between neighbours
    tape_read_gradient(fp8.tape, fp8.x, got);
    tape_read_gradient(bf16.tape, bf16.x, want);
    for (int i = 0; i < ROWS * IN; i++)
        error += pow((double)(bf16_to_f32(got[i]) - bf16_to_f32(want[i])), 2),
            size += pow((double)bf16_to_f32(want[i]), 2);
    assert_true(error < 0.06 * 0.06 * size);
    map_free(&fp8);
    map_free(&bf16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_is_the_number_of_its_definition),
        cmocka_unit_test(numbers_become_the_nearest_codes),
        cmocka_unit_test(scales_are_powers_of_two_that_fill_the_range),
        cmocka_unit_test(a_scale_goes_by_the_largest_number_of_sixteen_steps),
        cmocka_unit_test(linear_maps_in_fp8_are_near_those_in_bf16_once_scales_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
