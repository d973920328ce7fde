/* `bifocal plan estimate`: what it prints of a training, and what it refuses. */
#include "tests/cli/command.h"

#define ESTIMATE "plan", "estimate"

static void a_training_by_its_shape(void **state) {
    (void)state;
    assert_prints("1.008e+12", "/", ESTIMATE, "--layers", "128", "--width", "25600");
    assert_prints("time of an iteration         31.92 s", "/", ESTIMATE, "--layers", "96", "--width", "12288",
                  "--batch", "1536", "--gpus", "1024", "--flops", "138e12", "--recompute", "full");
    assert_prints("52.8 % on the hardware", "/", ESTIMATE, "--layers", "96", "--width", "12288", "--batch", "64",
                  "--gpus", "64", "--flops", "164.7e12", "--peak", "312e12", "--recompute", "selective");
}

static void a_training_by_its_parameters(void **state) {
    (void)state;
    assert_prints("33.9 days", "/", ESTIMATE, "--parameters", "175e9", "--tokens", "300e9", "--gpus", "1024", "--flops",
                  "140e12", "--recompute", "full");
    assert_prints("41 of 80 GB", "/", ESTIMATE, "--parameters", "181e9", "--frozen", "181e9");
    assert_prints("14 of 80 GB", "/", ESTIMATE, "--parameters", "181e9", "--frozen", "181e9", "--offload");
    assert_prints("ZeRO 3 over 64               0.25 bytes", "/", ESTIMATE, "--parameters", "7e9", "--data", "64");
    assert_prints("4.602e+06", "/", ESTIMATE, "--parameters", "175e9", "--tokens", "300e9", "--flops", "28.52e12",
                  "--price", "1.5");
    assert_prints("kWh", "/", ESTIMATE, "--parameters", "1e9", "--tokens", "1e9", "--flops", "1e14", "--watts", "700");
}

static void what_does_not_say_enough_is_refused(void **state) {
    (void)state;
    assert_refuses(2, "--layers and --width, or --parameters", "/", ESTIMATE, "--tokens", "1e9");
    assert_refuses(2, "need --flops", "/", ESTIMATE, "--parameters", "1e9", "--tokens", "1e9");
    assert_refuses(2, "--batch needs the shape", "/", ESTIMATE, "--parameters", "1e9", "--batch", "8", "--flops",
                   "1e14");
    assert_refuses(2, "--gpus '0'", "/", ESTIMATE, "--parameters", "1e9", "--gpus", "0");
    assert_refuses(2, "--recompute 'all' is none of none|selective|full", "/", ESTIMATE, "--parameters", "1e9",
                   "--recompute", "all");
    assert_refuses(2, "no argument is expected", "/", ESTIMATE, "--parameters", "1e9", "more");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_training_by_its_shape),
        cmocka_unit_test(a_training_by_its_parameters),
        cmocka_unit_test(what_does_not_say_enough_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
