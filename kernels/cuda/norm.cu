/* Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019), forward and the gradient of the input. Statistics
 * are f32, the variance from deviations. Those of scale and shift are in norm_weights.cu. */
#include "kernels/cuda/rows_in_registers.h"

namespace {
struct Forward {
    float *mean, *rstd;         // (N); mean NULL: rmsnorm
    const float *scale, *shift; // (C)
    int64_t rows, width;
    float epsilon;
};
struct Backward {
    const float *mean, *rstd, *scale;
    int64_t rows, width;
    bool add;
};
} // namespace

// ---- forward ----

template <int N>
static __device__ __forceinline__ Floats<N> normed(const Floats<N> &x, float mean, float rstd, const float *scale,
                                                   const float *shift, int64_t column) {
    Floats<N> a = load<N>(scale + column), y;
#pragma unroll
    for (int i = 0; i < N; i++) y.at[i] = (x.at[i] - mean) * rstd * a.at[i];
    if (shift) {
        Floats<N> b = load<N>(shift + column);
#pragma unroll
        for (int i = 0; i < N; i++) y.at[i] += b.at[i];
    }
    return y;
}

template <class T, int GROUP, bool CENTRED>
static __global__ void __launch_bounds__(GROUP == WARP ? ROW_BLOCK : GROUP) norm_kernel(T *y, const T *x, Forward f) {
    SHARED(float, memory, 512 / WARP);
    constexpr int N = PACK<T>;
    RowParts<GROUP, N> part(f.width);
    if (part.row >= f.rows) return; // all threads of the group
    const T *from = x + part.row * f.width;
    Floats<N> v[part.COUNT];
    float sum = 0, mean = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        v[k] = load<N>(from + part.column(k));
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[k].at[i];
    }
    if (CENTRED) mean = group_sum<GROUP>(sum, memory) / static_cast<float>(f.width);
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
#pragma unroll
        for (int i = 0; i < N; i++) squares += (v[k].at[i] - mean) * (v[k].at[i] - mean);
    }
    float rstd = 1.0f / sqrtf(group_sum<GROUP>(squares, memory) / static_cast<float>(f.width) + f.epsilon);
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        store<N>(y + part.row * f.width + part.column(k),
                 normed<N>(v[k], mean, rstd, f.scale, f.shift, part.column(k)));
    }
    if (part.thread == 0) {
        if (CENTRED) f.mean[part.row] = mean;
        f.rstd[part.row] = rstd;
    }
}

template <class T, bool CENTRED>
static __global__ void __launch_bounds__(LOOPED_THREADS) norm_looped_kernel(T *y, const T *x, Forward f) {
    SHARED(float, memory, LOOPED_THREADS / WARP);
    const int64_t row = blockIdx.x, thread = threadIdx.x;
    const T *from = x + row * f.width;
    float sum = 0, mean = 0, squares = 0;
    if (CENTRED) {
        for (int64_t i = thread; i < f.width; i += LOOPED_THREADS) sum += to_float(from[i]);
        mean = block_sum<LOOPED_THREADS>(sum, memory) / static_cast<float>(f.width);
    }
    for (int64_t i = thread; i < f.width; i += LOOPED_THREADS) {
        float d = to_float(from[i]) - mean;
        squares += d * d;
    }
    float rstd = 1.0f / sqrtf(block_sum<LOOPED_THREADS>(squares, memory) / static_cast<float>(f.width) + f.epsilon);
    for (int64_t i = thread; i < f.width; i += LOOPED_THREADS)
        store<1>(y + row * f.width + i, normed<1>(load<1>(from + i), mean, rstd, f.scale, f.shift, i));
    if (thread == 0) {
        if (CENTRED) f.mean[row] = mean;
        f.rstd[row] = rstd;
    }
}

template <bool CENTRED> static void run_forward(const CudaQueue *q, void *y, const void *x, const Forward &f, Dtype t) {
    if (f.rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        bool packs = f.width % PACK<T> == 0 && packs_at(to, PACK<T>) && packs_at(from, PACK<T>) &&
                     packs_at(f.scale, 4) && packs_at(f.shift, 4);
        with_group(f.rows, f.width, packs, [&](auto group, dim3 grid, dim3 block) {
            constexpr int GROUP = decltype(group)::value;
            if constexpr (GROUP == 0)
                launch<norm_looped_kernel<T, CENTRED>>(grid, block, 0, q, to, from, f);
            else
                launch<norm_kernel<T, GROUP, CENTRED>>(grid, block, 0, q, to, from, f);
        });
    });
}

void cuda_layernorm_forward(const CudaQueue *q, void *y, float *mean, float *rstd, const void *x, const float *scale,
                            const float *shift, int64_t rows, int64_t width, double eps, Dtype t) {
    run_forward<true>(q, y, x, Forward{mean, rstd, scale, shift, rows, width, static_cast<float>(eps)}, t);
}

