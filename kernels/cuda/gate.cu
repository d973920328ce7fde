/* The gradients' norm, and whether a step is to be taken, without the host: sums of squares over many spans of memory
 * in f64 and a fixed order, and the verdict that adamw_parts reads. A launch carries a table of spans; each block sums
 * a piece of one, and a last launch adds up what all blocks found. Where ranks have parts of the norm, sums of f64. */
#include "kernels/cuda/language.h"

enum { THREADS = 256, PIECE = 16384, SPANS = 256 }; // PIECE: elements of a block; SPANS: of a launch

struct Table {
    FloatSpan span[SPANS];
    unsigned first_block[SPANS]; // of each span; where there is none no block is either
};

template <int N> static __device__ __forceinline__ double squares_of(const float *x, int64_t first, int64_t end) {
    double sum = 0;
    int64_t whole = end - (end - first) % N;
#pragma unroll 4
    for (int64_t i = first + static_cast<int64_t>(threadIdx.x) * N; i < whole; i += THREADS * N) {
        Floats<N> v = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum += static_cast<double>(v.at[k]) * static_cast<double>(v.at[k]);
    }
    int64_t rest = whole + static_cast<int>(threadIdx.x);
    return rest < end ? sum + static_cast<double>(x[rest]) * static_cast<double>(x[rest]) : sum;
}

// partial: one for each block
static __global__ void __launch_bounds__(THREADS) span_squares_kernel(double *partial, const Table table) {
    SHARED(double, memory, THREADS / WARP);
    int at = 0; // the last span that begins at or before this block
    for (int stride = SPANS / 2; stride; stride /= 2)
        if (table.first_block[at + stride] <= blockIdx.x) at += stride;
    const FloatSpan span = table.span[at];
    int64_t first = static_cast<int64_t>(blockIdx.x - table.first_block[at]) * PIECE;
    int64_t end = smaller<int64_t>(first + PIECE, span.n);
    bool aligned = reinterpret_cast<uintptr_t>(span.x) % 16 == 0;
    double sum = aligned ? squares_of<4>(span.x, first, end) : squares_of<1>(span.x, first, end);
    sum = block_sum<THREADS>(sum, memory);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// In chains of their own, so that additions do not wait for each other.
static __global__ void __launch_bounds__(THREADS)
    add_squares_kernel(double *out, const double *partial, int64_t count, const float *finite, int64_t n) {
    SHARED(double, memory, THREADS / WARP);
    double sum[4] = {};
    for (int64_t i = threadIdx.x; i < count; i += 4 * THREADS) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i + k * THREADS < count) sum[k] += partial[i + k * THREADS];
    }
    double total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int64_t i = threadIdx.x; i < n; i += THREADS)
        total += static_cast<double>(finite[i] - finite[i]); // 0, or not a number
    total = block_sum<THREADS>(total, memory);
    if (threadIdx.x == 0) *out = total;
}

static int64_t blocks_of(const FloatSpan *span) { return span->n > 0 ? divide_up<int64_t>(span->n, PIECE) : 0; }

void cuda_sum_squares(const CudaQueue *q, double *out, const FloatSpan *spans, int count, const float *finite,
                      int64_t n) {
    int64_t all = 0, done = 0;
    for (int i = 0; i < count; i++) all += blocks_of(&spans[i]);
    double *partial = static_cast<double *>(q->scratch(q->owner, static_cast<size_t>(all + 1) * sizeof(double)));
    for (int i = 0; i < count;) {
        Table table = {};
        int64_t blocks = 0;
        int used = 0;
        for (; i < count && used < SPANS; i++) {
            if (!blocks_of(&spans[i])) continue;
            table.span[used] = spans[i];
            table.first_block[used++] = static_cast<unsigned>(blocks);
            blocks += blocks_of(&spans[i]);
        }
        for (int k = used; k < SPANS; k++) table.first_block[k] = UINT32_MAX;
        if (blocks)
            launch<span_squares_kernel>(dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, q, partial + done,
                                        table);
        done += blocks;
    }
    launch<add_squares_kernel>(dim3(1), dim3(THREADS), 0, q, out, static_cast<const double *>(partial), all, finite, n);
}

