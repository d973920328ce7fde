/* The engine of `bifocal bench comm`: how fast collectives move bytes, beside a bare MPI_Allreduce of the same size in
 * the same processes, taken in turn with ours. */
#pragma once
#include "kernels/comm/comm.h"

typedef struct BenchCommRow { // the slowest rank's time counts
    const char *call;         // "all-reduce", "MPI_Allreduce"
    int64_t bytes;            // of the whole array
    int rounds;
    double seconds, fastest, slowest; // of one call: median, least, greatest over the rounds
    double gbytes;                    // bus: GB/s that each rank must send at the least in the median time
} BenchCommRow;

typedef struct BenchComm {
    int64_t bytes;                                    // of the array; 0: 4 KB to 64 MB
    double seconds;                                   // for each figure, about
    void (*row)(void *context, const BenchCommRow *); // on rank 0 alone
    void *context;
} BenchComm;

// Collective over `world`, in which nothing else is under way.
void bench_comm(Comm *world, const BenchComm *);
