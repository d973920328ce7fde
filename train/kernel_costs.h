/* What a GPU does in a training step, kernel by kernel, without one: a step of the real code over a backend that
 * computes nothing (kernels/dry_gpu.h) tells which kernels it calls, their FLOP, and the bytes that they read and
 * write; a GPU's data sheet makes seconds of these. Twice: as if each kernel reached the sheet's figures, which no step
 * can be faster than, and with shares of them that good kernels reach. Modelled, never measured. */
#pragma once
#include "base/buffer.h"
#include "kernels/dry.h"
#include "kernels/gpus.h"
#include "train/bench_presets.h"
#include "train/layout.h"

enum { KERNELS_COSTED = 96 };

typedef struct KernelCosts {
    DryKernel bound[KERNELS_COSTED];    // those that the step calls; work and gaps by the sheet
    DryKernel expected[KERNELS_COSTED]; // the same ones by what is reached
    int count;
    const char *unit; // "tokens" or "images"
    double units;     // of a step
    double flop;      // of the model in a step
} KernelCosts;

DryRates kernel_rates_bound(const GpuKind *);
DryRates kernel_rates_expected(const GpuKind *);
// Of a preset in bf16 or f32; products take in what can be part of them.
bool kernel_costs_preset(const BenchPreset *, Dtype, Recompute, const GpuKind *, KernelCosts *, Error *);
// Of a rank of a run, in its own precision.
bool kernel_costs_run(const TrainConfig *, const Layout *, const GpuKind *, KernelCosts *, Error *);
double kernel_costs_seconds(const KernelCosts *, bool expected); // of a step
void kernel_costs_write(const KernelCosts *, const GpuKind *, Dtype, Buffer *out);
