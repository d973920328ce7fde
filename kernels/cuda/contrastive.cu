/* The contrastive losses on one tile of products z = a b^T, as in kernels/cpu/simd/contrastive.c: a block for each row,
 * and for the sums of columns a block for 8 of them (32 bytes of a row, what memory moves at least), whose threads take
 * rows in turn. A tile of 1024 x 1024 stays in the second-level cache from the product that makes it to those that take
 * its gradient. M rows, N columns of the tile. */
#include "kernels/cuda/softmax.h"

enum { THREADS = 128, ELEMENT_THREADS = 256 };
enum { COLUMNS = 8, COLUMN_THREADS = 1024, DEPTH = COLUMN_THREADS / COLUMNS, ROUNDS = 4 }; // depth: rows at a time
static constexpr double LOG_100 = 4.6051701859880914;                                      // the clamp of CLIP's scale

// The column of the tile with which row r forms a pair, or -1.
static __device__ __forceinline__ int64_t partner(const PairTile &t, int64_t r) {
    int64_t column = r + t.offset;
    return column >= t.first && column < t.end ? column : -1;
}
static __device__ __forceinline__ bool clamped(float log_scale) { return static_cast<double>(log_scale) > LOG_100; }
// NaN stays: a comparison the other way round would turn it into the clamp.
static __device__ __forceinline__ float clip_scale(float log_scale) {
    return static_cast<float>(exp(clamped(log_scale) ? LOG_100 : static_cast<double>(log_scale)));
}

// ---- softmax (CLIP) ----

static __device__ __forceinline__ void add_sums(const PairSums &sums, int64_t i, bool add, Exponentials e) {
    if (add) e = joined(Exponentials{sums.most[i], sums.sum[i]}, e);
    sums.most[i] = e.most;
    sums.sum[i] = e.sum;
}

static __global__ void __launch_bounds__(THREADS)
    clip_rows_kernel(PairSums rows, float *own, PairTile t, const float *log_scale) {
    SHARED(float, memory, 2 * THREADS / WARP);
    const int64_t r = blockIdx.x, pair = partner(t, r);
    const float *z = t.z + r * t.stride, scale = clip_scale(log_scale[0]);
    Exponentials e = no_exponentials();
    for (int64_t c = threadIdx.x; c < t.columns; c += THREADS) take_in<float>(&e, Floats<1>{{z[c] * scale}});
    e = block_joined<THREADS>(e, memory);
    if (threadIdx.x > 0) return;
    add_sums(rows, r, t.add_rows, e);
    if (pair >= 0) own[r] = scale * z[pair];
}

// Over the lanes of a warp that are a multiple of `apart` from each other, all of which must be here; the lower one's
// first, so that all get the same bits.
static __device__ __forceinline__ Exponentials warp_joined(Exponentials e, int apart) {
    for (int by = WARP / 2; by >= apart; by /= 2) {
        Exponentials other = {__shfl_xor_sync(ALL_LANES, e.most, by), __shfl_xor_sync(ALL_LANES, e.sum, by)};
        e = lane_of_thread() & by ? joined(other, e) : joined(e, other);
    }
    return e;
}

// Threads COLUMNS apart take the same column; what the 32 warps have found of it becomes the lanes of one warp.
static __global__ void __launch_bounds__(COLUMN_THREADS)
    clip_columns_kernel(PairSums columns, PairTile t, const float *log_scale) {
    SHARED(Exponentials, found, WARP * COLUMNS);
    const int lane = lane_of_thread(), warp = warp_of_thread(), thread = static_cast<int>(threadIdx.x);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * COLUMNS, c = first + thread % COLUMNS;
    const float scale = clip_scale(log_scale[0]);
    Exponentials e = no_exponentials();
    for (int64_t row = thread / COLUMNS; row < t.rows && c < t.columns; row += DEPTH * ROUNDS) {
        Floats<ROUNDS> s;
#pragma unroll
        for (int k = 0; k < ROUNDS; k++)
            s.at[k] = row + k * DEPTH < t.rows ? t.z[(row + k * DEPTH) * t.stride + c] * scale : -INFINITY;
        take_in<float>(&e, s);
    }
    e = warp_joined(e, COLUMNS);
    if (lane < COLUMNS) found[warp * COLUMNS + lane] = e;
    __syncthreads();
    if (warp >= COLUMNS) return;
    e = warp_joined(found[lane * COLUMNS + warp], 1);
    if (lane == 0 && first + warp < t.columns) add_sums(columns, first + warp, t.add_columns, e);
}

