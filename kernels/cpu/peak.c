/* See peak.h. */
#include "kernels/cpu/peak.h"
#include "base/clock.h"
#include <stdlib.h>
#include <string.h>

typedef double Probe(int64_t loops, bool bf16); // -> FLOP

enum { LOOPS = 20000, COPY_BLOCK = 1 << 18 }; // bytes

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

double peak_fma(const Backend *b, bool bf16, double seconds) {
    Threads *threads = cpu_threads(b);
    FmaJob job = {probe_of(b), bf16};
    double flop = job.probe(1, bf16) * LOOPS;
    int64_t tasks = 4 * threads_count(threads);
    return flop > 0 ? best_rate(threads, tasks, fma_task, &job, flop * (double)tasks * 1e-9, seconds) : 0;
}

double peak_copy(const Backend *b, int64_t bytes, double seconds) {
    int64_t blocks = bytes / 2 / COPY_BLOCK;
    size_t size = (size_t)(blocks * COPY_BLOCK);
    char *from = b->allocate(NULL, size), *to = b->allocate(NULL, size);
    double rate = 0;
    if (from && to) {
        memset(from, 1, size);
        memset(to, 1, size);
        CopyJob job = {to, from};
        rate = best_rate(cpu_threads(b), blocks, copy_task, &job, 2e-9 * (double)size, seconds);
    }
    b->release(NULL, from, size);
    b->release(NULL, to, size);
    return rate;
}

Peak peak_measure(const Backend *b, double seconds) {
    return (Peak){peak_fma(b, false, seconds), peak_fma(b, true, seconds), peak_copy(b, PEAK_COPY_BYTES, seconds),
                  peak_copy(b, PEAK_CACHED_BYTES, seconds)};
}
