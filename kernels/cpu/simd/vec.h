/* Vectors of LANES floats in the compiler's vector extension: 16 on AVX-512, 8 on AVX2, 4 elsewhere, from one source.
 * Loads and stores of f32 and bf16, reductions in a fixed order, and exp, log, sine and cosine and the normal
 * distribution within about 2 ulp (the normal distribution 8); NaN stays NaN, Inf and the limits are those of the C
 * library. Polynomials are minimax fits made for these ranges. Where a function takes a Dtype, pass a constant: the
 * branch folds away. */
#pragma once
#include "kernels/tensor.h"
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t VecI __attribute__((vector_size(4 * LANES)));
typedef uint32_t VecU __attribute__((vector_size(4 * LANES)));
typedef uint16_t VecH __attribute__((vector_size(2 * LANES))); // bf16 bits
typedef float VecMemory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t VecHMemory __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE Vec vec_set(float x) { return x - (Vec){0}; } // x - 0 keeps -0 and NaN

// ---- selection: masks are VecI with all bits of a lane set or clear ----

INLINE Vec vec_select(VecI mask, Vec a, Vec b) { return (Vec)((mask & (VecI)a) | (~mask & (VecI)b)); }
// NaN in a stays; NaN in b does not.
#if defined(__AVX512F__)
INLINE Vec vec_max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)b, (__m512)a); }
INLINE Vec vec_min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)b, (__m512)a); }
#elif defined(__AVX2__)
INLINE Vec vec_max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)b, (__m256)a); }
INLINE Vec vec_min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)b, (__m256)a); }
#else
INLINE Vec vec_max(Vec a, Vec b) { return vec_select(a < b, b, a); }
INLINE Vec vec_min(Vec a, Vec b) { return vec_select(a > b, b, a); }
#endif
INLINE VecI vec_lanes(void) { // 0, 1, 2, ...
    VecI lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}
INLINE Vec vec_abs(Vec x) { return (Vec)((VecI)x & 0x7fffffff); }
INLINE Vec vec_sqrt(Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (Vec)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

// ---- memory ----

// bf16 from f32 rounds to nearest even; NaN stays NaN. Subnormals stay too, which the processor's own instruction
// would flush: every instruction set gives f32_to_bf16's bits.
INLINE VecU bf16_bits(Vec x) { // in the low halves
    VecU u = (VecU)x, rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
#if defined(__AVX512F__)
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    return (VecU)_mm512_mask_mov_epi32((__m512i)rounded, nan, (__m512i)(u >> 16 | 0x40));
#else
    VecU nan = (VecU)(x != x);
    return (nan & (u >> 16 | 0x40)) | (~nan & rounded);
#endif
}
#if defined(__AVX512F__)
INLINE Vec vec_from_bf16(VecH x) { return (Vec)((VecU)_mm512_cvtepu16_epi32((__m256i)x) << 16); }
INLINE VecH vec_to_bf16(Vec x) { return (VecH)_mm512_cvtepi32_epi16((__m512i)bf16_bits(x)); }
#elif defined(__AVX2__)
INLINE Vec vec_from_bf16(VecH x) { return (Vec)((VecU)_mm256_cvtepu16_epi32((__m128i)x) << 16); }
INLINE VecH vec_to_bf16(Vec x) {
    __m256i bits = (__m256i)bf16_bits(x), packed = _mm256_packus_epi32(bits, bits);
    return (VecH)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
INLINE Vec vec_from_bf16(VecH x) { return (Vec)(__builtin_convertvector(x, VecU) << 16); }
INLINE VecH vec_to_bf16(Vec x) { return __builtin_convertvector(bf16_bits(x), VecH); }
#endif

INLINE Vec vec_load(const void *x, int64_t at, Dtype t) {
    if (t == F32) return *(const VecMemory *)((const float *)x + at);
    return vec_from_bf16(*(const VecHMemory *)((const uint16_t *)x + at));
}
INLINE void vec_store(void *x, int64_t at, Vec value, Dtype t) {
    if (t == F32)
        *(VecMemory *)((float *)x + at) = value;
    else
        *(VecHMemory *)((uint16_t *)x + at) = vec_to_bf16(value);
}

// The first `count` < LANES lanes; the others load as zero.
INLINE Vec vec_load_part(const void *x, int64_t at, int64_t count, Dtype t) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (t == F32) return (Vec)_mm512_maskz_loadu_ps(mask, (const float *)x + at);
    return vec_from_bf16((VecH)_mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + at));
#else
    Vec value = {0};
    if (t == F32) {
        for (int64_t i = 0; i < count; i++) value[i] = ((const float *)x)[at + i];
    } else {
        for (int64_t i = 0; i < count; i++) value[i] = bf16_to_f32(((const uint16_t *)x)[at + i]);
    }
    return value;
#endif
}
INLINE void vec_store_part(void *x, int64_t at, int64_t count, Vec value, Dtype t) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (t == F32)
        _mm512_mask_storeu_ps((float *)x + at, mask, (__m512)value);
    else
        _mm256_mask_storeu_epi16((uint16_t *)x + at, mask, (__m256i)vec_to_bf16(value));
