/* A step's batch in pieces: rows of every part are shared out evenly and in order, and each piece carries the pictures
 * its rows need, so that what a row sees does not depend on the number of pieces. */
#pragma once
#include "base/arena.h"
#include "data/batch.h"

// Piece `piece` of the `pieces` of a step; arrays live in the arena or in `batch`, which holds the whole step, or the
// part of it that the piece lies in. A piece may have no rows of some objectives, or none; and no pixels where the batch
// has none.
Batch microbatch(const Batch *batch, int piece, int pieces, int image_tokens, Arena *);
