/* Sums over rows: gradients of biases and of what was repeated. */
#include "kernels/cuda/columns.h"

namespace {
template <class T> struct Plain {
    const T *x; // (rows, width)
    int64_t width;
    template <int N> __device__ __forceinline__ void terms(Floats<N> *sum, int64_t row, int64_t column) const {
        Floats<N> v = load<N>(x + row * width + column);
#pragma unroll
        for (int i = 0; i < N; i++) sum->at[i] += v.at[i];
    }
};
} // namespace

static void sum_over_rows(const CudaQueue *q, ColumnOut out, const void *x, Dtype t, int64_t rows, int64_t width) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        Plain<T> term = {static_cast<const T *>(x), width};
        ColumnOuts<1> outs = {{out}};
        if (width % PACK<T> == 0 && packs_at(term.x, PACK<T>))
            sum_terms<PACK<T>>(q, term, outs, rows, width);
        else
            sum_terms<1>(q, term, outs, rows, width);
    });
}

void cuda_sum_columns(const CudaQueue *q, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add) {
    sum_over_rows(q, ColumnOut{out, F32, add}, x, t, rows, width);
}

void cuda_fold_add(const CudaQueue *q, void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t n_b, bool add) {
    if (n_b > 0) sum_over_rows(q, ColumnOut{db, tb, add}, dy, t, n / n_b, n_b);
}
