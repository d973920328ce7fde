/* The functions of simd/vec.h, as this file's own instruction set compiles them, against the C library in double. */
#include "kernels/cpu/simd/vec.h"
#include "base/philox.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

typedef Vec Function(Vec);

static float at(Function *f, float x) {
    Vec y = f(vec_set(x));
    for (int i = 1; i < LANES; i++) assert_memory_equal(&(float){y[0]}, &(float){y[i]}, sizeof(float));
    return y[0];
}

// The distance in units of the last place of `want` as f32.
static double ulps(float got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1, exponent < -125 ? -149 : exponent - 24);
}

static void check_range(Function *f, double (*want)(double), double low, double high, double limit) {
    Rng rng = rng_for(9, PURPOSE_TEST, 0);
    for (int i = 0; i < 200000; i++) {
        float x = (float)(low + (high - low) * rng_uniform(&rng));
        double error = ulps(at(f, x), want((double)x));
        if (!(error <= limit)) fail_msg("%.3f ulp at %.9g", error, (double)x);
    }
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double normal_distribution(double x) { return 0.5 * erfc(-x * sqrt(0.5)); }
static Vec normal_distribution_alone(Vec x) {
    Vec density;
    return vec_normal_distribution(x, &density);
}

static void exp_is_within_two_ulp(void **state) {
    (void)state;
    check_range(vec_exp, exp, -87, 88.7, 2);
    check_range(vec_exp, exp, -1, 1, 2);
    check_range(vec_exp, exp, -103, -87, 2); // subnormal results
}
static void log_is_within_two_ulp(void **state) {
    (void)state;
    check_range(vec_log, log, 0, 10, 2);
    check_range(vec_log, log, 0.9, 1.1, 2);
    check_range(vec_log, log, 0, 3e38, 2);
    check_range(vec_log, log, 0, 1e-38, 2);
}
static void log1p_is_within_three_ulp(void **state) {
    (void)state;
    check_range(vec_log1p, log1p, 0, 1, 3);
    check_range(vec_log1p, log1p, 0, 1e-3, 3);
    check_range(vec_log1p, log1p, 0, 1e9, 3);
}
static void sigmoid_is_within_three_ulp(void **state) {
    (void)state;
    check_range(vec_sigmoid, sigmoid, -80, 30, 3);
}
// In the tail as far as the square in the exponent allows.
static void normal_distribution_is_within_2e_7(void **state) {
    (void)state;
    check_range(normal_distribution_alone, normal_distribution, -1, 6, 8);
    check_range(normal_distribution_alone, normal_distribution, -4, -1, 16);
}

static void limits_are_those_of_the_library(void **state) {
    (void)state;
    assert_true(at(vec_exp, 0) == 1 && at(vec_exp, INFINITY) == INFINITY && at(vec_exp, -INFINITY) == 0);
    assert_true(at(vec_exp, 89) == INFINITY && at(vec_exp, -104) == 0 && isnan(at(vec_exp, NAN)));
    assert_true(at(vec_log, 1) == 0 && at(vec_log, 0) == -INFINITY && at(vec_log, INFINITY) == INFINITY);
    assert_true(isnan(at(vec_log, -1)) && isnan(at(vec_log, NAN)) && isnan(at(vec_log, -INFINITY)));
    assert_true(at(vec_log1p, 0) == 0 && at(vec_log1p, INFINITY) == INFINITY && isnan(at(vec_log1p, NAN)));
    assert_true(at(vec_sigmoid, INFINITY) == 1 && at(vec_sigmoid, -INFINITY) == 0 && isnan(at(vec_sigmoid, NAN)));
    assert_true(at(normal_distribution_alone, INFINITY) == 1 && at(normal_distribution_alone, -INFINITY) == 0);
    assert_true(isnan(at(normal_distribution_alone, NAN)));
}

static void sine_and_cosine_turn_through_all_quarters(void **state) {
    (void)state;
    for (int i = -4000; i <= 4000; i++) {
        double angle = i * 0.01, quarters = rint(angle / acos(0)), rest = angle - quarters * acos(0);
        Vec sine, cosine;
        VecI quarter = (VecI){0} + (int32_t)quarters;
        vec_sincos_reduced(vec_set((float)rest), quarter, &sine, &cosine);
        assert_true(fabs((double)sine[0] - sin(angle)) < 1.5e-7 && fabs((double)cosine[0] - cos(angle)) < 1.5e-7);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_two_ulp),
        cmocka_unit_test(log_is_within_two_ulp),
        cmocka_unit_test(log1p_is_within_three_ulp),
        cmocka_unit_test(sigmoid_is_within_three_ulp),
        cmocka_unit_test(normal_distribution_is_within_2e_7),
        cmocka_unit_test(limits_are_those_of_the_library),
        cmocka_unit_test(sine_and_cosine_turn_through_all_quarters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
