/* Whole runs on the CUDA backend without a GPU: its kernels on the shim, its host side over a runtime whose streams run
 * late and out of order, steps as lists and graphs, the host a step ahead; beside the same runs on the CPU. */
#include "base/files.h"
#include "tests/simt/nccl_stand_in.h"
#include "tests/simt/runtime.h"
#include "tests/train/tiny_compare.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *steps = "24"; // of the comparison of losses

static void train(const char *name, const char *device, const char *count, const char *precision, bool resume) {
    TrainResult result;
    Error error = {0};
    char train_steps[32];
    snprintf(train_steps, sizeof train_steps, "train.steps=%s", count);
    const char *const settings[] = {device,
                                    train_steps,
                                    precision,
                                    "optimizer.learning_rate=0.003",
                                    "optimizer.schedule=constant",
                                    "model.vision.patch=16",
                                    "sequence.caption=32",
                                    "sequence.contrastive=16",
                                    "data.0.batch=2",
                                    "data.1.batch=1",
                                    "data.2.batch=1",
                                    NULL};
    assert_done(tiny_train(&shared, name, settings, resume, NULL, &result, &error), &error);
}

static void losses_are_those_of_the_cpu_within_noise(void **state) {
    (void)state;
    train("cpu", "device=cpu", steps, "precision=f32", false);
    train("gpu", "device=cuda", steps, "precision=f32", false);
    assert_close_records(&shared, "cpu", "gpu", 2e-3);
}

// In bf16 no two orders of a sum give the same losses: a run on the GPU may be no farther from the CPU's than what
// rounding to bf16 does to the CPU's own (and what of that one such run happened not to show).
static void losses_in_bf16_are_those_of_the_cpu_within_its_rounding(void **state) {
    (void)state;
    train("cpu-f32", "device=cpu", steps, "precision=f32", false);
    train("cpu-bf16", "device=cpu", steps, "precision=bf16", false);
    train("gpu-bf16", "device=cuda", steps, "precision=bf16", false);
    double rounding = tiny_losses_apart(&shared, "cpu-f32", "cpu-bf16");
    double apart = tiny_losses_apart(&shared, "cpu-bf16", "gpu-bf16");
    printf("losses in %s steps: rounding to bf16 moves the CPU's by %.2g (root of the mean square), the GPU's are %.2g "
           "apart from them\n",
           steps, rounding, apart);
    assert_true(rounding > 0 && rounding < 0.05);
    assert_true(apart <= 1.5 * rounding);
}

// The way there and back, in the middle of a run.
static void checkpoints_go_between_the_cpu_and_a_gpu(void **state) {
    (void)state;
    train("whole", "device=cpu", "6", "precision=bf16", false);
    train("moved", "device=cpu", "3", "precision=bf16", false);
    train("moved", "device=cuda", "5", "precision=bf16", true);
    train("moved", "device=cpu", "6", "precision=bf16", true);
    double apart = tiny_losses_apart(&shared, "whole", "moved");
    assert_true(apart <= 0.01); // what rounding to bf16 does to losses in so few steps
}

// Streams in any order, lists kept and started again: the same bits.
static void every_order_of_streams_gives_the_same_bits(void **state) {
    (void)state;
    train("late", "device=cuda", "4", "precision=f32", false);
    runtime_set_order(RUNTIME_RANDOM, 7);
    train("random", "device=cuda", "4", "precision=f32", false);
    runtime_set_order(RUNTIME_OTHERS_FIRST, 7);
    train("others", "device=cuda", "4", "precision=f32", false);
    runtime_set_order(RUNTIME_LATE, 1);
    assert_same_records(&shared, "late", "random");
    assert_same_records(&shared, "late", "others");
    assert_same_end(&shared, "late", "random");
    assert_same_end(&shared, "late", "others");
}

// Dropout, learning rate, data and the numbers of rows differ from step to step; the lists do not.
static void steps_with_dropout_come_again_as_graphs(void **state) {
    (void)state;
    enum { STEPS = 8, EAGER = 4 /* steps until memory lies as it stays */ };
    TrainResult result;
    Error error = {0};
    int64_t before = runtime_calls(RUNTIME_GRAPH_LAUNCH);
    const char *const settings[] = {"device=cuda",        "train.steps=8",          "train.microbatches=1",
                                    "precision=bf16",     "model.text.dropout=0.2", "model.vision.dropout=0.1",
                                    "validation.every=0", "data.0.flip=0.5",        "data.0.batch=2",
                                    "data.1.batch=1",     "data.2.batch=1",         NULL};
    assert_done(tiny_train(&shared, "dropout", settings, false, NULL, &result, &error), &error);
    assert_true(runtime_calls(RUNTIME_GRAPH_LAUNCH) - before >= STEPS - EAGER);
}

