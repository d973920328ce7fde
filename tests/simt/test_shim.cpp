/* The shim finds what is planted, and nothing where nothing is. */
#include "tests/simt/planted.h"
#include "tests/simt/shim/host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
extern "C" {
#include <cmocka.h>
}

enum { THREADS = 256, COUNT = 4 * THREADS };

struct Memory {
    float *out, *x; // (COUNT)
    bool faulty;
    int number;
    bool wrong; // set by a body whose numbers are not what they should be
};

// The fault of `body`, with memory of its own.
static const char *fault_of(bool faulty, int number, void (*body)(void *)) {
    Memory m = {static_cast<float *>(simt_allocate(COUNT * sizeof(float))),
                static_cast<float *>(simt_allocate(COUNT * sizeof(float))), faulty, number, false};
    for (int i = 0; i < COUNT; i++) m.x[i] = static_cast<float>(i);
    const char *fault = simt_faults(body, &m);
    simt_release(m.out);
    simt_release(m.x);
    return *fault || !m.wrong ? fault : "wrong numbers";
}

static void expect(const char *fault, const char *kernel, const char *text) {
    if (!strstr(fault, kernel) || !strstr(fault, text) || !strstr(fault, ", block (") || !strstr(fault, "thread ("))
        fail_msg("\"%s\" names not %s and \"%s\"", fault, kernel, text);
}

// In every order of blocks and threads.
static void in_all_orders(void (*check)()) {
    simt_set_order(SIMT_REVERSE, 0);
    check();
    for (uint64_t seed = 1; seed < 6; seed++) {
        simt_set_order(SIMT_SHUFFLED, seed * 0x9E3779B9u);
        check();
    }
    simt_set_order(SIMT_FORWARD, 0);
    check();
}

static void reverse(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_reverse(m->out, m->x, COUNT, m->faulty);
    for (int i = 0; i < COUNT && !m->faulty; i++) // block by block the other way round
        if (m->out[i] != static_cast<float>(i / THREADS * THREADS + THREADS - 1 - i % THREADS)) m->wrong = true;
}
static void a_missing_barrier_is_found(void **) {
    in_all_orders([] { expect(fault_of(true, 0, reverse), "reverse_kernel", "shared array turned"); });
    in_all_orders([] { assert_string_equal(fault_of(false, 0, reverse), ""); });
}

static void reuse(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_reuse(m->out, m->x, m->number, m->faulty);
}
static void a_missing_barrier_before_memory_is_used_again_is_found(void **) {
    in_all_orders([] { expect(fault_of(true, 3, reuse), "reuse_kernel", "race on shared array sums"); });
    in_all_orders([] { assert_string_equal(fault_of(true, 1, reuse), ""); });
    in_all_orders([] { assert_string_equal(fault_of(false, 4, reuse), ""); });
}

static void block_race(void *context) {
    Memory *m = static_cast<Memory *>(context);
    int *count = reinterpret_cast<int *>(m->out);
    *count = 0;
    planted_block_race(count, m->number, !m->faulty);
    m->wrong = !m->faulty && *count != m->number;
}
static void a_race_between_blocks_is_found_and_atomics_are_none(void **) {
    in_all_orders([] { expect(fault_of(true, 5, block_race), "block_race_kernel", "another block's thread"); });
    in_all_orders([] { assert_string_equal(fault_of(false, 5, block_race), ""); });
    assert_string_equal(fault_of(true, 1, block_race), "");
}

static void copy(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_copy(m->out, m->x, COUNT, m->number);
}
static void write_beyond(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_write(m->out, COUNT, m->number);
}
static void one_element_beyond_an_allocation_is_found(void **) {
    in_all_orders([] {
        expect(fault_of(true, 1, copy), "copy_kernel",
               "out of bounds: reads 4 bytes at byte 4096 of an allocation of 4096");
        expect(fault_of(true, 1, write_beyond), "write_kernel", "out of bounds: writes 4 bytes at byte 4096");
    });
    assert_string_equal(fault_of(false, 0, copy), "");
    assert_string_equal(fault_of(false, 0, write_beyond), "");
}

