/* Products of few rows with large matrices (Backend.few_rows), as each new token of a text asks for them: they cost
 * what reading the matrix costs. A block takes tiles of 16 or 8 of the matrix's rows; its warps share out the inner
 * dimension, and their sums are added in a fixed order. Matrices go from memory straight into the operands of tensor
 * cores, 16 bytes a load: the inner dimension may be taken in any order as long as both operands do (lane t of a
 * quarter has elements 8t .. 8t + 7 of 32, where the instruction's numbering has others), so nothing is rearranged.
 *
 * Of what a block needs, the matrix alone does not come from the kernel in front of it: loads of it begin before that
 * one has ended (programmatic dependent launch, compute capability 9.0), so that memory goes on working between
 * kernels. R rows, N columns of the result, K the inner dimension. */
#include "kernels/cuda/functions.h"
#include "kernels/cuda/mma.h"

namespace {
enum { WARPS = 8, THREADS = WARPS * WARP, STEP = 32 /* elements of K that a warp takes at a time */, MOST_ROWS = 8 };
enum { FREQUENCIES = 128, MOST_SHARED = 144 << 10 /* bytes, of rows */ };

// What becomes of two rows of a tile, `distance` apart: each goes its way, or they are a pair that turns (rope), or a
// gate and what it lets through (SwiGLU).
enum Pairs { APART, TURNED, GATED };

template <Pairs PAIRS> struct Call {
    FewRows p;
    int64_t tiles, distance;                             // between the halves of a tile of 16
    int64_t stride;                                      // of a row of x in shared memory, elements
    double frequency[PAIRS == TURNED ? FREQUENCIES : 1]; // (D / 2), in quarter turns
};

struct Place { // of a lane in an operand
    int group, quarter;
};
__device__ __forceinline__ Place place_of_lane() { return Place{lane_of_thread() / 4, lane_of_thread() % 4}; }
} // namespace

// The matrix's row that stands in row i of a tile.
template <int TILE> static __device__ __forceinline__ int64_t row_of_tile(int64_t tile, int i, int64_t distance) {
    if (TILE == 8) return tile * 8 + i;
    const int64_t eights = distance / 8, pairs = tile / eights;
    return pairs * 2 * distance + (tile - pairs * eights) * 8 + i % 8 + (i / 8) * distance;
}

// ---- the matrix ----

template <int TILE, Pairs PAIRS> struct Matrix { // as one lane reads it: tile by tile, step by step
    static constexpr int HALVES = TILE / 8, AHEAD = TILE == 8 ? 8 : 4;
    typedef Pack<Bf16, 8> Eight;
    const Call<PAIRS> &c;
    Eight held[AHEAD][HALVES];

    // Step number `step` of a tile; zeros beyond its ends.
    __device__ __forceinline__ void read(Eight (&to)[HALVES], int64_t tile, int64_t step) const {
        const Place at = place_of_lane();
        const int64_t k = step * STEP + at.quarter * 8, rows = c.p.n * (PAIRS == GATED ? 2 : 1);
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            const int64_t row = row_of_tile<TILE>(tile, at.group + 8 * h, c.distance);
            to[h] = Eight{};
            if (tile < c.tiles && row < rows && k < c.p.k)
                to[h] = load_pack<8>(static_cast<const Bf16 *>(c.p.w) + row * c.p.k + k);
        }
    }
};

static __device__ __forceinline__ uint32_t word_of(const Pack<Bf16, 8> &p, int i) {
    return static_cast<uint32_t>(p.at[2 * i].bits) | static_cast<uint32_t>(p.at[2 * i + 1].bits) << 16;
}

