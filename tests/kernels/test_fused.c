/* Operators that do the work of several, or do it where it lies: the bits of those they stand for, forward and
 * backward, in one pass and in halves, on every instruction set that this machine has. */
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

enum { ROWS = 37, WIDTH = 83, COUNT = ROWS * WIDTH, VECTORS = 2 };

typedef struct Case {
    Dtype dtype;
    bool centred, drops, numbered, in_halves, read_again; // read_again: x has another reader, in front
} Case;

typedef struct Results { // in f32
    float sum[COUNT], y[COUNT], dx[COUNT], df[COUNT], dvector[VECTORS][WIDTH];
} Results;

static void draw(void *out, Dtype t, int64_t count, uint64_t seed) {
    Rng rng = rng_for(seed, PURPOSE_TEST, 9);
    for (int64_t i = 0; i < count; i++) {
        float x = (float)rng_normal(&rng);
        if (t == F32)
            ((float *)out)[i] = x;
        else
            ((uint16_t *)out)[i] = f32_to_bf16(x);
    }
}

static Tensor *activation(Tape *t, Dtype dtype, uint64_t seed) {
    float x[COUNT];
    draw(x, dtype, COUNT, seed);
    return tape_arrival(t, dtype, SHAPE(ROWS, WIDTH), x, true);
}

static Tensor *vector(Tape *t, uint64_t seed) {
    float x[WIDTH];
    draw(x, F32, WIDTH, seed);
    Tensor *v = tape_arrival(t, F32, SHAPE(WIDTH), x, true);
    v->is_parameter = true;
    v->grad = tape_tensor(t, F32, SHAPE(WIDTH))->data;
    return v;
}

static void seed(Tape *t, Tensor *out, uint64_t number) {
    float d[COUNT];
    draw(d, out->dtype, COUNT, number);
    tape_seed(t, out, d);
}

static void backward(Tape *t, bool in_halves) {
    if (tape_error(t)) fail_msg("%s", tape_error(t));
    tape_backward_seeded(t, in_halves ? INPUT_GRADIENTS : ALL_GRADIENTS);
    if (in_halves) tape_backward_seeded(t, WEIGHT_GRADIENTS);
}

static void keep(Tape *t, float *out, Dtype dtype, void *data) {
    Backend *b = tape_backend(t);
    Tensor *x = tape_tensor(t, F32, SHAPE(COUNT));
    b->convert(b, x->data, F32, data, dtype, COUNT);
    tape_read(t, x, out);
}

static NormedSum apart(Tape *t, Tensor *x, Tensor *f, Tensor *scale, Tensor *shift, const Draws *d) {
    Tensor *sum = add(t, x, dropout_by(t, f, d));
    return (NormedSum){sum, shift ? layernorm(t, sum, scale, shift, 1e-5) : rmsnorm(t, sum, scale, 1e-5)};
}

static void run(Backend *b, Case c, bool fused, Results *r) {
    Tape *t = tape_new(b, true);
    Tensor *x = activation(t, c.dtype, 1), *f = activation(t, c.dtype, 2), *scale = vector(t, 3);
    Tensor *shift = c.centred ? vector(t, 4) : NULL;
    int32_t number[ROWS];
    for (int i = 0; i < ROWS; i++) number[i] = 3 * i % ROWS;
    Draws d = {.p = c.drops ? 0.3 : 0, .seed = 5, .site = 6, .first = c.numbered ? 0 : 1003};
    if (c.numbered) d.numbers = tape_constant(t, I32, SHAPE(ROWS), number), d.row = WIDTH;
    Tensor *other = c.read_again ? gelu(t, x, GELU_ERF) : NULL;
    NormedSum both = fused ? add_norm(t, x, f, scale, shift, 1e-5, &d) : apart(t, x, f, scale, shift, &d);
    if (tape_error(t)) fail_msg("%s", tape_error(t));
    keep(t, r->sum, c.dtype, both.sum->data);
    keep(t, r->y, c.dtype, both.normed->data);
    seed(t, both.sum, 7);
    seed(t, both.normed, 8);
    if (other) seed(t, other, 9);
    backward(t, c.in_halves);
    keep(t, r->dx, c.dtype, x->grad);
    keep(t, r->df, c.dtype, f->grad);
    Tensor *const vectors[VECTORS] = {scale, shift};
    for (int i = 0; i < VECTORS; i++)
        if (vectors[i]) b->download(b, r->dvector[i], vectors[i]->grad, sizeof r->dvector[i]);
    tape_free(t);
}

