/* Numbers of eight bits (Micikevicius et al. 2022; OCP 8-bit floating point, 2023): e4m3 for activations and weights,
 * up to 448, no infinity; e5m2 for gradients, up to 57,344. Rounded to nearest even; what is too large becomes the
 * largest. A tensor is multiplied by a power of two before it is rounded, by how large its numbers were in the steps
 * before. */
#pragma once
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define FP8_INLINE static __host__ __device__ inline
#else
#define FP8_INLINE static inline
#endif

typedef enum Fp8Kind { FP8_E4M3, FP8_E5M2 } Fp8Kind;

enum { FP8_HISTORY = 16, FP8_SIDES = 3 }; // steps; of a linear map: its input, its weight, its output's gradient

typedef struct Fp8Scaling {     // of one tensor, in device memory
    float scale, inverse;       // powers of two
    float history[FP8_HISTORY]; // largest |x| of earlier steps, the last one first; 0: none
} Fp8Scaling;

typedef struct Fp8Side { // how a matrix is brought to fp8
    const Fp8Scaling *scaling;
    float *most; // the largest |x| of this step, taken into account; NULL: it is not
    Fp8Kind kind;
} Fp8Side;

FP8_INLINE int fp8_mantissa(Fp8Kind kind) { return kind == FP8_E4M3 ? 3 : 2; } // bits
FP8_INLINE int fp8_bias(Fp8Kind kind) { return kind == FP8_E4M3 ? 7 : 15; }
FP8_INLINE int fp8_largest(Fp8Kind kind) { return kind == FP8_E4M3 ? 0x7e : 0x7b; } // its code

FP8_INLINE uint8_t fp8_encode(float x, Fp8Kind kind) { // NaN stays NaN
    union {
        float f;
        uint32_t u;
    } number = {x}, unit;
    uint32_t size = number.u & 0x7fffffffu, largest = (uint32_t)fp8_largest(kind);
    uint8_t sign = (uint8_t)(number.u >> 24 & 0x80);
    int mantissa = fp8_mantissa(kind), least = 1 - fp8_bias(kind), exponent = (int)(size >> 23) - 127;
    if (size > 0x7f800000u) return (uint8_t)(sign | 0x7f);
    if (exponent > 100) return (uint8_t)(sign | largest);
    if (exponent < least) exponent = least; // the grid is even below
    unit.u = (uint32_t)(127 + mantissa - exponent) << 23;
    number.u = size;
    uint32_t code = (uint32_t)rintf(number.f * unit.f) + ((uint32_t)(exponent - least) << mantissa);
    return (uint8_t)(sign | (code > largest ? largest : code));
}

FP8_INLINE float fp8_decode(uint8_t code, Fp8Kind kind) {
    int mantissa = fp8_mantissa(kind), size = code & 0x7f, exponent = size >> mantissa;
    int rest = size - (exponent << mantissa) + (exponent ? 1 << mantissa : 0);
    float value = ldexpf((float)rest, (exponent ? exponent : 1) - fp8_bias(kind) - mantissa);
    if (size > fp8_largest(kind)) value = kind == FP8_E5M2 && size == 0x7c ? INFINITY : NAN;
    return code & 0x80 ? -value : value;
}

// The largest power of two that keeps numbers up to `most` in range, 2^margin below; `before` where there is nothing to
// go by.
FP8_INLINE float fp8_scale(float most, Fp8Kind kind, int margin, float before) {
    enum { LARGEST_EXPONENT = 60 };
    int exponent = LARGEST_EXPONENT;
    if (!(most > 0) || !(most < INFINITY)) return before;
    float room = fp8_decode((uint8_t)fp8_largest(kind), kind) / most; // in [0.5, 1) 2^exponent
    if (room < ldexpf(1, LARGEST_EXPONENT - 1)) (void)frexpf(room, &exponent);
    return ldexpf(1, (exponent < -LARGEST_EXPONENT ? -LARGEST_EXPONENT : exponent) - 1 - margin);
}

// What becomes of a scaling behind a step in which `most` was the largest number.
FP8_INLINE void fp8_advance(Fp8Scaling *s, float most, Fp8Kind kind, int margin) {
    float largest = most;
    for (int i = FP8_HISTORY - 1; i > 0; i--) {
        s->history[i] = s->history[i - 1];
        largest = s->history[i] > largest ? s->history[i] : largest;
    }
    s->history[0] = most;
    s->scale = fp8_scale(largest, kind, margin, s->scale);
    s->inverse = 1 / s->scale;
}
