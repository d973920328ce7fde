/* AdamW over parameters: the formula in double, clipping, moments through a file. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/gradient_norm.h"
#include "train/optimizer.h"
#include <math.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { WIDE = 37, STEPS = 5 };

static const OptimizerConfig config = {.learning_rate = 1e-2,
                                       .final_ratio = 0.1,
                                       .schedule = SCHEDULE_LINEAR,
                                       .warmup_steps = 2,
                                       .weight_decay = 0.1,
                                       .beta1 = 0.9,
                                       .beta2 = 0.99,
                                       .epsilon = 1e-8,
                                       .gradient_clip = 1};

typedef struct Fixture {
    Backend *backend;
    Parameters *parameters;
    Optimizer *optimizer;
} Fixture;

static void open_fixture(Fixture *f) {
    Error error = {0};
    f->backend = cpu_backend_new(2, NULL, NULL);
    f->parameters = parameters_new(f->backend, NULL);
    parameters_add(f->parameters, "matrix", SHAPE(3, WIDE), (Init){.kind = INIT_NORMAL, .value = 0.5}, true);
    parameters_add(f->parameters, "still", SHAPE(4), (Init){.kind = INIT_ONE}, false);
    parameters_add(f->parameters, "vector", SHAPE(WIDE), (Init){.kind = INIT_ONE}, false);
    parameters_freeze(f->parameters, "still");
    assert_true(parameters_finish(f->parameters, F32, 7, &error));
    f->optimizer = optimizer_new(f->backend, f->parameters, &config, 10);
}

static void close_fixture(Fixture *f) {
    optimizer_free(f->optimizer);
    parameters_free(f->parameters);
    backend_free(f->backend);
}

static float gradient_at(int64_t step, int parameter, int64_t i) {
    Rng rng = rng_for((uint64_t)step, PURPOSE_TEST, (uint64_t)parameter << 32 | (uint64_t)i);
    return (float)rng_normal(&rng);
}

static void one_step(Fixture *f, int64_t step) {
    for (int k = 0; k < parameters_count(f->parameters); k++) {
        Parameter *p = parameters_at(f->parameters, k);
        for (int64_t i = 0; !p->frozen && i < tensor_count(&p->tensor); i++)
            ((float *)p->tensor.grad)[i] = gradient_at(step, k, i);
    }
    optimizer_step(f->optimizer, step, parameters_gradient_norm(f->parameters));
}

static void updates_follow_the_formula(void **state) {
    (void)state;
    Fixture f;
    open_fixture(&f);
    const Parameter *matrix = parameters_find(f.parameters, "matrix"),
                    *vector = parameters_find(f.parameters, "vector");
    const int64_t sizes[2] = {3 * WIDE, WIDE};
    const float *values[2] = {matrix->master, vector->master};
    double x[2][3 * WIDE], m[2][3 * WIDE] = {0}, v[2][3 * WIDE] = {0};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < sizes[k]; i++) x[k][i] = values[k][i];
    for (int64_t step = 1; step <= STEPS; step++) {
        double squares = 0;
        for (int k = 0; k < 2; k++)
            for (int64_t i = 0; i < sizes[k]; i++) squares += pow(gradient_at(step, 2 * k, i), 2);
        double clip = sqrt(squares) > 1 ? 1 / sqrt(squares) : 1, rate = learning_rate_at(&config, step, 10);
        for (int k = 0; k < 2; k++)
            for (int64_t i = 0; i < sizes[k]; i++) {
                double g = clip * gradient_at(step, 2 * k, i);
                m[k][i] = 0.9 * m[k][i] + 0.1 * g;
                v[k][i] = 0.99 * v[k][i] + 0.01 * g * g;
                double mean = m[k][i] / (1 - pow(0.9, (double)step)), square = v[k][i] / (1 - pow(0.99, (double)step));
                x[k][i] -= rate * (mean / (sqrt(square) + 1e-8) + (k == 0 ? 0.1 * x[k][i] : 0));
            }
        one_step(&f, step);
    }
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < sizes[k]; i++) assert_true(fabs(values[k][i] - x[k][i]) <= 2e-6);
    close_fixture(&f);
}

static void frozen_parameters_stay(void **state) {
    (void)state;
    Fixture f;
    open_fixture(&f);
    one_step(&f, 1);
    for (int i = 0; i < 4; i++) assert_true(parameters_find(f.parameters, "still")->master[i] == 1);
    close_fixture(&f);
}

static void a_gradient_that_is_not_finite_shows_in_the_norm(void **state) {
    (void)state;
    Fixture f;
    open_fixture(&f);
    one_step(&f, 1);
    ((float *)parameters_find(f.parameters, "matrix")->tensor.grad)[5] = NAN;
    assert_false(isfinite(parameters_gradient_norm(f.parameters)));
    close_fixture(&f);
}

// Of every parameter, each element once; moments of what is trained alone.
static void ranges_cover_all_state(void **state) {
    (void)state;
    Fixture f;
    StateRange *ranges;
    open_fixture(&f);
    one_step(&f, 1);
    Arena *memory = arena_new(1 << 12);
    int count = optimizer_ranges(f.optimizer, memory, &ranges);
    int64_t elements[STATE_KINDS] = {0};
    for (int i = 0; i < count; i++) {
        const Parameter *p = parameters_at(f.parameters, ranges[i].parameter);
        assert_true(ranges[i].first >= 0 && ranges[i].first + ranges[i].count <= tensor_count(&p->tensor));
        assert_true(ranges[i].kind == STATE_MASTER || !p->frozen);
        assert_true(ranges[i].kind != STATE_V || ranges[i].data[0] > 0);
        elements[ranges[i].kind] += ranges[i].count;
    }
    assert_int_equal(elements[STATE_MASTER], parameters_elements(f.parameters, false));
    assert_int_equal(elements[STATE_M], parameters_elements(f.parameters, true));
    assert_int_equal(elements[STATE_V], parameters_elements(f.parameters, true));
    arena_free(memory);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(updates_follow_the_formula),
        cmocka_unit_test(frozen_parameters_stay),
        cmocka_unit_test(a_gradient_that_is_not_finite_shows_in_the_norm),
        cmocka_unit_test(ranges_cover_all_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
