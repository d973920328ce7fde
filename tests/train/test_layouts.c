/* Whole runs on every kind of layout: the losses and the parameters of one process. */
#include "tests/train/tiny_compare.h"
#include <stdio.h>

static TinyRun shared; // made once: every test trains runs of its own in it

static int open_shared(void **state) {
    (void)state;
    tiny_run_open(&shared, 1);
    return 0;
}
static int close_shared(void **state) {
    (void)state;
    tiny_run_close(&shared);
    return 0;
}

static void train(const char *name, int ranks, const char *const *settings) {
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train_ranks(&shared, name, settings, false, ranks, NULL, &result, &error), &error);
}

static void data_ranks_give_the_bits_of_one_process(void **state) {
    (void)state;
    const char *const settings[] = {"threads=1", "train.reproducible=layout", "train.microbatches=8", NULL};
    train("one", 1, settings);
    for (int ranks = 2; ranks <= 8; ranks *= 2) {
        char name[16];
        snprintf(name, sizeof name, "data%d", ranks);
        train(name, ranks, settings);
        assert_same_records(&shared, "one", name);
        assert_same_end(&shared, "one", name);
    }
}

// A bias of keys moves no loss: its gradient is rounding alone, of which AdamW with its usual epsilon makes steps of
// full size. With this one the parameters can be compared.
#define TENSOR_SETTINGS "threads=1", "train.microbatches=4", "optimizer.epsilon=1e-4"

static void tensor_ranks_give_the_losses_of_one_process(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int ranks;
        const char *settings[9];
    } layouts[] = {
        {"tensor2", 2, {TENSOR_SETTINGS, "parallel.tensor=2", NULL}},
        {"sequence2", 2, {TENSOR_SETTINGS, "parallel.tensor=2", "parallel.sequence=true", NULL}},
        {"data2-tensor2", 4, {TENSOR_SETTINGS, "parallel.tensor=2", "parallel.zero=3", NULL}},
        {"data2-sequence2",
         4,
         {TENSOR_SETTINGS, "parallel.tensor=2", "parallel.sequence=true", "parallel.zero=2", "train.recompute=full",
          "train.reproducible=layout", NULL}},
    };
    train("alone", 1, (const char *const[]){TENSOR_SETTINGS, NULL});
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        train(layouts[i].name, layouts[i].ranks, layouts[i].settings);
        assert_close_records(&shared, "alone", layouts[i].name, 1e-5);
        assert_close_end(&shared, "alone", layouts[i].name, 1e-4);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_ranks_give_the_bits_of_one_process),
        cmocka_unit_test(tensor_ranks_give_the_losses_of_one_process),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
