/* See arena.h. Chunks form a list that only grows; each is at least twice as large as the one before it. A request that
 * does not fit into the current chunk goes to the next one that holds it, so equal sequences of requests after a reset
 * walk the same chunks. Device memory is never touched from here: bookkeeping lives on the host. */
#include "base/arena.h"
#include "base/error.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20, SMALLEST_CHUNK = 4096 };

typedef struct Chunk {
    char *memory;
    size_t size, used; // bytes
    size_t before;     // bytes handed out from the chunks before this one, while it is in use
} Chunk;

struct Arena {
    ArenaSource source;
    Chunk *chunks;
    size_t count, current;
    size_t next_size, peak, reserved;
    int64_t system_allocations;
    bool on_host;
};

static size_t round_up(size_t bytes, size_t unit) {
    check(bytes <= SIZE_MAX - unit);
    return (bytes + unit - 1) / unit * unit;
}

// Large chunks are aligned to huge pages and ask for them: fewer address translations in every kernel.
static void *host_allocate(void *context, size_t bytes) {
    (void)context;
    bool large = bytes >= HUGE_PAGE;
    void *memory = aligned_alloc(large ? HUGE_PAGE : ALIGNMENT, bytes);
    if (memory && large) (void)madvise(memory, bytes, MADV_HUGEPAGE); // advice only: its failure changes nothing
    return memory;
}

static void host_release(void *context, void *memory, size_t bytes) {
    (void)context;
    (void)bytes;
    free(memory);
}

static _Noreturn void out_of_memory(size_t bytes) {
    fprintf(stderr, "out of memory: an arena could not get another %zu bytes; use a smaller batch or model\n", bytes);
    abort();
}

Arena *arena_new_from(ArenaSource source, size_t first_chunk) {
    Arena *arena = calloc(1, sizeof *arena);
    if (!arena) out_of_memory(sizeof *arena);
    arena->source = source;
    arena->next_size = first_chunk < SMALLEST_CHUNK ? SMALLEST_CHUNK : first_chunk;
    return arena;
}

Arena *arena_new(size_t first_chunk) {
    Arena *arena = arena_new_from((ArenaSource){host_allocate, host_release, NULL, NULL}, first_chunk);
    arena->on_host = true;
    return arena;
}

void arena_free(Arena *arena) {
    if (!arena) return;
    for (size_t i = 0; i < arena->count; i++)
        arena->source.release(arena->source.context, arena->chunks[i].memory, arena->chunks[i].size);
    free(arena->chunks);
    free(arena);
}

static void add_chunk(Arena *arena, size_t bytes) {
    size_t size = bytes > arena->next_size ? bytes : arena->next_size;
    size = round_up(size, size >= HUGE_PAGE ? HUGE_PAGE : ALIGNMENT);
    Chunk *chunks = realloc(arena->chunks, (arena->count + 1) * sizeof *chunks);
    if (!chunks) out_of_memory(sizeof *chunks);
    arena->chunks = chunks;
    void *memory = arena->source.allocate(arena->source.context, size);
    if (!memory) out_of_memory(size);
    check((uintptr_t)memory % ALIGNMENT == 0);
    chunks[arena->count++] = (Chunk){.memory = memory, .size = size};
    arena->system_allocations++;
    arena->reserved += size;
    arena->next_size = size <= SIZE_MAX / 4 ? 2 * size : size;
}

// Makes the last chunk long enough, by an eighth of it where there is so much; false where it stays as it is.
static bool lengthen(Arena *arena, size_t bytes) {
    if (!arena->source.extend || arena->current + 1 != arena->count) return false;
    Chunk *chunk = &arena->chunks[arena->current];
    size_t missing = round_up(bytes - (chunk->size - chunk->used), ALIGNMENT);
    size_t more = round_up(missing > chunk->size / 8 ? missing : chunk->size / 8, ALIGNMENT);
    while (!arena->source.extend(arena->source.context, chunk->memory, chunk->size, more)) {
        if (more == missing) return false;
        more = more / 2 > missing ? round_up(more / 2, ALIGNMENT) : missing;
    }
    chunk->size += more;
    arena->reserved += more;
    arena->system_allocations++;
    return true;
}

// Makes the first chunk behind the current one that holds `bytes` the current one.
static void advance(Arena *arena, size_t bytes) {
    size_t used = arena_used(arena);
    size_t next = arena->count ? arena->current + 1 : 0;
    while (next < arena->count && arena->chunks[next].size < bytes) next++;
    if (next == arena->count) add_chunk(arena, bytes);
    arena->current = next;
    arena->chunks[next].used = 0;
    arena->chunks[next].before = used;
}

void *arena_allocate(Arena *arena, size_t bytes) {
    size_t size = round_up(bytes ? bytes : 1, ALIGNMENT);
    if (!arena->count || (size > arena->chunks[arena->current].size - arena->chunks[arena->current].used &&
                          !lengthen(arena, size)))
        advance(arena, size);
    Chunk *chunk = &arena->chunks[arena->current];
    void *memory = chunk->memory + chunk->used;
    chunk->used += size;
    if (chunk->before + chunk->used > arena->peak) arena->peak = chunk->before + chunk->used;
    return memory;
}

void *arena_zeroed(Arena *arena, size_t bytes) {
    check(arena->on_host);
    return memset(arena_allocate(arena, bytes), 0, bytes);
}

char *arena_string(Arena *arena, const char *text) {
    size_t size = strlen(text) + 1;
    check(arena->on_host);
    return memcpy(arena_allocate(arena, size), text, size);
}

char *arena_printf(Arena *arena, const char *format, ...) {
    va_list arguments, again;
    check(arena->on_host);
    va_start(arguments, format);
    va_copy(again, arguments);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    check(size >= 0);
    char *text = arena_allocate(arena, (size_t)size + 1);
    vsnprintf(text, (size_t)size + 1, format, again);
    va_end(again);
    return text;
}

ArenaMark arena_mark(const Arena *arena) {
    if (!arena->count) return (ArenaMark){0, 0};
    return (ArenaMark){arena->current, arena->chunks[arena->current].used};
}

void arena_rewind(Arena *arena, ArenaMark mark) {
    if (!arena->count) return;
    check(mark.chunk < arena->current || (mark.chunk == arena->current && mark.used <= arena->chunks[mark.chunk].used));
    arena->current = mark.chunk;
    arena->chunks[mark.chunk].used = mark.used;
}

void arena_reset(Arena *arena) { arena_rewind(arena, (ArenaMark){0, 0}); }

size_t arena_used(const Arena *arena) {
    if (!arena->count) return 0;
    const Chunk *chunk = &arena->chunks[arena->current];
    return chunk->before + chunk->used;
}

size_t arena_peak(const Arena *arena) { return arena->peak; }
size_t arena_reserved(const Arena *arena) { return arena->reserved; }
int64_t arena_system_allocations(const Arena *arena) { return arena->system_allocations; }
