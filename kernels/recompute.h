/* Recomputation of activations (Chen et al. 2016, "Training deep nets with sublinear memory cost"): a node of the tape
 * that holds a function and its input instead of what the function computes on the way.
 *
 * Forward, the function runs and everything but its output goes back to the pool. Backward, it runs again, now recorded,
 * and its nodes run backwards at once; what no gradient reads (the last matrix product of a block) is not computed
 * again. With INPUT_GRADIENTS alone the replayed nodes stay for the WEIGHT_GRADIENTS that follow, with what those read.
 * The numbers are those of a plain call, bit for bit: a function must be one of its closure and input alone. */
#pragma once
#include "kernels/tape.h"

typedef Tensor *(*RecomputeFunction)(Tape *, const void *closure, Tensor *x);

// function(tape, closure, x), to be replayed; x is no parameter. `bytes` of the closure are copied; tensors it names want no gradient, or
// are parameters, and live until the backward pass; the function must return what one of its calls computed. Inside
// another recomputed function this is a plain call. Where nothing is recorded, the memory goes back all the same.
Tensor *tape_recompute(Tape *, RecomputeFunction, const void *closure, size_t bytes, Tensor *x);
