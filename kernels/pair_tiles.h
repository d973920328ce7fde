/* The walk over the tiles of a contrastive loss: products of a tile before the backend's kernels see it, and its
 * gradient spread to the features after. Shared by the operators over one process's pairs and by the loss over the
 * pairs of all ranks. M rows and N columns of a tile, E feature width. */
#pragma once
#include "kernels/tape.h"

enum {
    PAIR_SIDE = 1024, // rows and columns of a tile at most
};
// From one row of a tile's products to the next: rows 4 KiB apart would share cache sets.
static inline int64_t pair_stride(int64_t columns) { return (columns + 15) / 16 * 16 + 16; }

// z = a b^T; a (M, E), b (N, E): the tile's own
void pair_products(Backend *, const PairTile *, const float *a, const float *b, int64_t width);
// da (M, E) (+)= z b
void pair_spread_rows(Backend *, const PairTile *, float *da, bool add, const float *b, int64_t width);
// db (N, E) (+)= z^T a
void pair_spread_columns(Backend *, const PairTile *, float *db, bool add, const float *a, int64_t width);

typedef struct PairSquare { // all pairs of one process
    Backend *backend;
    const float *a, *b; // (pairs, E)
    float *z;           // (rows of a tile, stride), work space
    int64_t pairs, width, stride;
} PairSquare;
// For every tile: products, then `task`; where there are destinations it leaves the gradient in the tile's z, which
// goes on to them. They may be the same memory.
typedef void PairTask(void *context, const PairTile *, int64_t row, int64_t column);
void pair_square(const PairSquare *, PairTask, void *context, Destination da, Destination db);
PairSquare pair_square_of(Node *, Tensor *a, Tensor *b); // z in the node's scratch