void cuda_clip_sums(const CudaQueue *q, PairSums rows, PairSums columns, float *own, const PairTile *t,
                    const float *log_scale) {
    if (t->rows <= 0 || t->columns <= 0) return;
    launch<clip_rows_kernel>(dim3(static_cast<unsigned>(t->rows)), dim3(THREADS), 0, q, rows, own, *t, log_scale);
    launch<clip_columns_kernel>(dim3(static_cast<unsigned>(divide_up<int64_t>(t->columns, COLUMNS))),
                                dim3(COLUMN_THREADS), 0, q, columns, *t, log_scale);
}

static dim3 blocks_over(int64_t n) { return dim3(static_cast<unsigned>(divide_up<int64_t>(n, ELEMENT_THREADS))); }

// A NaN in b comes through its sum.
static __global__ void __launch_bounds__(ELEMENT_THREADS) clip_join_kernel(PairSums a, PairSums b, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i >= n || b.most[i] == -INFINITY) return;
    const float before = a.most[i], most = before < b.most[i] ? b.most[i] : before;
    a.sum[i] = a.sum[i] * expf(before - most) + b.sum[i] * expf(b.most[i] - most);
    a.most[i] = most;
}

void cuda_clip_join(const CudaQueue *q, PairSums a, PairSums b, int64_t n) {
    if (n > 0) launch<clip_join_kernel>(blocks_over(n), dim3(ELEMENT_THREADS), 0, q, a, b, n);
}

static __global__ void __launch_bounds__(ELEMENT_THREADS) clip_logsumexp_kernel(float *lse, PairSums sums, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i < n) lse[i] = sums.most[i] + logf(sums.sum[i]);
}

void cuda_clip_logsumexp(const CudaQueue *q, float *lse, PairSums sums, int64_t n) {
    if (n > 0) launch<clip_logsumexp_kernel>(blocks_over(n), dim3(ELEMENT_THREADS), 0, q, lse, sums, n);
}

static __global__ void __launch_bounds__(ELEMENT_THREADS)
    clip_losses_kernel(double *loss, const float *row_lse, const float *column_lse, const float *own, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
    if (i < n)
        loss[i] =
            0.5 * (static_cast<double>(row_lse[i]) + static_cast<double>(column_lse[i])) - static_cast<double>(own[i]);
}

void cuda_clip_losses(const CudaQueue *q, double *loss, const float *row_lse, const float *column_lse, const float *own,
                      int64_t n) {
    if (n > 0)
        launch<clip_losses_kernel>(blocks_over(n), dim3(ELEMENT_THREADS), 0, q, loss, row_lse, column_lse, own, n);
}

static __global__ void __launch_bounds__(THREADS)
    clip_gradient_kernel(double *d_scale, PairTile t, const float *row_lse, const float *column_lse,
                         const float *log_scale, const float *loss_factor) {
    SHARED(float, memory, THREADS / WARP);
    const int64_t r = blockIdx.x, pair = partner(t, r);
    const float scale = clip_scale(log_scale[0]), factor = loss_factor[0], half = 0.5f * factor, lse = row_lse[r];
    float *z = t.z + r * t.stride, sum = 0, own_logit = 0;
    for (int64_t c = threadIdx.x; c < t.columns; c += THREADS) {
        float s = z[c] * scale, d = half * (expf(s - lse) + expf(s - column_lse[c]));
        sum += d * s;
        if (c == pair) own_logit = s;
        z[c] = d * scale - (c == pair ? factor * scale : 0.0f);
    }
    sum = block_sum<THREADS>(sum, memory);
    own_logit = block_sum<THREADS>(own_logit, memory); // one thread has it
    if (threadIdx.x > 0) return;
    double slope = clamped(log_scale[0])
                       ? 0.0
                       : static_cast<double>(sum) - static_cast<double>(factor) * static_cast<double>(own_logit);
    d_scale[r] = (t.add_rows ? d_scale[r] : 0.0) + slope;
}

