/* Functions of one number. For bf16 the device's quick exponential and division serve: their error of a few 2^-22 is
 * far below the rounding of the result, and they keep these kernels at the memory's speed. */
#pragma once
#include "kernels/cuda/language.h"

template <class T> __device__ __forceinline__ float exp_of(float x) {
#ifdef __CUDACC__
    if (sizeof(T) < sizeof(float)) return __expf(x);
#endif
    return expf(x);
}
template <class T> __device__ __forceinline__ float divide_of(float a, float b) {
#ifdef __CUDACC__
    if (sizeof(T) < sizeof(float)) return __fdividef(a, b);
#endif
    return a / b;
}
template <class T> __device__ __forceinline__ float sigmoid_of(float x) {
    return divide_of<T>(1.0f, 1.0f + exp_of<T>(-x));
}

// Phi(x) and phi(x) = exp(-x^2 / 2) / sqrt(2 pi) with one exponential, as on the CPU (kernels/cpu/simd/vec.h): beside
// it stands exp(t^2) erfc(t), t = |x| / sqrt 2, a polynomial in u = 1 / (1 + 0.4 t).
template <class T> __device__ __forceinline__ float normal_distribution(float x, float *density) {
    float e = exp_of<T>(-0.5f * (x * x));
    float u = divide_of<T>(1.0f, 1.0f + 0.282842712f * fabsf(x));
    float p = -2.901471928e-02f * u + 1.948669008e-01f;
    p = p * u - 4.914175826e-01f;
    p = p * u + 5.375827943e-01f;
    p = p * u - 2.761802256e-01f;
    p = p * u + 2.676774051e-01f;
    p = p * u + 1.311945203e-01f;
    p = p * u + 2.145950729e-01f;
    p = p * u + 2.249909293e-01f;
    p = p * u + 2.257049132e-01f;
    float tail = 0.5f * e * (p * u);
    *density = 0.398942280f * e;
    return x > 0.0f ? 1.0f - tail : tail;
}

// GELU in its three forms, and SiLU. u = sqrt(2/pi) (x + 0.044715 x^3); (1 + tanh u) / 2 = sigmoid(2 u)
static constexpr float QUICK = 1.702f;
template <class T> __device__ __forceinline__ float gelu_tanh_gate(float x) {
    return sigmoid_of<T>(x * (1.595769122f + 0.0713548163f * (x * x)));
}
template <class T> __device__ __forceinline__ float gelu_tanh_of(float x) { return x * gelu_tanh_gate<T>(x); }
template <class T> __device__ __forceinline__ float gelu_erf_of(float x) {
    float density;
    return x * normal_distribution<T>(x, &density);
}
// x sigmoid(p x): SiLU at p = 1, the quick GELU at p = QUICK
template <class T> __device__ __forceinline__ float swish_of(float x, float p) { return x * sigmoid_of<T>(p * x); }

struct Turn {
    float sine, cosine;
};
// Of an angle already reduced to |r| <= pi/4, turned on by `quarter` quarter turns; as on the CPU.
__device__ __forceinline__ Turn turn_of(float r, int quarter) {
    float s = r * r;
    float p = 2.718237177e-06f * s - 1.983932712e-04f;
    p = p * s + 8.333329362e-03f;
    p = p * s - 1.666666664e-01f;
    float sine = (p * s) * r + r;
    float q = -2.720954253e-07f * s + 2.479951169e-05f;
    q = q * s - 1.388888372e-03f;
    q = q * s + 4.166666662e-02f;
    float cosine = (q * s - 0.5f) * s + 1.0f;
    float a = quarter & 1 ? cosine : sine, b = quarter & 1 ? sine : cosine;
    return Turn{quarter & 2 ? -a : a, (quarter + 1) & 2 ? -b : b};
}

// Of dimension d of a head: how far a position turns it, in quarter turns.
static __host__ __device__ __forceinline__ double frequency_of(double base, int d, int head_size) {
    return pow(base, -2.0 * d / head_size) * 0.63661977236758134308; // 2 / pi
}
__device__ __forceinline__ Turn turn_at(double position, double frequency) {
    double turns = position * frequency, whole = rint(turns);
    return turn_of(static_cast<float>((turns - whole) * 1.57079632679489661923),
                   static_cast<int>(static_cast<int64_t>(whole) & 3));
}