#else
    if (t == F32) {
        for (int64_t i = 0; i < count; i++) ((float *)x)[at + i] = value[i];
    } else {
        for (int64_t i = 0; i < count; i++) ((uint16_t *)x)[at + i] = f32_to_bf16(value[i]);
    }
#endif
}

// At the end of a row that stops at `end`: a whole vector where it fits, else part of one.
INLINE Vec vec_load_within(const void *x, int64_t at, int64_t end, Dtype t) {
    return at + LANES <= end ? vec_load(x, at, t) : vec_load_part(x, at, end - at, t);
}
INLINE void vec_store_within(void *x, int64_t at, int64_t end, Vec value, Dtype t) {
    if (at + LANES <= end)
        vec_store(x, at, value, t);
    else
        vec_store_part(x, at, end - at, value, t);
}
INLINE void vec_write_within(void *x, int64_t at, int64_t end, Vec value, Dtype t, bool add) {
    vec_store_within(x, at, end, add ? vec_load_within(x, at, end, t) + value : value, t);
}
INLINE const void *row_of(const void *x, int64_t row, int64_t width, Dtype t) {
    return (const char *)x + row * width * (int64_t)dtype_size(t);
}
INLINE void *row_at(void *x, int64_t row, int64_t width, Dtype t) {
    return (char *)x + row * width * (int64_t)dtype_size(t);
}

// One element, for what is not worth a vector.
INLINE float element_load(const void *x, int64_t at, Dtype t) {
    return t == F32 ? ((const float *)x)[at] : bf16_to_f32(((const uint16_t *)x)[at]);
}
INLINE void element_store(void *x, int64_t at, float value, Dtype t) {
    if (t == F32)
        ((float *)x)[at] = value;
    else
        ((uint16_t *)x)[at] = f32_to_bf16(value);
}

// ---- reductions, in the same order always ----

// (Halves are folded by hand: from a loop over lanes the compiler makes a chain of single elements.)
#if defined(__AVX2__)
#define VEC_FOLD(name, fold_128, fold_one)                                                                             \
    INLINE float name(__m256 x) {                                                                                      \
        __m128 y = fold_128(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));                                   \
        y = fold_128(y, _mm_movehl_ps(y, y));                                                                          \
        return _mm_cvtss_f32(fold_one(y, _mm_shuffle_ps(y, y, 1)));                                                    \
    }
VEC_FOLD(vec_sum_256, _mm_add_ps, _mm_add_ss)
VEC_FOLD(vec_highest_256, _mm_max_ps, _mm_max_ss)
#undef VEC_FOLD
#endif
INLINE float vec_sum(Vec x) {
#if defined(__AVX512F__)
    __m256 high = _mm512_extractf32x8_ps((__m512)x, 1);
    return vec_sum_256(_mm256_add_ps(_mm512_castps512_ps256((__m512)x), high));
#elif defined(__AVX2__)
    return vec_sum_256((__m256)x);
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}
INLINE float vec_highest(Vec x) { // NaN is not looked for
#if defined(__AVX512F__)
    __m256 high = _mm512_extractf32x8_ps((__m512)x, 1);
    return vec_highest_256(_mm256_max_ps(_mm512_castps512_ps256((__m512)x), high));
#elif defined(__AVX2__)
    return vec_highest_256((__m256)x);
#else
    float a = x[0] < x[2] ? x[2] : x[0], b = x[1] < x[3] ? x[3] : x[1];
    return a < b ? b : a;
#endif
}

// ---- functions ----

// To the nearest integer, for |x| < 2^22; the low bits of `bits` hold the integer.
INLINE Vec vec_round(Vec x, VecI *bits) {
    const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds
    Vec shifted = x + magic;
    *bits = (VecI)shifted;
    return shifted - magic;
}

// x 2^n, n and bits as vec_round gave them. 2^n in two factors, so that results round once among the subnormals.
INLINE Vec vec_times_power(Vec x, Vec n, VecI bits) {
#if defined(__AVX512F__)
    (void)bits;
    return (Vec)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    (void)n;
    VecI whole = bits - 0x4b400000, half = whole >> 1;
    return x * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
#endif
}

