/* Attention in bf16 on tensor cores (FlashAttention-2, Dao 2023): what its kernels share. A block of four warps holds
 * two tiles of bf16 rows still, or one, and others go by; each warp owns SLABS times 16 rows of the still ones, and
 * keeps products of its rows with all rows that go by in registers, as fragments (mma.h): fragment [slab][j] is 16 rows
 * by columns 8 j .. 8 j + 7; element 2 half + e of it is row g + 8 half, column 2 t + e (g = lane / 4, t = lane % 4).
 *
 * In shared memory a row is 16 bytes longer than a head. Heads are multiples of 32 bytes, so that eight rows at the
 * same place lie in different banks. B batch, T queries, S keys, H heads, K key-value heads, D head size as compiled.
 */
#pragma once
#include "kernels/cuda/attention_call.h"
#include "kernels/cuda/mma.h"

static constexpr int SLAB = 16, /* rows */ ATTENTION_WARPS = ATTENTION_THREADS / WARP, MMA_MOST_HEAD_SIZE = 128;

template <int D> constexpr int MMA_ROW = D + 8; // elements of a row in shared memory

template <int SLABS, int COLUMNS> using Fragments = float[SLABS][COLUMNS / 8][4];

// False: nothing was done; the shapes, types or alignments are not for them.
bool cuda_attention_forward_mma(const CudaQueue *, void *o, float *lse, const void *q, const void *k, const void *v,
                                const AttentionShape *, Dtype t);
bool cuda_attention_backward_mma(const CudaQueue *, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                                 const float *lse, const void *q, const void *k, const void *v, const AttentionShape *,
                                 Dtype t, bool add);

// ---- tiles ----

// Starts to copy rows [row, row + ROWS) of a head into a tile; zeros beyond `rows` and the head's size.
template <int ROWS, int D>
__device__ __forceinline__ void copy_tile(Bf16 *tile, HeadRows x, int64_t row, int64_t rows, int size) {
    const Bf16 *from = static_cast<const Bf16 *>(x.data) + x.first + row * x.stride;
    const int left = static_cast<int>(smaller<int64_t>(rows - row, ROWS));
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < ROWS * (D / 8); i += ATTENTION_THREADS) {
        const int r = i / (D / 8), d = i % (D / 8) * 8;
        const bool there = r < left && d < size;
        copy_async<16>(tile + r * MMA_ROW<D> + d, there ? from + r * static_cast<int>(x.stride) + d : from, there);
    }
}

// The 16 x 16 numbers of a tile from (row, column) on, as left operand.
template <int D> __device__ __forceinline__ void left_operand(uint32_t (&a)[4], const Bf16 *tile, int row, int column) {
    const int lane = lane_of_thread();
    load_matrices(a, tile + (row + lane % 16) * MMA_ROW<D> + column + lane / 16 * 8);
}

template <int SLABS, int BLOCKS> __device__ __forceinline__ void clear(float (&x)[SLABS][BLOCKS][4]) {
#pragma unroll
    for (int i = 0; i < SLABS * BLOCKS * 4; i++) x[i / 4 / BLOCKS][i / 4 % BLOCKS][i % 4] = 0;
}

// out = rows of one tile times rows of another: the sum over d of x[i][d] y[j][d]. left(a, slab, k): x from 16 k on.
// AHEAD: steps along d whose loads may be under way at once.
template <int SLABS, int COLUMNS, int D, int AHEAD = D / 16, class Left>
__device__ __forceinline__ void multiply_rows(Fragments<SLABS, COLUMNS> &out, Left left, const Bf16 *y) {
    const int lane = lane_of_thread();
    const Bf16 *row = y + (lane % 8 + lane / 16 * 8) * MMA_ROW<D> + lane / 8 % 2 * 8;
    clear(out);
#pragma unroll AHEAD
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[SLABS][4];
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) left(a[slab], slab, k);
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; j++) {
            uint32_t b[4];
            load_matrices(b, row + 16 * j * MMA_ROW<D> + 16 * k);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int slab = 0; slab < SLABS; slab++) {
                mma_bf16(out[slab][2 * j], a[slab], first);
                mma_bf16(out[slab][2 * j + 1], a[slab], second);
            }
        }
    }
}

// out += w y: w, as a product left it and rounded to bf16, times ROWS rows of a tile.
template <int SLABS, int ROWS, int D>
__device__ __forceinline__ void add_product(Fragments<SLABS, D> &out, const Fragments<SLABS, ROWS> &w, const Bf16 *y) {
    const int lane = lane_of_thread();
    const Bf16 *row = y + lane % 16 * MMA_ROW<D> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) {
        uint32_t a[SLABS][4];
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = w[slab][2 * k + i / 2] + i % 2 * 2;
                a[slab][i] = pack_bf16(pair[0], pair[1]);
            }
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t b[4];
            load_matrices_turned(b, row + 16 * k * MMA_ROW<D> + 16 * j);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int slab = 0; slab < SLABS; slab++) {
                mma_bf16(out[slab][2 * j], a[slab], first);
                mma_bf16(out[slab][2 * j + 1], a[slab], second);
            }
        }
    }
}

