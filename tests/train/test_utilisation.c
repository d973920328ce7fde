/* What a step's FLOP come to of a device's peak, and what its record says. */
#include "kernels/cpu/cpu.h"
#include "tests/support/test.h"
#include "train/utilisation.h"
#include <math.h>

static void near(double got, double want) { assert_true(fabs(got - want) <= 1e-12 * fabs(want)); }

static Joint *small_text(Backend *b) {
    JointConfig c = {.text = {.vocabulary = 50, .context = 8, .width = 16, .layers = 1, .heads = 2, .tied = true}};
    Error error = {0};
    c.weight[OBJECTIVE_LM] = 1;
    Joint *joint = joint_new(b, &c, NULL, F32, 1, &error);
    if (!joint) fail_msg("%s", error.message);
    return joint;
}

static void a_known_gpu_has_its_makers_peak(void **state) {
    (void)state;
    Backend *b = cpu_backend_new(1, NULL, NULL);
    Joint *joint = small_text(b);
    Utilisation u;
    b->device = "NVIDIA H100 80GB HBM3";
    utilisation_open(&u, joint, b, BF16, 2);
    near(u.peak, 2 * 989.4e12);
    assert_string_equal(u.device, "2 x 989.4 TFLOP/s (h100, bf16)");
    utilisation_open(&u, joint, b, F32, 1);
    near(u.peak, 66.9e12);
    b->device = NULL;
    utilisation_open(&u, joint, b, F32, 1);
    assert_true(u.peak == 0);
    joint_free(joint);
    backend_free(b);
}

static void records_tell_parts_and_both_conventions(void **state) {
    (void)state;
    Utilisation u = {.peak = 1e12};
    JointFlop flop = {.vision = 1e11, .text = 3e11, .heads = 1e11}, by_count = {.text = 6e11};
    json_t *record = json_object();
    utilisation_step(&u, &flop, &by_count, 2, record);
    near(json_get_number(record, "flop", 0), 5e11);
    near(json_get_number(record, "flop/text", 0), 3e11);
    near(json_get_number(record, "mfu", 0), 0.25);
    near(json_get_number(record, "mfu_6n", 0), 0.3);
    assert_true(u.seconds == 0); // things are set up in the first step
    utilisation_step(&u, &flop, &by_count, 4, record);
    near(utilisation_share(&u, &u.flop, u.seconds), 0.125);
    json_decref(record);
}

static void without_a_peak_no_share_is_stated(void **state) {
    (void)state;
    Utilisation u = {0};
    JointFlop flop = {.text = 1e9};
    json_t *record = json_object();
    utilisation_step(&u, &flop, &flop, 1, record);
    assert_true(json_get_number(record, "flop", 0) == 1e9 && !json_object_get(record, "mfu"));
    assert_null(json_object_get(record, "flop/vision"));
    json_decref(record);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_known_gpu_has_its_makers_peak),
                                       cmocka_unit_test(records_tell_parts_and_both_conventions),
                                       cmocka_unit_test(without_a_peak_no_share_is_stated)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
