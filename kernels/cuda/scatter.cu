/* Rows that add up where they meet: y[rows[m]] += x[m], the gradient of gathers and embeddings. Row numbers are sorted;
 * blocks take the sorted rows in chunks of fixed size, add up each run of one number and write it, once, to y. A run
 * that crosses a chunk's ends leaves partial sums, which the chunk where it begins adds up in order: the same bits
 * always, and a number that thousands share does not hold up the others. */
#include "kernels/cuda/host/work_space.h"
#include "kernels/cuda/language.h"
#include "kernels/cuda/row_sort.h"

enum { CHUNK = WORK_SCATTER_CHUNK, ROUND = 4, MOST_WARPS = 8, JOIN_WARPS = 8, ZERO_THREADS = 256 };

template <class To, class From> struct Scatter {
    To *y;                        // (count, C)
    const From *x;                // (m, C)
    const int32_t *keys, *places; // (m)
    float *head, *tail; // (chunks, C): sums of a run that came from the chunk before, that goes on into the next
    int64_t m, width;
    int32_t count;
    int32_t add; // or 0
};

template <class To, class From, int N>
static __global__ void __launch_bounds__(MOST_WARPS *WARP) chunk_kernel(Scatter<To, From> s) {
    const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N, chunk = blockIdx.x;
    const int64_t first = chunk * CHUNK, end = smaller<int64_t>(first + CHUNK, s.m);
    if (column >= s.width) return;
    Floats<N> sum = {};
    int64_t begin = first; // of the run
    for (int64_t i = first; i < end; i += ROUND) {
        Floats<N> v[ROUND]; // loaded together, added up one by one
#pragma unroll
        for (int k = 0; k < ROUND; k++)
            if (i + k < end && s.keys[i + k] < s.count) v[k] = load<N>(s.x + s.places[i + k] * s.width + column);
#pragma unroll
        for (int k = 0; k < ROUND; k++) {
            const int64_t at = i + k;
            if (at >= end || s.keys[at] >= s.count) return; // negative rows are at the end of all
            const int32_t key = s.keys[at];
            const bool last = at + 1 == s.m || s.keys[at + 1] != key;
#pragma unroll
            for (int c = 0; c < N; c++) sum.at[c] += v[k].at[c];
            if (!last && at + 1 < end) continue;
            if (begin == first && first > 0 && s.keys[first - 1] == key)
                store<N>(s.head + chunk * s.width + column, sum);
            else if (!last)
                store<N>(s.tail + chunk * s.width + column, sum);
            else
                write<N>(s.y + key * s.width + column, sum, s.add);
            sum = Floats<N>{};
            begin = at + 1;
        }
    }
}

// The first place from `from` on whose key is not `key`; keys ascend.
static __device__ __forceinline__ int64_t end_of_run(const int32_t *keys, int64_t from, int64_t m, int32_t key) {
    while (from < m) {
        int64_t middle = from + (m - from) / 2;
        if (keys[middle] == key)
            from = middle + 1;
        else
            m = middle;
    }
    return m;
}

