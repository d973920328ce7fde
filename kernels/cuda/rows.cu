/* Kernels that move whole rows: embedding, gather, copies, and rows put in their places over a base. What comes to a
 * row is found from the row's number, so that each is written once. Rows that add up where they meet are in scatter.cu.
 */
#include "kernels/cuda/row_launches.h"

namespace {
// A source says where row r comes from (NULL: zeros) and goes to.

template <class From> struct Gathered { // y[m] = x[rows[m]]
    const From *x;
    const int32_t *rows;
    int64_t width, count;
    __device__ __forceinline__ const From *from(int64_t r) const {
        int32_t row = rows[r];
        if (row >= count) __trap();
        return row < 0 ? nullptr : x + row * width;
    }
    __device__ __forceinline__ int64_t to(int64_t r) const { return r; }
};

template <class From> struct Copied { // runs of `count` rows
    const From *x;
    int64_t width, out_stride, out_first, in_stride, in_first;
    Divider count;
    int none = 0;
    __device__ __forceinline__ const From *from(int64_t r) const {
        int64_t batch = quotient(r, count);
        return x + (batch * in_stride + in_first + (r - batch * count.divisor)) * width;
    }
    __device__ __forceinline__ int64_t to(int64_t r) const {
        int64_t batch = quotient(r, count);
        return batch * out_stride + out_first + (r - batch * count.divisor);
    }
};

template <class From> struct Put { // y[rows[r]] = x[r]
    const From *x;
    const int32_t *rows;
    int64_t width, count;
    __device__ __forceinline__ const From *from(int64_t r) const { return x + r * width; }
    __device__ __forceinline__ int64_t to(int64_t r) const {
        if (rows[r] < 0 || rows[r] >= count) __trap();
        return rows[r];
    }
};

template <class From> struct Placed { // y[r] = x[place[r]], or the base where that is negative
    const From *x, *base;
    const int32_t *place;
    int64_t width;
    int64_t base_repeats; // or 0
    __device__ __forceinline__ const From *from(int64_t r) const {
        int32_t m = place[r];
        if (m >= 0) return x + m * width;
        return base ? base + (base_repeats ? 0 : r) * width : nullptr;
    }
    __device__ __forceinline__ int64_t to(int64_t r) const { return r; }
};
} // namespace

template <class T, int N> static __device__ __forceinline__ void move_pack(T *y, const T *x, bool add) {
    if (add)
        write<N>(y, load<N>(x), true);
    else
        store_pack<N>(y, load_pack<N>(x)); // the bits as they are
}
template <class To, int N, class From>
static __device__ __forceinline__ void move_pack(To *y, const From *x, bool add) {
    write<N>(y, load<N>(x), add);
}

template <class Source, class To, class From, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    move_rows_kernel(To *y, Source source, int64_t first, uint32_t packs, Divider per_row, bool add) {
    uint32_t at = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (at >= packs) return;
    RowPack p = row_pack<N>(at, first, per_row);
    const From *from = source.from(p.row);
    To *to = y + source.to(p.row) * (static_cast<int64_t>(per_row.divisor) * N) + p.column;
    if (from)
        move_pack<To, N>(to, from + p.column, add);
    else if (!add)
        store<N>(to, Floats<N>{});
}

// Both arrays and the base, where there is one, must lie at multiples of N numbers for whole packs.
template <class From, class To, class Source>
static void move_rows(const CudaQueue *q, To *y, const From *x, const From *base, const Source &source, int64_t rows,
                      int64_t width, bool add) {
    constexpr int N = smaller(PACK<To>, PACK<From>);
    bool packs = width % N == 0 && packs_at(y, N) && packs_at(x, N) && packs_at(base, N);
    int64_t per_row = packs ? width / N : width;
    in_row_launches(rows, per_row, [&](int64_t first, uint32_t count, dim3 grid) {
        Divider d = divider(per_row);
        if (packs)
            launch<move_rows_kernel<Source, To, From, N>>(grid, dim3(ROW_THREADS), 0, q, y, source, first, count, d,
                                                          add);
        else
            launch<move_rows_kernel<Source, To, From, 1>>(grid, dim3(ROW_THREADS), 0, q, y, source, first, count, d,
                                                          add);
    });
}

