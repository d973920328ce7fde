/* GPUs by name: what their makers say they could do at most, and hold. The one table behind model FLOP utilisation and
 * plans for GPUs that are not here. */
#pragma once
#include "kernels/tensor.h"
#include <stdbool.h>

typedef struct GpuKind {
    const char *key;   // "h100": what a user calls it
    const char *match; // part of the device's own name
    double memory;     // bytes that CUDA says it has
    double bandwidth;      // bytes/s of that memory
    double f32, bf16, fp8; // FLOP/s, dense (no sparsity): without TF32, with tensor cores; fp8 0: it has none
} GpuKind;

// By the name of a device ("NVIDIA H100 80GB HBM3") or by its key, whatever the case; NULL: not known. Where several
// match, the one that says most.
const GpuKind *gpu_kind(const char *name);
const GpuKind *gpu_kind_at(int number); // NULL behind the last
double         gpu_peak(const GpuKind *, Dtype); // FLOP/s of products in this type
