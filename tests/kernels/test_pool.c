/* The pool: no two blocks share a byte, free neighbours become one, and where a block lies depends on the calls alone.
 */
#include "base/error.h"
#include "base/philox.h"
#include "kernels/pool.h"
#include "tests/support/test.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIRST = 1 << 16, GRAIN = 256 }; // bytes

typedef struct Source { // what the system gives
    size_t limit;       // bytes of a chunk that it refuses beyond; 0: none
    int64_t chunks, asked;
} Source;

static void *allocate(void *context, size_t bytes) {
    Source *s = context;
    s->asked++;
    if (s->limit && bytes > s->limit) return NULL;
    s->chunks++;
    return aligned_alloc(GRAIN, (bytes + GRAIN - 1) / GRAIN * GRAIN);
}

static void release(void *context, void *memory, size_t bytes) {
    ((Source *)context)->chunks -= bytes > 0;
    free(memory);
}

static Pool *open_pool(Source *s) { return pool_new((ArenaSource){allocate, release, s, NULL}, FIRST); }

// ---- against a plain model: every byte of a block is the block's number ----

enum { MOST = 300, CALLS = 4000 };

typedef struct Live {
    unsigned char *at[MOST];
    size_t bytes[MOST];
    int count;
    size_t held; // rounded
} Live;

static void take(Pool *p, Live *l, size_t bytes) {
    unsigned char *at = l->at[l->count] = pool_take(p, bytes);
    assert_true((uintptr_t)at % 64 == 0);
    l->bytes[l->count] = bytes;
    memset(at, (int)((uintptr_t)at / GRAIN % 251), bytes); // until another block writes over it
    l->held += (bytes ? bytes + GRAIN - 1 : GRAIN) / GRAIN * GRAIN;
    l->count++;
}

static void give(Pool *p, Live *l, int number) {
    unsigned char *at = l->at[number];
    size_t bytes = l->bytes[number];
    for (size_t i = 0; i < bytes; i++) assert_int_equal(at[i], (uintptr_t)at / GRAIN % 251);
    memset(at, 0xff, bytes);
    pool_give(p, at, bytes);
    l->held -= (bytes ? bytes + GRAIN - 1 : GRAIN) / GRAIN * GRAIN;
    l->count--;
    l->at[number] = l->at[l->count], l->bytes[number] = l->bytes[l->count];
}

static size_t draw_bytes(Rng *rng) { // many small, some large, some beyond a chunk
    static const uint64_t most[] = {1, 300, 300, 5000, 5000, 60000, 200000};
    return (size_t)rng_below(rng, most[rng_below(rng, 7)] + 1);
}

// The same sequence for the same seed; ends with nothing held. places: (CALLS), where each call's block lay
static void run(Pool *p, uint64_t seed, const void **places) {
    Live live = {0};
    Rng rng = rng_for(seed, PURPOSE_TEST, 0);
    size_t most = 0;
    for (int call = 0; call < CALLS; call++) {
        int level = call / (CALLS / 8) % 2 ? MOST / 8 : MOST - 1; // it fills and empties several times
        if (live.count < level && rng_below(&rng, 8)) {
            take(p, &live, draw_bytes(&rng));
            places[call] = live.at[live.count - 1];
        } else if (live.count) {
            give(p, &live, (int)rng_below(&rng, (uint64_t)live.count));
        }
        assert_int_equal(pool_held(p), live.held);
        if (live.held > most) most = live.held;
    }
    while (live.count) give(p, &live, (int)rng_below(&rng, (uint64_t)live.count));
    assert_int_equal(pool_held(p), 0);
    assert_true(pool_peak(p) >= most);
}

static void blocks_never_share_a_byte_whatever_the_order(void **state) {
    (void)state;
    const void *places[CALLS] = {0};
    for (uint64_t seed = 0; seed < 8; seed++) {
        Source source = {0};
        Pool *p = open_pool(&source);
        run(p, seed, places);
        pool_free(p);
        assert_int_equal(source.chunks, 0);
    }
}

static void the_same_calls_get_the_same_places_and_no_new_chunk(void **state) {
    (void)state;
    const void *first[CALLS] = {0}, *again[CALLS] = {0};
    Source source = {0};
    Pool *p = open_pool(&source);
    for (int round = 0; round < 4; round++) {
        int64_t chunks = source.chunks;
        size_t peak = pool_peak(p);
        run(p, 5, round ? again : first);
        assert_true(round == 0 || (source.chunks == chunks && pool_peak(p) == peak));
        if (round) assert_memory_equal(first, again, sizeof first);
        assert_int_equal(pool_system_allocations(p), source.chunks);
    }
    pool_free(p);
}

// The distances between blocks of one chunk do not depend on what the system gave.
static void places_within_a_chunk_depend_on_the_calls_alone(void **state) {
    (void)state;
    enum { SIZE = 40 };
    ptrdiff_t distance[2][SIZE];
    for (int round = 0; round < 2; round++) {
        Source source = {0};
        void *between = round ? malloc(12345) : NULL; // another state of the system
        Pool *p = open_pool(&source);
        char *block[SIZE], *base = pool_take(p, 1);
        for (int i = 0; i < SIZE; i++) {
            block[i] = pool_take(p, (size_t)(i % 7) * 300);
            distance[round][i] = block[i] - base;
            if (i % 3 == 2) pool_give(p, block[i - 1], (size_t)((i - 1) % 7) * 300);
        }
        assert_int_equal(source.chunks, 1);
        pool_free(p);
        free(between);
    }
    assert_memory_equal(distance[0], distance[1], sizeof distance[0]);
}

