/* Random valid cases of operators, for tests and benches. An operator's example() draws shapes from the stream, makes
 * inputs with the calls below and runs the operator on the tape; the gradient check, the bit-equality check and the
 * speed table see only this. */
#pragma once
#include "kernels/ops.h"

// small: odd sizes, for checks; large: for the speed table; huge: for that of a device whose caches hold the large ones
typedef enum { EXAMPLE_SMALL, EXAMPLE_LARGE, EXAMPLE_HUGE } ExampleSize;

struct Example {
    Tape       *tape;
    Rng         rng;
    Dtype       dtype;      // of activations
    ExampleSize size;
    int         variant;    // 0, 1, 2, ...: which of its cases (causal, grouped, ...) to draw; example sets `variants`
    int         variants;   // how many the operator has
    Tensor     *in[MAX_INPUTS]; // what was made, in the order of the operator's inputs, for the checks to perturb
    Tensor     *out;
};

int64_t example_pick(Example *, int64_t least, int64_t most); // a size
int64_t example_many(const Example *, int64_t large);         // a number of rows where it is not small
// An activation or parameter with normal entries of deviation `std`; registers it as in[slot]. Parameters of rank 1 are
// F32; a parameter has its f32 gradient buffer.
Tensor *example_tensor(Example *, int slot, bool parameter, double std, int rank, const int64_t *shape);
Tensor *example_f32(Example *, int slot, bool parameter, double mean, double std, int rank, const int64_t *shape);
Tensor *example_indices(Example *, int slot, int64_t least, int64_t below, int rank, const int64_t *shape); // I32
Tensor *example_bytes(Example *, int slot, int rank, const int64_t *shape);                              // U8
Tensor *example_constant(Example *, int slot, Dtype, int rank, const int64_t *shape, const void *host);   // no gradient
void example_scored_words(Example *); // in[0] to in[3] of a cross-entropy: x, w, targets, weight (NULL in some variants)
