/* Matrix products for use inside a task of another kernel (tiles of attention, of the cross-entropy): one thread, no
 * allocation, the same bits as the threaded ones. */
#pragma once
#include "kernels/cpu/cpu.h"

// What a product needs beside its operands, whatever its size; 64-byte aligned. A task may take it from its worker
// scratch: cpu_worker_scratch(b, worker, own_bytes + MATMUL_SCRATCH), own_bytes a multiple of 64.
enum { MATMUL_SCRATCH = 1 << 20 }; // bytes

void SIMD_NAME(matmul_serial)(const Matmul *, void *scratch);
