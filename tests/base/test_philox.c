/* Random numbers: the published vectors, distributions, and permutations. */
#include "base/philox.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// kat_vectors of Random123: philox4x32, 10 rounds.
static void blocks_equal_the_published_vectors(void **state) {
    (void)state;
    static const struct {
        uint64_t low, high, key;
        PhiloxBlock expected;
    } vectors[] = {
        {0, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {0x85a308d3243f6a88,
         0x0370734413198a2e,
         0x299f31d0a4093822,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        PhiloxBlock block = philox_block(vectors[i].key, vectors[i].low, vectors[i].high);
        assert_memory_equal(&block, &vectors[i].expected, sizeof block);
    }
}

static void streams_differ_by_seed_purpose_and_element(void **state) {
    (void)state;
    Rng streams[] = {rng_for(1, PURPOSE_INIT, 1), rng_for(2, PURPOSE_INIT, 1), rng_for(1, PURPOSE_DROPOUT, 1),
                     rng_for(1, PURPOSE_INIT, 2), rng_for(1, PURPOSE_INIT, (uint64_t)1 << 32)};
    uint64_t first[5];
    for (int i = 0; i < 5; i++) first[i] = rng_u64(&streams[i]);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < i; j++) assert_true(first[i] != first[j]);
}

static void a_draw_depends_on_its_index_alone(void **state) {
    (void)state;
    Rng stream = rng_for(3, PURPOSE_TEST, 9);
    for (uint32_t i = 0; i < 20; i++) {
        Rng fork = rng_for(3, PURPOSE_TEST, 9);
        fork.index = i;
        assert_int_equal(rng_u32(&stream), rng_u32(&fork));
    }
}

static void numbers_below_a_bound_are_spread_evenly(void **state) {
    (void)state;
    enum { BOUND = 7, DRAWS = 70000 };
    int64_t counts[BOUND] = {0};
    Rng rng = rng_for(4, PURPOSE_TEST, 0);
    for (int i = 0; i < DRAWS; i++) counts[rng_below(&rng, BOUND)]++;
    for (int i = 0; i < BOUND; i++) assert_true(llabs(counts[i] - DRAWS / BOUND) < 500); // more than 5 sigma
    for (int i = 0; i < 100; i++) {
        uint64_t bound = ((uint64_t)1 << 63) + 1;
        assert_true(rng_below(&rng, bound) < bound);
        assert_int_equal(rng_below(&rng, 1), 0);
    }
}

static void uniform_and_normal_have_their_moments(void **state) {
    (void)state;
    enum { DRAWS = 200000 };
    double uniform = 0, normal = 0, square = 0, fourth = 0;
    Rng rng = rng_for(5, PURPOSE_TEST, 0);
    for (int i = 0; i < DRAWS; i++) {
        double u = rng_uniform(&rng), z = rng_normal(&rng);
        assert_true(u >= 0 && u < 1 && isfinite(z));
        uniform += u;
        normal += z;
        square += z * z;
        fourth += z * z * z * z;
    }
    assert_true(fabs(uniform / DRAWS - 0.5) < 0.004);
    assert_true(fabs(normal / DRAWS) < 0.012);
    assert_true(fabs(square / DRAWS - 1) < 0.017);
    assert_true(fabs(fourth / DRAWS - 3) < 0.12);
}

static void a_permutation_meets_every_index_once(void **state) {
    (void)state;
    static const uint64_t counts[] = {1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097, 65536};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        bool *seen = calloc(counts[c], sizeof *seen);
        for (uint64_t i = 0; i < counts[c]; i++) {
            uint64_t to = permute_index(i, counts[c], 11, PURPOSE_ORDER, 3);
            assert_true(to < counts[c] && !seen[to]);
            seen[to] = true;
        }
        free(seen);
    }
    assert_true(permute_index(UINT64_MAX - 1, UINT64_MAX, 1, PURPOSE_ORDER, 0) < UINT64_MAX);
}

static void permutations_differ_and_leave_little_in_place(void **state) {
    (void)state;
    enum { COUNT = 1000 };
    int fixed = 0, shared = 0, neighbours = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        uint64_t to = permute_index(i, COUNT, 1, PURPOSE_ORDER, 0);
        fixed += to == i;
        shared += to == permute_index(i, COUNT, 1, PURPOSE_ORDER, 1);
        neighbours += i + 1 < COUNT && permute_index(i + 1, COUNT, 1, PURPOSE_ORDER, 0) == to + 1;
    }
    assert_true(fixed < 10 && shared < 10 && neighbours < 10); // one each is what chance gives
}

static void all_orders_of_four_are_met_evenly(void **state) {
    (void)state;
    enum { KEYS = 24000 };
    int counts[256] = {0}, met = 0;
    for (uint64_t key = 0; key < KEYS; key++) {
        unsigned order = 0;
        for (uint64_t i = 0; i < 4; i++) order = order << 2 | (unsigned)permute_index(i, 4, key, PURPOSE_ORDER, 0);
        counts[order]++;
    }
    for (int i = 0; i < 256; i++) {
        met += counts[i] > 0;
        assert_true(counts[i] == 0 || abs(counts[i] - KEYS / 24) < 250);
    }
    assert_int_equal(met, 24);
}

static void a_hash_is_stable(void **state) {
    (void)state;
    assert_int_equal(hash_u64("", 0), 0x2D06800538D394C2); // XXH3-64 of nothing, as published
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_equal_the_published_vectors),
        cmocka_unit_test(streams_differ_by_seed_purpose_and_element),
        cmocka_unit_test(a_draw_depends_on_its_index_alone),
        cmocka_unit_test(numbers_below_a_bound_are_spread_evenly),
        cmocka_unit_test(uniform_and_normal_have_their_moments),
        cmocka_unit_test(a_permutation_meets_every_index_once),
        cmocka_unit_test(permutations_differ_and_leave_little_in_place),
        cmocka_unit_test(all_orders_of_four_are_met_evenly),
        cmocka_unit_test(a_hash_is_stable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