void cuda_clip_gradient(const CudaQueue *q, double *d_scale, const PairTile *t, const float *row_lse,
                        const float *column_lse, const float *log_scale, const float *factor) {
    if (t->rows > 0)
        launch<clip_gradient_kernel>(dim3(static_cast<unsigned>(t->rows)), dim3(THREADS), 0, q, d_scale, *t, row_lse,
                                     column_lse, log_scale, factor);
}

// ---- sigmoid (SigLIP) ----

// log(1 + exp(x))
static __device__ __forceinline__ float softplus(float x) {
    return (x > 0.0f || x != x ? x : 0.0f) + log1pf(expf(-fabsf(x)));
}

static __global__ void __launch_bounds__(THREADS)
    siglip_rows_kernel(double *loss, PairTile t, const float *log_scale, const float *bias) {
    SHARED(float, memory, THREADS / WARP);
    const int64_t r = blockIdx.x, pair = partner(t, r);
    const float *z = t.z + r * t.stride, scale = expf(log_scale[0]), shift = bias[0];
    float sum = 0;
    for (int64_t c = threadIdx.x; c < t.columns; c += THREADS) sum += softplus(z[c] * scale + shift);
    sum = block_sum<THREADS>(sum, memory);
    if (threadIdx.x > 0) return;
    // softplus(-s) = softplus(s) - s
    double own =
        pair >= 0 ? static_cast<double>(scale) * static_cast<double>(z[pair]) + static_cast<double>(shift) : 0.0;
    loss[r] = (t.add_rows ? loss[r] : 0.0) + static_cast<double>(sum) - own;
}

void cuda_siglip_sums(const CudaQueue *q, double *loss, const PairTile *t, const float *log_scale, const float *bias) {
    if (t->rows > 0)
        launch<siglip_rows_kernel>(dim3(static_cast<unsigned>(t->rows)), dim3(THREADS), 0, q, loss, *t, log_scale,
                                   bias);
}

static __global__ void __launch_bounds__(THREADS)
    siglip_gradient_kernel(double *d_scale, double *d_bias, PairTile t, const float *log_scale, const float *bias,
                           const float *loss_factor) {
    SHARED(float, memory, THREADS / WARP);
    const int64_t r = blockIdx.x, pair = partner(t, r);
    const float scale = expf(log_scale[0]), shift = bias[0], factor = loss_factor[0];
    float *z = t.z + r * t.stride, sum = 0, sum_bias = 0, own_logit = 0;
    for (int64_t c = threadIdx.x; c < t.columns; c += THREADS) {
        float s = z[c] * scale, d = factor * sigmoid_of<float>(s + shift);
        sum += d * s;
        sum_bias += d;
        if (c == pair) own_logit = s;
        z[c] = d * scale - (c == pair ? factor * scale : 0.0f);
    }
    sum = block_sum<THREADS>(sum, memory);
    sum_bias = block_sum<THREADS>(sum_bias, memory);
    own_logit = block_sum<THREADS>(own_logit, memory); // one thread has it
    if (threadIdx.x > 0) return;
    double pull = static_cast<double>(factor);
    d_scale[r] = (t.add_rows ? d_scale[r] : 0.0) + static_cast<double>(sum) - pull * static_cast<double>(own_logit);
    d_bias[r] = (t.add_rows ? d_bias[r] : 0.0) + static_cast<double>(sum_bias) - (pair >= 0 ? pull : 0.0);
}

void cuda_siglip_gradient(const CudaQueue *q, double *d_scale, double *d_bias, const PairTile *t,
                          const float *log_scale, const float *bias, const float *factor) {
    if (t->rows > 0)
        launch<siglip_gradient_kernel>(dim3(static_cast<unsigned>(t->rows)), dim3(THREADS), 0, q, d_scale, d_bias, *t,
                                       log_scale, bias, factor);
}
