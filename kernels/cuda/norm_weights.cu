/* Gradients of the scale and shift of layer and RMS norm: dscale = sum over rows of dy xhat, dshift = sum of dy. */
#include "kernels/cuda/columns.h"

namespace {
template <class T, int SUMS> struct NormTerms { // SUMS: 1 rmsnorm, 2 layernorm
    const T *dy, *x;                            // (N, C)
    const float *mean, *rstd;                   // (N); rmsnorm: mean NULL
    int64_t width;
    template <int N> __device__ __forceinline__ void terms(Floats<N> *sum, int64_t row, int64_t column) const {
        Floats<N> g = load<N>(dy + row * width + column), v = load<N>(x + row * width + column);
        float centre = SUMS > 1 ? mean[row] : 0, factor = rstd[row];
#pragma unroll
        for (int i = 0; i < N; i++) {
            sum[0].at[i] += g.at[i] * ((v.at[i] - centre) * factor);
            if constexpr (SUMS > 1) sum[1].at[i] += g.at[i];
        }
    }
};
} // namespace

template <int SUMS>
static void weight_gradients(const CudaQueue *q, const ColumnOuts<SUMS> &outs, const void *dy, const void *x,
                             const float *mean, const float *rstd, int64_t rows, int64_t width, Dtype t) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        NormTerms<T, SUMS> term = {static_cast<const T *>(dy), static_cast<const T *>(x), mean, rstd, width};
        if (width % PACK<T> == 0 && packs_at(term.dy, PACK<T>) && packs_at(term.x, PACK<T>))
            sum_terms<PACK<T>>(q, term, outs, rows, width);
        else
            sum_terms<1>(q, term, outs, rows, width);
    });
}

void cuda_layernorm_backward_weight(const CudaQueue *q, float *dscale, float *dshift, const void *dy, const void *x,
                                    const float *mean, const float *rstd, int64_t rows, int64_t width, Dtype t,
                                    bool add_scale, bool add_shift) {
    ColumnOuts<2> outs = {{{dscale, F32, add_scale}, {dshift, F32, add_shift}}};
    weight_gradients(q, outs, dy, x, mean, rstd, rows, width, t);
}

void cuda_rmsnorm_backward_weight(const CudaQueue *q, float *dscale, const void *dy, const void *x, const float *rstd,
                                  int64_t rows, int64_t width, Dtype t, bool add) {
    ColumnOuts<1> outs = {{{dscale, F32, add}}};
    weight_gradients(q, outs, dy, x, nullptr, rstd, rows, width, t);
}