// x (+)= a warp's rows of a result, from `row` on of `rows`. memory: f32 (16 SLABS, D + 8), the warp's own; it is free
// again behind a barrier of the warp.
template <int SLABS, int D>
__device__ __forceinline__ void write_slabs(float *memory, void *x, HeadRows at, int64_t row, int64_t rows, int size,
                                            const Fragments<SLABS, D> &c, bool add) {
    const int lane = lane_of_thread(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                Floats<2> pair = {{c[slab][j][2 * half], c[slab][j][2 * half + 1]}};
                store_shared<2>(memory + (slab * SLAB + g + 8 * half) * MMA_ROW<D> + 8 * j + 2 * t, pair);
            }
    __syncwarp();
    Bf16 *to = static_cast<Bf16 *>(x) + at.first;
    for (int i = lane; i < SLABS * SLAB * (D / 8); i += WARP) {
        const int r = i / (D / 8), d = i % (D / 8) * 8;
        if (row + r < rows && d < size)
            write<8>(to + (row + r) * at.stride + d, load<8>(memory + r * MMA_ROW<D> + d), add);
    }
    __syncwarp();
}

// ---- masks ----

struct Span {          // of several queries:
    Interval any, all; // the least interval with all keys that any of them sees; the keys that all of them see
};

__device__ __forceinline__ Span no_span() { return Span{{INT32_MAX, 0}, {0, INT32_MAX}}; }
__device__ __forceinline__ Span joined(Span s, Interval keys) {
    if (keys.first < keys.end) s.any.first = smaller(s.any.first, keys.first), s.any.end = larger(s.any.end, keys.end);
    s.all.first = larger(s.all.first, keys.first), s.all.end = smaller(s.all.end, keys.end);
    return s;
}
// Over the lanes of a warp, all of which must be here and get the result.
__device__ __forceinline__ Span warp_joined(Span s) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        s.any.first = smaller(s.any.first, __shfl_xor_sync(ALL_LANES, s.any.first, apart));
        s.any.end = larger(s.any.end, __shfl_xor_sync(ALL_LANES, s.any.end, apart));
        s.all.first = larger(s.all.first, __shfl_xor_sync(ALL_LANES, s.all.first, apart));
        s.all.end = smaller(s.all.end, __shfl_xor_sync(ALL_LANES, s.all.end, apart));
    }
    return s;
}
__device__ __forceinline__ bool overlap(Interval a, int first, int end) { return a.first < end && a.end > first; }
__device__ __forceinline__ bool holds(Interval a, int first, int end) { return a.first <= first && a.end >= end; }

// The keys that a block's queries see, and a warp's of them.
struct TileMask {
    const Interval *rows; // of this lane's first row; that of row g + 16 slab + 8 half: rows[16 slab + 8 half]
    Span warp;
    Interval block; // what any query of the block sees
};

// first: of the block's queries. With barriers of the block. rows: shared, for each query and ATTENTION_WARPS more.
template <int SLABS>
__device__ __forceinline__ TileMask mask_of(const AttentionShape &s, int64_t batch, int64_t first, Interval *rows) {
    Interval *warps = rows + ATTENTION_WARPS * SLABS * SLAB;
    const int lane = lane_of_thread(), own = warp_of_thread() * SLABS * SLAB;
    TileMask m = {rows + own + lane / 4, no_span(), {}};
    if (lane < SLABS * SLAB) {
        rows[own + lane] = keys_of(s, batch, first + own + lane);
        m.warp = joined(m.warp, rows[own + lane]);
    }
    m.warp = warp_joined(m.warp);
    if (lane == 0) warps[warp_of_thread()] = m.warp.any;
    __syncthreads();
    m.block = warps[0];
#pragma unroll
    for (int w = 1; w < ATTENTION_WARPS; w++)
        m.block = Interval{smaller(m.block.first, warps[w].first), larger(m.block.end, warps[w].end)};
    return m;
}

// 2^x; what is below the least normal number becomes 0.
__device__ __forceinline__ float quick_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// ---- launches ----

static inline bool eight_at(const void *x, int64_t stride) { // NULL may
    return reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride % 8 == 0;
}

static inline bool takes_mma(const void *o, const void *q, const void *k, const void *v, const AttentionShape *s,
                             Dtype t) {
    return t == BF16 && s->head_size % 8 == 0 && s->head_size <= MMA_MOST_HEAD_SIZE && s->keys < INT32_MAX / 2 &&
           eight_at(o, s->o_stride) && eight_at(q, s->q_stride) && eight_at(k, s->k_stride) && eight_at(v, s->v_stride);
}

// The head size that kernels are compiled for.
template <class F> static void with_mma_head_size(int size, F f) {
    if (size <= 32)
        f(std::integral_constant<int, 32>{});
    else if (size <= 64)
        f(std::integral_constant<int, 64>{});
    else if (size <= 80)
        f(std::integral_constant<int, 80>{});
    else if (size <= 96)
        f(std::integral_constant<int, 96>{});
    else
        f(std::integral_constant<int, 128>{});
}
