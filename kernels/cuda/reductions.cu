/* Sums over whole buffers, in f64 and a fixed order, and the search for numbers that are not finite. */
#include "kernels/cuda/language.h"

enum { THREADS = 256, SPAN = 16384 }; // SPAN: elements a block sums

// The sum of this thread's share of x[first, end).
template <int N, class T> static __device__ __forceinline__ double share_of(const T *x, int64_t first, int64_t end) {
    double sum = 0;
    int64_t whole = end - (end - first) % N;
#pragma unroll 4
    for (int64_t i = first + static_cast<int64_t>(threadIdx.x) * N; i < whole; i += THREADS * N) {
        Floats<N> v = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum += static_cast<double>(v.at[k]);
    }
    int64_t rest = whole + static_cast<int>(threadIdx.x);
    return rest < end ? sum + static_cast<double>(to_float(x[rest])) : sum;
}

// A warp takes a block of numbers: they are short.
template <int N>
static __global__ void __launch_bounds__(THREADS)
    block_squares_kernel(double *out, const float *x, int64_t blocks, int64_t block) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + warp_of_thread(), end = (at + 1) * block;
    if (at >= blocks) return; // the whole warp
    double sum = 0;
#pragma unroll 8
    for (int64_t i = at * block + lane_of_thread() * N; i < end; i += WARP * N) {
        Floats<N> v = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum += static_cast<double>(v.at[k]) * static_cast<double>(v.at[k]);
    }
    sum = warp_sum(sum);
    if (lane_of_thread() == 0) out[at] = sum;
}

void cuda_block_squares(const CudaQueue *q, double *out, const float *x, int64_t blocks, int64_t block) {
    if (blocks <= 0) return;
    dim3 grid(static_cast<unsigned>(divide_up<int64_t>(blocks, THREADS / WARP)));
    if (block % 4 == 0 && packs_at(x, 4))
        launch<block_squares_kernel<4>>(grid, dim3(THREADS), 0, q, out, x, blocks, block);
    else
        launch<block_squares_kernel<1>>(grid, dim3(THREADS), 0, q, out, x, blocks, block);
}

template <int N, class T>
static __global__ void __launch_bounds__(THREADS) span_sum_kernel(double *partial, const T *x, int64_t n) {
    SHARED(double, memory, THREADS / WARP);
    int64_t first = static_cast<int64_t>(blockIdx.x) * SPAN;
    double sum = block_sum<THREADS>(share_of<N>(x, first, smaller<int64_t>(first + SPAN, n)), memory);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out[0] = factor[0] * sum (+ out[0]); the product in f64; factor NULL: 1
static __global__ void __launch_bounds__(THREADS)
    total_kernel(float *out, const double *partial, int64_t count, const double *factor, bool add) {
    SHARED(double, memory, THREADS / WARP);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
    sum = block_sum<THREADS>(sum, memory);
    if (threadIdx.x == 0) out[0] = static_cast<float>(factor ? *factor * sum : sum) + (add ? out[0] : 0.0f);
}

void cuda_sum_rows(const CudaQueue *q, float *out, bool add, const double *x, int64_t n) {
    launch<total_kernel>(dim3(1), dim3(THREADS), 0, q, out, x, n, static_cast<const double *>(nullptr), add);
}

// The factor is a message: it divides by counts that differ from step to step.
void cuda_sum_into(const CudaQueue *q, float *out, const void *x, int64_t n, double factor, Dtype t) {
    int64_t blocks = larger<int64_t>(divide_up<int64_t>(n, SPAN), 1);
    double *partial = static_cast<double *>(q->scratch(q->owner, static_cast<size_t>(blocks) * sizeof(double)));
    dim3 grid(static_cast<unsigned>(blocks));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(x);
        if (packs_at(from, PACK<T>))
            launch<span_sum_kernel<PACK<T>, T>>(grid, dim3(THREADS), 0, q, partial, from, n);
        else
            launch<span_sum_kernel<1, T>>(grid, dim3(THREADS), 0, q, partial, from, n);
    });
    launch<total_kernel>(dim3(1), dim3(THREADS), 0, q, out, static_cast<const double *>(partial), blocks,
                         static_cast<const double *>(q->message(q->owner, &factor, sizeof factor)), false);
}

// ---- the first number that is not finite: the least index by an atomic minimum, where -1 is the largest number ----

static __global__ void nothing_found_kernel(int64_t *out) { *out = -1; }

static __device__ __forceinline__ bool is_bad(float x) { return (__float_as_uint(x) & 0x7f800000u) == 0x7f800000u; }

template <int N, class T>
static __global__ void __launch_bounds__(THREADS) search_kernel(unsigned long long *out, const T *x, int64_t n) {
    int64_t end = smaller<int64_t>((static_cast<int64_t>(blockIdx.x) + 1) * SPAN, n), found = -1;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * SPAN + static_cast<int64_t>(threadIdx.x) * N;
         i < end && found < 0; i += THREADS * N) {
        if (i + N <= end) {
            Floats<N> v = load<N>(x + i);
#pragma unroll
            for (int k = N - 1; k >= 0; k--)
                if (is_bad(v.at[k])) found = i + k;
        } else {
            for (int64_t k = end - 1; k >= i; k--)
                if (is_bad(to_float(x[k]))) found = k;
        }
    }
    if (found >= 0) atomicMin(out, static_cast<unsigned long long>(found));
}

void cuda_first_nonfinite(const CudaQueue *q, int64_t *out, const void *x, int64_t n, Dtype t) {
    launch<nothing_found_kernel>(dim3(1), dim3(1), 0, q, out);
    if (n <= 0) return;
    dim3 grid(static_cast<unsigned>(divide_up<int64_t>(n, SPAN)));
    unsigned long long *least = reinterpret_cast<unsigned long long *>(out);
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(x);
        if (packs_at(from, PACK<T>))
            launch<search_kernel<PACK<T>, T>>(grid, dim3(THREADS), 0, q, least, from, n);
        else
            launch<search_kernel<1, T>>(grid, dim3(THREADS), 0, q, least, from, n);
    });
}