static void shared_index(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_shared(m->out, m->number);
}
static void unwritten(void *context) { planted_unwritten(static_cast<Memory *>(context)->out); }
static void shared_memory_has_bounds_and_begins_unwritten(void **) {
    expect(fault_of(true, 64, shared_index), "shared_kernel", "out of bounds");
    expect(fault_of(true, -1, shared_index), "shared_kernel", "out of bounds");
    assert_string_equal(fault_of(false, 63, shared_index), "");
    expect(fault_of(true, 0, unwritten), "unwritten_kernel", "no thread of the block has written yet");
}

static void divergent(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_divergent(m->out, m->faulty);
}
static void two_barriers(void *context) { planted_two_barriers(static_cast<Memory *>(context)->out); }
static void a_barrier_that_not_all_threads_reach_is_found(void **) {
    in_all_orders([] {
        expect(fault_of(true, 0, divergent), "divergent_kernel", "a barrier of the block that not all threads reach");
        expect(fault_of(false, 0, divergent), "divergent_kernel", "has ended");
        expect(fault_of(false, 0, two_barriers), "two_barriers_kernel", "waits at");
    });
}

static void shuffle(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_shuffle(m->out, m->faulty ? 0xffffffffu : 0xffffu, m->number);
}
static void a_shuffle_without_a_lane_of_its_mask_is_found(void **) {
    in_all_orders(
        [] { expect(fault_of(true, 16, shuffle), "shuffle_kernel", "a shuffle, vote or barrier of a warp"); });
    expect(fault_of(false, 16, shuffle), "shuffle_kernel", "which the mask leaves out"); // lane 15 asks lane 16
    assert_string_equal(fault_of(true, 32, shuffle), "");
}

static void warp(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_warp(m->out, m->faulty);
    for (int i = 0; i < THREADS && !m->faulty; i++)
        if (m->out[i] != static_cast<float>(i ^ 1)) m->wrong = true;
}
static void lanes_need_a_barrier_of_the_warp(void **) {
    in_all_orders([] { expect(fault_of(true, 0, warp), "warp_kernel", "shared array passed"); });
    in_all_orders([] { assert_string_equal(fault_of(false, 0, warp), ""); });
}

static void misaligned(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_misaligned(m->out, m->x + m->number);
}
static void a_misaligned_vector_is_found(void **) {
    for (int i = 1; i < 4; i++)
        expect(fault_of(true, i, misaligned), "misaligned_kernel", "misaligned: a vector of 16 bytes");
    assert_string_equal(fault_of(false, 4, misaligned), "");
}

static void trap(void *context) { planted_trap(static_cast<Memory *>(context)->out); }
static void a_trap_names_its_thread(void **) {
    expect(fault_of(true, 0, trap), "trap_kernel", "trap");
    expect(fault_of(true, 0, trap), "block (0, 0, 0), thread (33, 0, 0)", "trap");
}

static void votes(void *context) {
    Memory *m = static_cast<Memory *>(context);
    unsigned *out = reinterpret_cast<unsigned *>(m->out);
    planted_votes(out);
    for (unsigned lane = 0; lane < 32; lane++)
        m->wrong |= out[lane] != 0xaaaaaaaau || out[32 + lane] != 1 || out[64 + lane] != 0 ||
                    out[96 + lane] != 0xfu << lane / 4 * 4;
}
static void votes_and_matches_are_those_of_a_warp(void **) {
    in_all_orders([] { assert_string_equal(fault_of(false, 0, votes), ""); });
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_barrier_is_found),
        cmocka_unit_test(a_missing_barrier_before_memory_is_used_again_is_found),
        cmocka_unit_test(a_race_between_blocks_is_found_and_atomics_are_none),
        cmocka_unit_test(one_element_beyond_an_allocation_is_found),
        cmocka_unit_test(shared_memory_has_bounds_and_begins_unwritten),
        cmocka_unit_test(a_barrier_that_not_all_threads_reach_is_found),
        cmocka_unit_test(a_shuffle_without_a_lane_of_its_mask_is_found),
        cmocka_unit_test(lanes_need_a_barrier_of_the_warp),
        cmocka_unit_test(a_misaligned_vector_is_found),
        cmocka_unit_test(a_trap_names_its_thread),
        cmocka_unit_test(votes_and_matches_are_those_of_a_warp),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
