/* Layers split over tensor ranks (Shoeybi et al. 2019, "Megatron-LM") and, between them, activations shared out by rows
 * (Korthikanti et al. 2022, "sequence parallel"). A pair of linear maps is cut column by column, then row by row: each
 * rank computes a part of the inner width with no word from the others, and one sum ends the pair. Alone, every
 * function is the plain layer. B batch, T length, C width; N of the B T rows on this rank. */
#pragma once
#include "kernels/nn/block.h"

int parallel_ranks(const Parallel *);        // over which layers are split; 1 for NULL
bool parallel_shares_rows(const Parallel *); // whether activations inside a stack are (1, N, C)

// Cut over its outputs, which consist of `segments` (q | k | v); the bias with them.
Linear column_declare(Parameters *, const char *name, int segments, const int64_t *sizes, int64_t in, bool bias,
                      double std);
// Cut over its inputs; the bias is whole and added once.
Linear row_declare(Parameters *, const char *name, int64_t out, int64_t in, bool bias, double std);
// A norm inside a stack: whole on every rank; with shared rows its gradients are parts of sums.
Norm stack_norm_declare(Parameters *, const char *name, int64_t width, NormKind, double epsilon);

// This rank's outputs of x W^T + b: (B, T, C), or (1, N, C) inside a stack, -> (B, T, F). Rows that were gathered for
// it are not kept: the backward pass gathers them again.
Tensor *column_linear(Tape *, const Parallel *, const Linear *, Tensor *x, const BlockContext *);
// The sum over ranks of x W^T, and the bias: (B, T, F) -> (B, T, C), or (1, N, C) inside a stack
Tensor *row_linear(Tape *, const Parallel *, const Linear *, Tensor *x);
// Both around a GELU as one operator, where ranks do not share rows out: (B, T, C) -> (B, T, C)
Tensor *split_mlp(Tape *, const Parallel *, const Linear *up, const Linear *down, GeluKind, Tensor *x);

// Notes in the context how (B, T, ..) is shared out inside a stack; nothing where rows are whole. stack_enter does it;
// for passes that begin in the middle of a stack.
void stack_share(const Parallel *, int64_t batch, int64_t length, BlockContext *);
// The borders of a stack: (B, T, C) -> (1, N, C), noting the whole shape in the context, and back.
Tensor *stack_enter(Tape *, const Parallel *, Tensor *x, BlockContext *);
Tensor *stack_leave(Tape *, const Parallel *, Tensor *x, const BlockContext *);

// Sizes are cut evenly, so what divides their greatest common divisor is a number of ranks that works: "1, 2 or 4".
int64_t parallel_common(int64_t a, int64_t b);
const char *parallel_degrees(int64_t common, Arena *);
