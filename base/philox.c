/* See philox.h. One block of the generator is four words; a stream's word `i` is word i % 4 of block i / 4, whose
 * counter is (i / 4, purpose, element) under the key `seed`. */
#include "base/philox.h"
#include "base/error.h"
#include <math.h>

enum { ROUNDS = 10, FEISTEL_ROUNDS = 6 };

PhiloxBlock philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u; // the golden ratio
        k1 += 0xBB67AE85u; // sqrt(3) - 1
    }
    return (PhiloxBlock){{c0, c1, c2, c3}};
}

static PhiloxBlock stream_block(uint64_t seed, uint32_t purpose, uint64_t element, uint32_t block) {
    return philox_block(seed, (uint64_t)purpose << 32 | block, element);
}

Rng rng_for(uint64_t seed, Purpose purpose, uint64_t element) {
    return (Rng){.seed = seed, .element = element, .purpose = (uint32_t)purpose, .index = 0};
}

uint32_t rng_u32(Rng *rng) {
    PhiloxBlock block = stream_block(rng->seed, rng->purpose, rng->element, rng->index / 4);
    return block.word[rng->index++ % 4];
}

uint64_t rng_u64(Rng *rng) {
    uint64_t low = rng_u32(rng);
    return low | (uint64_t)rng_u32(rng) << 32;
}

// The high half of a 128-bit product is uniform once the few low halves that would favour some values are drawn again
// (Lemire, "Fast random integer generation in an interval", 2019).
uint64_t rng_below(Rng *rng, uint64_t bound) {
    check(bound > 0);
    uint64_t reject = -bound % bound;
    unsigned __int128 product;
    do product = (unsigned __int128)rng_u64(rng) * bound;
    while ((uint64_t)product < reject);
    return (uint64_t)(product >> 64);
}

double rng_uniform(Rng *rng) { return (double)(rng_u64(rng) >> 11) * 0x1p-53; }

double rng_normal(Rng *rng) {
    double radius = sqrt(-2.0 * log(1.0 - rng_uniform(rng))); // 1 - u is in (0, 1]: the logarithm is finite
    return radius * cos(6.283185307179586476925 * rng_uniform(rng));
}

// A Feistel network over 2 * `half` bits: a permutation of [0, 4^half) whatever the round function.
static uint64_t feistel(uint64_t value, int half, uint64_t key, uint64_t element) {
    uint64_t mask = ((uint64_t)1 << half) - 1, left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < FEISTEL_ROUNDS; round++) {
        PhiloxBlock mix = philox_block(key, round << 32 | right, element);
        uint64_t next = left ^ (mix.word[0] & mask);
        left = right;
        right = next;
    }
    return left << half | right;
}

// The network permutes the next power of four; values beyond `count` are sent through again until they fall inside
// (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): fewer than four passes on average.
uint64_t permute_index(uint64_t index, uint64_t count, uint64_t seed, Purpose purpose, uint64_t element) {
    check(index < count);
    int half = 1;
    while (half < 32 && count > (uint64_t)1 << 2 * half) half++;
    PhiloxBlock key = stream_block(seed, (uint32_t)purpose, element, UINT32_MAX); // a block no stream's start uses
    uint64_t keys = key.word[0] | (uint64_t)key.word[1] << 32, tweak = key.word[2] | (uint64_t)key.word[3] << 32;
    do index = feistel(index, half, keys, tweak);
    while (index >= count);
    return index;
}
