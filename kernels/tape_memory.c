/* The memory of tapes: see tape.h. Small blocks (losses, counts, statistics of rows) have chunks of their own: many of
 * them live until their tape is reset, and would keep large ones from becoming one again. */
#include "base/error.h"
#include "kernels/tape_parts.h"
#include <stdlib.h>

enum { FIRST_CHUNK = 4 << 20, FIRST_SMALL_CHUNK = 256 << 10 }; // bytes

struct TapeMemory {
    Backend *backend;
    Pool *large, *small;
    Arena *scratch; // one operator's work space
};

TapeMemory *tape_memory_new(Backend *backend) {
    TapeMemory *m = calloc(1, sizeof *m);
    check(m);
    ArenaSource source = {backend->allocate, backend->release, backend, backend->extend};
    m->backend = backend;
    m->large = pool_new(source, FIRST_CHUNK);
    m->small = pool_new(source, FIRST_SMALL_CHUNK);
    m->scratch = arena_new_from(source, FIRST_CHUNK);
    return m;
}

void tape_memory_free(TapeMemory *m) {
    if (!m) return;
    pool_free(m->large);
    pool_free(m->small);
    arena_free(m->scratch);
    free(m);
}

size_t tape_memory_peak(const TapeMemory *m) {
    return pool_peak(m->large) + pool_peak(m->small) + arena_peak(m->scratch);
}

size_t tape_memory_held(const TapeMemory *m) { return pool_held(m->large) + pool_held(m->small); }

int64_t tape_memory_system_allocations(const TapeMemory *m) {
    return pool_system_allocations(m->large) + pool_system_allocations(m->small) + arena_system_allocations(m->scratch);
}

static Pool *pool_of(const TapeMemory *m, size_t bytes) { return bytes < KEPT_BELOW ? m->small : m->large; }

Backend *tape_memory_backend(const TapeMemory *m) { return m->backend; }
void *tape_memory_take(TapeMemory *m, size_t bytes) { return pool_take(pool_of(m, bytes), bytes); }
void tape_memory_give(TapeMemory *m, void *block, size_t bytes) { pool_give(pool_of(m, bytes), block, bytes); }
void *tape_memory_scratch(TapeMemory *m, size_t bytes) { return arena_allocate(m->scratch, bytes); }
void tape_memory_end_scratch(TapeMemory *m) { arena_reset(m->scratch); }
