/* Dropout whose mask is counted, not stored: element e = first + i of a site is kept where
 *     word e % 4 of philox_block(seed, (PURPOSE_DROPOUT << 32) | (e / 4 mod 2^32), site ^ (e / 2^34 << 32))
 * is at least floor(2^32 p). Below 2^34 elements this is draw number e of rng_for(seed, PURPOSE_DROPOUT, site); any
 * backend that counts so gets the same mask bit for bit. Kept elements are multiplied by 1 / (1 - p) in f32. Where rows
 * have numbers, row r of x is row numbers[r] of the site. */
#pragma once
#include "base/philox.h"
#include "kernels/backend.h"
#include "kernels/cpu/simd/vec.h"

enum { GROUP = 64, ROUNDS = 10 }; // counter blocks drawn at once: 256 elements

typedef struct Drop {
    DropoutDraws at;
    uint32_t threshold;
    float keep_scale; // 1 / (1 - p)
} Drop;

static inline Drop drop_by(const DropoutDraws *d) {
    return (Drop){*d, (uint32_t)(d->p * 4294967296.0), (float)(1 / (1 - d->p))};
}

// Words of the GROUP counter blocks from `block` on; those of one block lie side by side. Philox4x32-10 in loops over
// blocks, which the compiler turns into vectors.
static void draw_group(uint32_t out[4 * GROUP], uint64_t seed, uint64_t site, uint64_t block) {
    uint32_t c[4][GROUP], k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (uint32_t i = 0; i < GROUP; i++) {
        c[0][i] = (uint32_t)(block + i);
        c[1][i] = PURPOSE_DROPOUT;
        c[2][i] = (uint32_t)site;
        c[3][i] = (uint32_t)(site >> 32) ^ (uint32_t)((block + i) >> 32);
    }
    for (int round = 0; round < ROUNDS; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        for (int i = 0; i < GROUP; i++) {
            uint64_t a = (uint64_t)0xD2511F53u * c[0][i], b = (uint64_t)0xCD9E8D57u * c[2][i];
            c[0][i] = (uint32_t)(b >> 32) ^ c[1][i] ^ k0;
            c[1][i] = (uint32_t)b;
            c[2][i] = (uint32_t)(a >> 32) ^ c[3][i] ^ k1;
            c[3][i] = (uint32_t)a;
        }
    }
    for (int i = 0; i < GROUP; i++)
        for (int word = 0; word < 4; word++) out[4 * i + word] = c[word][i];
}

// `count` elements of which the first is y[i] and has word[0]. Multiplying, rather than writing zero, lets NaN and Inf
// of dropped elements through.
INLINE void drop_words(const Drop *j, void *to, const void *x, int64_t i, const uint32_t *word, int64_t count, Dtype t,
                       bool add) {
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) {
        VecU bits;
        memcpy(&bits, word + k, sizeof bits);
        Vec y = vec_load(x, i + k, t) * (Vec)((VecI)(bits >= j->threshold) & (VecI)vec_set(j->keep_scale));
        vec_store(to, i + k, add ? vec_load(to, i + k, t) + y : y, t);
    }
    for (; k < count; k++) {
        float y = element_load(x, i + k, t) * (word[k] >= j->threshold ? j->keep_scale : 0.0f);
        element_store(to, i + k, add ? element_load(to, i + k, t) + y : y, t);
    }
}

// Elements [first, end) of y (+)= dropout(x).
static void drop_span(const Drop *j, void *y, const void *x, int64_t first, int64_t end, Dtype t, bool add) {
    uint32_t word[4 * GROUP];
    for (int64_t i = first; i < end;) {
        uint64_t element = j->at.first + (uint64_t)i, row = (uint64_t)j->at.row;
        int64_t left = end - i;
        if (j->at.numbers) {
            uint64_t inside = element % row;
            element = (uint64_t)j->at.numbers[element / row] * row + inside;
            left = (int64_t)(row - inside) < left ? (int64_t)(row - inside) : left;
        }
        int64_t skip = (int64_t)(element % 4), count = 4 * GROUP - skip < left ? 4 * GROUP - skip : left;
        draw_group(word, j->at.seed, j->at.site, element / 4);
        if (t == F32)
            drop_words(j, y, x, i, word + skip, count, F32, add);
        else
            drop_words(j, y, x, i, word + skip, count, BF16, add);
        i += count;
    }
}
