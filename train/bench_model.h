/* A model of a preset on random data, and one step of it: forward and backward over the pieces of its batch. What goes
 * in lies on the device before the first step: what a loader takes is measured by `bifocal bench loader`. */
#pragma once
#include "train/bench_presets.h"

typedef struct BenchModel BenchModel;

// The preset is copied, the backend borrowed.
BenchModel *bench_model_new(Backend *, const BenchPreset *, Dtype, Recompute, Error *);
void bench_model_free(BenchModel *); // NULL is allowed
Parameters *bench_model_parameters(const BenchModel *);
Tape *bench_model_tape(const BenchModel *);
double bench_model_inputs(const BenchModel *); // bytes that stay on the device
double bench_model_flop(const BenchModel *);   // of a step: bench_preset_flop, joint_flop
// Gradients of the mean loss over all pieces, and their norm.
bool bench_model_step(BenchModel *, double *loss, double *norm, Error *);
