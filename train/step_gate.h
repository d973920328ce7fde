/* What a step leaves in a device's memory until the host comes to read it: its losses, the norm of its gradients, and
 * whether it was taken (Backend.gate). So the host need not wait between a step's backward pass and its update, nor
 * between two steps: a step in which anything is not finite updates nothing, and neither do those behind it. Over
 * several ranks the devices exchange losses and parts of the norm: all come to the same bits and the same verdict. */
#pragma once
#include "fusion/joint.h"
#include "train/gradients.h"

typedef struct StepGate StepGate;

typedef struct GateLoss {    // of a piece of the step
    double mean[OBJECTIVES]; // its part of each mean, 0 where there was none
    double pairs;            // the sum over its pairs, where the loss over those of all pieces is formed at once
} GateLoss;

// For steps of `pieces` pieces on this rank, and on each of `data`, the ranks that share out a step's; each loss is
// formed on one of `stages`. Either group may be NULL: alone. All is borrowed.
StepGate *step_gate_new(Backend *, int pieces, Comm *data, Comm *stages);
void step_gate_free(StepGate *); // NULL is allowed

// Of one step, in this order; what is wrong on one rank may be said any time before the close:
void step_gate_begin(StepGate *);
void step_gate_loss(StepGate *, int piece, Objective, const Tensor *mean); // (1) F32; copied behind what forms it
void step_gate_pairs(StepGate *, const double *sums);                      // device, (pieces): in place of their means
void step_gate_fail(StepGate *);                                           // no rank is to take the step
// Collective over all ranks of the run, which share its gradients. Device: for the update.
const Gate *step_gate_close(StepGate *, Gradients *, double clip);
BackendRead *step_gate_read(StepGate *); // once the step is whole
// Of any step read, while others may be under way. losses: (pieces of all data ranks). Gate NULL: neither is wanted,
// and nothing is waited for.
void step_gate_finish(StepGate *, BackendRead *, Gate *, GateLoss *losses);
