/* The frame of kernels that look at a whole row, more than once: a warp, 128 or 512 threads hold the row in registers,
 * 32 numbers each, so that it is read from memory once. Wider rows, and rows that do not lie at multiples of 16 bytes,
 * are read again for each look by 256 threads. */
#pragma once
#include "kernels/cuda/language.h"

enum { HELD = 32, ROW_BLOCK = 128, LOOPED_THREADS = 256 };

// A row as `GROUP` threads hold it: pack k of thread g is pack k * GROUP + g of the row.
template <int GROUP, int N> struct RowParts {
    static constexpr int COUNT = HELD / N, THREADS = GROUP == WARP ? ROW_BLOCK : GROUP;
    int64_t row;
    int thread; // in the group
    int packs;  // of the row

    __device__ __forceinline__ explicit RowParts(int64_t width)
        : row(GROUP == WARP ? static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + warp_of_thread()
                            : static_cast<int64_t>(blockIdx.x)),
          thread(static_cast<int>(threadIdx.x) % GROUP), packs(static_cast<int>(width / N)) {}
    __device__ __forceinline__ bool holds(int k) const { return k * GROUP + thread < packs; }
    __device__ __forceinline__ int column(int k) const { return (k * GROUP + thread) * N; }
};

// Over the threads of a row. `memory`: shared, GROUP / WARP numbers.
template <int GROUP> __device__ __forceinline__ float group_sum(float x, float *memory) {
    if (GROUP == WARP) return warp_sum(x);
    return block_sum<GROUP>(x, memory);
}

// Calls f(group, grid, block) with the group, an integral constant, that holds rows of `width`: 0 where none does.
template <class F> static void with_group(int64_t rows, int64_t width, bool packs, F f) {
    unsigned count = static_cast<unsigned>(rows);
    if (packs && width <= WARP * HELD)
        f(std::integral_constant<int, WARP>{}, dim3(divide_up<unsigned>(count, ROW_BLOCK / WARP)), dim3(ROW_BLOCK));
    else if (packs && width <= 128 * HELD)
        f(std::integral_constant<int, 128>{}, dim3(count), dim3(128));
    else if (packs && width <= 512 * HELD)
        f(std::integral_constant<int, 512>{}, dim3(count), dim3(512));
    else
        f(std::integral_constant<int, 0>{}, dim3(count), dim3(LOOPED_THREADS));
}
