/* The shim finds what is planted, and nothing where nothing is. */
#include "tests/simt/planted.h"
#include "tests/simt/shim/host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
extern "C" {
#include "kernels/tensor.h"
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

// Whole numbers that bf16 holds, and products that no two places share.
static void matrices(void *context) {
    Memory *m = static_cast<Memory *>(context);
    uint16_t *x = reinterpret_cast<uint16_t *>(m->x), *y = x + 256;
    const bool transposed = m->number % 2;
    float a[16][16], b[16][16];
    for (int i = 0; i < 256; i++) {
        a[i / 16][i % 16] = static_cast<float>((i * 37 + i / 16) % 61 - 30);
        b[i / 16][i % 16] = static_cast<float>((i * 53 + i / 7) % 59 - 29);
        x[i] = f32_to_bf16(a[i / 16][i % 16]);
        y[transposed ? i % 16 * 16 + i / 16 : i] = f32_to_bf16(b[i / 16][i % 16]);
    }
    planted_matrices(m->out, x, y, transposed, static_cast<PlantedMatrices>(m->number / 2));
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            m->wrong |= !(m->out[row * 16 + column] == sum);
        }
}
static void products_of_matrices_are_those_of_their_fragments(void **) {
    for (int transposed = 0; transposed < 2; transposed++) {
        in_all_orders([] { assert_string_equal(fault_of(false, 2 * MATRICES_RIGHT, matrices), ""); });
        assert_string_equal(fault_of(false, 2 * MATRICES_RIGHT + transposed, matrices), "");
        assert_string_equal(fault_of(true, 2 * MATRICES_SWAPPED + transposed, matrices), "wrong numbers");
    }
    expect(fault_of(true, 2 * MATRICES_MISALIGNED, matrices), "matrices_kernel", "misaligned: a vector of 16 bytes");
    expect(fault_of(true, 2 * MATRICES_GLOBAL, matrices), "matrices_kernel", "memory that is not shared");
}

static void copies(void *context) {
    Memory *m = static_cast<Memory *>(context);
    planted_copies(m->out, m->x, COUNT, static_cast<PlantedCopies>(m->number));
    for (int i = 0; i < COUNT; i++) m->wrong |= !(m->out[i] == static_cast<float>(COUNT - 1 - i));
}
static void an_asynchronous_copy_is_there_behind_its_wait_and_a_barrier(void **) {
    in_all_orders([] {
        assert_string_equal(fault_of(false, COPIES_RIGHT, copies), "");
        expect(fault_of(true, COPIES_NO_BARRIER, copies), "copies_kernel", "shared array pairs");
        expect(fault_of(true, COPIES_NOT_WAITED, copies), "copies_kernel", "2 asynchronous copies under way");
        assert_string_not_equal(fault_of(true, COPIES_TOO_EARLY, copies), "");
    });
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
        cmocka_unit_test(products_of_matrices_are_those_of_their_fragments),
        cmocka_unit_test(an_asynchronous_copy_is_there_behind_its_wait_and_a_barrier),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
