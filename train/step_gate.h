/* What a step leaves in a device's memory until the host comes to read it: its losses, the norm of its gradients, and
 * whether it was taken (Backend.gate). So the host need not wait between a step's backward pass and its update, nor
 * between two steps: a step in which anything is not finite updates nothing, and neither do those behind it. */
#pragma once
#include "fusion/joint.h"
#include "train/gradients.h"

typedef struct StepGate StepGate;

// For steps of up to `pieces` pieces on this rank. The backend is borrowed.
StepGate *step_gate_new(Backend *, int pieces);
void step_gate_free(StepGate *); // NULL is allowed

// Of one step, in this order:
void step_gate_begin(StepGate *);
void step_gate_loss(StepGate *, int piece, Objective, const Tensor *mean); // (1) F32; copied behind what forms it
const Gate *step_gate_close(StepGate *, Gradients *, double clip);         // device: for the update
BackendRead *step_gate_read(StepGate *);                                   // once the step is whole
// Of any step read, while others may be under way. mean: (pieces, OBJECTIVES), 0 where there was none. NULL: neither is
// wanted, and nothing is waited for.
void step_gate_finish(StepGate *, BackendRead *, Gate *, float *mean);
