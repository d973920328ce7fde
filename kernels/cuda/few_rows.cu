/* Products of few rows with large matrices (Backend.few_rows), as each new token of a text asks for them: they cost
 * what reading the matrix costs. A block takes tiles of 16 or 8 of the matrix's rows; its warps share out the inner
 * dimension, and their sums are added in a fixed order. Matrices go from memory straight into the operands of tensor
 * cores, 16 bytes a load: the inner dimension may be taken in any order as long as both operands do (lane t of a
 * quarter has elements 8t .. 8t + 7 of 32, where the instruction's numbering has others), so nothing is rearranged.
 *
 * Of what a block needs, the matrix alone does not come from the kernel in front of it: loads of it begin before that
 * one has ended (programmatic dependent launch, compute capability 9.0), so that memory goes on working between
 * kernels. R rows, N columns of the result, K the inner dimension. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/functions.h"
#include "kernels/cuda/mma.h"
#include <math.h>

namespace {
enum { WARPS = 8, THREADS = WARPS * WARP, RESIDENT = 3 /* blocks on a multiprocessor */ };
enum { STEP = 32 /* elements of K that a warp takes at a time */, MOST_ROWS = 8 };
enum { FREQUENCIES = 128, MOST_SHARED = 90 << 10 /* bytes, of rows */ };

// What becomes of two rows of a tile, `distance` apart: each goes its way, or they are a pair that turns (rope), or a
// gate and what it lets through (SwiGLU).
enum Pairs { APART, TURNED, GATED };

template <Pairs PAIRS> struct Call {
    FewRows p;
    int32_t tiles, distance;                             // of the tiles of 16: between their halves
    int32_t stride, none;                                // of a row of x in shared memory, elements
    double frequency[PAIRS == TURNED ? FREQUENCIES : 1]; // (D / 2), in quarter turns
};

struct Place { // of a lane in an operand
    int group, quarter;
};
__device__ __forceinline__ Place place_of_lane() { return Place{lane_of_thread() / 4, lane_of_thread() % 4}; }
} // namespace

// The matrix's row that stands in row i of a tile.
template <int TILE> static __device__ __forceinline__ int row_of_tile(int tile, int i, int distance) {
    if (TILE == 8) return tile * 8 + i;
    const unsigned eights = static_cast<unsigned>(distance) / 8, pairs = static_cast<unsigned>(tile) / eights;
    return static_cast<int>(pairs) * distance + tile * 8 + i % 8 + (i / 8) * distance;
}

// ---- the matrix ----

typedef Pack<Bf16, 8> Eight;

template <int TILE> struct Matrix { // as one lane reads it
    static constexpr int HALVES = TILE / 8, AHEAD = TILE == 8 ? 8 : 4;
    const Bf16 *row[HALVES]; // of a tile, where this lane's part of a step begins; NULL beyond the end

    template <Pairs PAIRS> __device__ __forceinline__ void turn_to(const Call<PAIRS> &c, int tile) {
        const Place at = place_of_lane();
        const int rows = static_cast<int>(c.p.n) * (PAIRS == GATED ? 2 : 1);
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            const int r = row_of_tile<TILE>(tile, at.group + 8 * h, c.distance);
            row[h] =
                tile < c.tiles && r < rows ? static_cast<const Bf16 *>(c.p.w) + r * c.p.k + at.quarter * 8 : nullptr;
        }
    }
    // Elements from k on, of `width` in all; zeros beyond.
    __device__ __forceinline__ void read(Eight (&to)[HALVES], int k, int width) const {
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            to[h] = Eight{};
            if (row[h] && k + place_of_lane().quarter * 8 < width) to[h] = load_pack<8>(row[h] + k);
        }
    }
};

static __device__ __forceinline__ uint32_t word_of(const Pack<Bf16, 8> &p, int i) {
    return static_cast<uint32_t>(p.at[2 * i].bits) | static_cast<uint32_t>(p.at[2 * i + 1].bits) << 16;
}

// sum (16 x 8) += 16 or 8 rows of the matrix by 32 elements of each row of x
template <int HALVES>
static __device__ __forceinline__ void multiply(float (&sum)[4], const Eight (&w)[HALVES], const Eight &x) {
#pragma unroll
    for (int part = 0; part < 4; part += 2) {
        const uint32_t a[4] = {word_of(w[0], part), HALVES == 2 ? word_of(w[HALVES - 1], part) : 0,
                               word_of(w[0], part + 1), HALVES == 2 ? word_of(w[HALVES - 1], part + 1) : 0};
        const uint32_t b[2] = {word_of(x, part), word_of(x, part + 1)};
        mma_bf16(sum, a, b);
    }
}

