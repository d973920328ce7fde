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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_ranks_give_the_bits_of_one_process),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