// e^x = 2^n e^r with |r| <= ln 2 / 2.
INLINE Vec vec_exp(Vec x) {
    x = vec_min(x, vec_set(89.0f));   // Inf from here on
    x = vec_max(x, vec_set(-104.0f)); // 0 from here on
    VecI bits;
    Vec n = vec_round(x * 1.44269504f, &bits);
    Vec r = x - n * 0.693145752f; // 0x1.62e4p-1: the product is exact
    r = r - n * 1.42860682e-6f;
    Vec p = 1.395060030e-03f * r + 8.368953709e-03f;
    p = p * r + 4.166620417e-02f;
    p = p * r + 1.666651830e-01f;
    p = p * r + 5.000000096e-01f;
    p = (p * r) * r + r + 1.0f;
    return vec_times_power(p, n, bits);
}

// log x = e ln 2 + log m with m in [sqrt 1/2, sqrt 2)
INLINE Vec vec_log(Vec x) {
    VecI tiny = x < 1.17549435e-38f; // subnormals, 0 and below
    Vec scaled = vec_select(tiny, x * 8388608.0f, x);
    VecI u = (VecI)scaled - 0x3f3504f3; // sqrt 1/2
    Vec e = __builtin_convertvector((u >> 23) - (tiny & 23), Vec);
    Vec f = (Vec)((u & 0x007fffff) + 0x3f3504f3) - 1.0f;
    Vec p = 6.915165652e-02f * f - 1.178970508e-01f;
    p = p * f + 1.187301290e-01f;
    p = p * f - 1.238436845e-01f;
    p = p * f + 1.421865565e-01f;
    p = p * f - 1.666924958e-01f;
    p = p * f + 2.000222670e-01f;
    p = p * f - 2.499998662e-01f;
    p = p * f + 3.333331044e-01f;
    Vec y = (p * f - 0.5f) * (f * f) + e * 1.42860682e-6f + f + e * 0.693145752f;
    y = vec_select(x == 0.0f, vec_set(-__builtin_inff()), y);
    y = vec_select(x < 0.0f, vec_set(__builtin_nanf("")), y);
    return vec_select(x < __builtin_inff(), y, x); // Inf and NaN stay
}

// log(1 + x) for x >= 0, accurate near 0: what rounding took from 1 + x is given back.
INLINE Vec vec_log1p(Vec x) {
    Vec u = x + 1.0f, lost = x - (u - 1.0f);
    Vec y = vec_log(u) + lost / u;
    return vec_select(u < __builtin_inff(), y, u);
}

INLINE Vec vec_sigmoid(Vec x) { return 1.0f / (1.0f + vec_exp(-x)); }

// Phi(x) = (1 + erf(x / sqrt 2)) / 2 and phi(x) = exp(-x^2 / 2) / sqrt(2 pi) with one exponential: beside it stands
// exp(t^2) erfc(t), t = |x| / sqrt 2, a polynomial in u = 1 / (1 + 0.4 t). Phi's lower tail keeps its relative
// accuracy.
INLINE Vec vec_normal_distribution(Vec x, Vec *density) {
    Vec e = vec_exp(-0.5f * (x * x));
    Vec u = 1.0f / (1.0f + 0.282842712f * vec_abs(x));
    Vec p = -2.901471928e-02f * u + 1.948669008e-01f;
    p = p * u - 4.914175826e-01f;
    p = p * u + 5.375827943e-01f;
    p = p * u - 2.761802256e-01f;
    p = p * u + 2.676774051e-01f;
    p = p * u + 1.311945203e-01f;
    p = p * u + 2.145950729e-01f;
    p = p * u + 2.249909293e-01f;
    p = p * u + 2.257049132e-01f;
    Vec tail = 0.5f * e * (p * u);
    *density = 0.398942280f * e;
    return vec_select(x > 0.0f, 1.0f - tail, tail);
}

// Sine and cosine of an angle already reduced to |r| <= pi/4, turned by `quarter` quarter turns.
INLINE void vec_sincos_reduced(Vec r, VecI quarter, Vec *sine, Vec *cosine) {
    Vec s = r * r;
    Vec p = 2.718237177e-06f * s - 1.983932712e-04f;
    p = p * s + 8.333329362e-03f;
    p = p * s - 1.666666664e-01f;
    Vec sin_r = (p * s) * r + r;
    Vec q = -2.720954253e-07f * s + 2.479951169e-05f;
    q = q * s - 1.388888372e-03f;
    q = q * s + 4.166666662e-02f;
    Vec cos_r = (q * s - 0.5f) * s + 1.0f;
    VecI swap = (quarter & 1) != 0;
    Vec a = vec_select(swap, cos_r, sin_r), b = vec_select(swap, sin_r, cos_r);
    *sine = (Vec)((VecI)a ^ ((quarter & 2) << 30));
    *cosine = (Vec)((VecI)b ^ (((quarter + 1) & 2) << 30));
}
