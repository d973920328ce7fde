/* The launcher of announce.cu. */
#pragma once
#include "kernels/cuda/kernels.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { ANNOUNCED_BITS = 16 };
// word: of the host's pinned memory: a call (a number below 2^15) has begun, or ended: how many of all it is, counted in
// `count`, device, above ANNOUNCED_BITS, and below them the call and whether it goes on.
void cuda_announce(const CudaQueue *, uint64_t *word, uint64_t *count, uint64_t call, bool begins);

#ifdef __cplusplus
}
#endif