void cuda_rmsnorm_forward(const CudaQueue *q, void *y, float *rstd, const void *x, const float *scale, int64_t rows,
                          int64_t width, double eps, Dtype t) {
    run_forward<false>(q, y, x, Forward{nullptr, rstd, scale, nullptr, rows, width, static_cast<float>(eps)}, t);
}

// ---- gradient of the input: with g = dy scale, dx = rstd (g - mean(g) - xhat mean(g xhat)); rmsnorm: no mean(g) ----

template <class T, int GROUP, bool CENTRED>
static __global__ void __launch_bounds__(GROUP == WARP ? ROW_BLOCK : GROUP)
    norm_gradient_kernel(T *dx, const T *dy, const T *x, Backward b) {
    SHARED(float, memory, 512 / WARP);
    constexpr int N = PACK<T>;
    RowParts<GROUP, N> part(b.width);
    if (part.row >= b.rows) return;
    const int64_t first = part.row * b.width;
    const float mean = CENTRED ? b.mean[part.row] : 0, rstd = b.rstd[part.row];
    Floats<N> g[part.COUNT], hat[part.COUNT];
    float sum = 0, dot = 0;
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        g[k] = load<N>(dy + first + part.column(k));
        hat[k] = load<N>(x + first + part.column(k));
        Floats<N> scale = load<N>(b.scale + part.column(k));
#pragma unroll
        for (int i = 0; i < N; i++) {
            g[k].at[i] *= scale.at[i];
            hat[k].at[i] = (hat[k].at[i] - mean) * rstd;
            sum += g[k].at[i];
            dot += g[k].at[i] * hat[k].at[i];
        }
    }
    float mean_g = CENTRED ? group_sum<GROUP>(sum, memory) / static_cast<float>(b.width) : 0;
    float mean_dot = group_sum<GROUP>(dot, memory) / static_cast<float>(b.width);
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
#pragma unroll
        for (int i = 0; i < N; i++) g[k].at[i] = rstd * (g[k].at[i] - mean_g - hat[k].at[i] * mean_dot);
        write<N>(dx + first + part.column(k), g[k], b.add);
    }
}

template <class T, bool CENTRED>
static __global__ void __launch_bounds__(LOOPED_THREADS)
    norm_gradient_looped_kernel(T *dx, const T *dy, const T *x, Backward b) {
    SHARED(float, memory, LOOPED_THREADS / WARP);
    const int64_t row = blockIdx.x, first = row * b.width, thread = threadIdx.x;
    const float mean = CENTRED ? b.mean[row] : 0, rstd = b.rstd[row];
    float sum = 0, dot = 0;
    for (int64_t i = thread; i < b.width; i += LOOPED_THREADS) {
        float g = to_float(dy[first + i]) * b.scale[i];
        sum += g;
        dot += g * ((to_float(x[first + i]) - mean) * rstd);
    }
    float mean_g = CENTRED ? block_sum<LOOPED_THREADS>(sum, memory) / static_cast<float>(b.width) : 0;
    float mean_dot = block_sum<LOOPED_THREADS>(dot, memory) / static_cast<float>(b.width);
    for (int64_t i = thread; i < b.width; i += LOOPED_THREADS) {
        float g = to_float(dy[first + i]) * b.scale[i], hat = (to_float(x[first + i]) - mean) * rstd;
        write<1>(dx + first + i, Floats<1>{{rstd * (g - mean_g - hat * mean_dot)}}, b.add);
    }
}

template <bool CENTRED>
static void run_backward(const CudaQueue *q, void *dx, const void *dy, const void *x, const Backward &b, Dtype t) {
    if (b.rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(dx);
        const T *d = static_cast<const T *>(dy), *from = static_cast<const T *>(x);
        bool packs = b.width % PACK<T> == 0 && packs_at(to, PACK<T>) && packs_at(d, PACK<T>) &&
                     packs_at(from, PACK<T>) && packs_at(b.scale, 4);
        with_group(b.rows, b.width, packs, [&](auto group, dim3 grid, dim3 block) {
            constexpr int GROUP = decltype(group)::value;
            if constexpr (GROUP == 0)
                launch<norm_gradient_looped_kernel<T, CENTRED>>(grid, block, 0, q, to, d, from, b);
            else
                launch<norm_gradient_kernel<T, GROUP, CENTRED>>(grid, block, 0, q, to, d, from, b);
        });
    });
}

void cuda_layernorm_backward_input(const CudaQueue *q, void *dx, const void *dy, const void *x, const float *mean,
                                   const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t,
                                   bool add) {
    run_backward<true>(q, dx, dy, x, Backward{mean, rstd, scale, rows, width, add}, t);
}

void cuda_rmsnorm_backward_input(const CudaQueue *q, void *dx, const void *dy, const void *x, const float *rstd,
                                 const float *scale, int64_t rows, int64_t width, Dtype t, bool add) {
    run_backward<false>(q, dx, dy, x, Backward{nullptr, rstd, scale, rows, width, add}, t);
}
