/* Elementwise kernels that cost no more than their memory traffic: convert, add, mul, scale, fill. */
#include "kernels/cuda/map.h"

namespace {
struct Same {
    enum { INPUTS = 1 };
    __device__ float operator()(float a, float) const { return a; }
};
struct Sum {
    enum { INPUTS = 2 };
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Product {
    enum { INPUTS = 2 };
    __device__ float operator()(float a, float b) const { return a * b; }
};
struct Scaled {
    enum { INPUTS = 1 };
    float factor;
    __device__ float operator()(float a, float) const { return a * factor; }
};
struct ScaledBy {
    enum { INPUTS = 1 };
    const float *factor;
    __device__ float operator()(float a, float) const { return a * *factor; }
};
struct Constant {
    enum { INPUTS = 0 };
    const float *value;
    const double *factor;
    __device__ float operator()(float, float) const {
        return static_cast<float>(*factor * static_cast<double>(*value));
    }
};
} // namespace

static void transfer(const CudaQueue *q, void *out, Dtype to, const void *x, Dtype from, int64_t n, bool add) {
    with_type(to, [&](auto y) {
        with_type(from, [&](auto a) {
            typedef decltype(y) Y;
            typedef decltype(a) A;
            run_map<Same, Y, A, A>(q, Same{}, static_cast<Y *>(out), static_cast<const A *>(x), nullptr, n, 1, add);
        });
    });
}

void cuda_convert(const CudaQueue *q, void *out, Dtype to, const void *x, Dtype from, int64_t n) {
    transfer(q, out, to, x, from, n, false);
}

void cuda_add_in_place(const CudaQueue *q, void *out, const void *x, int64_t n, Dtype to, Dtype from) {
    transfer(q, out, to, x, from, n, true);
}

void cuda_add(const CudaQueue *q, void *out, const void *a, const void *b, int64_t n, int64_t n_b, Dtype t) {
    if (n_b <= 0) return;
    with_type(t, [&](auto x) {
        typedef decltype(x) T;
        run_map(q, Sum{}, static_cast<T *>(out), static_cast<const T *>(a), static_cast<const T *>(b), n_b, n / n_b,
                false);
    });
}

void cuda_mul(const CudaQueue *q, void *out, const void *a, const void *b, int64_t n, Dtype t, bool add) {
    with_type(t, [&](auto x) {
        typedef decltype(x) T;
        run_map(q, Product{}, static_cast<T *>(out), static_cast<const T *>(a), static_cast<const T *>(b), n, 1, add);
    });
}

void cuda_scale(const CudaQueue *q, void *out, const void *x, double factor, int64_t n, Dtype t, bool add) {
    with_type(t, [&](auto a) {
        typedef decltype(a) T;
        run_map<Scaled, T, T, T>(q, Scaled{static_cast<float>(factor)}, static_cast<T *>(out),
                                 static_cast<const T *>(x), nullptr, n, 1, add);
    });
}

void cuda_scale_by(const CudaQueue *q, void *out, Dtype to, const void *x, Dtype from, const float *by, int64_t n,
                   bool add) {
    with_type(to, [&](auto y) {
        with_type(from, [&](auto a) {
            typedef decltype(y) Y;
            typedef decltype(a) A;
            run_map<ScaledBy, Y, A, A>(q, ScaledBy{by}, static_cast<Y *>(out), static_cast<const A *>(x), nullptr, n, 1,
                                       add);
        });
    });
}

// The factor is a message, as that of cuda_sum_into.
void cuda_fill(const CudaQueue *q, void *x, const float *value, double factor, int64_t n, Dtype t, bool add) {
    const double *factor_there = static_cast<const double *>(q->message(q->owner, &factor, sizeof factor));
    with_type(t, [&](auto y) {
        typedef decltype(y) T;
        run_map<Constant, T, T, T>(q, Constant{value, factor_there}, static_cast<T *>(x), nullptr, nullptr, n, 1, add);
    });
}
