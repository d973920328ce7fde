/* See peak.h. */
#include "kernels/cpu/peak.h"
#include "base/clock.h"
#include <stdlib.h>
#include <string.h>

typedef double Probe(int64_t loops, bool bf16); // -> FLOP

enum { LOOPS = 20000, COPY_BLOCK = 1 << 20, COPY_BLOCKS = 128 }; // bytes; 128 MiB from and 128 MiB to

typedef struct FmaJob {
    Probe *probe;
    bool bf16;
} FmaJob;

typedef struct CopyJob {
    char *to;
    const char *from;
} CopyJob;

static Probe *probe_of(const Backend *b) {
#if defined(__x86_64__)
    if (!strcmp(b->isa, "avx512-bf16")) return peak_fma_avx512bf16;
    if (!strcmp(b->isa, "avx512")) return peak_fma_avx512;
    if (!strcmp(b->isa, "avx2")) return peak_fma_avx2;
#else
    (void)b;
#endif
    return peak_fma_plain;
}

static void fma_task(void *context, int64_t task, int worker) {
    (void)task, (void)worker;
    const FmaJob *job = context;
    job->probe(LOOPS, job->bf16);
}

static void copy_task(void *context, int64_t task, int worker) {
    (void)worker;
    const CopyJob *job = context;
    memcpy(job->to + task * COPY_BLOCK, job->from + task * COPY_BLOCK, COPY_BLOCK);
}

// The best of several runs that together take `seconds`; amount: what one run does.
static double best_rate(Threads *threads, int64_t tasks, ThreadTask task, void *context, double amount,
                        double seconds) {
    double best = 0, until = clock_seconds() + seconds;
    do {
        double start = clock_seconds();
        threads_run(threads, tasks, task, context);
        double rate = amount / (clock_seconds() - start);
        if (rate > best) best = rate;
    } while (clock_seconds() < until);
    return best;
}

static double fma_rate(const Backend *b, bool bf16, double seconds) {
    Threads *threads = cpu_threads(b);
    FmaJob job = {probe_of(b), bf16};
    double flop = job.probe(1, bf16) * LOOPS;
    int64_t tasks = 4 * threads_count(threads);
    return flop > 0 ? best_rate(threads, tasks, fma_task, &job, flop * (double)tasks * 1e-9, seconds) : 0;
}

static double copy_rate(const Backend *b, double seconds) {
    size_t bytes = (size_t)COPY_BLOCK * COPY_BLOCKS;
    char *from = b->allocate(NULL, bytes), *to = b->allocate(NULL, bytes);
    double rate = 0;
    if (from && to) {
        memset(from, 1, bytes);
        memset(to, 1, bytes);
        CopyJob job = {to, from};
        rate = best_rate(cpu_threads(b), COPY_BLOCKS, copy_task, &job, 2e-9 * (double)bytes, seconds);
    }
    b->release(NULL, from, bytes);
    b->release(NULL, to, bytes);
    return rate;
}

Peak peak_measure(const Backend *b, double seconds) {
    return (Peak){fma_rate(b, false, seconds), fma_rate(b, true, seconds), copy_rate(b, seconds)};
}
