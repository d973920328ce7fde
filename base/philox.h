/* Random numbers by counting (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
 *
 * A draw is a pure function of (seed, purpose, element, index): the same on every thread, rank and machine, whatever
 * was drawn before. `element` is the global number of the thing the draw is for (a sample, a parameter's element, an
 * activation's element), never a thread or rank. */
#pragma once
#include <stdint.h>

typedef enum Purpose { // what a draw is for; numbers are part of the format of runs: append only
    PURPOSE_INIT = 1,
    PURPOSE_DROPOUT,
    PURPOSE_MAE_MASK,
    PURPOSE_AUGMENT,
    PURPOSE_ORDER,
    PURPOSE_CAPTION_CHOICE,
    PURPOSE_SAMPLING,
    PURPOSE_SYNTH,
    PURPOSE_PACKING,
    PURPOSE_TEST,
    PURPOSE_SPLIT,
} Purpose;

typedef struct PhiloxBlock { uint32_t word[4]; } PhiloxBlock;

// The raw block function: 128-bit counter, 64-bit key.
PhiloxBlock philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high);

// A stream of draws for one element. `index` counts words; copying the struct forks the stream.
typedef struct Rng {
    uint64_t seed, element;
    uint32_t purpose, index;
} Rng;

Rng      rng_for(uint64_t seed, Purpose, uint64_t element);
uint32_t rng_u32(Rng *);
uint64_t rng_u64(Rng *);
uint64_t rng_below(Rng *, uint64_t bound); // uniform in [0, bound), unbiased; bound > 0
double   rng_uniform(Rng *);               // uniform in [0, 1), 53 bits
double   rng_normal(Rng *);                // standard normal, Box-Muller

uint64_t hash_u64(const void *bytes, uint64_t count); // XXH3-64: to key a stream by a name

// The keyed permutation of [0, count) that `seed`, `purpose` and `element` name: where `index` goes. No memory.
uint64_t permute_index(uint64_t index, uint64_t count, uint64_t seed, Purpose, uint64_t element);
