/* The walk over tiles of the contrastive losses, where there are several: both inputs the same tensor, gradients that
 * add to earlier ones. */
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include "kernels/pair_tiles.h"
#include "base/philox.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>

enum { PAIRS = PAIR_SIDE + 100, WIDTH = 5, COUNT = PAIRS * WIDTH }; // two tiles along each side

static Tensor *loss_of(Tape *t, bool sigmoid, Tensor *a, Tensor *b) {
    float scale = 1, bias = -2;
    Tensor *log_scale = tape_constant(t, F32, SHAPE(1), &scale);
    return sigmoid ? siglip_loss(t, a, b, log_scale, tape_constant(t, F32, SHAPE(1), &bias))
                   : clip_loss(t, a, b, log_scale);
}

// Gradients of `times` losses over (a, b); b NULL: over (a, a).
static void gradients(float *da, float *db, bool sigmoid, const float *a, const float *b, int times) {
    Backend *backend = cpu_backend_new(2, NULL, NULL);
    Tape *t = tape_new(backend, true);
    Tensor *left = tape_constant(t, F32, SHAPE(PAIRS, WIDTH), a), *right = left;
    if (b) right = tape_constant(t, F32, SHAPE(PAIRS, WIDTH), b);
    left->needs_grad = right->needs_grad = true;
    Tensor *loss = loss_of(t, sigmoid, left, right);
    for (int i = 1; i < times; i++) loss = add(t, loss, loss_of(t, sigmoid, left, right));
    tape_backward(t, loss, ALL_GRADIENTS);
    for (int i = 0; i < COUNT; i++) {
        da[i] = ((float *)left->grad)[i];
        if (db) db[i] = ((float *)right->grad)[i];
    }
    tape_free(t);
    backend_free(backend);
}

static float *features(void) {
    float *x = calloc(COUNT, sizeof *x);
    assert_non_null(x);
    for (uint64_t i = 0; i < COUNT; i++) {
        Rng rng = rng_for(3, PURPOSE_TEST, i);
        x[i] = (float)rng_normal(&rng) * 0.5f;
    }
    return x;
}

static void assert_near(const float *x, const float *y, float factor) {
    for (int i = 0; i < COUNT; i++) assert_true(fabsf(x[i] - factor * y[i]) < 1e-4f * (1 + fabsf(x[i])));
}

static void the_same_tensor_on_both_sides_gets_both_gradients(void **state) {
    (void)state;
    float *x = features(), *both = features(), *da = features(), *db = features();
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        gradients(both, NULL, sigmoid, x, NULL, 1);
        gradients(da, db, sigmoid, x, x, 1);
        for (int i = 0; i < COUNT; i++) da[i] += db[i];
        assert_near(both, da, 1);
        gradients(da, NULL, sigmoid, x, NULL, 2);
        assert_near(da, both, 2);
    }
    free(x), free(both), free(da), free(db);
}

static void gradients_of_several_tiles_add_to_earlier_ones(void **state) {
    (void)state;
    float *x = features(), *y = features(), *once[2] = {features(), features()}, *twice[2] = {features(), features()};
    for (int i = 0; i < COUNT / 2; i++) { // y: x turned round
        y[i] = x[COUNT - 1 - i];
        y[COUNT - 1 - i] = x[i];
    }
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        gradients(once[0], once[1], sigmoid, x, y, 1);
        gradients(twice[0], twice[1], sigmoid, x, y, 2);
        for (int side = 0; side < 2; side++) assert_near(twice[side], once[side], 2);
    }
    free(x), free(y);
    for (int side = 0; side < 2; side++) free(once[side]), free(twice[side]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_tensor_on_both_sides_gets_both_gradients),
        cmocka_unit_test(gradients_of_several_tiles_add_to_earlier_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
