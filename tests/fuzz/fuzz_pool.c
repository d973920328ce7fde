/* Fuzzes the pool: whatever is taken and given back in whatever order, no two blocks share a byte, what is held is what
 * was taken, and once all is back the pool is as it was: the same calls get the same places and no further chunk. */
#include "kernels/pool.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST = 200, GRAIN = 256 }; // blocks at once; bytes

typedef struct Block {
    unsigned char *at;
    size_t bytes;
    unsigned char mark; // what every byte of it holds
} Block;

typedef struct Held {
    Block block[MOST];
    int count;
    size_t bytes;
} Held;

static void *allocate(void *context, size_t bytes) {
    ++*(int64_t *)context;
    return aligned_alloc(GRAIN, (bytes + GRAIN - 1) / GRAIN * GRAIN);
}

static void release(void *context, void *memory, size_t bytes) {
    *(int64_t *)context -= bytes > 0;
    free(memory);
}

static size_t rounded(size_t bytes) { return (bytes + (bytes == 0) + GRAIN - 1) / GRAIN * GRAIN; }

static void take(Pool *pool, Held *h, uint8_t code, uint64_t *places) {
    size_t bytes = (size_t)(code & 31) << (code >> 5); // 0 .. 3968
    Block b = {pool_take(pool, bytes), bytes, (unsigned char)(h->count + 1)};
    memset(b.at, b.mark, bytes);
    *places = *places * 31 + (uintptr_t)b.at;
    h->block[h->count++] = b;
    h->bytes += rounded(bytes);
}

static void give(Pool *pool, Held *h, int number) {
    Block b = h->block[number];
    for (size_t i = 0; i < b.bytes; i++) check(b.at[i] == b.mark);
    pool_give(pool, b.at, b.bytes);
    h->bytes -= rounded(b.bytes);
    h->block[number] = h->block[--h->count];
}

// A pair of bytes is a call. Returns a number that all places make up.
static uint64_t run(Pool *pool, const uint8_t *data, size_t size) {
    Held held = {.count = 0};
    uint64_t places = 0;
    for (size_t i = 0; i + 1 < size; i += 2) {
        if (data[i] & 1 && held.count < MOST)
            take(pool, &held, data[i + 1], &places);
        else if (held.count)
            give(pool, &held, (data[i] / 2 + 128 * (data[i + 1] & 1)) % held.count);
        check(pool_held(pool) == held.bytes && pool_peak(pool) >= held.bytes);
    }
    while (held.count) give(pool, &held, held.count / 2);
    return places;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int64_t chunks = 0;
    Pool *pool = pool_new((ArenaSource){.allocate = allocate, .release = release, .context = &chunks}, 1 << 14);
    uint64_t places = run(pool, data, size);
    int64_t before = chunks;
    size_t peak = pool_peak(pool);
    check(run(pool, data, size) == places && chunks == before && pool_peak(pool) == peak);
    check(pool_system_allocations(pool) == chunks);
    pool_free(pool);
    check(chunks == 0);
    return 0;
}