// ---- the rows ----

static __device__ __forceinline__ Bf16 rounded(float x) {
    Bf16 r;
    from_float(&r, x);
    return r;
}

// The sum over the `group` warps that share a row; memory: (WARPS) of shared memory, of this call alone.
static __device__ __forceinline__ float row_sum(float x, int group, float *memory) {
    x = warp_sum(x);
    if (lane_of_thread() == 0) memory[warp_of_thread()] = x;
    __syncthreads();
    const int first = warp_of_thread() / group * group;
    float sum = 0;
    for (int w = first; w < first + group; w++) sum += memory[w];
    return sum;
}

// Rows become their norm where they lie in shared memory; the warps share them out.
static __device__ __forceinline__ void norm_rows(Bf16 *rows, int stride, const FewRows &p, float *memory) {
    constexpr int N = 4; // few, beside the parts of the matrix that wait in registers
    const int group = p.rows == 1 ? WARPS : p.rows == 2 ? WARPS / 2 : p.rows <= 4 ? WARPS / 4 : 1;
    const int r = warp_of_thread() / group, width = r < p.rows ? static_cast<int>(p.k) : 0;
    const int first = (warp_of_thread() % group * WARP + lane_of_thread()) * N, by = group * WARP * N;
    Bf16 *row = rows + r * stride;
    float mean = 0, squares = 0;
    if (p.norm_shift) {
#pragma unroll 2
        for (int i = first; i < width; i += by) {
            const Floats<N> v = load<N>(row + i);
            mean += (v.at[0] + v.at[1]) + (v.at[2] + v.at[3]);
        }
        mean = row_sum(mean, group, memory) / static_cast<float>(p.k);
    }
#pragma unroll 2
    for (int i = first; i < width; i += by) {
        const Floats<N> v = load<N>(row + i);
#pragma unroll
        for (int e = 0; e < N; e++) squares += (v.at[e] - mean) * (v.at[e] - mean);
    }
    squares = row_sum(squares, group, memory + WARPS);
    const float rstd = 1.0f / sqrtf(squares / static_cast<float>(p.k) + static_cast<float>(p.epsilon));
#pragma unroll 1
    for (int i = first; i < width; i += by) {
        const Floats<N> v = load<N>(row + i), a = load<N>(p.norm_scale + i);
        Floats<N> y, b = {};
        if (p.norm_shift) b = load<N>(p.norm_shift + i);
#pragma unroll
        for (int e = 0; e < N; e++) y.at[e] = (v.at[e] - mean) * rstd * a.at[e] + b.at[e];
        store_shared<N>(row + i, y);
    }
    __syncthreads();
}

// Attention's result in place of x: the parts that somebody saw, joined as attention_decode.cu joins them.
static __device__ __forceinline__ void join_parts(Bf16 *rows, int stride, const FewRows &p) {
    const int size = p.head_size, heads = static_cast<int>(p.k) / size, chunks = static_cast<int>(p.chunks);
    const int pairs = static_cast<int>(p.k) / 2, count = static_cast<int>(p.rows) * pairs, width = size + 2;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += THREADS) {
        const int r = i / pairs, element = 2 * (i - r * pairs), head = element / size, e = element - head * size;
        const int first = larger(p.range[2 * r], 0), end = smaller(p.range[2 * r + 1], chunks * ATTENTION_CHUNK);
        const int begin = first / ATTENTION_CHUNK, past = first < end ? divide_up<int>(end, ATTENTION_CHUNK) : begin;
        const float *part = p.parts + (static_cast<int64_t>(r) * heads + head) * chunks * width;
        float most = -INFINITY, sum = 0;
        Floats<2> out = {};
#pragma unroll 2
        for (int c = begin; c < past; c++) most = larger(most, part[c * width + size]);
        const float base = most == -INFINITY ? 0 : most;
#pragma unroll 2
        for (int c = begin; c < past; c++) {
            const float weight = exp2f(part[c * width + size] - base);
            const Floats<2> values = load<2>(part + c * width + e);
            sum += weight * part[c * width + size + 1];
            out.at[0] += weight * values.at[0], out.at[1] += weight * values.at[1];
        }
        out.at[0] = sum == 0 ? 0 : out.at[0] / sum, out.at[1] = sum == 0 ? 0 : out.at[1] / sum;
        store_shared<2>(rows + r * stride + element, out);
    }
    __syncthreads();
}

