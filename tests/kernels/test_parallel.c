/* Parameters split over tensor ranks: which elements of the whole a rank holds, and with which initial values. */
#include "kernels/cpu/cpu.h"
#include "kernels/nn/tensor_parallel.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 4 };

// One parameter of a set that a rank of a group declares.
typedef struct Sample {
    const char *name;
    int rank;
    int64_t shape[3];
    Init init;
    Split split;
} Sample;

static const float given[30] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9,
                                3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7};

static const Sample samples[] = {
    {"rows", 2, {11, 5}, {.kind = INIT_NORMAL, .value = 1}, {0, 1, {11}}}, // shares that are not equal
    {"three", 2, {24, 3}, {.kind = INIT_NORMAL, .value = 1}, {0, 3, {16, 4, 4}}},
    {"columns", 2, {5, 12}, {.kind = INIT_UNIFORM, .value = 2}, {1, 1, {12}}},
    {"gated", 3, {3, 8, 5}, {.kind = INIT_NORMAL, .value = 1}, {1, 2, {4, 4}}},
    {"given", 2, {3, 10}, {.kind = INIT_GIVEN, .given = given}, {1, 2, {6, 4}}},
    {"bias", 1, {24}, {.kind = INIT_CONSTANT, .value = 0.5}, {0, 3, {16, 4, 4}}},
    {"few", 2, {2, 7}, {.kind = INIT_NORMAL, .value = 1}, {0, 1, {2}}}, // some ranks hold nothing
    {"whole", 2, {7, 3}, {.kind = INIT_NORMAL, .value = 1}, {0}},
};
enum { SAMPLES = sizeof samples / sizeof *samples };

static Parameters *declare(Backend *backend, Comm *tensor) {
    Parallel parallel = {.tensor = tensor};
    Error error = {0};
    Parameters *p = parameters_new(backend, &parallel);
    for (int i = 0; i < SAMPLES; i++)
        parameters_add_split(p, samples[i].name, samples[i].rank, samples[i].shape, samples[i].init, true,
                             samples[i].split);
    assert_done(parameters_finish(p, F32, 9, &error), &error);
    return p;
}

// Every element of the pieces lies in the whole where parameter_run says, with the whole's value; counts how often.
static void place(Parameters *pieces, Parameters *whole, int32_t *seen[SAMPLES]) {
    assert_int_equal(parameters_whole_elements(pieces, true), parameters_elements(whole, true));
    for (int i = 0; i < SAMPLES; i++) {
        const Parameter *item = parameters_at(pieces, i);
        const float *want = parameters_at(whole, i)->master;
        int64_t local = tensor_count(&item->tensor), global, run;
        for (int64_t at = 0; at < local; at++) { // runs from within runs, too
            parameter_run(item, parameters_parallel(pieces), at, &global, &run);
            assert_true(run >= 1 && at + run <= local);
            assert_memory_equal(item->master + at, want + global, (size_t)run * sizeof *want);
            seen[i][global]++;
        }
    }
}

static void pieces_make_up_the_whole_tensor(void **state) {
    (void)state;
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Parameters *whole = declare(backend, NULL);
    for (int ranks = 1; ranks <= MOST_RANKS; ranks++) {
        Comm *ends[MOST_RANKS];
        int32_t *seen[SAMPLES];
        for (int i = 0; i < SAMPLES; i++)
            seen[i] = calloc((size_t)tensor_count(&parameters_at(whole, i)->tensor), sizeof(int32_t));
        comm_threads_new(ranks, ends);
        for (int r = 0; r < ranks; r++) {
            Parameters *pieces = declare(backend, ends[r]);
            place(pieces, whole, seen);
            parameters_free(pieces);
        }
        for (int i = 0; i < SAMPLES; i++) {
            for (int64_t k = 0; k < tensor_count(&parameters_at(whole, i)->tensor); k++)
                assert_int_equal(seen[i][k], samples[i].split.segments ? 1 : ranks);
            free(seen[i]);
        }
        for (int r = 0; r < ranks; r++) comm_free(ends[r]);
    }
    parameters_free(whole);
    backend_free(backend);
}

static void a_piece_knows_its_own_shape_and_the_whole_ones(void **state) {
    (void)state;
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Comm *ends[3];
    comm_threads_new(3, ends);
    Parameters *p = declare(backend, ends[1]);
    const Parameter *rows = parameters_find(p, "rows"), *few = parameters_find(p, "few");
    assert_true(rows->global_shape[0] == 11 && rows->tensor.shape[0] == 4 && rows->tensor.shape[1] == 5);
    assert_true(few->global_shape[0] == 2 && few->tensor.shape[0] == 1);
    assert_int_equal(parameters_find(p, "whole")->tensor.shape[0], 7);
    parameters_free(p);
    for (int r = 0; r < 3; r++) comm_free(ends[r]);
    backend_free(backend);
}

// Shares of 1000 and 1001 words would end in different blocks, and buckets in different places.
static void buckets_are_the_same_on_every_tensor_rank(void **state) {
    (void)state;
    enum { RANKS = 2, WORDS = 2001, WIDTH = 1024 };
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    Comm *ends[RANKS];
    Parameters *p[RANKS];
    Error error = {0};
    Init normal = {.kind = INIT_NORMAL, .value = 1};
    comm_threads_new(RANKS, ends);
    for (int r = 0; r < RANKS; r++) {
        Parallel parallel = {.tensor = ends[r], .bucket_bytes = 1003 * WIDTH * 4};
        p[r] = parameters_new(backend, &parallel);
        parameters_add_split(p[r], "words", SHAPE(WORDS, WIDTH), normal, true, (Split){0, 1, {WORDS}});
        for (int i = 0; i < 3; i++) {
            char name[8] = {'v', (char)('0' + i)};
            parameters_set_partial(p[r], parameters_add(p[r], name, SHAPE(WIDTH), normal, false));
        }
        assert_done(parameters_finish(p[r], F32, 9, &error), &error);
    }
    assert_true(parameters_at(p[0], 0)->tensor.shape[0] != parameters_at(p[1], 0)->tensor.shape[0]);
    for (int i = 0; i < parameters_count(p[0]); i++) {
        assert_int_equal(parameters_at(p[0], i)->bucket, parameters_at(p[1], i)->bucket);
        assert_int_equal(parameters_at(p[0], i)->offset, parameters_at(p[1], i)->offset);
    }
    for (int r = 0; r < RANKS; r++) {
        parameters_free(p[r]);
        comm_free(ends[r]);
    }
    backend_free(backend);
}

static void degrees_that_work_are_named(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 12);
    assert_string_equal(parallel_degrees(parallel_common(parallel_common(0, 12), 8), memory), "1, 2 or 4");
    assert_string_equal(parallel_degrees(2, memory), "1 or 2");
    assert_string_equal(parallel_degrees(1, memory), "1");
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_make_up_the_whole_tensor),
        cmocka_unit_test(a_piece_knows_its_own_shape_and_the_whole_ones),
        cmocka_unit_test(buckets_are_the_same_on_every_tensor_rank),
        cmocka_unit_test(degrees_that_work_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
