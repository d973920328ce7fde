/* From tokens to features: means over rows, with or without a mask, and L2 normalisation. */
#include "kernels/cuda/rows_in_registers.h"

enum { MEAN_WARPS = 8, MEAN_THREADS = MEAN_WARPS * WARP, SPREAD_ROWS = 16 };

struct Mean {
    const float *mask; // (B, T) or NULL
    int64_t rows, width;
};

// 1 / the sum of a mask's row, 0 for an empty one. All threads of the block must be here.
static __device__ __forceinline__ float share_of_row(const Mean &m, int64_t batch, float *memory) {
    if (!m.mask) return m.rows > 0 ? 1.0f / static_cast<float>(m.rows) : 0.0f;
    float total = 0;
    for (int64_t r = threadIdx.x; r < m.rows; r += MEAN_THREADS) total += m.mask[batch * m.rows + r];
    total = block_sum<MEAN_THREADS>(total, memory);
    return total != 0 ? 1.0f / total : 0.0f;
}

// A block: 32 N columns of one batch element; its warps take rows in turn.
template <class T, int N>
static __global__ void __launch_bounds__(MEAN_THREADS) mean_kernel(T *y, const T *x, Mean m, int64_t batch) {
    SHARED(float, memory, MEAN_WARPS);
    SHARED(float, sums, MEAN_WARPS *WARP *N);
    const int lane = lane_of_thread(), warp = warp_of_thread();
    const int64_t tile = static_cast<int64_t>(blockIdx.x) * (WARP * N), column = tile + lane * N;
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const float share = share_of_row(m, b, memory);
        Floats<N> sum = {};
        if (column < m.width) {
#pragma unroll 4
            for (int64_t r = b * m.rows + warp; r < (b + 1) * m.rows; r += MEAN_WARPS) {
                Floats<N> v = load<N>(x + r * m.width + column);
                float weight = m.mask ? m.mask[r] : 1.0f;
#pragma unroll
                for (int i = 0; i < N; i++) sum.at[i] += v.at[i] * weight;
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) sums[(warp * WARP + lane) * N + i] = sum.at[i];
        __syncthreads();
        const int thread = static_cast<int>(threadIdx.x);
        if (thread < WARP * N && tile + thread < m.width) {
            float total = 0;
            for (int w = 0; w < MEAN_WARPS; w++) total += sums[w * (WARP * N) + thread];
            from_float(y + b * m.width + tile + thread, total * share);
        }
        __syncthreads();
    }
}

// A block: SPREAD_ROWS rows of one batch element.
template <class T, int N>
static __global__ void __launch_bounds__(MEAN_THREADS)
    spread_kernel(T *dx, const T *dy, Mean m, int64_t batch, bool add) {
    SHARED(float, memory, MEAN_WARPS);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * SPREAD_ROWS,
                  end = smaller<int64_t>(first + SPREAD_ROWS, m.rows);
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const float share = share_of_row(m, b, memory);
        for (int64_t column = static_cast<int64_t>(threadIdx.x) * N; column < m.width; column += MEAN_THREADS * N) {
            const Floats<N> v = load<N>(dy + b * m.width + column);
            for (int64_t r = b * m.rows + first; r < b * m.rows + end; r++) {
                Floats<N> d;
                float weight = m.mask ? m.mask[r] * share : share;
#pragma unroll
                for (int i = 0; i < N; i++) d.at[i] = v.at[i] * weight;
                write<N>(dx + r * m.width + column, d, add);
            }
        }
    }
}

static unsigned batches_of(int64_t batch) { return static_cast<unsigned>(smaller<int64_t>(batch, 65535)); }

void cuda_mean_rows_forward(const CudaQueue *q, void *y, const void *x, const float *mask, int64_t batch, int64_t rows,
                            int64_t width, Dtype t) {
    if (batch <= 0 || width <= 0) return;
    Mean m = {mask, rows, width};
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        constexpr int N = PACK<T>;
        if (width % N == 0 && packs_at(from, N))
            launch<mean_kernel<T, N>>(
                dim3(static_cast<unsigned>(divide_up<int64_t>(width, WARP * N)), batches_of(batch)), dim3(MEAN_THREADS),
                0, q, to, from, m, batch);
        else
            launch<mean_kernel<T, 1>>(dim3(static_cast<unsigned>(divide_up<int64_t>(width, WARP)), batches_of(batch)),
                                      dim3(MEAN_THREADS), 0, q, to, from, m, batch);
    });
}

void cuda_mean_rows_backward(const CudaQueue *q, void *dx, const void *dy, const float *mask, int64_t batch,
                             int64_t rows, int64_t width, Dtype t, bool add) {
    if (batch <= 0 || width <= 0 || rows <= 0) return;
    Mean m = {mask, rows, width};
    dim3 grid(static_cast<unsigned>(divide_up<int64_t>(rows, SPREAD_ROWS)), batches_of(batch));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(dx);
        const T *from = static_cast<const T *>(dy);
        constexpr int N = PACK<T>;
        if (width % N == 0 && packs_at(from, N) && packs_at(to, N))
            launch<spread_kernel<T, N>>(grid, dim3(MEAN_THREADS), 0, q, to, from, m, batch, add);
        else
            launch<spread_kernel<T, 1>>(grid, dim3(MEAN_THREADS), 0, q, to, from, m, batch, add);
    });
}

// ---- L2 normalisation; the features are f32 whatever x is ----

