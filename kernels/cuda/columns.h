/* Sums over the rows of a matrix, column by column: out[s][c] (+)= sum over r of term s at (r, c). Rows are cut into
 * chunks, a function of the shape alone; a block sums a chunk of a tile of columns, its warps taking rows in turn; a
 * second launch adds the chunks up. Both in a fixed order: the same bits always. */
#pragma once
#include "kernels/cuda/language.h"

enum { COLUMN_WARPS = 8, COLUMN_THREADS = COLUMN_WARPS * WARP, COLUMN_UNROLL = 4, COMBINE_WARPS = 32 };

struct ColumnOut {
    void *to; // (C); NULL: not wanted
    Dtype type;
    int add; // or 0
};
template <int SUMS> struct ColumnOuts { ColumnOut at[SUMS]; };

static __device__ __forceinline__ void write_column(const ColumnOut &out, int64_t column, float value) {
    if (!out.to) return;
    if (out.type == F32) {
        float *to = static_cast<float *>(out.to) + column;
        *to = out.add ? *to + value : value;
    } else {
        Bf16 *to = static_cast<Bf16 *>(out.to) + column;
        from_float(to, out.add ? to_float(*to) + value : value);
    }
}

// Term: terms(sum, row, column) adds the terms of N columns to Floats<N> sum[SUMS].
template <class Term, int SUMS, int N>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    column_kernel(Term term, ColumnOuts<SUMS> outs, float *partial, int64_t rows, int64_t width, int64_t chunk_rows) {
    SHARED(float, sums, COLUMN_WARPS *WARP *N);
    const int lane = lane_of_thread(), warp = warp_of_thread(), thread = static_cast<int>(threadIdx.x);
    const int64_t tile = static_cast<int64_t>(blockIdx.x) * (WARP * N), column = tile + lane * N;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * chunk_rows, end = smaller(first + chunk_rows, rows);
    Floats<N> sum[SUMS] = {};
    if (column < width) {
#pragma unroll(COLUMN_UNROLL)
        for (int64_t row = first + warp; row < end; row += COLUMN_WARPS) term.terms(sum, row, column);
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
#pragma unroll
        for (int i = 0; i < N; i++) sums[warp * (WARP * N) + lane * N + i] = sum[s].at[i];
        __syncthreads();
        if (thread < WARP * N && tile + thread < width) {
            float total = 0;
#pragma unroll
            for (int w = 0; w < COLUMN_WARPS; w++) total += sums[w * (WARP * N) + thread];
            if (gridDim.y == 1)
                write_column(outs.at[s], tile + thread, total);
            else
                partial[(static_cast<int64_t>(blockIdx.y) * SUMS + s) * width + tile + thread] = total;
        }
        __syncthreads();
    }
}

// A block adds up the chunks of 32 columns of one of the sums.
template <int SUMS>
static __global__ void __launch_bounds__(COMBINE_WARPS *WARP)
    combine_columns_kernel(ColumnOuts<SUMS> outs, const float *partial, int64_t chunks, int64_t width) {
    SHARED(float, sums, COMBINE_WARPS *WARP);
    const int lane = lane_of_thread(), warp = warp_of_thread(), s = static_cast<int>(blockIdx.y);
    const int64_t column = static_cast<int64_t>(blockIdx.x) * WARP + lane;
    float sum = 0;
    if (column < width) {
#pragma unroll 4
        for (int64_t k = warp; k < chunks; k += COMBINE_WARPS) sum += partial[(k * SUMS + s) * width + column];
    }
    sums[warp * WARP + lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    float total = 0;
    for (int w = 0; w < COMBINE_WARPS; w++) total += sums[w * WARP + lane];
    write_column(outs.at[s], column, total);
}

// Rows of a chunk: enough chunks to fill a device where columns alone do not, few enough that partial sums cost little.
static inline int64_t column_chunk(int64_t rows, int64_t tiles) {
    int64_t wanted = divide_up<int64_t>(512, tiles), chunk = larger<int64_t>(divide_up<int64_t>(rows, wanted), 1);
    return smaller<int64_t>(larger<int64_t>(divide_up<int64_t>(chunk, 64) * 64, divide_up<int64_t>(rows, 65535)), 4096);
}

template <int N, int SUMS, class Term>
static void sum_terms(const CudaQueue *q, const Term &term, const ColumnOuts<SUMS> &outs, int64_t rows, int64_t width) {
    if (width <= 0) return;
    int64_t tiles = divide_up<int64_t>(width, WARP * N), chunk = column_chunk(rows, tiles);
    int64_t chunks = larger<int64_t>(divide_up(rows, chunk), 1);
    float *partial =
        chunks == 1
            ? nullptr
            : static_cast<float *>(q->scratch(q->owner, static_cast<size_t>(chunks * SUMS * width) * sizeof(float)));
    dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks));
    launch<column_kernel<Term, SUMS, N>>(grid, dim3(COLUMN_THREADS), 0, q, term, outs, partial, rows, width, chunk);
    if (chunks == 1) return;
    dim3 combine(static_cast<unsigned>(divide_up<int64_t>(width, WARP)), SUMS);
    launch<combine_columns_kernel<SUMS>>(combine, dim3(COMBINE_WARPS * WARP), 0, q, outs, partial, chunks, width);
}
