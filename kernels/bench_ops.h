/* The engine of `bifocal bench ops`: every operator of the list on its large example, forward and backward, and matrix
 * products of the shapes of known models beside oneDNN's. A figure comes with the machine's peak as probed around it.
 */
#pragma once
#include "base/log.h"
#include "kernels/cpu/peak.h"
#include "kernels/example.h"

typedef struct BenchRow {            // one line of the table
    char name[64];                   // of the operator or the product
    const char *pass;                // "forward", "backward", "input" (gradient), "weight" (gradient)
    Dtype dtype;                     // of the activations
    double seconds;                  // median of one call
    double fastest, slowest;         // of the rounds
    double flop, bytes;              // of one call, as the operator's cost says
    double peak_gflops, peak_gbytes; // of the machine, this dtype, at that time
    double peer_seconds;             // oneDNN's median; 0 where there is none
    double goal;                     // the share of its floor's speed it is to reach on a GPU; 0: none
} BenchRow;

typedef struct BenchOps {
    const char *only; // part of the names wanted; NULL: all
    ExampleSize size; // of operators: large, or huge where caches hold what is large
    double seconds;   // for each figure
    Peak peak;        // as measured at the start; the CPU's multiply-adds are probed again around each figure
    void (*row)(void *context, const BenchRow *);
    void *context;
} BenchOps;

// What the backend's device can do at most: the CPU as in peak.h; a GPU by its own copies, and by the fastest of some
// large matrix products in place of multiply-adds in registers.
Peak bench_peak(Backend *, double seconds);

// FLOP/s of products in this type at most: of a GPU as its maker states them, where it is known; else as measured.
double bench_most_flops(Backend *, Dtype);

// What no machine can do faster: flop at the peak of multiply-adds or bytes at the peak of copying, whichever takes
// longer.
double bench_floor_seconds(const BenchRow *);
bool bench_is_compute_bound(const BenchRow *);
// Of a GPU: 0.9 for an update (AdamW), 0.85 for all else that memory bounds. What arithmetic bounds is held against
// libraries, not against the largest product: 0.
double bench_goal(const BenchRow *);

void bench_operators(Backend *, const BenchOps *, Dtype, Log *);
void bench_products(Backend *, const BenchOps *, Dtype);

// ---- for the two of them ----

// Times `call` (median, fastest, slowest), probes the peak before and after, and fills the rest of the row.
void bench_measure(Backend *, const BenchOps *, BenchRow *, void (*call)(void *), void *context);
