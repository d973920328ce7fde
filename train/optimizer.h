/* AdamW over a model's trainable parameters (Loshchilov and Hutter 2019), its learning-rate schedule and clipping by
 * the global norm. A rank holds the moments (f32) of what it owns and updates that; then data ranks exchange what
 * operators read. */
#pragma once
#include "kernels/nn/parameters.h"
#include "train/train_config.h"

typedef struct Optimizer Optimizer;

// Backend and parameters are borrowed and must outlive it. Moments start at zero; with Parallel.offload they lie in the
// host's memory and go through a window on the device in each update.
Optimizer *optimizer_new(Backend *, Parameters *, const OptimizerConfig *, int64_t total_steps);
void optimizer_free(Optimizer *); // NULL is allowed

// The learning rate of update `step`, counted from 1: linear warm-up, then the schedule down to final_ratio x peak.
double learning_rate_at(const OptimizerConfig *, int64_t step, int64_t total_steps);
// Applies update `step`; `norm` is that of the gradients, for clipping. All data ranks call it. Other ranks' new values
// come beside what follows: who reads them without a tape that waits for them (parameters_follow) must parameters_meet.
void optimizer_step(Optimizer *, int64_t step, double norm);
// The same where the norm and what it clips are known to the device alone (Backend.gate).
void optimizer_step_gated(Optimizer *, int64_t step, const Gate *);

// Training state that a rank holds: elements [first, first + count) of a parameter as the rank has it (its piece where
// the parameter is split over tensor ranks), together on the device.
typedef enum StateKind { STATE_MASTER, STATE_M, STATE_V, STATE_KINDS } StateKind;
typedef struct StateRange {
    StateKind kind;
    int parameter; // of parameters_at
    int64_t first, count;
    float *data;     // (count) device
    bool everywhere; // every data rank of this stage holds it; false: this one alone
} StateRange;
// All that this rank holds: masters, those of frozen parameters and of replicas too, and moments. The addresses stay
// for the run.
int optimizer_ranges(const Optimizer *, Arena *, StateRange **out);
