/* One training step over all data ranks: the batch in pieces, forward and backward, with divisors that are exact over
 * the whole step, and a contrastive loss over the whole batch however it is cut. Every rank gets the same losses, to
 * the bit: those of the pieces are added in their order. */
#pragma once
#include "fusion/joint.h"
#include "train/pipeline.h"

typedef struct StepLoss {
    double total;              // what was minimised
    double mean[OBJECTIVES];   // each objective's own mean; meaningless where count is 0
    int64_t count[OBJECTIVES]; // target tokens, pairs, masked patches
} StepLoss;

typedef struct StepSetup { // what stays from step to step; all borrowed
    Tape *tape;            // recording: gradients are formed; else losses alone
    Joint *joint;
    Gradients *gradients;   // of a tape that records: what reductions are left is waited for by gradients_norm
    Pipeline *pipeline;     // of which this rank is a stage, with one like it in every place of `data`; NULL: the whole
                            // model is here. Then `tape` runs no model: it reads the parameters of the loss over pairs
    Comm *stages;           // its group
    Comm *data;             // the ranks that share out the pieces; NULL: alone
    int pieces, first, end; // of a step, over all data ranks; this rank's own: [first, end)
    uint64_t seed;
    Trace *trace; // may be NULL
} StepSetup;

// Collective over `data` and `stages`. The batch is the part of the step that this rank's pieces lie in. False on every
// rank of both where something is wrong on one of them, with the tape's message there.
bool step_run(const StepSetup *, const Batch *, StepLoss *, Error *);
// For a step that goes wrong, run again: tape_check_finite and tape_not_finite of whatever runs the model.
void step_check_finite(const StepSetup *, bool on);
const char *step_not_finite(const StepSetup *);