static void fp8_is_refused_where_tensor_cores_have_none(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    const char *const settings[] = {"device=cuda", "train.steps=4", "precision=fp8", NULL};
    runtime_capability(8, 6);
    assert_false(tiny_train(&shared, "ampere", settings, false, NULL, &result, &error));
    runtime_capability(9, 0);
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_string_equal(error.message, "precision: fp8 needs a GPU of compute capability 8.9 or newer; this one "
                                       "(stand-in) is sm_86; use bf16");
    char *path = tiny_run_path(&shared, "ampere", "config.yaml");
    assert_int_equal(access(path, F_OK), -1);
    free(path);
}

// ---- as one of two ranks, each a process (tests/support/tcprun.sh) ----

static int open_ranks(void **state) {
    char folder[256] = "";
    if (comm_rank(stand_in_world) == 0) {
        open_shared(state);
        snprintf(folder, sizeof folder, "%s", shared.folder);
    }
    comm_broadcast(stand_in_world, folder, sizeof folder, 0, "the folder");
    if (comm_rank(stand_in_world)) shared = (TinyRun){.folder = strdup(folder)};
    return 0;
}

static int close_ranks(void **state) {
    comm_barrier(stand_in_world, "the end");
    if (comm_rank(stand_in_world) == 0) return close_shared(state);
    free(shared.folder);
    return 0;
}

static void train_rank(const char *name, Comm *group, const char *split) {
    TrainResult result;
    Error error = {0};
    const char *const settings[] = {"device=cuda",
                                    "threads=1",
                                    "train.steps=4",
                                    "train.reproducible=layout",
                                    "train.microbatches=2",
                                    "checkpoint.every=0",
                                    "model.vision.patch=16",
                                    "sequence.caption=32",
                                    "sequence.contrastive=16",
                                    "data.0.batch=2",
                                    "data.1.batch=1",
                                    "data.2.batch=2",
                                    split,
                                    NULL};
    assert_done(tiny_train_rank(&shared, name, settings, group, &result, &error), &error);
    assert_int_equal(result.step, 4);
}

// What was trained in one process has the same bits on two: linked, where no host waits for a step's numbers, and
// through the hosts.
static void two_ranks_have_the_bits_of_one(void **state) {
    (void)state;
    static const struct {
        const char *split, *nccl;
        RuntimeOrder order;
    } cases[] = {{"parallel.zero=0", LIBRARY_FOLDER "/libnccl_good.so", RUNTIME_RANDOM},
                 {"parallel.zero=2", LIBRARY_FOLDER "/libnccl_good.so", RUNTIME_LATE},
                 {"parallel.pipeline=2", "off", RUNTIME_OTHERS_FIRST}};
    bool first = comm_rank(stand_in_world) == 0;
    if (first) train_rank("one", NULL, "parallel.zero=0");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setenv("BIFOCAL_NCCL", cases[i].nccl, 1);
        runtime_set_order(cases[i].order, 3 + (uint64_t)comm_rank(stand_in_world));
        train_rank("two", stand_in_world, cases[i].split);
        if (!first) continue;
        assert_same_records(&shared, "one", "two");
        assert_same_end(&shared, "one", "two");
        char *path = temporary_path(shared.folder, "two");
        Error error = {0};
        assert_done(folder_remove(path, &error), &error);
        free(path);
    }
}

static int main_of_rank(void) {
    Error error = {0};
    const struct CMUnitTest tests[] = {cmocka_unit_test(two_ranks_have_the_bits_of_one)};
    stand_in_world = comm_world_new(NULL, &error);
    if (!stand_in_world) return fprintf(stderr, "%s\n", error.message), 1;
    int failed = cmocka_run_group_tests(tests, open_ranks, close_ranks);
    if (!failed) comm_free(stand_in_world);
    return failed;
}

// simt_train [STEPS]
int main(int argc, char **argv) {
    if (getenv("BIFOCAL_RANKS")) return main_of_rank();
    if (argc > 1) steps = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_are_those_of_the_cpu_within_noise),
        cmocka_unit_test(losses_in_bf16_are_those_of_the_cpu_within_its_rounding),
        cmocka_unit_test(checkpoints_go_between_the_cpu_and_a_gpu),
        cmocka_unit_test(every_order_of_streams_gives_the_same_bits),
        cmocka_unit_test(fp8_is_refused_where_tensor_cores_have_none),
        cmocka_unit_test(steps_with_dropout_come_again_as_graphs),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