// ---- sums of f64 ----

enum { SUMS = 120 }; // of a launch

struct SumTable {
    DoubleSum sum[SUMS];
};

static __global__ void __launch_bounds__(THREADS) sum_doubles_kernel(const SumTable table) {
    SHARED(double, memory, THREADS / WARP);
    const DoubleSum s = table.sum[blockIdx.x];
    double sum[4] = {};
    for (int64_t i = threadIdx.x; i < s.n; i += 4 * THREADS) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i + k * THREADS < s.n) sum[k] += s.x[i + k * THREADS];
    }
    double total = block_sum<THREADS>((sum[0] + sum[1]) + (sum[2] + sum[3]), memory);
    if (threadIdx.x == 0) *s.out = s.elsewhere ? total - total : total; // 0, or not a number
}

void cuda_sum_doubles(const CudaQueue *q, const DoubleSum *sums, int count) {
    for (int i = 0; i < count; i += SUMS) {
        int now = smaller(count - i, static_cast<int>(SUMS));
        SumTable table = {};
        for (int k = 0; k < now; k++) table.sum[k] = sums[i + k];
        launch<sum_doubles_kernel>(dim3(static_cast<unsigned>(now)), dim3(THREADS), 0, q, table);
    }
}

// ---- the verdict ----

// x[0, n) along a tree of halves, the lower one first: what waits for its other half lies on a stack.
static __device__ double sum_tree(const double *x, int64_t n) {
    double waiting[64] = {};
    int depth = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t first = 0, end = n;
        int complete = 0; // subtrees that end with x[i], itself left out
        while (end - first > 1) {
            int64_t middle = first + (end - first) / 2;
            bool upper = i >= middle;
            complete = upper ? complete + 1 : 0;
            (upper ? first : end) = middle;
        }
        waiting[depth++] = x[i];
        for (; complete; complete--) {
            depth--;
            waiting[depth - 1] += waiting[depth];
        }
    }
    return waiting[0];
}

// The same by a block: each thread takes the subtree that the bits of its number lead to, the highest first; where a
// subtree is a leaf before all bits are used, the thread whose other bits are 0 has it. Adding 0 to squares changes
// none.
static __device__ __forceinline__ double block_tree(const double *x, int64_t n, double *memory) {
    const int thread = static_cast<int>(threadIdx.x);
    int64_t first = 0, end = n;
    bool own = n > 0;
    for (int bit = THREADS / 2; bit; bit /= 2) {
        const int64_t middle = first + (end - first) / 2;
        if (end - first > 1)
            (thread & bit ? first : end) = middle;
        else
            own = own && !(thread & bit);
    }
    memory[thread] = own ? sum_tree(x + first, end - first) : 0;
    __syncthreads();
    for (int apart = 1; apart < THREADS; apart *= 2) {
        if (thread % (2 * apart) == 0) memory[thread] += memory[thread + apart];
        __syncthreads();
    }
    return memory[0];
}

static __global__ void __launch_bounds__(THREADS)
    gate_kernel(Gate *gate, const double *squares, int64_t n, double clip) {
    SHARED(double, memory, THREADS);
    double norm = sqrt(block_tree(squares, n, memory));
    if (threadIdx.x > 0) return;
    gate->norm = norm;
    gate->gradient_scale = clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1;
    if (!(norm - norm == 0)) gate->failed = 1; // infinite, or not a number
}

void cuda_gate(const CudaQueue *q, Gate *gate, const double *squares, int64_t n, double clip) {
    launch<gate_kernel>(dim3(1), dim3(THREADS), 0, q, gate, squares, n, clip);
}
