/* Cross-entropy on a chunk of rows of logits: one pass over each row for its logsumexp, one that turns the logits into
 * their gradient where they lie. A thread has several loads under way before it looks at the first of them. The matrix
 * products around are the caller's. */
#include "kernels/cuda/softmax.h"

enum { THREADS = 256, ROUNDS = 4, ELEMENT_THREADS = 256 }; // rounds: packs of a thread under way

struct Chunk {
    const int32_t *targets;                    // (rows)
    int64_t stride, rows, first, columns, all; // first, columns: the words held; all: of the vocabulary
};

static __device__ __forceinline__ int32_t target_of(const Chunk &c, int64_t row) {
    int32_t target = c.targets[row];
    if (target >= c.all) __trap();
    return target;
}

// Loads this thread's packs of row[first, end), each THREADS packs behind the one before. The last of a row may go on
// into its padding.
template <class T, int N>
static __device__ __forceinline__ void load_rounds(Pack<T, N> *packs, const T *row, int64_t first, int64_t end) {
#pragma unroll
    for (int k = 0; k < ROUNDS; k++)
        if (first + k * (THREADS * N) < end) packs[k] = load_pack<N>(row + first + k * (THREADS * N));
}

// Numbers from the `count`th on become `other`.
template <int N> static __device__ __forceinline__ void cut(Floats<N> *z, int64_t count, float other) {
    if (count >= N) return;
#pragma unroll
    for (int i = 0; i < N; i++) z->at[i] = i < count ? z->at[i] : other;
}

// Of a row's exponentials, this thread's part.
template <class T, int N>
static __device__ __forceinline__ Exponentials row_exponentials(const T *row, int64_t columns) {
    Exponentials e = no_exponentials();
    for (int64_t first = static_cast<int64_t>(threadIdx.x) * N; first < columns; first += THREADS * N * ROUNDS) {
        Pack<T, N> packs[ROUNDS];
        load_rounds(packs, row, first, columns);
#pragma unroll
        for (int k = 0; k < ROUNDS; k++) {
            const int64_t left = columns - first - k * (THREADS * N);
            if (left <= 0) continue;
            Floats<N> z = unpack(packs[k]);
            cut(&z, left, -INFINITY);
            take_in<T>(&e, z);
        }
    }
    return e;
}

// Of a row that has a target: its logsumexp, in all threads. Thread 0 stores it, and the target's logit. All of the row
// has been read when this returns.
template <class T, int N>
static __device__ __forceinline__ float look_at_row(float *lse, float *picked, const T *row, int64_t own,
                                                    int64_t columns, float *memory) {
    const float target = own >= 0 && own < columns ? to_float(row[own]) : 0.0f;
    const Exponentials e = block_joined<THREADS>(row_exponentials<T, N>(row, columns), memory);
    const float whole = columns > 0 ? e.most + logf(e.sum) : -INFINITY;
    if (threadIdx.x == 0) *lse = whole, *picked = target;
    return whole;
}

// T 16 bytes at a time where N is a pack: rows then begin at multiples of it, and padding fills the last one up.
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    loss_rows_kernel(float *lse, float *picked, const T *logits, Chunk c) {
    SHARED(float, memory, 2 * THREADS / WARP);
    const int64_t row = blockIdx.x;
    const int32_t target = target_of(c, row);
    if (target < 0) { // all threads
        if (threadIdx.x == 0) lse[row] = picked[row] = 0;
        return;
    }
    look_at_row<T, N>(lse + row, picked + row, logits + row * c.stride, target - c.first, c.columns, memory);
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
            launch<loss_rows_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q, lse, picked, from, c);
        else
            launch<loss_rows_kernel<T, 1>>(grid, dim3(THREADS), 0, q, lse, picked, from, c);
    });
}

struct Slopes {
    const float *d_loss, *lse, *weight; // (rows); weight NULL: ones
};

// factor (exp(z - lse) - [it is the target]) of N logits, of which `left` words are left and the target is the `own`th.
template <class T, int N>
static __device__ __forceinline__ Floats<N> differentiated(const Pack<T, N> &logits, int64_t left, int64_t own,
                                                           float factor, float lse) {
    Floats<N> z = unpack(logits);
#pragma unroll
    for (int i = 0; i < N; i++) z.at[i] = factor * exp_of<T>(z.at[i] - lse);
    if (own >= 0 && own < N) {
#pragma unroll
        for (int i = 0; i < N; i++) z.at[i] -= i == own ? factor : 0.0f;
    }
    cut(&z, left, 0.0f); // padding may hold anything
    return z;
}

// A row becomes its gradient where it lies; what follows `columns` becomes zeros, unread.
template <class T, int N>
static __device__ __forceinline__ void differentiate_row(T *z, int64_t columns, int64_t stride, int64_t own,
                                                         float factor, float lse) {
    for (int64_t first = static_cast<int64_t>(threadIdx.x) * N; first < stride; first += THREADS * N * ROUNDS) {
        Pack<T, N> packs[ROUNDS];
        load_rounds(packs, z, first, columns);
#pragma unroll
        for (int k = 0; k < ROUNDS; k++) {
            const int64_t i = first + k * (THREADS * N);
            if (i >= stride) continue;
            Floats<N> d = {};
            if (i < columns) d = differentiated<T, N>(packs[k], columns - i, own - i, factor, lse);
            store<N>(z + i, d);
        }
    }
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS) loss_gradient_kernel(T *logits, Slopes s, Chunk c) {
    const int64_t row = blockIdx.x;
    const int32_t target = target_of(c, row);
    const float factor = s.d_loss[row] * (s.weight ? s.weight[row] : 1.0f), lse = s.lse[row];
    differentiate_row<T, N>(logits + row * c.stride, target < 0 ? 0 : c.columns, c.stride, target - c.first, factor,
                            lse);
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    loss_both_kernel(float *lse, float *picked, T *logits, const float *weight, Chunk c) {
    SHARED(float, memory, 2 * THREADS / WARP);
    const int64_t row = blockIdx.x;
    const int32_t target = target_of(c, row);
    T *z = logits + row * c.stride;
    float whole = 0;
    if (target >= 0)
        whole = look_at_row<T, N>(lse + row, picked + row, z, target - c.first, c.columns, memory);
    else if (threadIdx.x == 0)
        lse[row] = picked[row] = 0;
    differentiate_row<T, N>(z, target < 0 ? 0 : c.columns, c.stride, target - c.first, weight ? weight[row] : 1.0f,
                            whole);
}

void cuda_cross_entropy_both(const CudaQueue *q, float *lse, float *picked, void *logits, Dtype t, int64_t stride,
                             const int32_t *targets, const float *weight, int64_t rows, Vocabulary v) {
    if (rows <= 0) return;
    const Chunk c = {targets, stride, rows, v.first, v.held, v.all};
    dim3 grid(static_cast<unsigned>(rows));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *z = static_cast<T *>(logits);
        if (stride % PACK<T> == 0 && packs_at(z, PACK<T>))
            launch<loss_both_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q, lse, picked, z, weight, c);
        else
            launch<loss_both_kernel<T, 1>>(grid, dim3(THREADS), 0, q, lse, picked, z, weight, c);
    });
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
            launch<loss_gradient_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q, z, s, c);
        else
            launch<loss_gradient_kernel<T, 1>>(grid, dim3(THREADS), 0, q, z, s, c);
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
                               dim3(ELEMENT_THREADS), 0, q, loss, lse, parts, targets, weight, ranks, n);
}