static constexpr float L2_EPSILON = 1e-12f;

static __device__ __forceinline__ float length_of(float squares) {
    float length = sqrtf(squares);
    return length < L2_EPSILON ? L2_EPSILON : length;
}

template <class T, int GROUP>
static __global__ void __launch_bounds__(GROUP == WARP ? ROW_BLOCK : GROUP)
    l2_kernel(float *y, float *norm, const T *x, int64_t rows, int64_t width) {
    SHARED(float, memory, 512 / WARP);
    constexpr int N = PACK<T>;
    RowParts<GROUP, N> part(width);
    if (part.row >= rows) return;
    Floats<N> v[part.COUNT];
    float sum = 0;
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        v[k] = load<N>(x + part.row * width + part.column(k));
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[k].at[i] * v[k].at[i];
    }
    const float length = length_of(group_sum<GROUP>(sum, memory));
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
#pragma unroll
        for (int i = 0; i < N; i++) v[k].at[i] /= length;
        store<N>(y + part.row * width + part.column(k), v[k]);
    }
    if (part.thread == 0) norm[part.row] = length;
}

template <class T>
static __global__ void __launch_bounds__(LOOPED_THREADS)
    l2_looped_kernel(float *y, float *norm, const T *x, int64_t width) {
    SHARED(float, memory, LOOPED_THREADS / WARP);
    const int64_t row = blockIdx.x;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < width; i += LOOPED_THREADS) {
        float v = to_float(x[row * width + i]);
        sum += v * v;
    }
    const float length = length_of(block_sum<LOOPED_THREADS>(sum, memory));
    for (int64_t i = threadIdx.x; i < width; i += LOOPED_THREADS)
        y[row * width + i] = to_float(x[row * width + i]) / length;
    if (threadIdx.x == 0) norm[row] = length;
}

void cuda_l2_normalize_forward(const CudaQueue *q, float *y, float *norm, const void *x, int64_t rows, int64_t width,
                               Dtype t) {
    if (rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(x);
        bool packs = width % PACK<T> == 0 && packs_at(from, PACK<T>) && packs_at(y, 4);
        with_group(rows, width, packs, [&](auto group, dim3 grid, dim3 block) {
            constexpr int GROUP = decltype(group)::value;
            if constexpr (GROUP == 0)
                launch<l2_looped_kernel<T>>(grid, block, 0, q, y, norm, from, width);
            else
                launch<l2_kernel<T, GROUP>>(grid, block, 0, q, y, norm, from, rows, width);
        });
    });
}

// dx = (dy - y (y . dy)) / |x|; where |x| was raised to eps it is a constant: dx = dy / eps
template <class T, int GROUP>
static __global__ void __launch_bounds__(GROUP == WARP ? ROW_BLOCK : GROUP)
    l2_gradient_kernel(T *dx, const float *dy, const float *y, const float *norm, int64_t rows, int64_t width,
                       bool add) {
    SHARED(float, memory, 512 / WARP);
    constexpr int N = 4;
    RowParts<GROUP, N> part(width);
    if (part.row >= rows) return;
    Floats<N> d[part.COUNT], v[part.COUNT];
    float dot = 0;
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        d[k] = load<N>(dy + part.row * width + part.column(k));
        v[k] = load<N>(y + part.row * width + part.column(k));
#pragma unroll
        for (int i = 0; i < N; i++) dot += d[k].at[i] * v[k].at[i];
    }
    dot = group_sum<GROUP>(dot, memory);
    const float length = norm[part.row], along = length <= L2_EPSILON ? 0 : dot;
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
#pragma unroll
        for (int i = 0; i < N; i++) d[k].at[i] = (d[k].at[i] - v[k].at[i] * along) / length;
        write<N>(dx + part.row * width + part.column(k), d[k], add);
    }
}

template <class T>
static __global__ void __launch_bounds__(LOOPED_THREADS)
    l2_gradient_looped_kernel(T *dx, const float *dy, const float *y, const float *norm, int64_t width, bool add) {
    SHARED(float, memory, LOOPED_THREADS / WARP);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * width;
    float dot = 0;
    for (int64_t i = threadIdx.x; i < width; i += LOOPED_THREADS) dot += dy[first + i] * y[first + i];
    dot = block_sum<LOOPED_THREADS>(dot, memory);
    const float length = norm[blockIdx.x], along = length <= L2_EPSILON ? 0 : dot;
    for (int64_t i = threadIdx.x; i < width; i += LOOPED_THREADS)
        write<1>(dx + first + i, Floats<1>{{(dy[first + i] - y[first + i] * along) / length}}, add);
}

void cuda_l2_normalize_backward(const CudaQueue *q, void *dx, const float *dy, const float *y, const float *norm,
                                int64_t rows, int64_t width, Dtype t, bool add) {
    if (rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(dx);
        bool packs = width % 4 == 0 && packs_at(to, 4) && packs_at(dy, 4) && packs_at(y, 4);
        with_group(rows, width, packs, [&](auto group, dim3 grid, dim3 block) {
            constexpr int GROUP = decltype(group)::value;
            if constexpr (GROUP == 0)
                launch<l2_gradient_looped_kernel<T>>(grid, block, 0, q, to, dy, y, norm, width, add);
            else
                launch<l2_gradient_kernel<T, GROUP>>(grid, block, 0, q, to, dy, y, norm, rows, width, add);
        });
    });
}
