/* Work over a range, cut into blocks of fixed size that run on the backend's threads. The cut depends on the problem
 * alone, so what a kernel computes for a block has the same bits on any number of threads. A range of a few blocks runs
 * on the calling thread, where waking the others would cost more than it saves. */
#pragma once
#include "kernels/cpu/cpu.h"

enum {
    RANGE_ELEMENTS = 16384, // elements of a block where each costs little more than its memory traffic
    RANGE_HEAVY = 4096,     // where each costs an exponential or so
};

// Works on [first, end), block number first / block. `worker` is an index for scratch memory only.
typedef void (*RangeTask)(void *context, int64_t first, int64_t end, int worker);
void cpu_run_ranges(const Backend *, int64_t count, int64_t block, RangeTask, void *context);

static inline int64_t range_blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }
// Rows of a block such that it has about `elements` elements.
static inline int64_t range_rows(int64_t width, int64_t elements) {
    return width < elements ? elements / (width > 0 ? width : 1) : 1;
}
