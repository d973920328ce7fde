/* What a stream is at, in memory that the host sees while it works: for whoever watches that calls to other GPUs end. */
#include "kernels/cuda/announce.h"
#include "kernels/cuda/language.h"

static __global__ void __launch_bounds__(WARP) announce_kernel(volatile uint64_t *word, uint64_t *count, uint64_t call,
                                                               uint64_t begins) {
    if (threadIdx.x) return;
    *count += begins;
    *word = *count << ANNOUNCED_BITS | call << 1 | begins;
}

void cuda_announce(const CudaQueue *q, uint64_t *word, uint64_t *count, uint64_t call, bool begins) {
    launch<announce_kernel>(1, WARP, 0, q, static_cast<volatile uint64_t *>(word), count, call,
                            static_cast<uint64_t>(begins));
}