// x, or its norm, into shared memory. memory: (2 WARPS) of it.
static __device__ __forceinline__ void take_rows(Bf16 *rows, int stride, const FewRows &p, float *memory) {
    if (p.parts) {
        join_parts(rows, stride, p);
        return;
    }
    const int packs = static_cast<int>(p.k) / 8, count = static_cast<int>(p.rows) * packs;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < count; i += THREADS) {
        const int r = i / packs, at = i - r * packs;
        *reinterpret_cast<Eight *>(rows + r * stride + at * 8) = load_pack<8>(static_cast<const Bf16 *>(p.x) + i * 8);
    }
    __syncthreads();
    if (p.norm_scale) norm_rows(rows, stride, p, memory);
}

// ---- the result ----

template <class T> static __device__ __forceinline__ float activated(float x, int kind) {
    switch (kind) {
    case FEW_ROWS_GELU_ERF:
        return gelu_erf_of<T>(x);
    case FEW_ROWS_GELU_TANH:
        return gelu_tanh_of<T>(x);
    case FEW_ROWS_GELU_QUICK:
        return swish_of<T>(x, QUICK);
    case FEW_ROWS_SILU:
        return swish_of<T>(x, 1);
    default:
        return x;
    }
}

// One number of the result; columns of keys and values go to their place in the cache.
static __device__ __forceinline__ void put(const FewRows &p, int64_t r, int64_t column, float z) {
    if (p.residual) z += to_float(static_cast<const Bf16 *>(p.residual)[r * p.n + column]);
    if (p.cache && column >= p.queries)
        static_cast<Bf16 *>(p.cache)[p.slots[r] * (p.n - p.queries) + column - p.queries] = rounded(z);
    else
        static_cast<Bf16 *>(p.y)[r * (p.cache ? p.queries : p.n) + column] = rounded(z);
}

// Sums of both halves of a tile, rounded as the calls apart round: i of 8, row r.
template <int TILE, Pairs PAIRS>
static __device__ __forceinline__ void finish(const Call<PAIRS> &c, int tile, int i, int r, const float *sums) {
    float z[2] = {0, 0};
    int column[2];
    const int columns = static_cast<int>(c.p.n) * (PAIRS == GATED ? 2 : 1);
#pragma unroll
    for (int h = 0; h < TILE / 8; h++) {
        column[h] = row_of_tile<TILE>(tile, i + 8 * h, c.distance);
        if (column[h] >= columns) continue;
        for (int w = 0; w < WARPS; w++) z[h] += sums[(w * 16 + i + 8 * h) * 8 + r];
        z[h] = to_float(rounded(z[h] + (c.p.bias ? c.p.bias[column[h]] : 0.0f)));
    }
    if (PAIRS == GATED) {
        put(c.p, r, column[0], swish_of<Bf16>(z[0], 1) * z[1]);
        return;
    }
    if (PAIRS == TURNED && column[0] < c.p.turned) {
        const Turn turn = turn_at(c.p.positions[r],
                                  c.frequency[static_cast<unsigned>(column[0]) % static_cast<unsigned>(c.p.head_size)]);
        const float first = z[0] * turn.cosine - z[1] * turn.sine, second = z[1] * turn.cosine + z[0] * turn.sine;
        z[0] = first, z[1] = second;
    }
#pragma unroll
    for (int h = 0; h < TILE / 8; h++)
        if (column[h] < columns) put(c.p, r, column[h], activated<Bf16>(z[h], c.p.activation));
}

// The sums of a warp: (16, 8), in the order of an operand.
static __device__ __forceinline__ void keep(float *sums, const float (&sum)[4]) {
    const Place at = place_of_lane();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) sums[(at.group + 8 * h) * 8 + at.quarter * 2 + e] = sum[2 * h + e];
}

