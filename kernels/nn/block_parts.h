/* What the files of the block share (block.c, block_step.c). */
#pragma once
#include "kernels/nn/block.h"

// (R, 1, C): whether block_step takes this pass, and is faster than the calls apart.
bool block_step_wins(Tape *, const Block *, const Tensor *x, const BlockContext *);
Tensor *block_step(Tape *, const Block *, Tensor *x, const BlockContext *); // (R, 1, C) -> (R, 1, C)
