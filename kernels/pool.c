/* See pool.h. A chunk is held up to its `end`; below that lie the holes, sorted by where they begin. A step has some
 * hundreds of them at the most, so that looking through all is cheap beside any operator. */
#include "kernels/pool.h"
#include "base/error.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRAIN = 256, CHUNK_GRAIN = 2 << 20 }; // bytes: what blocks, and large chunks, are rounded to

typedef struct Hole { // free; never next to another one, nor to the end
    size_t first, end;
} Hole;

typedef struct Chunk {
    char *memory;
    size_t size, end, most; // bytes; end of the last block that is held, and the most that it ever was
    Hole *holes;
    size_t count, capacity;
} Chunk;

struct Pool {
    ArenaSource source;
    Chunk *chunks;
    size_t count, next_size, held;
    int64_t extensions; // of chunks where they stand
};

static size_t round_up(size_t bytes, size_t unit) {
    check(bytes <= SIZE_MAX - unit);
    return (bytes + unit - 1) / unit * unit;
}

static size_t block_bytes(size_t bytes) { return round_up(bytes ? bytes : 1, GRAIN); }

Pool *pool_new(ArenaSource source, size_t first_chunk) {
    Pool *p = calloc(1, sizeof *p);
    check(p);
    p->source = source;
    p->next_size = block_bytes(first_chunk);
    return p;
}

void pool_free(Pool *p) {
    if (!p) return;
    for (size_t i = 0; i < p->count; i++) {
        p->source.release(p->source.context, p->chunks[i].memory, p->chunks[i].size);
        free(p->chunks[i].holes);
    }
    free(p->chunks);
    free(p);
}

size_t pool_held(const Pool *p) { return p->held; }
int64_t pool_system_allocations(const Pool *p) { return (int64_t)p->count + p->extensions; }

size_t pool_peak(const Pool *p) {
    size_t sum = 0;
    for (size_t i = 0; i < p->count; i++) sum += p->chunks[i].most;
    return sum;
}

// ---- chunks ----

// As large as wanted where there is so much, so that few chunks serve a step; else just what is needed.
static void *allocate(Pool *p, size_t *size, size_t bytes) {
    void *memory = p->source.allocate(p->source.context, *size);
    if (memory || *size == bytes) return memory;
    *size = bytes;
    return p->source.allocate(p->source.context, bytes);
}

static Chunk *add_chunk(Pool *p, size_t bytes) {
    size_t size = bytes > p->next_size ? bytes : p->next_size;
    if (size >= CHUNK_GRAIN) size = round_up(size, CHUNK_GRAIN);
    p->chunks = realloc(p->chunks, (p->count + 1) * sizeof *p->chunks);
    check(p->chunks);
    void *memory = allocate(p, &size, bytes);
    if (!memory) {
        fprintf(stderr, "out of memory: a step's tensors need another %zu bytes; use a smaller batch or model\n",
                bytes);
        abort();
    }
    p->chunks[p->count] = (Chunk){.memory = memory, .size = size};
    p->next_size = size <= SIZE_MAX / 4 ? 2 * size : size;
    return &p->chunks[p->count++];
}

// Makes the last chunk so long that `bytes` fit behind what is held of it, with an eighth to spare where there is so
// much; NULL where it stays as it is.
static Chunk *lengthen(Pool *p, size_t bytes) {
    if (!p->source.extend || !p->count) return NULL;
    Chunk *c = &p->chunks[p->count - 1];
    size_t missing = bytes - (c->size - c->end), more = round_up(missing + c->size / 8, CHUNK_GRAIN);
    while (!p->source.extend(p->source.context, c->memory, c->size, more)) {
        if (more == missing) return NULL;
        more = more / 2 > missing ? round_up(more / 2, GRAIN) : missing;
    }
    c->size += more;
    p->extensions++;
    return c;
}

// At the end of the first chunk that has so much behind what is held of it.
static void *extend(Pool *p, size_t bytes) {
    Chunk *c = NULL;
    for (size_t i = 0; i < p->count && !c; i++)
        if (p->chunks[i].size - p->chunks[i].end >= bytes) c = &p->chunks[i];
    if (!c) c = lengthen(p, bytes);
    if (!c) c = add_chunk(p, bytes);
    char *memory = c->memory + c->end;
    c->end += bytes;
    if (c->end > c->most) c->most = c->end;
    return memory;
}

// ---- holes ----

static void remove_hole(Chunk *c, size_t at) {
    c->count--;
    memmove(c->holes + at, c->holes + at + 1, (c->count - at) * sizeof *c->holes);
}

static void insert_hole(Chunk *c, size_t at, Hole hole) {
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 64;
        c->holes = realloc(c->holes, c->capacity * sizeof *c->holes);
        check(c->holes);
    }
    memmove(c->holes + at + 1, c->holes + at, (c->count - at) * sizeof *c->holes);
    c->holes[at] = hole;
    c->count++;
}

// The first hole behind `place`, or their count.
static size_t hole_behind(const Chunk *c, size_t place) {
    size_t low = 0, high = c->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c->holes[middle].first < place)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// From the smallest hole that holds it, the first of equal ones; NULL where there is none.
static void *fill(Pool *p, size_t bytes) {
    Chunk *best = NULL;
    size_t at = 0, least = SIZE_MAX;
    for (size_t i = 0; i < p->count; i++) {
        Chunk *c = &p->chunks[i];
        for (size_t k = 0; k < c->count; k++) {
            size_t size = c->holes[k].end - c->holes[k].first;
            if (size < bytes || size >= least) continue;
            best = c, at = k, least = size;
        }
    }
    if (!best) return NULL;
    Hole *hole = &best->holes[at];
    char *memory = best->memory + hole->first;
    hole->first += bytes;
    if (hole->first == hole->end) remove_hole(best, at);
    return memory;
}

void *pool_take(Pool *p, size_t bytes) {
    bytes = block_bytes(bytes);
    p->held += bytes;
    void *memory = fill(p, bytes);
    return memory ? memory : extend(p, bytes);
}

static Chunk *chunk_of(const Pool *p, const char *block) {
    for (size_t i = 0; i < p->count; i++)
        if (block >= p->chunks[i].memory && block < p->chunks[i].memory + p->chunks[i].size) return &p->chunks[i];
    check(false && "a block goes back where it came from");
    return NULL;
}

void pool_give(Pool *p, void *block, size_t bytes) {
    Chunk *c = chunk_of(p, block);
    Hole hole = {.first = (size_t)((char *)block - c->memory)};
    hole.end = hole.first + block_bytes(bytes);
    size_t at = hole_behind(c, hole.first);
    check(hole.end <= c->end && (at == c->count || c->holes[at].first >= hole.end) &&
          (!at || c->holes[at - 1].end <= hole.first) && "a block goes back once");
    p->held -= hole.end - hole.first;
    if (at < c->count && c->holes[at].first == hole.end) {
        hole.end = c->holes[at].end;
        remove_hole(c, at);
    }
    if (at && c->holes[at - 1].end == hole.first) {
        hole.first = c->holes[--at].first;
        remove_hole(c, at);
    }
    if (hole.end == c->end)
        c->end = hole.first;
    else
        insert_hole(c, at, hole);
}