template <int TILE, Pairs PAIRS>
static __global__ void __launch_bounds__(THREADS, RESIDENT) few_rows_kernel(Call<PAIRS> c) {
    typedef Matrix<TILE> M;
    constexpr int APART_BY = WARPS * STEP; // of a warp's steps
    SHARED_DYNAMIC(Bf16, rows);            // (R, stride)
    SHARED(float, sums, 2 * WARPS * 16 * 8);
    const int width = static_cast<int>(c.p.k), rounds = divide_up(width, APART_BY * M::AHEAD);
    const int first = warp_of_thread() * STEP, tiles = c.tiles, grid = static_cast<int>(gridDim.x);
    const Place at = place_of_lane();
    const Bf16 *x_row = rows + at.group * c.stride + at.quarter * 8;
    M matrix;
    Eight held[M::AHEAD][M::HALVES];
    matrix.turn_to(c, static_cast<int>(blockIdx.x));
#pragma unroll
    for (int u = 0; u < M::AHEAD; u++) matrix.read(held[u], first + u * APART_BY, width);
    let_next_begin();
    wait_for_earlier();
    take_rows(rows, c.stride, c.p, sums);
    int turn = 0; // sums of two tiles take turns
    for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += grid, turn ^= 1) {
        float sum[4] = {};
        for (int round = 0, k = first; round < rounds; round++) {
            int ahead = k + M::AHEAD * APART_BY; // what comes AHEAD steps later: of the next tile, where this one ends
            if (round + 1 == rounds) matrix.turn_to(c, tile + grid), ahead = first;
#pragma unroll
            for (int u = 0; u < M::AHEAD; u++, k += APART_BY, ahead += APART_BY) {
                if (k < width) {
                    Eight x = {};
                    if (at.group < c.p.rows && k + at.quarter * 8 < width) x = load_pack<8>(x_row + k);
                    multiply(sum, held[u], x);
                }
                matrix.read(held[u], ahead, width);
            }
        }
        float *all = sums + turn * (WARPS * 16 * 8);
        keep(all + warp_of_thread() * (16 * 8), sum);
        __syncthreads();
        const int i = static_cast<int>(threadIdx.x) / 8, r = static_cast<int>(threadIdx.x) % 8;
        if (i < 8 && r < c.p.rows) finish<TILE>(c, tile, i, r, all);
    }
}

// ---- launches ----

template <int TILE, Pairs PAIRS> static void run(const CudaQueue *q, Call<PAIRS> c, int most_blocks) {
    // lanes of a quarter-warp read 64 bytes of two rows: these lie in different banks
    c.stride = static_cast<int32_t>(divide_up<int64_t>(c.p.k, 64) * 64 + 32);
    const size_t shared = static_cast<size_t>(c.p.rows * c.stride) * sizeof(Bf16);
    allow_shared<few_rows_kernel<TILE, PAIRS>>(MOST_SHARED);
    launch_early<few_rows_kernel<TILE, PAIRS>>(dim3(static_cast<unsigned>(smaller(c.tiles, most_blocks))),
                                               dim3(THREADS), shared, q, c);
}

static bool takes(const FewRows &p) {
    const bool packed = packs_at(static_cast<const Bf16 *>(p.x), 8) && packs_at(static_cast<const Bf16 *>(p.w), 8) &&
                        packs_at(p.norm_scale, 4) && packs_at(p.norm_shift, 4);
    const bool joins = p.chunks == 0 || (p.head_size % 8 == 0 && p.head_size <= ATTENTION_MOST_HEAD_SIZE);
    const bool turns = p.turned == 0 || (p.head_size % 16 == 0 && p.head_size <= 2 * FREQUENCIES);
    return p.rows >= 1 && p.rows <= MOST_ROWS && joins && p.k % 8 == 0 && p.k > 0 && p.n > 0 && p.n < INT32_MAX / 32 &&
           packed && turns && (p.activation != FEW_ROWS_SWIGLU || p.n % 8 == 0) &&
           p.rows * (p.k + 96) * static_cast<int64_t>(sizeof(Bf16)) <= MOST_SHARED;
}

bool cuda_few_rows(const CudaQueue *q, const FewRows *p, int multiprocessors) {
    const int most_blocks = RESIDENT * multiprocessors;
    if (!takes(*p)) return false;
    if (!multiprocessors) return true;
    const int32_t n = static_cast<int32_t>(p->n);
    if (p->turned) {
        Call<TURNED> c = {*p, n / 16, p->head_size / 2, 0, 0, {}};
        for (int d = 0; d < p->head_size / 2; d++) c.frequency[d] = frequency_of(p->rope_base, d, p->head_size);
        run<16>(q, c, most_blocks);
    } else if (p->activation == FEW_ROWS_SWIGLU) {
        run<16>(q, Call<GATED>{*p, n / 8, n, 0, 0, {}}, most_blocks);
    } else if (n < 16 * multiprocessors) { // else half of the device would be idle
        run<8>(q, Call<APART>{*p, divide_up(n, 8), 8, 0, 0, {}}, most_blocks);
    } else {
        run<16>(q, Call<APART>{*p, divide_up(n, 16), 8, 0, 0, {}}, most_blocks);
    }
    return true;
}
