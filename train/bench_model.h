/* A model of a preset on random data, and one step of it: forward and backward over the pieces of its batch. What goes
 * in lies on the device before the first step: what a loader takes is measured by `bifocal bench loader`. */
#pragma once
#include "train/bench_presets.h"
#include "train/optimizer.h"

typedef struct BenchModel BenchModel;

// The preset is copied, the backend borrowed.
BenchModel *bench_model_new(Backend *, const BenchPreset *, Dtype, Recompute, Error *);
void bench_model_free(BenchModel *); // NULL is allowed
Parameters *bench_model_parameters(const BenchModel *);
Tape *bench_model_tape(const BenchModel *);
double bench_model_inputs(const BenchModel *); // bytes that stay on the device
double bench_model_flop(const BenchModel *);   // of a step: bench_preset_flop, joint_flop
// One step: gradients of the mean loss over all pieces, then update `number` (optimizer NULL: none). Where the device
// judges a step itself (step_gate.h) its work is only on its way then: another step may be started before this one is
// finished, in order. Clipped at `clip`.
bool bench_model_start(BenchModel *, Optimizer *, int64_t number, double clip, Error *);
bool bench_model_finish(BenchModel *, double *loss, Error *); // of the first that is not; waits for it
