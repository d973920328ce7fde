/* Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019), alone or behind a residual sum that the same
 * launch forms. Statistics are f32, the variance from deviations. Gradients are in norm_gradient.cu and
 * norm_weights.cu. */
#include "kernels/cuda/draws.h"
#include "kernels/cuda/rows_in_registers.h"

// Arguments of launches have no padding, whose bytes would differ from call to call.
namespace {
enum Fused { ALONE, SUM, DROPPED_SUM }; // the norm of x; of x + branch; of x + dropout(branch)

template <class T> struct Branch { // (N, C) beside x
    const T *branch;
    T *sum; // what the norm reads
    Draw draw;
};
struct Forward {
    float *mean, *rstd;         // (N); mean NULL: rmsnorm
    const float *scale, *shift; // (C)
    int64_t rows, width;
    double epsilon;
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

// N elements of what is normed, from `at` on; a sum is written, too, and read as it was rounded.
template <class T, int N, Fused FUSED>
static __device__ __forceinline__ Floats<N> read_input(const T *x, const Branch<T> &b, int64_t at) {
    Floats<N> v = load<N>(x + at);
    if constexpr (FUSED != ALONE) {
        Floats<N> f = load<N>(b.branch + at);
        if constexpr (FUSED == DROPPED_SUM) f = dropped<T>(f, b.draw, drawn_at(b.draw, at));
        T rounded;
#pragma unroll
        for (int i = 0; i < N; i++) {
            from_float(&rounded, v.at[i] + f.at[i]);
            v.at[i] = to_float(rounded);
        }
        store<N>(b.sum + at, v);
    }
    return v;
}

template <class T, int GROUP, bool CENTRED, Fused FUSED>
static __global__ void __launch_bounds__(GROUP == WARP ? ROW_BLOCK : GROUP)
    norm_kernel(T *y, const T *x, Forward f, Branch<T> branch) {
    SHARED(float, memory, 512 / WARP);
    constexpr int N = PACK<T>;
    RowParts<GROUP, N> part(f.width);
    if (part.row >= f.rows) return; // all threads of the group
    const int64_t first = part.row * f.width;
    Floats<N> v[part.COUNT];
    float sum = 0, mean = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        v[k] = read_input<T, N, FUSED>(x, branch, first + part.column(k));
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
    float rstd =
        1.0f / sqrtf(group_sum<GROUP>(squares, memory) / static_cast<float>(f.width) + static_cast<float>(f.epsilon));
#pragma unroll
    for (int k = 0; k < part.COUNT; k++) {
        if (!part.holds(k)) continue;
        store<N>(y + first + part.column(k), normed<N>(v[k], mean, rstd, f.scale, f.shift, part.column(k)));
    }
    if (part.thread == 0) {
        if (CENTRED) f.mean[part.row] = mean;
        f.rstd[part.row] = rstd;
    }
}

// A sum is formed in the first look; each thread reads again what it wrote.
template <class T, bool CENTRED, Fused FUSED>
static __global__ void __launch_bounds__(LOOPED_THREADS)
    norm_looped_kernel(T *y, const T *x, Forward f, Branch<T> branch) {
    SHARED(float, memory, LOOPED_THREADS / WARP);
    const int64_t row = blockIdx.x, thread = threadIdx.x;
    const int64_t first = row * f.width;
    const T *from = (FUSED == ALONE ? x : branch.sum) + first;
    float sum = 0, mean = 0, squares = 0;
    if (CENTRED || FUSED != ALONE) {
        for (int64_t i = thread; i < f.width; i += LOOPED_THREADS)
            sum += read_input<T, 1, FUSED>(x, branch, first + i).at[0];
    }
    if (CENTRED) { mean = block_sum<LOOPED_THREADS>(sum, memory) / static_cast<float>(f.width); }
    for (int64_t i = thread; i < f.width; i += LOOPED_THREADS) {
        float d = to_float(from[i]) - mean;
        squares += d * d;
    }
    float rstd = 1.0f / sqrtf(block_sum<LOOPED_THREADS>(squares, memory) / static_cast<float>(f.width) +
                              static_cast<float>(f.epsilon));
    for (int64_t i = thread; i < f.width; i += LOOPED_THREADS)
        store<1>(y + first + i, normed<1>(load<1>(from + i), mean, rstd, f.scale, f.shift, i));
    if (thread == 0) {
        if (CENTRED) f.mean[row] = mean;
        f.rstd[row] = rstd;
    }
}

template <class T, bool CENTRED, Fused FUSED>
static void start_forward(const CudaQueue *q, T *y, const T *x, const Forward &f, const Branch<T> &branch,
                          bool draws_packs = true) {
    bool packs = draws_packs && f.width % PACK<T> == 0 && packs_at(y, PACK<T>) && packs_at(x, PACK<T>) &&
                 packs_at(branch.branch, PACK<T>) && packs_at(branch.sum, PACK<T>) && packs_at(f.scale, 4) &&
                 packs_at(f.shift, 4);
    with_group(f.rows, f.width, packs, [&](auto group, dim3 grid, dim3 block) {
        constexpr int GROUP = decltype(group)::value;
        if constexpr (GROUP == 0)
            launch<norm_looped_kernel<T, CENTRED, FUSED>>(grid, block, 0, q, y, x, f, branch);
        else
            launch<norm_kernel<T, GROUP, CENTRED, FUSED>>(grid, block, 0, q, y, x, f, branch);
    });
}

template <bool CENTRED> static void run_forward(const CudaQueue *q, void *y, const void *x, const Forward &f, Dtype t) {
    if (f.rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        start_forward<T, CENTRED, ALONE>(q, static_cast<T *>(y), static_cast<const T *>(x), f, Branch<T>{});
    });
}

void cuda_layernorm_forward(const CudaQueue *q, void *y, float *mean, float *rstd, const void *x, const float *scale,
                            const float *shift, int64_t rows, int64_t width, double eps, Dtype t) {
    run_forward<true>(q, y, x, Forward{mean, rstd, scale, shift, rows, width, eps}, t);
}

void cuda_rmsnorm_forward(const CudaQueue *q, void *y, float *rstd, const void *x, const float *scale, int64_t rows,
                          int64_t width, double eps, Dtype t) {
    run_forward<false>(q, y, x, Forward{nullptr, rstd, scale, nullptr, rows, width, eps}, t);
}

template <class T, bool CENTRED>
static void start_sum(const CudaQueue *q, T *y, const T *x, const Forward &f, const Branch<T> &branch,
                      const DropoutDraws &d) {
    if (d.p > 0)
        start_forward<T, CENTRED, DROPPED_SUM>(q, y, x, f, branch, draws_packs<T>(d, f.width));
    else
        start_forward<T, CENTRED, SUM>(q, y, x, f, branch);
}

void cuda_add_norm_forward(const CudaQueue *q, void *sum, void *y, float *mean, float *rstd, const void *x,
                           const void *branch, const float *scale, const float *shift, int64_t rows, int64_t width,
                           double eps, const DropoutDraws *d, Dtype t) {
    Forward f = {mean, rstd, scale, shift, rows, width, eps};
    if (rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        Branch<T> b = {static_cast<const T *>(branch), static_cast<T *>(sum), draw_by(q, *d)};
        if (shift)
            start_sum<T, true>(q, static_cast<T *>(y), static_cast<const T *>(x), f, b, *d);
        else
            start_sum<T, false>(q, static_cast<T *>(y), static_cast<const T *>(x), f, b, *d);
    });
}
