/* A step's batch in pieces: rows of every part are shared out evenly and in order, and each piece carries the pictures
 * its rows need, so that what a row sees does not depend on the number of pieces. */
#pragma once
#include "base/arena.h"
#include "data/batch.h"

// Piece `part` of `parts`; arrays live in the arena or in `whole`. A piece may have no rows of some parts, or none.
Batch microbatch(const Batch *whole, int part, int parts, int image_tokens, Arena *);
