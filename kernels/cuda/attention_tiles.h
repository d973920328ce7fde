/* What attention's f32 kernels share: tiles of queries, keys and values in shared memory as f32, and products of tiles in
 * registers (Dao et al. 2022, on plain f32 arithmetic).
 *
 * A block has 128 threads, 16 groups of 8: group g works on rows g, g + 16, .. of a product, thread c of a group on
 * columns c, c + 8, .. of it (or 4 at c * 4 + 32 k where a column is a head's element). The 8 threads of a group lie
 * side by side in a warp. B batch, T queries, S keys, H heads, K key-value heads, D head size. */
#pragma once
#include "kernels/cuda/attention_call.h"

enum { GROUPS = 16, GROUP = 8, TILE_PAD = 4 };

__device__ __forceinline__ Floats<4> read_four(const AttentionCall &c, const void *data, int64_t at, int left) {
    Floats<4> f;
    if (c.packed) return c.bf16 ? load<4>(static_cast<const Bf16 *>(data) + at) : load<4>(static_cast<const float *>(data) + at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        f.at[i] = 0;
        if (i < left)
            f.at[i] = c.bf16 ? to_float(static_cast<const Bf16 *>(data)[at + i]) : static_cast<const float *>(data)[at + i];
    }
    return f;
}

__device__ __forceinline__ void write_four(const AttentionCall &c, void *data, int64_t at, Floats<4> f, int left, bool add) {
    if (c.packed && c.bf16) return write<4>(static_cast<Bf16 *>(data) + at, f, add);
    if (c.packed) return write<4>(static_cast<float *>(data) + at, f, add);
    for (int i = 0; i < 4 && i < left; i++) {
        Floats<1> one;
        one.at[0] = f.at[i];
        if (c.bf16)
            write<1>(static_cast<Bf16 *>(data) + at + i, one, add);
        else
            write<1>(static_cast<float *>(data) + at + i, one, add);
    }
}

// tile (ROWS, D + pad) = rows [row, row + ROWS) of a head, zeros beyond `rows` and beyond the head's size.
template <int ROWS, int D>
__device__ __forceinline__ void load_tile(float *tile, const AttentionCall &c, HeadRows x, int64_t row, int64_t rows) {
    const int size = c.shape.head_size;
    for (int i = static_cast<int>(threadIdx.x); i < ROWS * (D / 4); i += ATTENTION_THREADS) {
        int r = i / (D / 4), d = i % (D / 4) * 4;
        Floats<4> f = {};
        if (row + r < rows && d < size) f = read_four(c, x.data, x.first + (row + r) * x.stride + d, size - d);
        store_shared<4>(tile + r * (D + TILE_PAD) + d, f);
    }
}

// out[i][j] = sum over d of a[g + 16 i][d] b[c + 8 j][d]: the scores of a tile of queries and one of keys, or the like.
template <int I, int J, int D>
__device__ __forceinline__ void dot_rows(float (&out)[I][J], const float *a, const float *b) {
    const int g = static_cast<int>(threadIdx.x) / GROUP, column = static_cast<int>(threadIdx.x) % GROUP;
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
        for (int j = 0; j < J; j++) out[i][j] = 0;
#pragma unroll 2
    for (int d = 0; d < D; d += 4) {
        Floats<4> x[I], y[J];
#pragma unroll
        for (int i = 0; i < I; i++) x[i] = load<4>(a + (g + GROUPS * i) * (D + TILE_PAD) + d);
#pragma unroll
        for (int j = 0; j < J; j++) y[j] = load<4>(b + (column + GROUP * j) * (D + TILE_PAD) + d);
#pragma unroll
        for (int i = 0; i < I; i++)
#pragma unroll
            for (int j = 0; j < J; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) out[i][j] += x[i].at[e] * y[j].at[e];
    }
}

// sum[i][k] += sum over j < COUNT of weight(g + 16 i, j) x[j][4 c + 32 k ..]; weight(i, j) lies at w[i * row + j * column].
template <int I, int COUNT, int D>
__device__ __forceinline__ void add_rows(Floats<4> (&sum)[I][D / 32], const float *w, int row, int column, const float *x) {
    const int g = static_cast<int>(threadIdx.x) / GROUP, at = static_cast<int>(threadIdx.x) % GROUP * 4;
#pragma unroll 4
    for (int j = 0; j < COUNT; j++) {
        float weight[I];
#pragma unroll
        for (int i = 0; i < I; i++) weight[i] = w[(g + GROUPS * i) * row + j * column];
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            Floats<4> y = load<4>(x + j * (D + TILE_PAD) + at + 32 * k);
#pragma unroll
            for (int i = 0; i < I; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][k].at[e] += weight[i] * y.at[e];
        }
    }
}

// Over the 8 threads of a group, all of which get the result.
__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
    for (int apart = GROUP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}
__device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int apart = GROUP / 2; apart > 0; apart /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, x, apart);
        x = other > x ? other : x;
    }
    return x;
}

// Puts the intervals of ROWS queries into shared memory; returns one that holds them all. With barriers around.
template <int ROWS>
__device__ __forceinline__ Interval tile_keys(Interval *memory, const AttentionShape &s, int64_t batch, int64_t query) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < ROWS; i += ATTENTION_THREADS) memory[i] = keys_of(s, batch, query + i);
    __syncthreads();
    Interval all = {static_cast<int>(s.keys), 0};
    for (int i = 0; i < ROWS; i++) {
        if (memory[i].first == memory[i].end) continue;
        all.first = smaller(all.first, memory[i].first);
        all.end = larger(all.end, memory[i].end);
    }
    return all;
}

// The head size that kernels are compiled for.
template <class F> static void with_head_size(int size, F f) {
    if (size <= 64)
        f(std::integral_constant<int, 64>{});
    else if (size <= 128)
        f(std::integral_constant<int, 128>{});
    else
        f(std::integral_constant<int, 256>{});
}

static inline bool four_at(const void *x, int64_t stride, size_t size) {
    return reinterpret_cast<uintptr_t>(x) % (4 * size) == 0 && stride % 4 == 0;
}

static inline bool packed_at(const AttentionCall &c) { // its inputs
    const AttentionShape &s = c.shape;
    const size_t size = c.bf16 ? sizeof(Bf16) : sizeof(float);
    return s.head_size % 4 == 0 && four_at(c.q, s.q_stride, size) && four_at(c.k, s.k_stride, size) &&
           four_at(c.v, s.v_stride, size) && s.o_stride % 4 == 0;
}
