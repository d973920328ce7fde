/* See bench_comm.h. */
#include "kernels/comm/bench_comm.h"
#include "base/clock.h"
#include "kernels/comm/comm_internal.h"
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 11, MOST_CALLS = 1000 }; // of each figure; in a round
enum { SMALLEST = 4 << 10, LARGEST = 64 << 20 };

typedef struct Work {
    Comm *world;
    float *data, *part; // the array; room for a rank's share
    int64_t n;          // elements of the array
} Work;

static void all_reduce(const Work *w) {
    comm_all_reduce(w->world, w->data, w->n, COMM_F32, COMM_SUM, COMM_FAST, "bench");
}
static void ordered_all_reduce(const Work *w) {
    comm_all_reduce(w->world, w->data, w->n, COMM_F32, COMM_SUM, COMM_ORDERED, "bench");
}
static void reduce_scatter(const Work *w) {
    comm_reduce_scatter(w->world, w->part, w->data, w->n, 1, COMM_F32, COMM_FAST, "bench");
}
static void ordered_reduce_scatter(const Work *w) {
    comm_reduce_scatter(w->world, w->part, w->data, w->n, 1, COMM_F32, COMM_ORDERED, "bench");
}
static void all_gather(const Work *w) { comm_all_gather(w->world, w->data, w->part, w->n, sizeof(float), "bench"); }
static void bare_all_reduce(const Work *w) { engine_bare_all_reduce(w->world->engine, w->data, w->n); }

typedef struct Kind {
    const char *name;
    void (*call)(const Work *);
    int passes; // over the array: an all-reduce is a reduce-scatter and an all-gather
} Kind;

static const Kind kinds[] = {{"all-reduce", all_reduce, 2},
                             {"all-reduce ordered", ordered_all_reduce, 2},
                             {"MPI_Allreduce", bare_all_reduce, 2},
                             {"reduce-scatter", reduce_scatter, 1},
                             {"reduce-scatter ordered", ordered_reduce_scatter, 1},
                             {"all-gather", all_gather, 1}};
enum { KINDS = sizeof kinds / sizeof *kinds };

// Seconds of one of `calls` calls in a row, on the slowest rank.
static double time_calls(const Work *w, const Kind *kind, int64_t calls) {
    comm_barrier(w->world, "bench");
    double begin = clock_seconds();
    for (int64_t i = 0; i < calls; i++) kind->call(w);
    double seconds = (clock_seconds() - begin) / (double)calls;
    comm_all_reduce(w->world, &seconds, 1, COMM_F64, COMM_MAX, COMM_FAST, "bench");
    return seconds;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const BenchComm *bench, const Work *w, const Kind *kind, double times[ROUNDS]) {
    int p = comm_size(w->world);
    qsort(times, ROUNDS, sizeof *times, by_value);
    BenchCommRow row = {.call = kind->name,
                        .bytes = w->n * (int64_t)sizeof(float),
                        .rounds = ROUNDS,
                        .seconds = times[ROUNDS / 2],
                        .fastest = times[0],
                        .slowest = times[ROUNDS - 1]};
    row.gbytes = (double)row.bytes * kind->passes * (p - 1) / p / row.seconds * 1e-9;
    if (comm_rank(w->world) == 0) bench->row(bench->context, &row);
}

static void bench_size(const BenchComm *bench, Comm *world, int64_t bytes) {
    Work w = {.world = world, .n = bytes / (int64_t)sizeof(float)};
    w.data = malloc((size_t)bytes);
    w.part = malloc((size_t)bytes);
    check(w.data && w.part);
    memset(w.data, 0, (size_t)bytes); // every page is there, and sums stay zero
    memset(w.part, 0, (size_t)bytes);
    double times[KINDS][ROUNDS];
    int64_t calls[KINDS];
    for (int k = 0; k < KINDS; k++) { // warm, and to know how many fill a round
        double seconds = (time_calls(&w, &kinds[k], 1), time_calls(&w, &kinds[k], 2));
        int64_t fit = (int64_t)(bench->seconds / ROUNDS / seconds);
        calls[k] = fit < 1 ? 1 : fit > MOST_CALLS ? MOST_CALLS : fit;
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int k = 0; k < KINDS; k++) times[k][round] = time_calls(&w, &kinds[k], calls[k]);
    for (int k = 0; k < KINDS; k++)
        if (kinds[k].call != bare_all_reduce || engine_bare_all_reduce(world->engine, w.data, 0))
            report(bench, &w, &kinds[k], times[k]);
    free(w.data);
    free(w.part);
}

void bench_comm(Comm *world, const BenchComm *bench) {
    check(comm_size(world) > 1);
    if (bench->bytes) return bench_size(bench, world, bench->bytes);
    for (int64_t bytes = SMALLEST; bytes <= LARGEST; bytes *= 4) bench_size(bench, world, bytes);
}
