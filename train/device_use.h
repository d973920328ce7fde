/* What takes a GPU's memory, as it is: measured when a run starts, for what may be planned with, and at its end, beside
 * what was planned. */
#pragma once
#include "base/log.h"
#include "kernels/backend.h"
#include "train/device_memory.h"

// Put aside for kernels that are loaded with their first call (cuDNN's and our own), and for graphs.
enum { DEVICE_LATER_BYTES = 128 << 20 };

typedef struct DeviceUse {  // bytes
    double all, free, held; // held: tensors and work space of this process
    double others;          // neither free nor held: CUDA's own, its libraries', of other processes; no call parts them
    const GpuKind *gpu;     // NULL: not known
} DeviceUse;

// False where the backend has no memory of its own.
bool device_use(Backend *, DeviceUse *);
// A first product, with which libraries load what they always need, so that it is measured with the rest.
void device_use_first(Backend *);
// What one of so many processes that share the GPU may plan with.
DeviceLimit device_use_limit(const DeviceUse *, int sharing);
// Tells the log what is held in the end, and by how much it differs from what was planned.
void device_use_report(Backend *, const DeviceMemory *planned, Log *);
