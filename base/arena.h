/* Memory that is freed all at once. An arena hands out aligned pieces of large chunks; arena_reset makes all of them
 * free again and keeps the chunks, so the same sequence of requests gets the same addresses and, from the second time
 * on, allocates nothing from the system. Not thread-safe. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Arena Arena;

// Where chunks come from: the host's memory, or a device's.
typedef struct ArenaSource {
    void *(*allocate)(void *context, size_t bytes); // aligned to >= 64 bytes; NULL where there is none left
    void (*release)(void *context, void *memory, size_t bytes);
    void *context;
    // May be NULL: makes a chunk of `bytes` at least `more` longer where it stands, or answers false
    bool (*extend)(void *context, void *memory, size_t bytes, size_t more);
} ArenaSource;

typedef struct ArenaMark { // a point to go back to
    size_t chunk, used;
} ArenaMark;

Arena *arena_new(size_t first_chunk);                            // bytes; host memory; aborts where none is left
Arena *arena_new_from(ArenaSource source, size_t first_chunk);
void   arena_free(Arena *);                                      // NULL is allowed
void  *arena_allocate(Arena *, size_t bytes);                    // aligned to 64 bytes, not zeroed; never NULL
void  *arena_zeroed(Arena *, size_t bytes);                      // host arenas only
char  *arena_string(Arena *, const char *text);                  // a copy
char  *arena_printf(Arena *, const char *format, ...) __attribute__((format(printf, 2, 3)));
ArenaMark arena_mark(const Arena *);
void   arena_rewind(Arena *, ArenaMark);                         // frees what was allocated since the mark
void   arena_reset(Arena *);
size_t arena_used(const Arena *);                                // bytes handed out since the last reset
size_t arena_peak(const Arena *);                                // the most that was ever in use at once
size_t arena_reserved(const Arena *);                            // bytes of all chunks
int64_t arena_system_allocations(const Arena *);                 // how often the source was asked for a chunk or more of one

// An array of `count` T, zeroed.
#define arena_array(arena, T, count) ((T *)arena_zeroed((arena), sizeof(T) * (size_t)(count)))