// ---- single rules ----

static void free_neighbours_become_one(void **state) {
    (void)state;
    Source source = {0};
    Pool *p = open_pool(&source);
    char *block[5];
    for (int i = 0; i < 5; i++) block[i] = pool_take(p, 1024);
    for (int i = 1; i < 5; i++) assert_ptr_equal(block[i], block[i - 1] + 1024);
    pool_give(p, block[1], 1024); // before, behind, and between two free ones
    pool_give(p, block[3], 1024);
    pool_give(p, block[2], 1024);
    assert_ptr_equal(pool_take(p, 3072), block[1]);
    pool_give(p, block[1], 3072);
    pool_give(p, block[4], 1024); // the rest of the chunk is free from there on
    assert_ptr_equal(pool_take(p, 8192), block[1]);
    assert_int_equal(pool_peak(p), 1024 + 8192);
    pool_free(p);
}

static void the_smallest_hole_that_fits_is_taken_then_the_first(void **state) {
    (void)state;
    Source source = {0};
    Pool *p = open_pool(&source);
    static const size_t bytes[] = {2048, 256, 1024, 256, 1024, 256};
    char *block[6];
    for (int i = 0; i < 6; i++) block[i] = pool_take(p, bytes[i]);
    for (int i = 4; i >= 0; i -= 2) pool_give(p, block[i], bytes[i]);
    assert_ptr_equal(pool_take(p, 1000), block[2]);
    assert_ptr_equal(pool_take(p, 1), block[4]);
    assert_ptr_equal(pool_take(p, 1024), block[0]);
    assert_ptr_equal(pool_take(p, 1024), block[0] + 1024);
    assert_ptr_equal(pool_take(p, 1024), block[5] + 256); // none is left: behind the last
    pool_free(p);
    pool_free(NULL);
}

static void a_smaller_chunk_does_where_a_large_one_is_refused(void **state) {
    (void)state;
    Source source = {.limit = 2 * FIRST};
    Pool *p = open_pool(&source);
    for (int i = 0; i < 8; i++) assert_non_null(pool_take(p, FIRST));
    assert_int_equal(pool_held(p), 8 * FIRST);
    assert_true(source.asked > source.chunks);
    pool_free(p);
    assert_int_equal(source.chunks, 0);
}

// A source whose chunks can grow where they stand, as a GPU's addresses allow, up to a limit.
static bool extend(void *context, void *memory, size_t bytes, size_t more) {
    Source *s = context;
    (void)memory;
    s->asked++;
    return bytes + more <= s->limit;
}

static void *allocate_whole(void *context, size_t bytes) {
    Source *s = context;
    s->chunks++;
    return bytes <= s->limit ? aligned_alloc(GRAIN, s->limit) : NULL;
}

static void a_chunk_grows_where_it_stands_if_it_can(void **state) {
    (void)state;
    enum { LIMIT = 64 << 20, BLOCK = 3 << 20 };
    Source source = {.limit = LIMIT};
    Pool *p = pool_new((ArenaSource){allocate_whole, release, &source, extend}, FIRST);
    char *first = pool_take(p, BLOCK);
    for (int i = 1; i < 21; i++) assert_ptr_equal(pool_take(p, BLOCK), first + (ptrdiff_t)i * BLOCK); // up to the limit
    assert_int_equal(source.chunks, 1);
    assert_int_equal(pool_peak(p), 21 * BLOCK);
    assert_true(pool_system_allocations(p) > 1);
    assert_non_null(pool_take(p, BLOCK)); // beyond it there is another one
    assert_int_equal(source.chunks, 2);
    pool_free(p);
}

// ---- what must not happen ----

typedef enum { TWICE, OVERLAPPING, FOREIGN, NO_MEMORY } Wrong;

static bool aborts(Wrong wrong) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL); // cmocka reports aborts by itself
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        static char elsewhere[GRAIN];
        Source source = {.limit = 1 << 20};
        Pool *p = open_pool(&source);
        char *block = pool_take(p, 1024);
        pool_take(p, 1024);
        if (wrong == NO_MEMORY) pool_take(p, 1 << 21);
        if (wrong == FOREIGN) pool_give(p, elsewhere, GRAIN);
        pool_give(p, block, 1024);
        pool_give(p, wrong == TWICE ? block : block + 512, 1024);
        _exit(0);
    }
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void what_goes_back_twice_or_never_came_from_here_stops_the_program(void **state) {
    (void)state;
    for (int wrong = TWICE; wrong <= NO_MEMORY; wrong++) assert_true(aborts((Wrong)wrong));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_never_share_a_byte_whatever_the_order),
        cmocka_unit_test(the_same_calls_get_the_same_places_and_no_new_chunk),
        cmocka_unit_test(places_within_a_chunk_depend_on_the_calls_alone),
        cmocka_unit_test(free_neighbours_become_one),
        cmocka_unit_test(the_smallest_hole_that_fits_is_taken_then_the_first),
        cmocka_unit_test(a_smaller_chunk_does_where_a_large_one_is_refused),
        cmocka_unit_test(a_chunk_grows_where_it_stands_if_it_can),
        cmocka_unit_test(what_goes_back_twice_or_never_came_from_here_stops_the_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
