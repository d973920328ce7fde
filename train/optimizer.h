/* AdamW over a model's trainable parameters (Loshchilov and Hutter 2019), its learning-rate schedule and clipping by
 * the global norm. Moments are f32, in the order of the parameters. */
#pragma once
#include "kernels/nn/parameters.h"
#include "train/train_config.h"

typedef struct Optimizer Optimizer;

// Backend and parameters are borrowed and must outlive it. Moments start at zero.
Optimizer *optimizer_new(Backend *, Parameters *, const OptimizerConfig *, int64_t total_steps);
void optimizer_free(Optimizer *); // NULL is allowed

// The learning rate of update `step`, counted from 1: linear warm-up, then the schedule down to final_ratio x peak.
double learning_rate_at(const OptimizerConfig *, int64_t step, int64_t total_steps);
// The global norm of the gradient, summed in f64 in a fixed order. Not finite where any element is not.
double optimizer_gradient_norm(const Optimizer *);
// Applies update `step`; `norm` is what optimizer_gradient_norm gave, for clipping.
void optimizer_step(Optimizer *, int64_t step, double norm);
// Moments as safetensors entries "m/NAME" and "v/NAME" (host copies in `memory`), and back.
int optimizer_export(const Optimizer *, Arena *memory, SafeTensor **out);
bool optimizer_import(Optimizer *, const SafeTensors *, const char *path, Error *);
