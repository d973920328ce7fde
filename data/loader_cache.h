/* What workers keep of samples from epoch to epoch: decoded pictures, each once however many samples show it, and
 * texts. Filled until its bytes are spent; nothing is thrown out (every sample comes once an epoch, so no other choice
 * is better). Thread-safe. What is kept stays until the cache is freed. */
#pragma once
#include "data/dataset.h"

typedef struct Picture {
    int width, height;           // of the pixels
    int full_width, full_height; // of the picture they were made from, upright
    uint8_t pixels[];            // (height, width, 3)
} Picture;

typedef struct Text { // followed by a zero
    const char *text;
    size_t size; // bytes
} Text;

typedef struct Prepared { // a sample, decoded
    int images, texts;
    const Picture *pictures[SAMPLE_MEMBERS];
    Text text[SAMPLE_MEMBERS]; // its .txt members
    Text json;                 // its .json, or NULL
    Text key;                  // of the sample in its shard
} Prepared;

typedef struct Cache Cache;
Cache *cache_new(int64_t samples, int64_t most_bytes);
void cache_free(Cache *);                                    // NULL is allowed
const Prepared *cache_find(Cache *, uint64_t sample);        // or NULL
bool cache_keep(Cache *, uint64_t sample, const Prepared *); // copies the texts; all pictures must be kept ones
const Picture *cache_find_picture(Cache *, uint64_t key);    // key: a hash of the bytes it was decoded from; or NULL
// Takes the malloced picture over and returns what now stands for the key; NULL: no room, it stays the caller's.
const Picture *cache_keep_picture(Cache *, uint64_t key, Picture *);
