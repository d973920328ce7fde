/* The memory of tapes: see tape.h. Small blocks (losses, counts, statistics of rows) have chunks of their own: many of
 * them live until their tape is reset, and would keep large ones from becoming one again. */
#include "base/error.h"
#include "kernels/tape_parts.h"
#include <stdlib.h>

enum { FIRST_CHUNK = 4 << 20, FIRST_SMALL_CHUNK = 256 << 10 }; // bytes

typedef struct LaneMemory {
    Pool *large, *small;
    Arena *scratch; // one operator's work space
} LaneMemory;

struct TapeMemory {
    Backend *backend;
    LaneMemory lanes[BACKEND_LANES];
    int count; // of lanes that have some
};

static void open_lane(TapeMemory *m) {
    Backend *b = m->backend;
    ArenaSource source = {b->allocate, b->release, b, b->extend};
    m->lanes[m->count++] = (LaneMemory){.large = pool_new(source, FIRST_CHUNK),
                                        .small = pool_new(source, FIRST_SMALL_CHUNK),
                                        .scratch = arena_new_from(source, FIRST_CHUNK)};
}

TapeMemory *tape_memory_new(Backend *backend) {
    TapeMemory *m = calloc(1, sizeof *m);
    check(m);
    m->backend = backend;
    open_lane(m);
    return m;
}

void tape_memory_free(TapeMemory *m) {
    if (!m) return;
    for (int i = 0; i < m->count; i++) {
        pool_free(m->lanes[i].large);
        pool_free(m->lanes[i].small);
        arena_free(m->lanes[i].scratch);
    }
    free(m);
}

size_t tape_memory_peak(const TapeMemory *m) {
    size_t sum = 0;
    for (int i = 0; i < m->count; i++)
        sum += pool_peak(m->lanes[i].large) + pool_peak(m->lanes[i].small) + arena_peak(m->lanes[i].scratch);
    return sum;
}

size_t tape_memory_held(const TapeMemory *m) {
    size_t sum = 0;
    for (int i = 0; i < m->count; i++) sum += pool_held(m->lanes[i].large) + pool_held(m->lanes[i].small);
    return sum;
}

int64_t tape_memory_system_allocations(const TapeMemory *m) {
    int64_t sum = 0;
    for (int i = 0; i < m->count; i++)
        sum += pool_system_allocations(m->lanes[i].large) + pool_system_allocations(m->lanes[i].small) +
               arena_system_allocations(m->lanes[i].scratch);
    return sum;
}

static const LaneMemory *memory_of(TapeMemory *m, int lane) {
    check(lane >= 0 && lane < BACKEND_LANES);
    while (m->count <= lane) open_lane(m);
    return &m->lanes[lane];
}

static Pool *pool_of(TapeMemory *m, int lane, size_t bytes) {
    const LaneMemory *l = memory_of(m, lane);
    return bytes < KEPT_BELOW ? l->small : l->large;
}

Backend *tape_memory_backend(const TapeMemory *m) { return m->backend; }
void *tape_memory_take(TapeMemory *m, int lane, size_t bytes) { return pool_take(pool_of(m, lane, bytes), bytes); }
void tape_memory_give(TapeMemory *m, int lane, void *block, size_t bytes) {
    pool_give(pool_of(m, lane, bytes), block, bytes);
}
void *tape_memory_scratch(TapeMemory *m, int lane, size_t bytes) {
    return arena_allocate(memory_of(m, lane)->scratch, bytes);
}
void tape_memory_end_scratch(TapeMemory *m, int lane) { arena_reset(memory_of(m, lane)->scratch); }
