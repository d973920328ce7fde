/* What this machine can do at most with the backend's instruction set and threads, measured: the yardstick of every
 * speed table. Cores slow down when their neighbours work, so measure right before and after what is compared. */
#pragma once
#include "kernels/cpu/cpu.h"

typedef struct Peak {
    double f32,
        bf16;      // GFLOP/s of multiply-adds in registers, a multiply-add counted as two; bf16 0: no such instruction
    double copy;   // GB/s of a copy that fits no cache, read and written bytes counted
    double cached; // the same within PEAK_CACHED_BYTES, from and to together
} Peak;

enum { PEAK_CACHED_BYTES = 8 << 20, PEAK_COPY_BYTES = 256 << 20 };

Peak peak_measure(const Backend *, double seconds); // about `seconds` for each of the four; the best counts
double peak_fma(const Backend *, bool bf16, double seconds);
double peak_copy(const Backend *, int64_t bytes, double seconds); // bytes: from and to together

// Of one thread, in simd/peak.c: `loops` rounds of multiply-adds; returns how many FLOP that was.
double peak_fma_plain(int64_t loops, bool bf16);
double peak_fma_avx2(int64_t loops, bool bf16);
double peak_fma_avx512(int64_t loops, bool bf16);
double peak_fma_avx512bf16(int64_t loops, bool bf16);
