/* The formulas of a training's size against the figures that papers published. */
#include "train/estimate.h"
#include "tests/support/test.h"
#include <math.h>

static const double DAY = 86400, YEAR = 365.25 * 86400, TERA = 1e12;

// Equal to the last digit of what was published, which is a multiple of `digit`.
static void assert_published(double got, double want, double digit) {
    if (!(fabs(got - want) <= 0.5000001 * digit)) fail_msg("%.10g is not the published %g", got, want);
}

static TextSizes gpt(double layers, double width) {
    return (TextSizes){.layers = layers, .width = width, .vocabulary = 51200, .context = 2048};
}

static const struct {
    double width, layers, gpus, batch, flops; // FLOP/s of a GPU
    double parameters;
} megatron[] = {{2304, 24, 32, 512, 137 * 1e12, 1.7e9},
                {4096, 36, 128, 512, 142 * 1e12, 7.5e9},
                {8192, 48, 512, 1536, 138 * 1e12, 39.1e9},
                {12288, 80, 1536, 2304, 148 * 1e12, 145.6e9},
                {25600, 128, 3072, 3072, 163 * 1e12, 1008.0e9}};

static void parameters_are_those_of_megatrons_table(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof megatron / sizeof *megatron; i++) {
        TextSizes t = gpt(megatron[i].layers, megatron[i].width);
        assert_published(estimate_parameters(&t), megatron[i].parameters, 0.1e9);
    }
}

static void an_iteration_of_the_largest_takes_102_seconds(void **state) {
    (void)state;
    TextSizes t = gpt(128, 25600);
    assert_published(estimate_hardware_flop(&t, 3072, RECOMPUTE_FULL) / (502e3 * TERA), 102.4, 0.1);
    TextSizes third = gpt(96, 12288);
    assert_published(estimate_hardware_flop(&third, 1536, RECOMPUTE_FULL) / (1024 * 138 * TERA), 31.9, 0.1);
}

static void whole_trainings_take_the_published_days(void **state) {
    (void)state;
    double gpt3 = 175e9, tokens = 300e9;
    assert_published(estimate_seconds(gpt3, tokens, RECOMPUTE_FULL, 1024, 140 * TERA) / DAY, 33.9, 0.1);
    assert_published(estimate_seconds(gpt3, tokens, RECOMPUTE_NONE, 1024, 140 * TERA) / DAY, 25.4, 0.1);
    TextSizes largest = gpt(128, 25600);
    double parameters = estimate_parameters(&largest);
    assert_published(estimate_seconds(parameters, 450e9, RECOMPUTE_FULL, 3072, 163 * TERA) / DAY, 83.9, 0.1);
    assert_published(6 * gpt3 * tokens / (8 * 36 * YEAR), 34.7 * TERA, 0.1 * TERA); // "8 V100: 36 years"
    assert_published(estimate_seconds(gpt3, tokens, RECOMPUTE_NONE, 8, 34.7 * TERA) / YEAR, 36, 1);
    assert_published(estimate_seconds(gpt3, tokens, RECOMPUTE_FULL, 8, 46.2 * TERA) / YEAR, 36, 1);
    assert_published(estimate_seconds(gpt3, tokens, RECOMPUTE_NONE, 512, 34.7 * TERA) / (YEAR / 12), 7, 1);
}

static void a_price_tells_what_each_device_did(void **state) {
    (void)state;
    double hours = 4.6e6 / 1.5; // dollars, and dollars for a V100 and an hour
    assert_published(estimate_seconds(175e9, 300e9, RECOMPUTE_NONE, 1, 28.53 * TERA) / 3600 / hours, 1, 0.001);
}

static void utilisation_is_that_of_selective_recomputation(void **state) {
    (void)state;
    static const struct {
        double layers, width, gpus, batch, seconds, digit, model, hardware; // % of an A100's 312 TFLOP/s
    } published[] = {{48, 6144, 8, 4, 1.10, 0.01, 41.5, 43.7}, {96, 12288, 64, 64, 13.75, 0.01, 51.4, 52.8}};
    for (int i = 0; i < 2; i++) {
        TextSizes t = gpt(published[i].layers, published[i].width);
        double peak = published[i].gpus * 312 * TERA * published[i].seconds, loose = published[i].digit / 2;
        double model = 100 * estimate_model_flop(&t, published[i].batch) / peak;
        double hardware = 100 * estimate_hardware_flop(&t, published[i].batch, RECOMPUTE_SELECTIVE) / peak;
        double slack = 0.1 + 2 * loose / published[i].seconds * model; // the seconds are rounded, too
        assert_published(model, published[i].model, slack);
        assert_published(hardware, published[i].hardware, slack);
        assert_true(estimate_hardware_flop(&t, 1, RECOMPUTE_NONE) == estimate_model_flop(&t, 1));
    }
}

static void zero_divides_what_the_paper_says(void **state) {
    (void)state;
    for (double n = 1; n <= 1024; n *= 2) {
        assert_true(estimate_zero_bytes(0, n) == 16);
        assert_true(estimate_zero_bytes(1, n) == 4 + 12 / n);
        assert_true(estimate_zero_bytes(2, n) == 2 + 14 / n);
        assert_true(estimate_zero_bytes(3, n) == 16 / n);
    }
    assert_true(estimate_zero_traffic(2) == 1 && estimate_zero_traffic(3) == 1.5);
}

static void states_of_reinforcement_learning_take_41_devices_or_14(void **state) {
    (void)state;
    double actor = 175e9, critic = 6e9; // each with a frozen model of the same size
    assert_published(estimate_state_bytes(actor + critic, 0, false), 2.90e12, 0.01e12);
    assert_published(estimate_state_bytes(0, actor + critic, false), 0.36e12, 0.01e12);
    assert_true(ceil(estimate_state_bytes(actor + critic, actor + critic, false) / 80e9) == 41);
    assert_published(estimate_state_bytes(actor + critic, actor + critic, true), 1.09e12, 0.01e12);
    assert_true(ceil(estimate_state_bytes(actor + critic, actor + critic, true) / 80e9) == 14);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_are_those_of_megatrons_table),
        cmocka_unit_test(an_iteration_of_the_largest_takes_102_seconds),
        cmocka_unit_test(whole_trainings_take_the_published_days),
        cmocka_unit_test(a_price_tells_what_each_device_did),
        cmocka_unit_test(utilisation_is_that_of_selective_recomputation),
        cmocka_unit_test(zero_divides_what_the_paper_says),
        cmocka_unit_test(states_of_reinforcement_learning_take_41_devices_or_14),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