static void on_each_set(void (*compare)(Backend *)) {
    static const char *const sets[] = {"plain", "avx2", "avx512", "avx512-bf16"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (!cpu_has_isa(sets[i])) continue;
        Backend *b = cpu_backend_new(2, sets[i], NULL);
        compare(b);
        backend_free(b);
    }
}

static void compare_sums(Backend *b) {
    Results *fused = calloc(1, sizeof *fused), *separate = calloc(1, sizeof *separate);
    for (int i = 0; i < 64; i++) {
        Case c = {i & 1 ? BF16 : F32, i & 2, i & 4, i & 8, i & 16, i & 32};
        run(b, c, true, fused);
        run(b, c, false, separate);
        assert_memory_equal(fused, separate, sizeof *fused);
    }
    free(fused), free(separate);
}
static void a_sum_with_its_norm_has_the_bits_of_dropout_add_and_norm(void **state) {
    (void)state;
    on_each_set(compare_sums);
}

// q and k of 2 and 1 heads of 10 in rows of 83: the rest passes.
static void turn(Backend *b, Dtype dtype, bool in_place, float *y, float *dx) {
    Tape *t = tape_new(b, true);
    int32_t positions[ROWS];
    for (int i = 0; i < ROWS; i++) positions[i] = 17 * i;
    Tensor *x = activation(t, dtype, 1), *at = tape_constant(t, I32, SHAPE(ROWS), positions);
    Tensor *out = in_place ? rope_in_place(t, x, at, 3, 10, 10000) : rope(t, x, at, 3, 10, 10000);
    keep(t, y, dtype, out->data);
    assert_true((out->data == x->data) == in_place);
    seed(t, out, 2);
    backward(t, false);
    keep(t, dx, dtype, x->grad);
    tape_free(t);
}

static void compare_turns(Backend *b) {
    static float y[2][COUNT], dx[2][COUNT];
    for (int dtype = F32; dtype <= BF16; dtype++) {
        for (int in_place = 0; in_place < 2; in_place++) turn(b, (Dtype)dtype, in_place, y[in_place], dx[in_place]);
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        assert_memory_equal(dx[0], dx[1], sizeof dx[0]);
    }
}
static void rope_has_its_bits_where_x_lies(void **state) {
    (void)state;
    on_each_set(compare_turns);
}

// d(x + f) goes to both: what one of them adds to it later is not the other's.
static void equal_gradients_part_where_one_is_changed(void **state) {
    (void)state;
    Backend *b = cpu_backend_new(1, NULL, NULL);
    Tape *t = tape_new(b, true);
    float d[COUNT], both[COUNT], one[COUNT];
    Tensor *x = activation(t, F32, 1), *f = activation(t, F32, 2);
    Tensor *twice = scale(t, x, 2), *sum = add(t, x, f); // dx = d + 2 d
    draw(d, F32, COUNT, 3);
    tape_seed(t, sum, d);
    tape_seed(t, twice, d);
    tape_backward_seeded(t, ALL_GRADIENTS);
    tape_read_gradient(t, f, one);
    tape_read_gradient(t, x, both);
    for (int i = 0; i < COUNT; i++) {
        assert_true(one[i] == d[i]);
        assert_true(both[i] == d[i] + 2 * d[i]);
    }
    tape_free(t);
    backend_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sum_with_its_norm_has_the_bits_of_dropout_add_and_norm),
        cmocka_unit_test(rope_has_its_bits_where_x_lies),
        cmocka_unit_test(equal_gradients_part_where_one_is_changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