void cuda_gather_rows(const CudaQueue *q, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width,
                      int64_t count, Dtype t, bool add) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(x), *none = nullptr;
        move_rows(q, static_cast<T *>(y), from, none, Gathered<T>{from, rows, width, count}, m, width, add);
    });
}

void cuda_embedding_forward(const CudaQueue *q, void *y, const int32_t *ids, const void *table, int64_t n,
                            int64_t width, int64_t vocab, Dtype t) {
    cuda_gather_rows(q, y, table, ids, n, width, vocab, t, false);
}

void cuda_put_rows(const CudaQueue *q, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width,
                   int64_t count, Dtype t) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(x), *none = nullptr;
        move_rows(q, static_cast<T *>(y), from, none, Put<T>{from, rows, width, count}, m, width, false);
    });
}

void cuda_copy_rows(const CudaQueue *q, void *out, Dtype to, int64_t out_stride, int64_t out_first, const void *in,
                    Dtype from, int64_t in_stride, int64_t in_first, int64_t batch, int64_t count, int64_t width,
                    bool add) {
    if (count <= 0) return;
    with_type(to, [&](auto y) {
        with_type(from, [&](auto x) {
            typedef decltype(y) To;
            typedef decltype(x) From;
            const From *source = static_cast<const From *>(in), *none = nullptr;
            Copied<From> copied = {source, width, out_stride, out_first, in_stride, in_first, divider(count)};
            move_rows(q, static_cast<To *>(out), source, none, copied, batch * count, width, add);
        });
    });
}

// ---- rows over a base ----

static __global__ void __launch_bounds__(ROW_THREADS) no_places_kernel(int32_t *place, int64_t count) {
    int64_t r = static_cast<int64_t>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (r < count) place[r] = -1;
}

static __global__ void __launch_bounds__(ROW_THREADS)
    places_kernel(int32_t *place, const int32_t *rows, int64_t m, int64_t count) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (i >= m || rows[i] < 0) return;
    if (rows[i] >= count) __trap();
    place[rows[i]] = static_cast<int32_t>(i);
}

static dim3 blocks_over(int64_t n) { return dim3(static_cast<unsigned>(divide_up<int64_t>(n, ROW_THREADS))); }

void cuda_scatter_rows(const CudaQueue *q, void *y, const void *base, int64_t base_rows, const void *x,
                       const int32_t *rows, int64_t m, int64_t width, int64_t count, Dtype t) {
    if (count <= 0) return;
    int32_t *place = static_cast<int32_t *>(q->scratch(q->owner, static_cast<size_t>(count) * sizeof(int32_t)));
    launch<no_places_kernel>(blocks_over(count), dim3(ROW_THREADS), 0, q, place, count);
    if (m > 0) launch<places_kernel>(blocks_over(m), dim3(ROW_THREADS), 0, q, place, rows, m, count);
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        const T *from = static_cast<const T *>(x), *under = base_rows > 0 ? static_cast<const T *>(base) : nullptr;
        Placed<T> placed = {from, under, place, width, base_rows == 1};
        move_rows(q, static_cast<T *>(y), from, under, placed, count, width, false);
    });
}

// ---- words held here ----

static __global__ void __launch_bounds__(ROW_THREADS)
    local_ids_kernel(int32_t *local, const int32_t *ids, int64_t n, Vocabulary v) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (i >= n) return;
    int32_t id = ids[i];
    if (id >= v.all) __trap();
    bool held = id >= v.first && id < v.first + v.held;
    local[i] = held ? id - static_cast<int32_t>(v.first) : -1;
}

void cuda_local_ids(const CudaQueue *q, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v) {
    if (n > 0) launch<local_ids_kernel>(blocks_over(n), dim3(ROW_THREADS), 0, q, local, ids, n, v);
}
