/* Gradients of layer norm and RMS norm. With g = dy scale, dx = rstd (g - mean(g) - xhat mean(g xhat)); rmsnorm: no
 * mean(g). Alone, with the dropout of a branch, or together with what else is summed up from the same rows: the
 * gradients of scale and shift, and the sums of dx itself, which the bias in front of it wants. Rows are then cut into
 * chunks, a function of the shape alone: a block keeps the sums of one in registers, a second launch adds them up. */
#include "kernels/cuda/columns.h"
#include "kernels/cuda/draws.h"
#include "kernels/cuda/rows_in_registers.h"

// Arguments of launches have no padding, whose bytes would differ from call to call.
namespace {
struct Backward {
    const float *mean, *rstd, *scale;
    int64_t rows, width, add;
};
template <class T> struct Dropped { // the branch behind a dropout
    T *gradient;                    // (N, C)
    Draw draw;
    int64_t add;
};
} // namespace

// ---- of the input, and of a dropped branch ----

// dx[at ..] (+)= g; and the branch's gradient from what dx is then.
template <class T, int N, bool DROPS>
static __device__ __forceinline__ void write_gradient(T *dx, Floats<N> g, bool add, const Dropped<T> &b, int64_t at) {
    if (add) {
        Floats<N> old = load<N>(dx + at);
#pragma unroll
        for (int i = 0; i < N; i++) g.at[i] += old.at[i];
    }
    store<N>(dx + at, g);
    if constexpr (DROPS) {
        T rounded;
#pragma unroll
        for (int i = 0; i < N; i++) {
            from_float(&rounded, g.at[i]);
            g.at[i] = to_float(rounded);
        }
        // the one rounding of dropout is that of the store, unless it adds
        if (b.add)
            write<N>(b.gradient + at, dropped<float>(g, b.draw, drawn_at(b.draw, at)), true);
        else
            store<N>(b.gradient + at, dropped<T>(g, b.draw, drawn_at(b.draw, at)));
    }
}

template <class T, int GROUP, bool CENTRED, bool DROPS>
static __global__ void __launch_bounds__(GROUP == WARP ? ROW_BLOCK : GROUP)
    norm_gradient_kernel(T *dx, const T *dy, const T *x, Backward b, Dropped<T> branch) {
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
        write_gradient<T, N, DROPS>(dx, g[k], b.add != 0, branch, first + part.column(k));
    }
}

template <class T, bool CENTRED, bool DROPS>
static __global__ void __launch_bounds__(LOOPED_THREADS)
    norm_gradient_looped_kernel(T *dx, const T *dy, const T *x, Backward b, Dropped<T> branch) {
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
        Floats<1> d = {{rstd * (g - mean_g - hat * mean_dot)}};
        write_gradient<T, 1, DROPS>(dx, d, b.add != 0, branch, first + i);
    }
}

template <class T, bool CENTRED, bool DROPS>
static void start_backward(const CudaQueue *q, T *dx, const T *dy, const T *x, const Backward &b,
                           const Dropped<T> &branch, bool draws_packs = true) {
    bool packs = draws_packs && b.width % PACK<T> == 0 && packs_at(dx, PACK<T>) && packs_at(dy, PACK<T>) &&
                 packs_at(x, PACK<T>) && packs_at(branch.gradient, PACK<T>) && packs_at(b.scale, 4);
    with_group(b.rows, b.width, packs, [&](auto group, dim3 grid, dim3 block) {
        constexpr int GROUP = decltype(group)::value;
        if constexpr (GROUP == 0)
            launch<norm_gradient_looped_kernel<T, CENTRED, DROPS>>(grid, block, 0, q, dx, dy, x, b, branch);
        else
            launch<norm_gradient_kernel<T, GROUP, CENTRED, DROPS>>(grid, block, 0, q, dx, dy, x, b, branch);
    });
}

