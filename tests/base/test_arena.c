/* Arenas: alignment, reuse, marks, and the promise that a second identical pass asks the system for nothing. */
#include "base/arena.h"
#include "base/philox.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 300 };

// Sizes from 0 bytes to 3 MB, the same for the same pass number.
static void take(Arena *arena, void *pieces[REQUESTS], uint64_t pass) {
    Rng rng = rng_for(1, PURPOSE_TEST, pass);
    for (int i = 0; i < REQUESTS; i++) {
        size_t bytes = (size_t)rng_below(&rng, rng_below(&rng, 20) == 0 ? 3 << 20 : 3000);
        pieces[i] = arena_allocate(arena, bytes);
        assert_int_equal((uintptr_t)pieces[i] % 64, 0);
        memset(pieces[i], i & 0xFF, bytes);
    }
}

static void a_second_pass_gets_the_same_addresses_and_no_new_memory(void **state) {
    (void)state;
    void *first[REQUESTS], *again[REQUESTS];
    Arena *arena = arena_new(1000);
    take(arena, first, 0);
    int64_t allocations = arena_system_allocations(arena);
    size_t used = arena_used(arena), reserved = arena_reserved(arena);
    assert_true(allocations > 1 && used <= reserved);
    for (int pass = 0; pass < 3; pass++) {
        arena_reset(arena);
        assert_int_equal(arena_used(arena), 0);
        take(arena, again, 0);
        assert_memory_equal(first, again, sizeof first);
        assert_int_equal(arena_used(arena), used);
    }
    assert_int_equal(arena_system_allocations(arena), allocations);
    assert_int_equal(arena_reserved(arena), reserved);
    assert_int_equal(arena_peak(arena), used);
    arena_free(arena);
}

static void pieces_do_not_overlap(void **state) {
    (void)state;
    void *pieces[REQUESTS];
    Arena *arena = arena_new(1 << 12);
    for (uint64_t pass = 0; pass < 4; pass++) {
        take(arena, pieces, pass);
        Rng rng = rng_for(1, PURPOSE_TEST, pass);
        for (int i = 0; i < REQUESTS; i++) {
            size_t bytes = (size_t)rng_below(&rng, rng_below(&rng, 20) == 0 ? 3 << 20 : 3000);
            for (size_t at = 0; at < bytes; at++)
                if (((unsigned char *)pieces[i])[at] != (i & 0xFF)) fail_msg("piece %d was written over", i);
        }
        arena_reset(arena);
    }
    arena_free(arena);
}

enum { LIMIT = 1 << 20 }; // bytes that the source below makes its chunks at most

static void *allocate_limit(void *context, size_t bytes) {
    ++*(int *)context;
    return bytes <= LIMIT ? aligned_alloc(64, LIMIT) : NULL;
}
static void release_limit(void *context, void *memory, size_t bytes) {
    (void)context, (void)bytes;
    free(memory);
}
static bool extend_to_limit(void *context, void *memory, size_t bytes, size_t more) {
    (void)context, (void)memory;
    return bytes + more <= LIMIT;
}

static void a_chunk_that_can_grow_does_before_there_is_another(void **state) {
    (void)state;
    int chunks = 0;
    Arena *arena = arena_new_from((ArenaSource){allocate_limit, release_limit, &chunks, extend_to_limit}, 4096);
    char *first = arena_allocate(arena, 64);
    for (int i = 1; i < LIMIT / 64; i++) assert_ptr_equal(arena_allocate(arena, 64), first + (ptrdiff_t)i * 64);
    assert_int_equal(chunks, 1);
    assert_int_equal(arena_reserved(arena), LIMIT);
    int64_t asked = arena_system_allocations(arena);
    assert_true(asked > 1 && asked < 200); // by an eighth at a time
    arena_reset(arena);
    assert_ptr_equal(arena_allocate(arena, LIMIT), first);
    assert_int_equal(arena_system_allocations(arena), asked);
    assert_non_null(arena_allocate(arena, 64));
    assert_int_equal(chunks, 2);
    arena_free(arena);
}

static void a_rewind_frees_what_came_after_the_mark(void **state) {
    (void)state;
    Arena *arena = arena_new(4096);
    ArenaMark empty = arena_mark(arena);
    char *kept = arena_string(arena, "kept");
    ArenaMark mark = arena_mark(arena);
    size_t used = arena_used(arena);
    void *after = arena_allocate(arena, 100);
    arena_allocate(arena, 1 << 20);
    arena_rewind(arena, mark);
    assert_int_equal(arena_used(arena), used);
    assert_ptr_equal(arena_allocate(arena, 100), after);
    assert_string_equal(kept, "kept");
    arena_rewind(arena, empty);
    assert_int_equal(arena_used(arena), 0);
    assert_true(arena_peak(arena) > 1 << 20);
    arena_free(arena);
}

static void large_chunks_are_aligned_to_huge_pages(void **state) {
    (void)state;
    Arena *arena = arena_new(8 << 20);
    assert_int_equal((uintptr_t)arena_allocate(arena, 1) % (2 << 20), 0);
    arena_free(arena);
}

static void memory_is_zeroed_where_that_was_asked(void **state) {
    (void)state;
    Arena *arena = arena_new(0);
    memset(arena_allocate(arena, 1000), 0xFF, 1000);
    arena_reset(arena);
    const int64_t *numbers = arena_array(arena, int64_t, 125);
    for (int i = 0; i < 125; i++) assert_int_equal(numbers[i], 0);
    assert_string_equal(arena_printf(arena, "%s-%d", "step", 12), "step-12");
    arena_free(arena);
    arena_free(NULL);
}

typedef struct Source {
    size_t given, returned;
} Source;

static void *source_allocate(void *context, size_t bytes) {
    ((Source *)context)->given += bytes;
    return aligned_alloc(64, bytes);
}

static void source_release(void *context, void *memory, size_t bytes) {
    ((Source *)context)->returned += bytes;
    free(memory);
}

static void every_byte_goes_back_to_where_it_came_from(void **state) {
    (void)state;
    Source source = {0, 0};
    Arena *arena = arena_new_from((ArenaSource){source_allocate, source_release, &source, NULL}, 100000);
    arena_allocate(arena, 90000);
    arena_allocate(arena, 900000);
    assert_int_equal(arena_reserved(arena), source.given);
    arena_free(arena);
    assert_int_equal(source.given, source.returned);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_pass_gets_the_same_addresses_and_no_new_memory),
        cmocka_unit_test(pieces_do_not_overlap),
        cmocka_unit_test(a_chunk_that_can_grow_does_before_there_is_another),
        cmocka_unit_test(a_rewind_frees_what_came_after_the_mark),
        cmocka_unit_test(large_chunks_are_aligned_to_huge_pages),
        cmocka_unit_test(memory_is_zeroed_where_that_was_asked),
        cmocka_unit_test(every_byte_goes_back_to_where_it_came_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
