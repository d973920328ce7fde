/* Dropout by counting: element e of a site has word e % 4 of block e / 4 of its Philox4x32-10 stream, exactly as
 * kernels/cpu/simd/draws.h says. */
#pragma once
#include "base/philox.h"
#include "kernels/cuda/language.h"

struct Words {
    uint32_t at[4];
};

struct DrawStep { // what differs from step to step: comes as a message
    uint64_t seed;
    uint64_t first; // element of the site that stands first
};
struct Draw {
    const DrawStep *step;
    uint64_t site, threshold; // a word below it drops its element
    const int32_t *numbers;   // of rows of `row` elements; NULL: they stand in order
    uint64_t row;
    double keep_scale;
};
static inline Draw draw_by(const CudaQueue *q, const DropoutDraws &d) {
    const DrawStep step = {d.seed, d.first};
    const void *message = d.p > 0 ? q->message(q->owner, &step, sizeof step) : nullptr;
    return Draw{static_cast<const DrawStep *>(message),
                d.site,
                static_cast<uint32_t>(d.p * 4294967296.0),
                d.numbers,
                static_cast<uint64_t>(d.row),
                static_cast<float>(1 / (1 - d.p))};
}

static __device__ __forceinline__ Words philox_words(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t high_a = __umulhi(0xD2511F53u, c0), low_a = 0xD2511F53u * c0;
        uint32_t high_b = __umulhi(0xCD9E8D57u, c2), low_b = 0xCD9E8D57u * c2;
        c0 = high_b ^ c1 ^ k0;
        c1 = low_b;
        c2 = high_a ^ c3 ^ k1;
        c3 = low_a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

static __device__ __forceinline__ Words draw_block(const Draw &s, uint64_t block) {
    return philox_words(s.step->seed, static_cast<uint32_t>(block), PURPOSE_DROPOUT, static_cast<uint32_t>(s.site),
                        static_cast<uint32_t>(s.site >> 32) ^ static_cast<uint32_t>(block >> 32));
}

// Multiplying, rather than writing zero, lets NaN and Inf of dropped elements through.
static __device__ __forceinline__ float kept(float x, uint32_t word, const Draw &s) {
    return x * (word >= s.threshold ? static_cast<float>(s.keep_scale) : 0.0f);
}

// The element of the site that stands at `e` of its rows.
static __device__ __forceinline__ uint64_t element_of(const Draw &s, uint64_t e) {
    if (!s.numbers) return e;
    uint64_t row = e / s.row;
    return static_cast<uint64_t>(s.numbers[row]) * s.row + (e - row * s.row);
}

static __device__ __forceinline__ uint32_t word_of(const Words &w, uint64_t e) {
    return e & 2 ? (e & 1 ? w.at[3] : w.at[2]) : (e & 1 ? w.at[1] : w.at[0]);
}

// Whether N elements side by side always have the words of whole blocks where the first of them is a multiple of N.
static inline bool draws_whole_blocks(const DropoutDraws &d, int n) { return !d.numbers || d.row % n == 0; }

// x[0 .. N - 1], elements e, e + 1, .. of these rows, each rounded to T. N is 1, or a multiple of 4 of which each has
// the words of whole blocks.
template <class T, int N> static __device__ __forceinline__ Floats<N> dropped(Floats<N> x, const Draw &s, uint64_t e) {
    T rounded;
    uint64_t element = element_of(s, e);
    if constexpr (N == 1) {
        from_float(&rounded, kept(x.at[0], word_of(draw_block(s, element / 4), element), s));
        x.at[0] = to_float(rounded);
    } else {
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            Words w = draw_block(s, element / 4 + static_cast<uint64_t>(k / 4));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                from_float(&rounded, kept(x.at[k + i], w.at[i], s));
                x.at[k + i] = to_float(rounded);
            }
        }
    }
    return x;
}

// Beside rows of a matrix, whose first element has number step->first of the site: that at `at`. In packs where whole
// rows are and the packs of a row have whole blocks of draws, wherever the row stands; else one by one.
static __device__ __forceinline__ uint64_t drawn_at(const Draw &s, int64_t at) {
    return s.step->first + static_cast<uint64_t>(at);
}
template <class T> static bool draws_packs(const DropoutDraws &d, int64_t width) {
    return d.first % PACK<T> == 0 && width % PACK<T> == 0 && draws_whole_blocks(d, PACK<T>);
}
