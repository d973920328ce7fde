/* The contrastive loss over the pairs of all data ranks, without ever holding the B x B matrix: text features are
 * gathered tile by tile, each rank holds its images against them, twice: once for the sums of the softmax (Radford et
 * al. 2021; sigmoid: Zhai et al. 2023), once for the gradients, which go back to the owners of the texts. A tile is
 * made of a few rows of every piece of the step, and what pieces bring to it adds up along a binary tree over the
 * pieces: where ranks and pieces are powers of two, the bits do not depend on the number of ranks. All of it happens in
 * the backend's memory, and nothing is waited for. */
#pragma once
#include "kernels/backend.h"
#include "kernels/comm/comm.h"

typedef struct PairRing {
    Backend *backend;
    Comm *data; // NULL: alone
    bool sigmoid;
    int64_t width;                 // E
    const int64_t *rows;           // (pieces) pairs of each global piece of the step; some may be 0
    int pieces;                    // a multiple of the ranks; rank d of D has [pieces d / D, pieces (d + 1) / D)
    double weight;                 // of the objective: gradients are of weight x sum / all pairs
    const float *log_scale, *bias; // device, (1); bias: sigmoid alone
    void *space;                   // device; pair_ring_space bytes, 64-byte aligned
} PairRing;

// All device memory. images, texts: (own pairs, E) f32 normalised, of the own pieces in order; they become their
// gradients. loss[i] (own pieces): the piece's part of the sum over pairs; d_scale[i], d_bias[i] (own pieces; d_bias of
// the sigmoid alone): its part of the gradients of log_scale and bias, weight and divisor included. Collective over
// `data`. d_scale NULL on every rank: the losses alone, and the features stay.
void pair_ring(const PairRing *, float *images, float *texts, double *loss, float *d_scale, float *d_bias);
// Bytes of work space on this rank, features not counted; nothing but rows, pieces, ranks, width and kind matters. The
// largest part is one matrix (own pairs, E): gradients of images grow there while all texts still need the images.
int64_t pair_ring_space(const PairRing *);
// The same before anything is there, where pieces are of like size: at the most.
int64_t pair_ring_bytes(int64_t own_pairs, int64_t all_pairs, int pieces, int64_t width);
