/* GELU in its three forms, SiLU and SwiGLU with their gradients. Formulas are at the operators in kernels/ops.h. */
#include "kernels/cuda/columns.h"
#include "kernels/cuda/functions.h"
#include "kernels/cuda/map.h"
#include "kernels/cuda/row_launches.h"

namespace {
template <class T> struct GeluErf {
    enum { INPUTS = 1 };
    __device__ float operator()(float x, float) const { return gelu_erf_of<T>(x); }
};
template <class T> struct GeluErfGradient {
    enum { INPUTS = 2 };
    __device__ float operator()(float dy, float x) const {
        float density, phi = normal_distribution<T>(x, &density);
        return dy * (phi + x * density);
    }
};

template <class T> struct GeluTanh {
    enum { INPUTS = 1 };
    __device__ float operator()(float x, float) const { return gelu_tanh_of<T>(x); }
};
template <class T> struct GeluTanhGradient {
    enum { INPUTS = 2 };
    __device__ float operator()(float dy, float x) const {
        float gate = gelu_tanh_gate<T>(x);
        return dy * (gate + x * (gate * (1.0f - gate)) * (1.595769122f + 0.214064449f * (x * x)));
    }
};

template <class T> struct Swish {
    enum { INPUTS = 1 };
    float p;
    __device__ float operator()(float x, float) const { return swish_of<T>(x, p); }
};
template <class T> struct SwishGradient {
    enum { INPUTS = 2 };
    float p;
    __device__ float operator()(float dy, float x) const {
        float gate = sigmoid_of<T>(p * x);
        return dy * (gate + p * x * (gate * (1.0f - gate)));
    }
};
template <class T> struct QuickGradient { // without a number of its own
    __device__ float operator()(float dy, float x) const { return SwishGradient<T>{QUICK}(dy, x); }
};

// dx = dy gelu'(x), and its sums as it is stored. (F is empty, and as a base takes no room: no padding.)
template <class T, class F> struct GradientAndSum : F {
    T *dx; // (rows, width)
    const T *dy, *x;
    int64_t width;
    GradientAndSum(T *to, const T *from, const T *at, int64_t columns) : dx(to), dy(from), x(at), width(columns) {}
    template <int N> __device__ __forceinline__ void terms(Floats<N> *sum, int64_t row, int64_t column) const {
        Floats<N> g = load<N>(dy + row * width + column), v = load<N>(x + row * width + column);
        T rounded;
#pragma unroll
        for (int i = 0; i < N; i++) {
            from_float(&rounded, (*this)(g.at[i], v.at[i]));
            g.at[i] = to_float(rounded);
            sum->at[i] += g.at[i];
        }
        store<N>(dx + row * width + column, g);
    }
};
} // namespace

enum { KIND_ERF, KIND_TANH }; // GeluKind of kernels/ops.h; the third is the quick one

template <class T, class F> static void forward(const CudaQueue *q, F f, void *y, const void *x, int64_t n) {
    run_map<F, T, T, T>(q, f, static_cast<T *>(y), static_cast<const T *>(x), nullptr, n, 1, false);
}
template <class T, class F>
static void backward(const CudaQueue *q, F f, void *dx, const void *dy, const void *x, int64_t n, bool add) {
    run_map(q, f, static_cast<T *>(dx), static_cast<const T *>(dy), static_cast<const T *>(x), n, 1, add);
}

void cuda_gelu_forward(const CudaQueue *q, void *y, const void *x, int64_t n, int kind, Dtype t) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        if (kind == KIND_ERF)
            forward<T>(q, GeluErf<T>{}, y, x, n);
        else if (kind == KIND_TANH)
            forward<T>(q, GeluTanh<T>{}, y, x, n);
        else
            forward<T>(q, Swish<T>{QUICK}, y, x, n);
    });
}

void cuda_gelu_backward(const CudaQueue *q, void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t,
                        bool add) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        if (kind == KIND_ERF)
            backward<T>(q, GeluErfGradient<T>{}, dx, dy, x, n, add);
        else if (kind == KIND_TANH)
            backward<T>(q, GeluTanhGradient<T>{}, dx, dy, x, n, add);
        else
            backward<T>(q, SwishGradient<T>{QUICK}, dx, dy, x, n, add);
    });
}

template <class T, class F>
static void backward_and_sum(const CudaQueue *q, void *dx, float *sums, const void *dy, const void *x, int64_t rows,
                             int64_t width, bool add_sums) {
    GradientAndSum<T, F> term(static_cast<T *>(dx), static_cast<const T *>(dy), static_cast<const T *>(x), width);
    ColumnOuts<1> outs = {{{sums, F32, add_sums}}};
    if (width % PACK<T> == 0 && packs_at(term.dx, PACK<T>) && packs_at(term.dy, PACK<T>) && packs_at(term.x, PACK<T>))
        sum_terms<PACK<T>>(q, term, outs, rows, width);
    else
        sum_terms<1>(q, term, outs, rows, width);
}

