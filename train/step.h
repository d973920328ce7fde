/* One training step: the batch in microbatches, forward and backward, with divisors that are exact over the whole step,
 * and a contrastive loss over the whole batch however it is cut. */
#pragma once
#include "fusion/joint.h"

typedef struct StepLoss {
    double total;              // what was minimised
    double mean[OBJECTIVES];   // each objective's own mean; meaningless where count is 0
    int64_t count[OBJECTIVES]; // target tokens, pairs, masked patches
} StepLoss;

// Runs a batch in `parts` pieces. A recording tape leaves the gradients in the model's parameters; a tape that does not
// record computes the losses alone (parts must be 1). False with the tape's message where something is wrong.
bool step_run(Tape *, Joint *, const Batch *, int parts, uint64_t seed, StepLoss *, Error *);
