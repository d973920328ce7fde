/* Ranges for NVIDIA's profilers (NVTX), where BIFOCAL_NVTX=1 asks for them. They stand around the calls that write work
 * down: the kernels of a CUDA graph are not in them, since a graph is started as one. */
#include "kernels/cuda/cuda_ranges.h"
#include <nvtx3/nvToolsExt.h>
#include <stdlib.h>
#include <string.h>

static void push(Backend *b, const char *name) {
    (void)b;
    (void)nvtxRangePushA(name);
}

static void pop(Backend *b) {
    (void)b;
    (void)nvtxRangePop();
}

void cuda_ranges_install(Backend *b) {
    const char *wanted = getenv("BIFOCAL_NVTX");
    if (wanted && *wanted && strcmp(wanted, "0") != 0) b->range_push = push, b->range_pop = pop;
}
