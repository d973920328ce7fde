/* Cross-entropy on a chunk of rows of logits: one pass over each row for its logsumexp, one that turns the logits into
 * their gradient where they lie. The matrix products around are the caller's. */
#include "kernels/cuda/softmax.h"

enum { THREADS = 512, ELEMENT_THREADS = 256 };

struct Chunk {
    const int32_t *targets;                    // (rows)
    int64_t stride, rows, first, columns, all; // first, columns: the words held; all: of the vocabulary
};

static __device__ __forceinline__ int32_t target_of(const Chunk &c, int64_t row) {
    int32_t target = c.targets[row];
    if (target >= c.all) __trap();
    return target;
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    loss_rows_kernel(float *lse, float *picked, const T *logits, Chunk c) {
    SHARED(float, memory, 2 * THREADS / WARP);
    const int64_t row = blockIdx.x, thread = threadIdx.x, whole = c.columns - c.columns % N;
    const int32_t target = target_of(c, row);
    if (target < 0) { // all threads
        if (thread == 0) lse[row] = picked[row] = 0;
        return;
    }
    const T *from = logits + row * c.stride;
    Exponentials e = no_exponentials();
#pragma unroll 4
    for (int64_t i = thread * N; i < whole; i += THREADS * N) take_in<T>(&e, load<N>(from + i));
    if (whole + thread < c.columns) take_in<T>(&e, load<1>(from + whole + thread));
    e = block_joined<THREADS>(e, memory);
    if (thread > 0) return;
    const int64_t own = target - c.first;
    lse[row] = c.columns > 0 ? e.most + logf(e.sum) : -INFINITY;
    picked[row] = own >= 0 && own < c.columns ? to_float(from[own]) : 0.0f;
}

void cuda_cross_entropy_rows(const CudaQueue *q, float *lse, float *picked, const void *logits, Dtype t, int64_t stride,
                             const int32_t *targets, int64_t rows, Vocabulary v) {
    if (rows <= 0) return;
    const Chunk c = {targets, stride, rows, v.first, v.held, v.all};
    dim3 grid(static_cast<unsigned>(rows));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(logits);
        if (stride % PACK<T> == 0 && packs_at(from, PACK<T>))
            launch<loss_rows_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q->stream, lse, picked, from, c);
        else
            launch<loss_rows_kernel<T, 1>>(grid, dim3(THREADS), 0, q->stream, lse, picked, from, c);
    });
}

struct Slopes {
    const float *d_loss, *lse, *weight; // (rows); weight NULL: ones
};

// factor (exp(z - lse) - [it is the target]) at columns [i, i + N)
template <class T, int N>
static __device__ __forceinline__ void differentiate(T *row, int64_t i, int64_t own, int64_t columns, float factor,
                                                     float lse) {
    Floats<N> z = load<N>(row + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float p = exp_of<T>(z.at[k] - lse) - (i + k == own ? 1.0f : 0.0f);
        z.at[k] = i + k < columns ? factor * p : 0.0f; // padding may hold anything
    }
    store<N>(row + i, z);
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS) loss_gradient_kernel(T *logits, Slopes s, Chunk c) {
    const int64_t row = blockIdx.x, whole = c.stride - c.stride % N, rest = whole + static_cast<int>(threadIdx.x);
    const int32_t target = target_of(c, row);
    T *z = logits + row * c.stride;
    if (target < 0) {
        for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < whole; i += THREADS * N)
            store<N>(z + i, Floats<N>{});
        if (rest < c.stride) store<1>(z + rest, Floats<1>{});
        return;
    }
    const float factor = s.d_loss[row] * (s.weight ? s.weight[row] : 1.0f), lse = s.lse[row];
    const int64_t own = target - c.first;
#pragma unroll 4
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < whole; i += THREADS * N)
        differentiate<T, N>(z, i, own, c.columns, factor, lse);
    if (rest < c.stride) differentiate<T, 1>(z, rest, own, c.columns, factor, lse);
}

void cuda_cross_entropy_gradient(const CudaQueue *q, void *logits, Dtype t, int64_t stride, const float *d_loss,
                                 const float *lse, const int32_t *targets, const float *weight, int64_t rows,
                                 Vocabulary v) {
    if (rows <= 0) return;
    const Chunk c = {targets, stride, rows, v.first, v.held, v.all};
    const Slopes s = {d_loss, lse, weight};
    dim3 grid(static_cast<unsigned>(rows));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *z = static_cast<T *>(logits);
        if (stride % PACK<T> == 0 && packs_at(z, PACK<T>))
            launch<loss_gradient_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q->stream, z, s, c);
        else
            launch<loss_gradient_kernel<T, 1>>(grid, dim3(THREADS), 0, q->stream, z, s, c);
    });
}

// Sums over ranks go from the first to the last; one part is taken as it is.
static __global__ void __launch_bounds__(ELEMENT_THREADS)
    combine_kernel(float *loss, float *lse, const float *parts, const int32_t *targets, const float *weight, int ranks,
                   int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    float most = parts[i], sum = 0, picked = 0;
    for (int r = 1; r < ranks; r++) { // NaN stays
        float part = parts[2 * r * n + i];
        most = part > most || part != part ? part : most;
    }
    for (int r = 0; r < ranks; r++) {
        sum += expf(parts[2 * r * n + i] - most);
        picked += parts[(2 * r + 1) * n + i];
    }
    float whole = ranks == 1 ? most : most + logf(sum);
    bool scored = targets[i] >= 0;
    loss[i] = scored ? (weight ? weight[i] : 1.0f) * (whole - picked) : 0.0f;
    lse[i] = scored ? whole : 0.0f;
}

void cuda_cross_entropy_combine(const CudaQueue *q, float *loss, float *lse, const float *parts, const int32_t *targets,
                                const float *weight, int ranks, int64_t n) {
    if (n > 0)
        launch<combine_kernel>(dim3(static_cast<unsigned>(divide_up<int64_t>(n, ELEMENT_THREADS))),
                               dim3(ELEMENT_THREADS), 0, q->stream, loss, lse, parts, targets, weight, ranks, n);
}