// A run that begins in this block's chunk and goes on: its tail here and the heads after it, for 32 columns.
template <class To, class From>
static __global__ void __launch_bounds__(JOIN_WARPS *WARP) join_kernel(Scatter<To, From> s) {
    SHARED(float, sums, JOIN_WARPS *WARP);
    const int64_t chunk = blockIdx.x, end = (chunk + 1) * CHUNK,
                  column = static_cast<int64_t>(blockIdx.y) * WARP + lane_of_thread();
    if (end >= s.m) return;
    const int32_t key = s.keys[end - 1];
    if (key >= s.count || s.keys[end] != key) return;                                          // nothing goes on
    if (chunk > 0 && s.keys[chunk * CHUNK] == key && s.keys[chunk * CHUNK - 1] == key) return; // it began before
    const int64_t last = (end_of_run(s.keys, end, s.m, key) - 1) / CHUNK;
    float sum = 0;
    if (column < s.width) {
        if (warp_of_thread() == 0) sum = s.tail[chunk * s.width + column];
#pragma unroll 4
        for (int64_t c = chunk + 1 + warp_of_thread(); c <= last; c += JOIN_WARPS) sum += s.head[c * s.width + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_of_thread() > 0 || column >= s.width) return;
    float total = 0;
    for (int w = 0; w < JOIN_WARPS; w++) total += sums[w * WARP + lane_of_thread()];
    write<1>(s.y + key * s.width + column, Floats<1>{{total}}, s.add);
}

static __global__ void __launch_bounds__(ZERO_THREADS) zero_kernel(float *x, int64_t n) {
    int64_t i = (static_cast<int64_t>(blockIdx.x) * ZERO_THREADS + threadIdx.x) * 4;
    if (i + 4 <= n && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
        store<4>(x + i, Floats<4>{});
    } else {
        for (int64_t k = i; k < i + 4 && k < n; k++) x[k] = 0;
    }
}

template <int N, class To, class From>
static void add_chunks(const CudaQueue *q, const Scatter<To, From> &s, int64_t chunks) {
    int64_t warps = smaller<int64_t>(divide_up<int64_t>(s.width, WARP * N), MOST_WARPS), threads = warps * WARP;
    unsigned count = static_cast<unsigned>(chunks);
    dim3 block(static_cast<unsigned>(threads)),
        grid(count, static_cast<unsigned>(divide_up<int64_t>(s.width, threads * N)));
    dim3 join(count, static_cast<unsigned>(divide_up<int64_t>(s.width, WARP)));
    launch<chunk_kernel<To, From, N>>(grid, block, 0, q, s);
    if (chunks > 1) launch<join_kernel<To, From>>(join, dim3(JOIN_WARPS * WARP), 0, q, s);
}

template <class To, class From>
static void scatter(const CudaQueue *q, To *y, const From *x, const int32_t *rows, int64_t m, int64_t width,
                    int64_t count, bool add) {
    if (m <= 0 || width <= 0) return;
    const int64_t chunks = divide_up<int64_t>(m, CHUNK);
    const size_t sort = (row_sort_bytes(m) + 15) / 16 * 16, sums = static_cast<size_t>(chunks * width) * sizeof(float);
    char *memory = static_cast<char *>(q->scratch(q->owner, work_scatter(m, width)));
    SortedRows sorted = row_sort(q, memory, rows, m, count);
    Scatter<To, From> s = {y,
                           x,
                           sorted.keys,
                           sorted.places,
                           reinterpret_cast<float *>(memory + sort),
                           reinterpret_cast<float *>(memory + sort + (sums + 15) / 16 * 16),
                           m,
                           width,
                           static_cast<int32_t>(count),
                           add};
    constexpr int N = smaller(PACK<To>, PACK<From>);
    if (width % N == 0 && packs_at(y, N) && packs_at(x, N))
        add_chunks<N>(q, s, chunks);
    else
        add_chunks<1>(q, s, chunks);
}

void cuda_scatter_add_rows(const CudaQueue *q, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows,
                           int64_t m, int64_t width, int64_t count) {
    with_type(to, [&](auto a) {
        with_type(from, [&](auto b) {
            scatter(q, static_cast<decltype(a) *>(y), static_cast<const decltype(b) *>(x), rows, m, width, count, true);
        });
    });
}

void cuda_embedding_backward(const CudaQueue *q, float *dtable, const void *dy, const int32_t *ids, int64_t n,
                             int64_t width, int64_t vocab, Dtype t, bool add) {
    int64_t numbers = vocab * width;
    if (!add && numbers > 0)
        launch<zero_kernel>(dim3(static_cast<unsigned>(divide_up<int64_t>(numbers, ZERO_THREADS * 4))),
                            dim3(ZERO_THREADS), 0, q, dtable, numbers);
    with_type(
        t, [&](auto zero) { scatter(q, dtable, static_cast<const decltype(zero) *>(dy), ids, n, width, vocab, add); });
}
