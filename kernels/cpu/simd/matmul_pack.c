/* See matmul_pack.h. Where lines are contiguous in k, AVX-512 transposes blocks of 16 x 16 units in registers; where k
 * is strided, rows are copied, or two rows of bf16 are interleaved to pairs. */
#include "kernels/cpu/simd/matmul_pack.h"
#include "kernels/cpu/simd/vec.h"

enum { BLOCK = 16 }; // lines and units of a transposed block

// Lines side by side, k strided; every unit is an f32.
INLINE void pack_rows(float *out, int width, const Lines *x, const Dtype type) {
    for (int64_t k = 0; k < x->k; k++, out += width) {
        const void *row = row_of(x->data, k, x->step, type);
        for (int64_t i = 0; i < width; i += LANES) {
            Vec v = {0};
            if (i < x->count) v = vec_load_within(row, i, x->count, type);
            vec_store(out, i, v, F32);
        }
    }
}

#if defined(__AVX512F__)
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

// Up to 16 units of a line that has `left` elements left; zeros beyond.
INLINE __m512 load_units(const void *line, int64_t left, const Dtype type, const MatmulUnit unit) {
    if (type == BF16 && unit == UNIT_F32) return (__m512)vec_load_within(line, 0, least(left, BLOCK), BF16);
    if (type == F32) return (__m512)vec_load_within(line, 0, least(left, BLOCK), F32);
    __mmask32 valid = left >= 2 * BLOCK ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(valid, line));
}

// Lines contiguous in k, at most 16 of them.
INLINE void pack_transposed(float *out, int width, const Lines *x, const Dtype type, const MatmulUnit unit) {
    int64_t size = (int64_t)dtype_size(type), step = unit == UNIT_PAIR ? 2 * BLOCK : BLOCK; // elements of 16 units
    const char *from = x->data;
    for (int64_t left = x->k; left > 0; left -= step, from += step * size, out += BLOCK * width) {
        __m512 r[BLOCK];
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) {
            const char *line = from + least(i, x->count - 1) * x->line * size;
            r[i] = i < x->count ? load_units(line, left, type, unit) : _mm512_setzero_ps();
            _mm_prefetch(line + 1024, _MM_HINT_T1); // not to L1: the lines may share a set of it
        }
        transpose(r);
        int64_t units = least(unit == UNIT_PAIR ? (left + 1) / 2 : left, BLOCK);
        if (units == BLOCK) {
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK; i++) _mm512_store_ps(out + i * width, r[i]);
        } else {
            for (int i = 0; i < units; i++) _mm512_store_ps(out + i * width, r[i]);
        }
    }
}

// Lines side by side, at most 16 of them, of bf16: k and k + 1 become pairs.
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

// Whatever is not rows of f32 units: 16 lines at a time.
static void pack_blocks(float *out, int width, const Lines *x, MatmulUnit unit) {
    for (int64_t first = 0; first < width; first += BLOCK) {
        Lines part = *x;
        part.data = (const char *)x->data + first * x->line * (int64_t)dtype_size(x->type);
        part.count = least(BLOCK, x->count - first);
        if (part.count <= 0) {
            int64_t units = unit == UNIT_PAIR ? (x->k + 1) / 2 : x->k;
            for (int64_t u = 0; u < units; u++) _mm512_store_ps(out + first + u * width, _mm512_setzero_ps());
        } else if (x->step != 1) {
            pack_row_pairs(out + first, width, &part);
        } else if (x->type == F32) {
            pack_transposed(out + first, width, &part, F32, UNIT_F32);
        } else if (unit == UNIT_F32) {
            pack_transposed(out + first, width, &part, BF16, UNIT_F32);
        } else {
            pack_transposed(out + first, width, &part, BF16, UNIT_PAIR);
        }
    }
}

#else
// Lines contiguous in k, some units of each in turn so that what is written stays in the cache.
static void pack_blocks(float *out, int width, const Lines *x, MatmulUnit unit) {
    (void)unit;
    for (int64_t k0 = 0; k0 < x->k; k0 += BLOCK, out += BLOCK * width) {
        int64_t units = least(x->k - k0, BLOCK);
        for (int64_t i = 0; i < width; i++) {
            const void *line = row_of(x->data, i, x->line, x->type);
            for (int64_t u = 0; u < units; u++)
                out[u * width + i] = i < x->count ? element_load(line, k0 + u, x->type) : 0;
        }
    }
}
#endif

void SIMD_NAME(matmul_pack)(float *out, int width, const Lines *x, MatmulUnit unit) {
    if (x->step == 1 || unit == UNIT_PAIR)
        pack_blocks(out, width, x, unit);
    else if (x->type == F32)
        pack_rows(out, width, x, F32);
    else
        pack_rows(out, width, x, BF16);
}