// sum (16 x 8) += 16 or 8 rows of the matrix by 32 elements of each row of x
template <int HALVES>
static __device__ __forceinline__ void multiply(float (&sum)[4], const Pack<Bf16, 8> (&w)[HALVES],
                                                const Pack<Bf16, 8> &x) {
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

// A warp norms a row where it lies in shared memory.
static __device__ __forceinline__ void norm_row(Bf16 *row, const FewRows &p) {
    const float *scale = p.norm_scale, *shift = p.norm_shift;
    const int width = static_cast<int>(p.k);
    float mean = 0, squares = 0;
    if (shift) {
        for (int i = lane_of_thread() * 8; i < width; i += WARP * 8) {
            const Floats<8> v = load<8>(row + i);
#pragma unroll
            for (int e = 0; e < 8; e++) mean += v.at[e];
        }
        mean = warp_sum(mean) / static_cast<float>(width);
    }
    for (int i = lane_of_thread() * 8; i < width; i += WARP * 8) {
        const Floats<8> v = load<8>(row + i);
#pragma unroll
        for (int e = 0; e < 8; e++) squares += (v.at[e] - mean) * (v.at[e] - mean);
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + static_cast<float>(p.epsilon));
    for (int i = lane_of_thread() * 8; i < width; i += WARP * 8) {
        const Floats<8> v = load<8>(row + i), a = load<8>(scale + i);
        Floats<8> y;
#pragma unroll
        for (int e = 0; e < 8; e++) y.at[e] = (v.at[e] - mean) * rstd * a.at[e];
        if (shift) {
            const Floats<8> b = load<8>(shift + i);
#pragma unroll
            for (int e = 0; e < 8; e++) y.at[e] += b.at[e];
        }
        store<8>(row + i, y);
    }
}

// x, or its norm, into shared memory; a warp takes whole rows.
static __device__ __forceinline__ void take_rows(Bf16 *rows, int64_t stride, const FewRows &p) {
    for (int64_t r = warp_of_thread(); r < p.rows; r += WARPS) {
        const Bf16 *from = static_cast<const Bf16 *>(p.x) + r * p.k;
        for (int64_t i = lane_of_thread() * 8; i < p.k; i += WARP * 8) {
            const Pack<Bf16, 8> v = load_pack<8>(from + i);
            *reinterpret_cast<Pack<Bf16, 8> *>(rows + r * stride + i) = v;
        }
        __syncwarp();
        if (p.norm_scale) norm_row(rows + r * stride, p);
    }
    __syncthreads();
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
static __device__ __forceinline__ void finish(const Call<PAIRS> &c, int64_t tile, int i, int r, const float *sums) {
    float z[2] = {0, 0};
    int64_t column[2];
    const int64_t columns = c.p.n * (PAIRS == GATED ? 2 : 1);
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
        const Turn turn = turn_at(c.p.positions[r], c.frequency[column[0] % c.p.head_size]);
        const float first = z[0] * turn.cosine - z[1] * turn.sine, second = z[1] * turn.cosine + z[0] * turn.sine;
        z[0] = first, z[1] = second;
    }
#pragma unroll
    for (int h = 0; h < TILE / 8; h++)
        if (column[h] < columns) put(c.p, r, column[h], activated<Bf16>(z[h], c.p.activation));
}

template <int TILE, Pairs PAIRS> static __global__ void __launch_bounds__(THREADS, 2) few_rows_kernel(Call<PAIRS> c) {
    typedef Matrix<TILE, PAIRS> M;
    SHARED_DYNAMIC(Bf16, rows); // (R, stride)
    SHARED(float, sums, 2 * WARPS * 16 * 8);
    const int64_t steps = divide_up<int64_t>(c.p.k, STEP), rounds = divide_up<int64_t>(steps, WARPS * M::AHEAD);
    const Place at = place_of_lane();
    M matrix = {c, {}};
#pragma unroll
    for (int u = 0; u < M::AHEAD; u++) matrix.read(matrix.held[u], blockIdx.x, warp_of_thread() + u * WARPS);
    let_next_begin();
    wait_for_earlier();
    take_rows(rows, c.stride, c.p);
    int turn = 0; // sums of two tiles take turns
    for (int64_t tile = blockIdx.x; tile < c.tiles; tile += gridDim.x, turn ^= 1) {
        float sum[4] = {};
        for (int64_t round = 0; round < rounds; round++) {
            const bool last = round + 1 == rounds;
#pragma unroll
            for (int u = 0; u < M::AHEAD; u++) {
                const int64_t step = warp_of_thread() + (round * M::AHEAD + u) * WARPS,
                              k = step * STEP + at.quarter * 8;
                if (step < steps) {
                    Pack<Bf16, 8> x = {};
                    if (at.group < c.p.rows && k < c.p.k) x = load_pack<8>(rows + at.group * c.stride + k);
                    multiply(sum, matrix.held[u], x);
                }
                // what comes AHEAD steps later, of the next tile where this one has no more
                matrix.read(matrix.held[u], last ? tile + gridDim.x : tile,
                            warp_of_thread() + ((last ? 0 : round + 1) * M::AHEAD + u) * WARPS);
            }
        }
        float *mine = sums + turn * (WARPS * 16 * 8);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                mine[(warp_of_thread() * 16 + at.group + 8 * h) * 8 + at.quarter * 2 + e] = sum[2 * h + e];
        __syncthreads();
        const int i = static_cast<int>(threadIdx.x) / 8, r = static_cast<int>(threadIdx.x) % 8;
        if (i < 8 && r < c.p.rows) finish<TILE>(c, tile, i, r, mine);
    }
}

// ---- launches ----

template <int TILE, Pairs PAIRS> static void run(const CudaQueue *q, Call<PAIRS> c, int most_blocks) {
    // lanes of a quarter-warp read 64 bytes of two rows: these lie in different banks
    c.stride = divide_up<int64_t>(c.p.k, 64) * 64 + 32;
    const size_t shared = static_cast<size_t>(c.p.rows * c.stride) * sizeof(Bf16);
#ifdef __CUDACC__
    (void)cudaFuncSetAttribute(few_rows_kernel<TILE, PAIRS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
#endif
    launch_early<few_rows_kernel<TILE, PAIRS>>(dim3(static_cast<unsigned>(smaller<int64_t>(c.tiles, most_blocks))),
                                               dim3(THREADS), shared, q, c);
}

static bool takes(const FewRows &p) {
    const bool packed = packs_at(static_cast<const Bf16 *>(p.x), 8) && packs_at(static_cast<const Bf16 *>(p.w), 8) &&
                        packs_at(p.norm_scale, 4) && packs_at(p.norm_shift, 4);
    const bool turns = p.turned == 0 || (p.head_size % 16 == 0 && p.head_size <= 2 * FREQUENCIES);
    return p.rows >= 1 && p.rows <= MOST_ROWS && p.k % 8 == 0 && p.k > 0 && p.n > 0 && packed && turns &&
           (p.activation != FEW_ROWS_SWIGLU || p.n % 8 == 0) &&
           p.rows * (p.k + 96) * static_cast<int64_t>(sizeof(Bf16)) <= MOST_SHARED;
}

bool cuda_few_rows(const CudaQueue *q, const FewRows *p, int multiprocessors) {
    const int most_blocks = 4 * multiprocessors;
    if (!takes(*p)) return false;
    if (!multiprocessors) return true;
    if (p->turned) {
        Call<TURNED> c = {*p, p->n / 16, p->head_size / 2, 0, {}};
        for (int d = 0; d < p->head_size / 2; d++) c.frequency[d] = frequency_of(p->rope_base, d, p->head_size);
        run<16>(q, c, most_blocks);
    } else if (p->activation == FEW_ROWS_SWIGLU) {
        run<16>(q, Call<GATED>{*p, p->n / 8, p->n, 0, {}}, most_blocks);
    } else if (p->n < 16 * multiprocessors) { // else half of the device would be idle
        run<8>(q, Call<APART>{*p, divide_up<int64_t>(p->n, 8), 8, 0, {}}, most_blocks);
    } else {
        run<16>(q, Call<APART>{*p, divide_up<int64_t>(p->n, 16), 8, 0, {}}, most_blocks);
    }
    return true;
}
