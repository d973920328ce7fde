/* See pool.h. A sorted array by (size, address) is enough: a step has some hundreds of blocks. */
#include "kernels/pool.h"
#include "base/error.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { GRAIN = 256 }; // bytes

typedef struct Block {
    size_t bytes;
    char *memory;
} Block;
struct Pool {
    Block *blocks;
    size_t count, capacity;
};

Pool *pool_new(void) {
    Pool *p = calloc(1, sizeof *p);
    check(p);
    return p;
}

void pool_free(Pool *p) {
    if (!p) return;
    free(p->blocks);
    free(p);
}

void pool_clear(Pool *p) { p->count = 0; }
size_t pool_round(size_t bytes) { return (bytes + GRAIN - 1) / GRAIN * GRAIN; }

// The first block that is not smaller than `bytes`.
static size_t first_fit(const Pool *p, size_t bytes) {
    size_t low = 0, high = p->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (p->blocks[middle].bytes < bytes)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void insert(Pool *p, char *memory, size_t bytes) {
    if (!bytes) return;
    if (p->count == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 256;
        p->blocks = realloc(p->blocks, p->capacity * sizeof *p->blocks);
        check(p->blocks);
    }
    size_t at = first_fit(p, bytes);
    memmove(p->blocks + at + 1, p->blocks + at, (p->count - at) * sizeof *p->blocks);
    p->blocks[at] = (Block){bytes, memory};
    p->count++;
}

void *pool_take(Pool *p, size_t bytes) {
    bytes = pool_round(bytes);
    size_t at = first_fit(p, bytes);
    if (at == p->count) return NULL;
    Block found = p->blocks[at];
    memmove(p->blocks + at, p->blocks + at + 1, (p->count - at - 1) * sizeof *p->blocks);
    p->count--;
    insert(p, found.memory + bytes, found.bytes - bytes);
    return found.memory;
}

void pool_give(Pool *p, void *block, size_t bytes) { insert(p, block, pool_round(bytes)); }
