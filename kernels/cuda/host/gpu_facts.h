/* What a machine says of its GPUs, and whether this program can use the one that was asked for. */
#pragma once
#include "base/error.h"
#include <stddef.h>

typedef struct GpuFacts {
    int driver, runtime; // versions, 1000 major + 10 minor; driver 0: there is none
    int count, device;   // GPUs that are visible; which of them
    char name[128];
    int major, minor; // compute capability
    size_t memory;    // bytes
} GpuFacts;

// Of all but the GPU itself: before its name and capability can be asked for.
bool gpu_present(const GpuFacts *, Error *);
// Compute capability 8.0 at least: bf16 products and asynchronous copies.
bool gpu_new_enough(const GpuFacts *, Error *);
