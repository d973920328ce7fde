/* See ranges.h. */
#include "kernels/cpu/ranges.h"

enum { INLINE_BLOCKS = 2 }; // up to so many run on the calling thread

typedef struct Ranges {
    int64_t count, block;
    RangeTask task;
    void *context;
} Ranges;

static void run_block(void *context, int64_t number, int worker) {
    const Ranges *r = context;
    int64_t first = number * r->block, end = first + r->block;
    r->task(r->context, first, end < r->count ? end : r->count, worker);
}

void cpu_run_ranges(const Backend *b, int64_t count, int64_t block, RangeTask task, void *context) {
    Ranges r = {count, block, task, context};
    int64_t blocks = range_blocks(count, block);
    if (blocks > INLINE_BLOCKS) {
        threads_run(cpu_threads(b), blocks, run_block, &r);
    } else {
        for (int64_t i = 0; i < blocks; i++) run_block(&r, i, 0);
    }
}
