/* See matmul_pack.h. With AVX-512, where lines are contiguous in k, blocks of 16 x 16 units are transposed in
 * registers; where k is strided, rows are copied (f32) or two rows interleaved (pairs of bf16). */
#include "kernels/cpu/simd/matmul_pack.h"
#include <string.h>

static float element(const Lines *x, int64_t i, int64_t k) {
    int64_t at = i * x->line + k * x->step;
    return x->type == F32 ? ((const float *)x->data)[at] : bf16_to_f32(((const uint16_t *)x->data)[at]);
}

// Any machine, any order; also converts.
static void pack_f32(float *out, int width, const Lines *x) {
    for (int64_t u = 0; u < x->k; u++, out += width) {
        if (x->line == 1 && x->type == F32) {
            memcpy(out, (const float *)x->data + u * x->step, (size_t)x->count * sizeof *out);
        } else if (x->line == 1) {
            const uint16_t *row = (const uint16_t *)x->data + u * x->step;
            for (int64_t i = 0; i < x->count; i++) out[i] = bf16_to_f32(row[i]);
        } else {
            for (int64_t i = 0; i < x->count; i++) out[i] = element(x, i, u);
        }
        for (int64_t i = x->count; i < width; i++) out[i] = 0;
    }
}

#if defined(__AVX512F__)
#include <immintrin.h>

enum { BLOCK = 16 }; // lines and units of a transposed block

// rows[i][j] becomes rows[j][i].
static inline __attribute__((always_inline)) void transpose(__m512 r[BLOCK]) {
    __m512 t[BLOCK];
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i += 4) {
        __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { // quarters of 4 x 4 are in place within themselves; now among the rows
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Lines contiguous in k, at most 16 of them; pairs are 32 bits like f32, and only the last one may be half.
static void pack_transposed(float *out, int width, const Lines *x) {
    int size = (int)dtype_size(x->type), halves = size / 2; // of 16 bits
    const char *from = x->data;
    int64_t line = x->line * size, left = x->k * halves; // bytes; halves
    for (; left > 0; left -= 2 * BLOCK, from += 4 * BLOCK, out += BLOCK * width) {
        __mmask32 valid = left >= 2 * BLOCK ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
        __m512 r[BLOCK];
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) {
            const char *row = from + least(i, x->count - 1) * line;
            __m512i v = _mm512_maskz_loadu_epi16(i < x->count ? valid : 0, row);
            _mm_prefetch(row + 1024, _MM_HINT_T1);
            r[i] = _mm512_castsi512_ps(v);
        }
        transpose(r);
        int64_t units = least((left + 1) / 2, BLOCK);
        if (units == BLOCK) {
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK; i++) _mm512_store_ps(out + i * width, r[i]);
        } else {
            for (int i = 0; i < units; i++) _mm512_store_ps(out + i * width, r[i]);
        }
    }
}

// Lines side by side, at most 16 of them, k strided; f32.
static void pack_rows(float *out, int width, const Lines *x) {
    __mmask16 valid = (__mmask16)((1u << x->count) - 1);
    const float *from = x->data;
    for (int64_t k = 0; k < x->k; k++, from += x->step, out += width)
        _mm512_store_ps(out, _mm512_maskz_loadu_ps(valid, from));
}

// The same for bf16: k and k + 1 become pairs.
static void pack_row_pairs(float *out, int width, const Lines *x) {
    __mmask16 valid = (__mmask16)((1u << x->count) - 1);
    const uint16_t *from = x->data;
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    for (int64_t k = 0; k < x->k; k += 2, from += 2 * x->step, out += width) {
        __m256i a = _mm256_maskz_loadu_epi16(valid, from);
        __m256i b = k + 1 < x->k ? _mm256_maskz_loadu_epi16(valid, from + x->step) : _mm256_setzero_si256();
        _mm512_store_si512(out, _mm512_permutex2var_epi16(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b)));
    }
}

// 16 lines at a time.
static void pack_vectors(float *out, int width, const Lines *x) {
    int64_t size = (int64_t)dtype_size(x->type), units = (x->k * size + 3) / 4;
    for (int64_t first = 0; first < width; first += BLOCK) {
        Lines part = *x;
        part.data = (const char *)x->data + first * x->line * size;
        part.count = least(BLOCK, x->count - first);
        if (part.count <= 0) {
            for (int64_t u = 0; u < units; u++) _mm512_store_ps(out + first + u * width, _mm512_setzero_ps());
        } else if (x->step == 1)
            pack_transposed(out + first, width, &part);
        else if (x->type == F32)
            pack_rows(out + first, width, &part);
        else
            pack_row_pairs(out + first, width, &part);
    }
}
#endif

void SIMD_NAME(matmul_pack)(float *out, int width, const Lines *x, MatmulUnit unit) {
#if defined(__AVX512F__)
    if (x->type == F32 || unit == UNIT_PAIR) {
        pack_vectors(out, width, x);
        return;
    }
#endif
    (void)unit;
    pack_f32(out, width, x);
}
