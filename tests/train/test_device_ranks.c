/* Whole runs with `device: cuda` on several ranks, over a stand-in that computes on the CPU in memory that the host
 * cannot touch (tests/modules/apart_module.cpp): what goes between ranks is staged, and everything has the bits that it
 * has on the CPU. */
#include "base/files.h"
#include "tests/train/tiny_compare.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 32 };

static int open_on_module(void **state) {
    char *path = temporary_path(MODULE_FOLDER, "libcuda_module_apart.so");
    setenv("BIFOCAL_CUDA_MODULE", path, 1);
    free(path);
    return open_shared(state);
}

// more: settings; NULL at the end.
static void train(const char *name, const char *device, int ranks, const char *const *more) {
    const char *settings[MOST] = {
        "threads=1",          "train.reproducible=layout", "train.microbatches=4", "train.steps=4",
        "checkpoint.every=0", "parallel.bucket=8192",      "validation.every=0",   device};
    int n = 8;
    while (*more) settings[n++] = *more++;
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train_ranks(&shared, name, settings, false, ranks, NULL, &result, &error), &error);
}

static void remove_run(const char *name) {
    Error error = {0};
    char *path = temporary_path(shared.folder, name);
    assert_done(folder_remove(path, &error), &error);
    free(path);
}

static void expect_bits_of(const char *one, const char *name) {
    double apart = tiny_apart(&shared, one, name), end = tiny_end_apart(&shared, one, name);
    if (!(apart == 0 && end == 0)) fail_msg("%s and %s: losses %g, parameters %g apart", one, name, apart, end);
}

static void data_ranks_and_stages_have_the_bits_of_one_gpu(void **state) {
    (void)state;
    static const struct {
        int ranks;
        const char *settings[6];
    } layouts[] = {{2, {"parallel.data=2", "parallel.zero=0", NULL}},
                   {4, {"parallel.data=4", "parallel.zero=1", NULL}},
                   {2, {"parallel.data=2", "parallel.zero=2", NULL}},
                   {4, {"parallel.data=4", "parallel.zero=3", NULL}},
                   {2, {"parallel.pipeline=2", NULL}},
                   {4, {"parallel.pipeline=2", "parallel.data=2", "parallel.zero=1", "parallel.schedule=zb-h1", NULL}}};
    static const char *const precisions[] = {"precision=f32", "precision=bf16"};
    for (int p = 0; p < 2; p++) {
        train("cpu", "device=cpu", 1, (const char *[]){precisions[p], NULL});
        train("one", "device=cuda", 1, (const char *[]){precisions[p], NULL});
        expect_bits_of("cpu", "one");
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
            const char *settings[8] = {precisions[p]};
            for (int k = 0; layouts[i].settings[k]; k++) settings[k + 1] = layouts[i].settings[k];
            train("several", "device=cuda", layouts[i].ranks, settings);
            expect_bits_of("one", "several");
            remove_run("several");
        }
        remove_run("cpu");
        remove_run("one");
    }
}

static void tensor_and_sequence_ranks_have_the_bits_of_as_many_on_the_cpu(void **state) {
    (void)state;
    static const char *const layouts[][5] = {
        {"parallel.tensor=2", "precision=f32", NULL},
        {"parallel.tensor=2", "parallel.sequence=true", "precision=f32", NULL},
        {"parallel.tensor=2", "parallel.sequence=true", "parallel.zero=1", "precision=bf16", NULL}};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        int ranks = i == 2 ? 4 : 2;
        train("cpu", "device=cpu", ranks, layouts[i]);
        train("gpu", "device=cuda", ranks, layouts[i]);
        expect_bits_of("cpu", "gpu");
        remove_run("cpu");
        remove_run("gpu");
    }
}

// Sums over data ranks in whatever order the transport likes.
static void runs_whose_sums_have_no_order_work_too(void **state) {
    (void)state;
    static const char *const settings[] = {"train.reproducible=run", "parallel.zero=2", NULL};
    train("cpu", "device=cpu", 2, settings);
    train("gpu", "device=cuda", 2, settings);
    assert_close_records(&shared, "cpu", "gpu", 1e-4);
    remove_run("cpu");
    remove_run("gpu");
}

// As if it had died behind an earlier step.
static void cut(const char *name, int step) {
    char folder[64];
    Error error = {0};
    for (int later = step + 2; later <= 6; later += 2) {
        snprintf(folder, sizeof folder, "checkpoints/step-%08d", later);
        char *path = tiny_run_path(&shared, name, folder);
        assert_done(folder_remove(path, &error), &error);
        free(path);
    }
}

static void a_run_goes_on_from_the_cpu_on_gpus_and_back(void **state) {
    (void)state;
    static const char *const devices[] = {"device=cpu", "device=cuda", "device=cpu"};
    const char *settings[] = {
        "threads=1", "train.reproducible=layout", "train.microbatches=4", "checkpoint.every=2", NULL, NULL};
    TrainResult result;
    Error error = {0};
    for (int i = 0; i < 3; i++) {
        settings[4] = devices[i];
        assert_done(tiny_train_ranks(&shared, "back", settings, i > 0, i == 1 ? 4 : 1, NULL, &result, &error), &error);
        if (i < 2) cut("back", 2 * (i + 1));
    }
    assert_done(tiny_train(&shared, "whole", settings, false, NULL, &result, &error), &error);
    assert_same_end(&shared, "whole", "back");
    assert_same_records(&shared, "whole", "back");
}

static void without_a_gpu_no_folder_is_made(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    char *good = strdup(getenv("BIFOCAL_CUDA_MODULE")), *bare = temporary_path(MODULE_FOLDER, "libcuda_module_bare.so");
    char *folder = temporary_path(shared.folder, "nothing");
    setenv("BIFOCAL_CUDA_MODULE", bare, 1);
    for (int ranks = 1; ranks <= 2; ranks++) {
        error = (Error){0};
        assert_false(tiny_train_ranks(&shared, "nothing", (const char *[]){"device=cuda", NULL}, false, ranks, NULL,
                                      &result, &error));
        assert_non_null(strstr(error.message, "device: cuda: no driver in this test"));
        assert_false(folder_exists(folder));
    }
    setenv("BIFOCAL_CUDA_MODULE", good, 1);
    free(folder);
    free(good);
    free(bare);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_ranks_and_stages_have_the_bits_of_one_gpu),
        cmocka_unit_test(tensor_and_sequence_ranks_have_the_bits_of_as_many_on_the_cpu),
        cmocka_unit_test(runs_whose_sums_have_no_order_work_too),
        cmocka_unit_test(a_run_goes_on_from_the_cpu_on_gpus_and_back),
        cmocka_unit_test(without_a_gpu_no_folder_is_made),
    };
    return cmocka_run_group_tests(tests, open_on_module, close_shared);
}
