/* The learning rate over a run. */
#include "train/optimizer.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static const OptimizerConfig base = {.learning_rate = 2e-3, .final_ratio = 0.1, .warmup_steps = 10};

static void near(double got, double want) { assert_true(fabs(got - want) <= 1e-15 + 1e-12 * fabs(want)); }

static void warm_up_rises_linearly_to_the_peak(void **state) {
    (void)state;
    near(learning_rate_at(&base, 1, 110), 2e-4);
    near(learning_rate_at(&base, 5, 110), 1e-3);
    near(learning_rate_at(&base, 10, 110), 2e-3);
}

static void cosine_passes_half_way_and_ends_at_the_final_ratio(void **state) {
    (void)state;
    OptimizerConfig c = base;
    c.schedule = SCHEDULE_COSINE;
    near(learning_rate_at(&c, 60, 110), 2e-3 * (0.1 + 0.9 * 0.5));
    near(learning_rate_at(&c, 35, 110), 2e-3 * (0.1 + 0.9 * 0.5 * (1 + cos(acos(-1.0) / 4))));
    near(learning_rate_at(&c, 110, 110), 2e-4);
}

static void linear_and_constant(void **state) {
    (void)state;
    OptimizerConfig c = base;
    c.schedule = SCHEDULE_LINEAR;
    near(learning_rate_at(&c, 35, 110), 2e-3 * (0.1 + 0.9 * 0.75));
    near(learning_rate_at(&c, 110, 110), 2e-4);
    c.schedule = SCHEDULE_CONSTANT;
    near(learning_rate_at(&c, 110, 110), 2e-3);
}

static void without_warm_up_the_first_step_is_near_the_peak(void **state) {
    (void)state;
    OptimizerConfig c = base;
    c.warmup_steps = 0;
    c.schedule = SCHEDULE_LINEAR;
    near(learning_rate_at(&c, 1, 100), 2e-3 * (0.1 + 0.9 * 0.99));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_rises_linearly_to_the_peak),
        cmocka_unit_test(cosine_passes_half_way_and_ends_at_the_final_ratio),
        cmocka_unit_test(linear_and_constant),
        cmocka_unit_test(without_warm_up_the_first_step_is_near_the_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