template <bool CENTRED>
static void run_backward(const CudaQueue *q, void *dx, const void *dy, const void *x, const Backward &b, Dtype t) {
    if (b.rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        start_backward<T, CENTRED, false>(q, static_cast<T *>(dx), static_cast<const T *>(dy),
                                          static_cast<const T *>(x), b, Dropped<T>{});
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

void cuda_add_norm_backward(const CudaQueue *q, void *dsum, void *df, const void *dy, const void *sum,
                            const float *mean, const float *rstd, const float *scale, int64_t rows, int64_t width,
                            const DropoutDraws *d, Dtype t, bool add_sum, bool add_f) {
    Backward b = {mean, rstd, scale, rows, width, add_sum};
    if (rows <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        Dropped<T> branch = {static_cast<T *>(df), draw_by(q, *d), add_f};
        T *to = static_cast<T *>(dsum);
        const T *g = static_cast<const T *>(dy), *x = static_cast<const T *>(sum);
        if (mean)
            start_backward<T, true, true>(q, to, g, x, b, branch, draws_packs<T>(*d, width));
        else
            start_backward<T, false, true>(q, to, g, x, b, branch, draws_packs<T>(*d, width));
    });
}

// ---- all of them ----

enum { MULTIPROCESSORS = 132 }; // of an H100: there all chunks are under way at once

// Blocks on a multiprocessor: as many as have registers for their sums and for a row's numbers as they lie in memory.
template <class T, int HELD_PACKS, bool CENTRED>
constexpr int RESIDENT = HELD_PACKS *(PACK<T> *(CENTRED ? 3 : 1) + 3 * 4) > 110 ? 2 : 3;

// Sums over a block's rows, as its threads hold them, to the block's place: (SUMS, C). `memory`: shared, (warps, C).
template <int GROUP, int N, int COUNT, int SUMS>
static __device__ __forceinline__ void leave_sums(float *partial, const Floats<N> (&sum)[SUMS][COUNT], float *memory,
                                                  const RowParts<GROUP, N> &part, int width) {
    const int thread = static_cast<int>(threadIdx.x), warp = GROUP == WARP ? warp_of_thread() : 0;
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (!part.holds(k)) continue;
            if (GROUP == WARP)
                store_shared<N>(memory + warp * width + part.column(k), sum[s][k]);
            else
                store<N>(partial + s * width + part.column(k), sum[s][k]);
        }
        if (GROUP != WARP) continue; // each thread has its columns for itself
        __syncthreads();
        for (int c = thread; c < width; c += ROW_BLOCK) {
            float total = 0;
#pragma unroll
            for (int w = 0; w < ROW_BLOCK / WARP; w++) total += memory[w * width + c];
            partial[s * width + c] = total;
        }
        __syncthreads();
    }
}

// A thread holds COUNT packs of a row. SUMS: of dy xhat, of dy, of dx; rmsnorm: the first alone.
template <class T, int GROUP, int COUNT, bool CENTRED>
static __global__ void __launch_bounds__(ROW_BLOCK, (RESIDENT<T, COUNT, CENTRED>))
    norm_gradients_kernel(T *dx, const T *dy, const T *x, Backward b, float *partial, int64_t chunk) {
    constexpr int N = PACK<T>, SUMS = CENTRED ? 3 : 1, ROWS = GROUP == WARP ? ROW_BLOCK / WARP : 1;
    SHARED(float, memory, GROUP == WARP ? ROW_BLOCK * COUNT * N : ROW_BLOCK / WARP);
    RowParts<GROUP, N> part(b.width);
    Floats<N> sum[SUMS][COUNT] = {};
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * chunk, end = smaller(begin + chunk, b.rows);
    for (int64_t row = begin + (ROWS > 1 ? warp_of_thread() : 0); row < end; row += ROWS) {
        const int64_t first = row * b.width;
        const float mean = CENTRED ? b.mean[row] : 0, rstd = b.rstd[row];
        Pack<T, N> g[COUNT], v[COUNT], old[COUNT];
        float total = 0, dot = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (!part.holds(k)) continue;
            g[k] = load_pack<N>(dy + first + part.column(k));
            v[k] = load_pack<N>(x + first + part.column(k));
            if (b.add) old[k] = load_pack<N>(dx + first + part.column(k));
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (!part.holds(k)) continue;
            Floats<N> scale = load<N>(b.scale + part.column(k));
#pragma unroll
            for (int i = 0; i < N; i++) {
                float d = to_float(g[k].at[i]), hat = (to_float(v[k].at[i]) - mean) * rstd;
                total += d * scale.at[i];
                dot += d * scale.at[i] * hat;
                sum[0][k].at[i] += d * hat;
                if constexpr (CENTRED) sum[1][k].at[i] += d;
            }
        }
        const float width = static_cast<float>(b.width);
        float mean_g = CENTRED ? group_sum<GROUP>(total, memory) / width : 0;
        float mean_dot = group_sum<GROUP>(dot, memory) / width;
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (!part.holds(k)) continue;
            Floats<N> scale = load<N>(b.scale + part.column(k)), d;
#pragma unroll
            for (int i = 0; i < N; i++) {
                float hat = (to_float(v[k].at[i]) - mean) * rstd;
                d.at[i] = rstd * (to_float(g[k].at[i]) * scale.at[i] - mean_g - hat * mean_dot);
                if (b.add) d.at[i] += to_float(old[k].at[i]);
                T rounded;
                from_float(&rounded, d.at[i]);
                if constexpr (CENTRED) sum[2][k].at[i] += to_float(rounded);
            }
            store<N>(dx + first + part.column(k), d);
        }
    }
    leave_sums<GROUP, N, COUNT, SUMS>(partial + static_cast<int64_t>(blockIdx.x) * SUMS * b.width, sum, memory, part,
                                      static_cast<int>(b.width));
}

