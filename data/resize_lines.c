/* See resize_lines.h. Sums start at one half, so that cutting the fixed-point bits off rounds. Integer sums do not
 * depend on their order, so the two versions agree to the bit. */
#include "data/resize_lines.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { HALF = 1 << (WEIGHT_BITS - 1) };

static void over_x_plain(const uint8_t *line, const Taps *taps, int count, uint8_t *out) {
    for (int i = 0; i < count; i++, out += 3) {
        const int32_t *weight = taps->weight + (size_t)i * (size_t)taps->most;
        const uint8_t *from = line + (size_t)taps->first[i] * 3;
        int32_t sum[3] = {HALF, HALF, HALF};
        for (int t = 0; t < taps->number[i]; t++, from += 3)
            for (int c = 0; c < 3; c++) sum[c] += from[c] * weight[t];
        for (int c = 0; c < 3; c++) out[c] = resize_to_byte(sum[c]);
    }
}

static void over_y_plain(const uint8_t *lines, size_t stride, const int32_t *weight, int number, size_t bytes,
                         uint8_t *out) {
    for (size_t b = 0; b < bytes; b++) {
        int32_t sum = HALF;
        for (int t = 0; t < number; t++) sum += lines[(size_t)t * stride + b] * weight[t];
        out[b] = resize_to_byte(sum);
    }
}

const ResizeLines resize_lines_plain = {over_x_plain, over_y_plain};

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

// Two taps at a time: red, green, blue of one pixel in the low half of a vector, of the next in the high half.
AVX2 static void over_x_avx2(const uint8_t *line, const Taps *taps, int count, uint8_t *out) {
    const __m128i apart = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (int i = 0; i < count; i++, out += 3) {
        const int32_t *weight = taps->weight + (size_t)i * (size_t)taps->most;
        const uint8_t *from = line + (size_t)taps->first[i] * 3;
        __m256i sums = _mm256_setzero_si256();
        int t = 0, number = taps->number[i];
        for (; t + 2 <= number; t += 2, from += 6) {
            __m256i pixels = _mm256_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)from), apart));
            __m256i weights = _mm256_set_m128i(_mm_set1_epi32(weight[t + 1]), _mm_set1_epi32(weight[t]));
            sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(pixels, weights));
        }
        int32_t sum[4];
        _mm_storeu_si128((__m128i *)sum,
                         _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
        for (int c = 0; c < 3; c++) {
            int32_t last = t < number ? from[c] * weight[t] : 0;
            out[c] = resize_to_byte(sum[c] + last + HALF);
        }
    }
}

AVX2 static __m256i next_eight(const uint8_t *bytes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

// 16 bytes of a line at a time; packing with saturation clamps to 0..255.
AVX2 static void over_y_avx2(const uint8_t *lines, size_t stride, const int32_t *weight, int number, size_t bytes,
                             uint8_t *out) {
    size_t b = 0;
    for (; b + 16 <= bytes; b += 16) {
        __m256i low = _mm256_set1_epi32(HALF), high = low;
        for (int t = 0; t < number; t++) {
            const uint8_t *at = lines + (size_t)t * stride + b;
            __m256i w = _mm256_set1_epi32(weight[t]);
            low = _mm256_add_epi32(low, _mm256_mullo_epi32(next_eight(at), w));
            high = _mm256_add_epi32(high, _mm256_mullo_epi32(next_eight(at + 8), w));
        }
        __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(low, WEIGHT_BITS), _mm256_srai_epi32(high, WEIGHT_BITS));
        words = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)); // packing went by halves
        __m128i done = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i *)(out + b), done);
    }
    over_y_plain(lines + b, stride, weight, number, bytes - b, out + b);
}

static const ResizeLines resize_lines_avx2 = {over_x_avx2, over_y_avx2};
#endif

const ResizeLines *resize_lines_best(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return &resize_lines_avx2;
#endif
    return &resize_lines_plain;
}
