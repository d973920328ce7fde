/* One training step over all data ranks: the batch in pieces, forward and backward, with divisors that are exact over
 * the whole step, and a contrastive loss over the whole batch however it is cut. Every rank gets the same losses, to
 * the bit: those of the pieces are added in their order. */
#pragma once
#include "fusion/joint.h"
#include "train/pipeline.h"
#include "train/step_gate.h"
#include "train/step_pairs.h"

typedef struct StepLoss {
    double total;              // what was minimised
    double mean[OBJECTIVES];   // each objective's own mean; meaningless where count is 0
    int64_t count[OBJECTIVES]; // target tokens, pairs, masked patches
    double norm;               // of the gradients, where the device forms it (StepSetup.gate); else 0
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
    StepPairs *pairs;       // NULL: a step whose loss over pairs takes one has its own
    StepGate *gate;         // where the device is to judge a step; NULL: the host does
    uint64_t seed;
    Trace *trace; // may be NULL
} StepSetup;

// Collective over `data` and `stages`. The batch is the part of the step that this rank's pieces lie in. False on every
// rank of both where something is wrong on one of them, with the tape's message there.
bool step_run(const StepSetup *, const Batch *, StepLoss *, Error *);

// The same in parts, with a gate, so that steps may follow each other without the host's waiting. The batch is used
// until step_start returns; behind it comes the update, then step_send. Where step_failed the gate is told (alone, the
// update may be left out instead).
typedef struct StepUnderWay StepUnderWay;
StepUnderWay *step_start(const StepSetup *, const Batch *);
const Error *
step_failed(const StepUnderWay *); // what was wrong on this rank before the device came to it; NULL: nothing
void step_send(StepUnderWay *);    // all of the step is on its way
// Waits for its losses, and frees it; loss NULL: frees it. They may be other than finite: then no rank updated
// anything, perhaps because step_finish is false on one of them: where the step failed.
bool step_finish(StepUnderWay *, StepLoss *, Error *);

// For a step that goes wrong, run again: tape_check_finite and tape_not_finite of whatever runs the model.
void step_check_finite(const StepSetup *, bool on);
const char *step_not_finite(const StepSetup *);
