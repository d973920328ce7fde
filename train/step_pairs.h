/* The contrastive loss of a step in several pieces, on the device and over all data ranks: features of the own pairs
 * are kept, the loss over all pairs is formed of them, and each piece plays its gradients back (Gao et al. 2021,
 * "Scaling deep contrastive learning batch size under memory limited setup"). */
#pragma once
#include "fusion/joint.h"

typedef struct StepPairs StepPairs;

StepPairs *step_pairs_new(Backend *); // borrowed; device memory comes with the first step
void step_pairs_free(StepPairs *);    // NULL is allowed

// Of one step, in this order. rows: (pieces) pairs of every global piece, until the loss is formed; this rank's pieces
// are its share of them.
void step_pairs_begin(StepPairs *, Comm *data, const int64_t *rows, int pieces, int64_t width);
// Where features of own pairs from `row` on go: (rows, width) F32 each, device. What nobody writes is zeros.
float *step_pairs_images(const StepPairs *, int64_t row);
float *step_pairs_texts(const StepPairs *, int64_t row);
// Collective over `data`. The tape, which does not record, reads the loss's parameters; gradients false: losses alone.
void step_pairs_loss(StepPairs *, Tape *, Joint *, bool gradients);
const double *step_pairs_sums(const StepPairs *); // device: of each own piece the sum over its pairs
// The gradients of own piece `piece` of this rank's, whose pairs begin at `row`.
void step_pairs_play(const StepPairs *, int piece, int64_t row, JointPass *);
