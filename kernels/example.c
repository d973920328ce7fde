/* See example.h. */
#include "kernels/example.h"
#include "base/error.h"
#include <stdlib.h>

int64_t example_pick(Example *e, int64_t least, int64_t most) {
    return least + (int64_t)rng_below(&e->rng, (uint64_t)(most - least + 1));
}

int64_t example_many(const Example *e, int64_t large) { return e->size == EXAMPLE_HUGE ? 8 * large : large; }

static Tensor *filled(Example *e, int slot, Dtype dtype, bool gradient, int rank, const int64_t *shape,
                      const void *host) {
    check(slot >= 0 && slot < MAX_INPUTS);
    Tensor *x = tape_constant(e->tape, dtype, rank, shape, host);
    x->name = "example";
    x->needs_grad = gradient;
    return e->in[slot] = x;
}

static int64_t count_of(int rank, const int64_t *shape) {
    int64_t count = 1;
    for (int i = 0; i < rank; i++) count *= shape[i];
    return count;
}

// What a set of parameters would do: the gradient is f32 whatever the parameter is.
static void make_parameter(Example *e, Tensor *x) {
    x->is_parameter = true;
    x->grad = tape_tensor(e->tape, F32, x->rank, x->shape)->data;
}

static Tensor *normal(Example *e, int slot, Dtype dtype, bool parameter, double mean, double std, int rank,
                      const int64_t *shape) {
    int64_t count = count_of(rank, shape);
    void *values = malloc(dtype_size(dtype) * (size_t)(count + 1));
    check(values);
    for (int64_t i = 0; i < count; i++) {
        float value = (float)(mean + std * rng_normal(&e->rng));
        if (dtype == F32)
            ((float *)values)[i] = value;
        else
            ((uint16_t *)values)[i] = f32_to_bf16(value);
    }
    Tensor *x = filled(e, slot, dtype, true, rank, shape, values);
    if (parameter) make_parameter(e, x);
    free(values);
    return x;
}

Tensor *example_tensor(Example *e, int slot, bool parameter, double std, int rank, const int64_t *shape) {
    Dtype dtype = parameter && rank == 1 ? F32 : e->dtype;
    return normal(e, slot, dtype, parameter, 0, std, rank, shape);
}

Tensor *example_f32(Example *e, int slot, bool parameter, double mean, double std, int rank, const int64_t *shape) {
    return normal(e, slot, F32, parameter, mean, std, rank, shape);
}

Tensor *example_indices(Example *e, int slot, int64_t least, int64_t below, int rank, const int64_t *shape) {
    int64_t count = count_of(rank, shape);
    int32_t *values = malloc(sizeof(int32_t) * (size_t)(count + 1));
    check(values);
    for (int64_t i = 0; i < count; i++) values[i] = (int32_t)example_pick(e, least, below - 1);
    Tensor *x = filled(e, slot, I32, false, rank, shape, values);
    free(values);
    return x;
}

Tensor *example_bytes(Example *e, int slot, int rank, const int64_t *shape) {
    int64_t count = count_of(rank, shape);
    uint8_t *values = malloc((size_t)(count + 1));
    check(values);
    for (int64_t i = 0; i < count; i++) values[i] = (uint8_t)rng_u32(&e->rng);
    Tensor *x = filled(e, slot, U8, false, rank, shape, values);
    free(values);
    return x;
}

Tensor *example_constant(Example *e, int slot, Dtype dtype, int rank, const int64_t *shape, const void *host) {
    return filled(e, slot, dtype, false, rank, shape, host);
}

void example_scored_words(Example *e) {
    e->variants = 3; // all rows scored, some not, some not and weighted
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 1024) : example_pick(e, 1, 40), width = large ? 512 : example_pick(e, 1, 33);
    int64_t vocab = large ? 8192 : example_pick(e, 1, 90);
    example_tensor(e, 0, false, 1.0, SHAPE(rows, width));
    example_tensor(e, 1, true, large ? 0.05 : 0.3, SHAPE(vocab, width));
    example_indices(e, 2, e->variant && !large ? -vocab : 0, vocab, SHAPE(rows));
    if (e->variant == 2) {
        float values[1024];
        for (int64_t i = 0; i < rows; i++) values[i] = (float)rng_uniform(&e->rng) + 0.1f;
        example_constant(e, 3, F32, SHAPE(rows), values);
    }
}
