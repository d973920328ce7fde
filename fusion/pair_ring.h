/* The contrastive loss over the pairs of all data ranks, without ever holding the B x B matrix: features travel around
 * the ring tile by tile, each rank forms the rows of its own pairs (its images against all texts, its texts against all
 * images), twice: once for the sums of the softmax (Radford et al. 2021; sigmoid: Zhai et al. 2023), once for the
 * gradients. Tiles combine in the order of the global pieces, so the bits do not depend on the number of ranks. */
#pragma once
#include "base/arena.h"
#include "kernels/backend.h"
#include "kernels/comm/comm.h"

typedef struct PairRing {
    Backend *backend;
    Comm *data; // NULL: alone
    bool sigmoid;
    int64_t width;                 // E
    const int64_t *rows;           // (pieces) pairs of each global piece of the step; some may be 0
    int pieces, first, end;        // this rank's own: [first, end); the ranks' own lie in rank order
    double weight;                 // of the objective: gradients are of weight x sum / all pairs
    const float *log_scale, *bias; // device, (1) each; bias: sigmoid alone
    Arena *memory;                 // host; work space, freed by the caller
} PairRing;

// images, texts: host, (own pairs, E) f32 normalised, of the own pieces in order; they become their gradients.
// loss[i] (own pieces): the piece's part of the sum over pairs; d_scale[i], d_bias[i] (own pieces; d_bias may be NULL):
// its part of the gradients of log_scale and bias, weight and divisor included.
void pair_ring(const PairRing *, float *images, float *texts, double *loss, float *d_scale, float *d_bias);
// Bytes of work space a rank takes for the loss at the most, features not counted.
int64_t pair_ring_bytes(int64_t own_pairs, int64_t all_pairs, int pieces, int64_t width);