void cuda_gelu_backward_sums(const CudaQueue *q, void *dx, float *sums, const void *dy, const void *x, int64_t rows,
                             int64_t width, int kind, Dtype t, bool add_sums) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        if (kind == KIND_ERF)
            backward_and_sum<T, GeluErfGradient<T>>(q, dx, sums, dy, x, rows, width, add_sums);
        else if (kind == KIND_TANH)
            backward_and_sum<T, GeluTanhGradient<T>>(q, dx, sums, dy, x, rows, width, add_sums);
        else
            backward_and_sum<T, QuickGradient<T>>(q, dx, sums, dy, x, rows, width, add_sums);
    });
}

void cuda_silu_forward(const CudaQueue *q, void *y, const void *x, int64_t n, Dtype t) {
    with_type(t, [&](auto zero) { forward<decltype(zero)>(q, Swish<decltype(zero)>{1}, y, x, n); });
}

void cuda_silu_backward(const CudaQueue *q, void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add) {
    with_type(t, [&](auto zero) { backward<decltype(zero)>(q, SwishGradient<decltype(zero)>{1}, dx, dy, x, n, add); });
}

// ---- SwiGLU: rows of [gate | up], F numbers each ----

template <class T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    swiglu_kernel(T *y, const T *x, int64_t first, uint32_t packs, Divider per_row) {
    uint32_t at = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (at >= packs) return;
    RowPack p = row_pack<N>(at, first, per_row);
    const int64_t width = static_cast<int64_t>(per_row.divisor) * N;
    const T *gates = x + 2 * p.row * width + p.column;
    Floats<N> gate = load<N>(gates), up = load<N>(gates + width);
#pragma unroll
    for (int i = 0; i < N; i++) gate.at[i] = gate.at[i] * sigmoid_of<T>(gate.at[i]) * up.at[i];
    store<N>(y + p.row * width + p.column, gate);
}

// dgate = dy up (s + gate s (1 - s)), dup = dy gate s, with s = sigmoid(gate)
template <class T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    swiglu_gradient_kernel(T *dx, const T *dy, const T *x, int64_t first, uint32_t packs, Divider per_row, bool add) {
    uint32_t at = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (at >= packs) return;
    RowPack p = row_pack<N>(at, first, per_row);
    const int64_t width = static_cast<int64_t>(per_row.divisor) * N, gates = 2 * p.row * width + p.column;
    Floats<N> d = load<N>(dy + p.row * width + p.column), gate = load<N>(x + gates), up = load<N>(x + gates + width);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float s = sigmoid_of<T>(gate.at[i]), g = gate.at[i];
        gate.at[i] = d.at[i] * up.at[i] * (s + g * (s * (1.0f - s)));
        up.at[i] = d.at[i] * (g * s);
    }
    write<N>(dx + gates, gate, add);
    write<N>(dx + gates + width, up, add);
}

void cuda_swiglu_forward(const CudaQueue *q, void *y, const void *x, int64_t rows, int64_t width, Dtype t) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        constexpr int N = PACK<T>;
        bool packs = width % N == 0 && packs_at(to, N) && packs_at(from, N);
        int64_t per_row = packs ? width / N : width;
        in_row_launches(rows, per_row, [&](int64_t first, uint32_t count, dim3 grid) {
            Divider d = divider(per_row);
            if (packs)
                launch<swiglu_kernel<T, N>>(grid, dim3(ROW_THREADS), 0, q, to, from, first, count, d);
            else
                launch<swiglu_kernel<T, 1>>(grid, dim3(ROW_THREADS), 0, q, to, from, first, count, d);
        });
    });
}

void cuda_swiglu_backward(const CudaQueue *q, void *dx, const void *dy, const void *x, int64_t rows, int64_t width,
                          Dtype t, bool add) {
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(dx);
        const T *dy_t = static_cast<const T *>(dy), *from = static_cast<const T *>(x);
        constexpr int N = PACK<T>;
        bool packs = width % N == 0 && packs_at(to, N) && packs_at(dy_t, N) && packs_at(from, N);
        int64_t per_row = packs ? width / N : width;
        in_row_launches(rows, per_row, [&](int64_t first, uint32_t count, dim3 grid) {
            Divider d = divider(per_row);
            if (packs)
                launch<swiglu_gradient_kernel<T, N>>(grid, dim3(ROW_THREADS), 0, q, to, dy_t, from, first, count, d,
                                                     add);
            else
                launch<swiglu_gradient_kernel<T, 1>>(grid, dim3(ROW_THREADS), 0, q, to, dy_t, from, first, count, d,
                                                     add);
        });
    });
}
