/* Microbatches of the shapes that a run's own will have, made up without its data: rows are shared out over the pieces
 * of a step as the loader does it, every row is full of text, every sample has one picture. For costs and memory. */
#pragma once
#include "base/arena.h"
#include "train/train_config.h"

// Rows of each objective in a step. A source that goes by the values of a field counts as one row: how many values
// there are is not known here.
void synthetic_rows(const TrainConfig *, int64_t rows[OBJECTIVES]);

typedef struct SyntheticShape { // what a piece costs depends on this alone
    int rows[OBJECTIVES];       // pictures, where repainted
    int images, seen;           // of the piece; those of them that captions and pairs look at
} SyntheticShape;
void synthetic_shapes(const TrainConfig *, int pieces, SyntheticShape *shapes); // (pieces)

// Piece `piece` of `pieces` of a step, in the arena; and the same with pictures that have a place but no contents, for
// passes that compute nothing.
Batch synthetic_batch(const TrainConfig *, int piece, int pieces, Arena *);
Batch synthetic_batch_dry(const TrainConfig *, int piece, int pieces, Arena *);