// Calls f(group, numbers a thread holds) for rows of `width` in packs; false where none fit.
template <class F> static bool with_held(int64_t width, F f) {
    if (width <= WARP * 16)
        f(std::integral_constant<int, WARP>{}, std::integral_constant<int, 16>{});
    else if (width <= WARP * 24)
        f(std::integral_constant<int, WARP>{}, std::integral_constant<int, 24>{});
    else if (width <= WARP * 32)
        f(std::integral_constant<int, WARP>{}, std::integral_constant<int, 32>{});
    else if (width <= 128 * 16)
        f(std::integral_constant<int, 128>{}, std::integral_constant<int, 16>{});
    else if (width <= 128 * 32)
        f(std::integral_constant<int, 128>{}, std::integral_constant<int, 32>{});
    else
        return false;
    return true;
}

template <class T, bool CENTRED>
static bool start_together(const CudaQueue *q, const NormGradients &out, const T *dy, const T *x, const Backward &b) {
    constexpr int N = PACK<T>, SUMS = CENTRED ? 3 : 1;
    T *dx = static_cast<T *>(out.dx);
    if (b.width % N || !packs_at(dx, N) || !packs_at(dy, N) || !packs_at(x, N) || !packs_at(b.scale, 4)) return false;
    return with_held(b.width, [&](auto group, auto held) {
        constexpr int GROUP = decltype(group)::value, ROWS = GROUP == WARP ? ROW_BLOCK / WARP : 1;
        constexpr int COUNT = decltype(held)::value / N, BLOCKS = MULTIPROCESSORS * RESIDENT<T, COUNT, CENTRED>;
        int64_t chunk = divide_up<int64_t>(divide_up<int64_t>(b.rows, BLOCKS), ROWS) * ROWS;
        int64_t chunks = divide_up(b.rows, chunk);
        float *partial =
            static_cast<float *>(q->scratch(q->owner, static_cast<size_t>(chunks * SUMS * b.width) * sizeof(float)));
        launch<norm_gradients_kernel<T, GROUP, COUNT, CENTRED>>(dim3(static_cast<unsigned>(chunks)), dim3(ROW_BLOCK), 0,
                                                                q, dx, dy, x, b, partial, chunk);
        ColumnOuts<SUMS> outs;
        outs.at[0] = ColumnOut{out.dscale, F32, out.add_scale};
        if constexpr (CENTRED) {
            outs.at[1] = ColumnOut{out.dshift, F32, out.add_shift};
            outs.at[2] = ColumnOut{out.sums, F32, false};
        }
        dim3 combine(static_cast<unsigned>(divide_up<int64_t>(b.width, WARP)), SUMS);
        launch<combine_columns_kernel<SUMS>>(combine, dim3(COMBINE_WARPS * WARP), 0, q, outs, partial, chunks, b.width);
    });
}

// In calls apart where rows are too wide, or do not lie at multiples of 16 bytes.
void cuda_norm_backward(const CudaQueue *q, const NormGradients *out, const void *dy, const void *x, const float *mean,
                        const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t) {
    Backward b = {mean, rstd, scale, rows, width, out->add_x};
    bool together = false;
    if (rows > 0 && (mean || !out->sums))
        with_type(t, [&](auto zero) {
            typedef decltype(zero) T;
            const T *g = static_cast<const T *>(dy), *from = static_cast<const T *>(x);
            together =
                mean ? start_together<T, true>(q, *out, g, from, b) : start_together<T, false>(q, *out, g, from, b);
        });
    if (together) return;
    if (mean) {
        run_backward<true>(q, out->dx, dy, x, b, t);
        cuda_layernorm_backward_weight(q, out->dscale, out->dshift, dy, x, mean, rstd, rows, width, t, out->add_scale,
                                       out->add_shift);
    } else {
        run_backward<false>(q, out->dx, dy, x, b, t);
        cuda_rmsnorm_backward_weight(q, out->dscale, dy, x, rstd, rows, width, t, out->add_scale);
    }
    if (out->sums) cuda_sum_columns(q, out->sums, out->dx, rows, width, t, false);
}
