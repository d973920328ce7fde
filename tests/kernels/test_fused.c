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

// ---- gradients that are summed up where they are written ----

static void norm_backward_apart(Backend *b, const NormGradients *to, const void *dy, const void *x, const float *mean,
                                const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t) {
    if (mean) {
        b->layernorm_backward_input(b, to->dx, dy, x, mean, rstd, scale, rows, width, t, to->add_x);
        b->layernorm_backward_weight(b, to->dscale, to->dshift, dy, x, mean, rstd, rows, width, t, to->add_scale,
                                     to->add_shift);
    } else {
        b->rmsnorm_backward_input(b, to->dx, dy, x, rstd, scale, rows, width, t, to->add_x);
        b->rmsnorm_backward_weight(b, to->dscale, dy, x, rstd, rows, width, t, to->add_scale);
    }
    if (to->sums) b->sum_columns(b, to->sums, to->dx, rows, width, t, false);
}

static void gelu_backward_sums_apart(Backend *b, void *dx, float *sums, const void *dy, const void *x, int64_t rows,
                                     int64_t width, int kind, Dtype t, bool add_sums) {
    b->gelu_backward(b, dx, dy, x, rows * width, kind, t, false);
    b->sum_columns(b, sums, dx, rows, width, t, add_sums);
}

typedef struct Chain {
    Dtype dtype;
    bool centred, in_halves, has_mlp; // what ends in the bias: an mlp, else a linear map
    int reader;                       // another one of the branch: 0 none, 1 in front of the norm, 2 behind it
} Chain;

enum { CHAIN_VECTORS = 5, CHAIN_MATRICES = 2 };
typedef struct ChainResults {
    float dx[COUNT], vector[CHAIN_VECTORS][WIDTH], matrix[CHAIN_MATRICES][WIDTH * WIDTH];
} ChainResults;

static Tensor *matrix(Tape *t, Dtype dtype, uint64_t seed) {
    float x[WIDTH * WIDTH];
    draw(x, dtype, WIDTH * WIDTH, seed);
    Tensor *w = tape_arrival(t, dtype, SHAPE(WIDTH, WIDTH), x, true);
    w->is_parameter = true;
    w->grad = tape_tensor(t, F32, SHAPE(WIDTH, WIDTH))->data;
    return w;
}

// The norm of x + map(norm of x), twice over the same parameters, as in two microbatches: gradients are added then.
static void run_chain(Backend *b, Chain c, ChainResults *r) {
    Tape *t = tape_new(b, true);
    Tensor *w = matrix(t, c.dtype, 3), *v = matrix(t, c.dtype, 4), *scale = vector(t, 5), *bias = vector(t, 6);
    Tensor *shift = c.centred ? vector(t, 7) : NULL, *inner = vector(t, 8), *first = vector(t, 9);
    Tensor *x = activation(t, c.dtype, 1), *at = x;
    for (int i = 0; i < 2; i++) {
        Tensor *y = shift ? layernorm(t, at, first, shift, 1e-5) : rmsnorm(t, at, first, 1e-5);
        Tensor *f = c.has_mlp ? mlp(t, y, w, inner, v, bias, GELU_ERF) : linear(t, linear(t, y, w, inner), v, bias);
        if (c.reader == 1) seed(t, gelu(t, f, GELU_ERF), 20);
        NormedSum both = add_norm(t, at, f, scale, shift, 1e-5, &(Draws){0});
        if (c.reader == 2) seed(t, gelu(t, f, GELU_ERF), 21);
        if (tape_error(t)) fail_msg("%s", tape_error(t));
        seed(t, both.normed, 22);
        at = both.sum;
    }
    seed(t, at, 23);
    backward(t, c.in_halves);
    keep(t, r->dx, c.dtype, x->grad);
    Tensor *const vectors[CHAIN_VECTORS] = {scale, bias, inner, first, shift};
    for (int i = 0; i < CHAIN_VECTORS; i++)
        if (vectors[i]) b->download(b, r->vector[i], vectors[i]->grad, sizeof r->vector[i]);
    b->download(b, r->matrix[0], w->grad, sizeof r->matrix[0]);
    b->download(b, r->matrix[1], v->grad, sizeof r->matrix[1]);
    tape_free(t);
}

static void sums_formed_beside_are_those_formed_apart(void **state) {
    (void)state;
    Backend *apart = cpu_backend_new(2, NULL, NULL), beside = *apart;
    ChainResults *r[2] = {calloc(1, sizeof **r), calloc(1, sizeof **r)};
    beside.norm_backward = norm_backward_apart, beside.gelu_backward_sums = gelu_backward_sums_apart;
    for (int i = 0; i < 48; i++) {
        Chain c = {i & 1 ? BF16 : F32, i & 2, i & 4, i & 8, i / 16};
        run_chain(apart, c, r[0]);
        run_chain(&beside, c, r[1]);
        assert_memory_equal(r[0], r[1], sizeof **r);
    }
    free(r[0]), free(r[1]);
    backend_free(apart);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sum_with_its_norm_has_the_bits_of_dropout_add_and_norm),
        cmocka_unit_test(rope_has_its_bits_where_x_lies),
        cmocka_unit_test(sums_formed_beside_are_those_formed_apart),
        cmocka_unit_test(equal_gradients_part_where_one_is_changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
