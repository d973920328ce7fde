/* From the pieces of a step to summed gradients and updated parameters, over the data ranks: gradients are summed over
 * pieces and ranks bucket by bucket as backward passes complete them, the norm is taken, AdamW runs on what this rank
 * owns, and parameters are gathered again. Stages 0 to 3 after Rajbhandari et al. 2020 ("ZeRO").
 *
 * Ordered (Parallel.ordered): the pieces of all ranks are summed along one binary tree over the global pieces, whatever
 * the ranks, and the norm over fixed blocks: the same bits for every number of ranks, stage and share of pieces. The
 * sums of the tree that wait for their other half are whole gradients, at every stage: up to log2(pieces) of them. */
#pragma once
#include "base/trace.h"
#include "kernels/nn/parameters.h"

typedef struct Gradients Gradients;

// Everything is borrowed; trace may be NULL, then nothing is drawn. tape: the one that forms gradients; NULL: there are
// several, each of which gradients_follow is told.
Gradients *gradients_new(Parameters *, Tape *, Trace *);
void gradients_follow(Gradients *, Tape *); // installs its hooks; the tape is freed before the gradients, or hooked off
void gradients_free(Gradients *);           // takes its hooks off the tape of gradients_new; NULL is allowed

// A step of `pieces` pieces on this rank (the same number on every data rank; a power of two when ordered).
void gradients_begin_step(Gradients *, int pieces);
// Around each piece's forward and its one backward pass, in order. With several parts of the model on this rank
// (Parameter.chunk), or with tapes for several pieces, gradients_begin_part and gradients_end_part stand instead around
// each pass that writes gradients of weights: of one piece in one part, whose pieces come in order, while those of
// other parts may be further or less far; all data ranks end parts in the same order. In the last one (stages 2 and 3,
// not ordered: in each) reductions start as gradients complete. A piece may hold nothing at all: then begin and end
// alone. At stage 3 there are whole pieces alone.
void gradients_begin_piece(Gradients *, int piece);
void gradients_end_piece(Gradients *);
void gradients_begin_part(Gradients *, int chunk, int piece);
void gradients_end_part(Gradients *);
// Waits for all reductions, once a step: gradients of a parameter and its replica are added up for both. The global
// norm over every rank's part; not finite where any element is not.
double gradients_norm(Gradients *);
// The same for Backend.gate, without the host: parts of the norm's square (gradient_norm_parts).
const double *gradients_norm_parts(Gradients *, const float *finite, int64_t n, int64_t *count);
// Really allocated for parameters and gradients, and beside that for buckets on their way.
ParameterMemory gradients_memory(const Gradients *);
