/* A backend that does nothing (dry.h) with the memory of a GPU: what it is asked for lies in regions as the CUDA backend
 * has them (cuda/host/regions.h), over a device that only counts, and its kernels take the work space that theirs would
 * (cuda/host/work_space.h). A step of the real code over it tells what a GPU will hold, to the byte where these are all
 * that is held; what CUDA and its libraries take for themselves comes as constants. */
#pragma once
#include "kernels/backend.h"

enum {
    GPU_CONTEXT_BYTES = 500 << 20,   // CUDA's context: its code, stacks, and queues of the multiprocessors
    GPU_LIBRARIES_BYTES = 200 << 20, // kernels of cuBLASLt and cuDNN, once they are loaded
};

// `limit`: bytes that tensors, work space among them, may take; 0: no limit. What goes beyond it is given all the same
// and noted. End with backend_free, when all memory was released.
Backend *dry_gpu_new(size_t limit);

// From here on products take in what can be part of them (Backend.matmul_wins), as a GPU may have it that is faster so.
// Before it they never do, which holds more memory.
void dry_gpu_fuse(Backend *);

typedef struct DryGpuMemory {
    size_t regions;  // bytes: backed now, granularity and room to grow included
    size_t scratch;  // of them: work space of kernels
    size_t sent;     // of them: what the host sends along with a sequence, twice
    size_t products; // beside them: work space of matrix products
    size_t host;     // bytes of allocate_host
    bool   beyond;   // the limit was passed
} DryGpuMemory;
DryGpuMemory dry_gpu_memory(const Backend *);
