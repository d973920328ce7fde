/* The multiply-add probe of peak.h: enough independent sums in registers that nothing but the multiply-add units limits
 * it. */
#include "kernels/cpu/peak.h"

#if defined(__AVX512F__)
enum { LANES = 16, SUMS = 24 };
#elif defined(__AVX2__)
enum { LANES = 8, SUMS = 12 };
#else
enum { LANES = 4, SUMS = 8 };
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));

static inline __attribute__((always_inline)) void multiply_add(vec *sum, vec a, vec b, const bool bf16) {
#if defined(__AVX512BF16__)
    if (bf16) {
        __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
        return;
    }
#endif
    (void)bf16;
#if defined(__AVX2__)
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
#else
    *sum += a * b;
    __asm__ volatile("" : "+x"(*sum));
#endif
}

static inline __attribute__((always_inline)) double run(int64_t loops, const bool bf16) {
    vec sum[SUMS], a = {0}, b = {0};
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; i++) sum[i] = (vec){0};
    for (int64_t n = 0; n < loops; n++) {
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) multiply_add(&sum[i], a, b, bf16);
    }
    return (double)loops * SUMS * LANES * (bf16 ? 4 : 2);
}

double SIMD_NAME(peak_fma)(int64_t loops, bool bf16) {
#if defined(__AVX512BF16__)
    if (bf16) return run(loops, true);
#endif
    return bf16 ? 0 : run(loops, false);
}
