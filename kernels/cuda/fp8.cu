/* Matrices of bf16 to fp8, as they lie or transposed, multiplied by their scale; and the largest number on the way, by
 * an atomic maximum of bit patterns, which does not depend on the order. What the scales become behind a step. */
#include "kernels/cuda/language.h"
#ifdef __CUDACC__
#include <cuda_fp8.h>
#endif

enum { THREADS = 256, PACK_OF = 8, TILE = 64, TILE_ROW = TILE + 4 }; // numbers; bytes of a tile's row in shared memory

template <Fp8Kind KIND> static __device__ __forceinline__ uint8_t encoded(float x) {
#ifdef __CUDACC__
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, KIND == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
#else
    return fp8_encode(x, KIND);
#endif
}

static __device__ __forceinline__ float size_of(float x) { return fabsf(x); }

// |x| >= 0 and NaN compare as their bits do. All threads of a block are here: one of them asks for the memory that the
// whole grid shares. `memory`: shared, a number for each warp.
static __device__ __forceinline__ void keep_most(float *most, float x, uint32_t *memory) {
    uint32_t bits = __float_as_uint(x);
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        const uint32_t other = __shfl_xor_sync(ALL_LANES, bits, apart);
        bits = other > bits ? other : bits;
    }
    if (lane_of_thread() == 0) memory[warp_of_thread()] = bits;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < THREADS / WARP; w++) bits = memory[w] > bits ? memory[w] : bits;
    if (bits > 0) atomicMax(reinterpret_cast<int *>(most), static_cast<int>(bits));
}

static __device__ __forceinline__ float larger_of(float a, float b) {
    return __float_as_uint(b) > __float_as_uint(a) ? b : a;
}

template <Fp8Kind KIND, int N>
static __global__ void __launch_bounds__(THREADS)
    quantise_kernel(uint8_t *out, const Bf16 *x, int64_t count, const Fp8Scaling *scaling, float *most) {
    SHARED(uint32_t, memory, THREADS / WARP);
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
    const float scale = scaling->scale;
    float largest = 0;
    if (first < count) {
        const Floats<N> f = load<N>(x + first);
        Pack<uint8_t, N> codes;
#pragma unroll
        for (int i = 0; i < N; i++) {
            codes.at[i] = encoded<KIND>(f.at[i] * scale);
            largest = larger_of(largest, size_of(f.at[i]));
        }
        store_pack<N>(out + first, codes);
    }
    if (most) keep_most(most, largest, memory); // of all threads
}

// out (columns, rows) from x (rows, columns), a tile at a time through shared memory.
template <Fp8Kind KIND>
static __global__ void __launch_bounds__(THREADS)
    quantise_transposed_kernel(uint8_t *out, const Bf16 *x, int64_t rows, int64_t columns, const Fp8Scaling *scaling,
                               float *most) {
    SHARED(uint8_t, tile, TILE * TILE_ROW);
    SHARED(uint32_t, memory, THREADS / WARP);
    const int64_t row = static_cast<int64_t>(blockIdx.y) * TILE, column = static_cast<int64_t>(blockIdx.x) * TILE;
    const int across = static_cast<int>(threadIdx.x) % TILE, down = static_cast<int>(threadIdx.x) / TILE;
    const float scale = scaling->scale;
    float largest = 0;
    for (int r = down; r < TILE; r += THREADS / TILE) {
        if (row + r >= rows || column + across >= columns) continue;
        const float value = to_float(x[(row + r) * columns + column + across]);
        tile[across * TILE_ROW + r] = encoded<KIND>(value * scale);
        largest = larger_of(largest, size_of(value));
    }
    __syncthreads();
    for (int c = down; c < TILE; c += THREADS / TILE)
        if (column + c < columns && row + across < rows)
            out[(column + c) * rows + row + across] = tile[c * TILE_ROW + across];
    if (most) keep_most(most, largest, memory);
}

template <class F> static void with_kind(Fp8Kind kind, F f) {
    if (kind == FP8_E4M3)
        f(std::integral_constant<Fp8Kind, FP8_E4M3>{});
    else
        f(std::integral_constant<Fp8Kind, FP8_E5M2>{});
}

void cuda_fp8_quantise(const CudaQueue *q, uint8_t *out, const uint16_t *x, int64_t rows, int64_t columns,
                       bool transposed, Fp8Side side) {
    const Bf16 *from = reinterpret_cast<const Bf16 *>(x);
    const int64_t count = rows * columns;
    if (count <= 0) return;
    with_kind(side.kind, [&](auto kind) {
        constexpr Fp8Kind KIND = decltype(kind)::value;
        const int64_t packs = divide_up<int64_t>(count, PACK_OF);
        dim3 tiles(static_cast<unsigned>(divide_up<int64_t>(columns, TILE)),
                   static_cast<unsigned>(divide_up<int64_t>(rows, TILE)));
        if (transposed)
            launch<quantise_transposed_kernel<KIND>>(tiles, dim3(THREADS), 0, q, out, from, rows, columns, side.scaling,
                                                     side.most);
        else if (count % PACK_OF == 0 && packs_at(from, PACK_OF) && packs_at(out, PACK_OF))
            launch<quantise_kernel<KIND, PACK_OF>>(dim3(static_cast<unsigned>(divide_up<int64_t>(packs, THREADS))),
                                                   dim3(THREADS), 0, q, out, from, count, side.scaling, side.most);
        else
            launch<quantise_kernel<KIND, 1>>(dim3(static_cast<unsigned>(divide_up<int64_t>(count, THREADS))),
                                             dim3(THREADS), 0, q, out, from, count, side.scaling, side.most);
    });
}

static __global__ void __launch_bounds__(WARP) advance_kernel(Fp8Scaling *scaling, float *most, int margin) {
    const int side = static_cast<int>(threadIdx.x);
    if (side >= FP8_SIDES) return;
    fp8_advance(&scaling[side], most[side], side == FP8_SIDES - 1 ? FP8_E5M2 : FP8_E4M3, margin);
    most[side] = 0;
}

void cuda_fp8_advance(const CudaQueue *q, Fp8Scaling *scaling, float *most, int margin) {
    launch<advance_kernel>(dim3(1), dim3(WARP), 0, q, scaling, most, margin);
}
