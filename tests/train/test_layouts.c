/* Whole runs on every kind of layout: the losses and the parameters of one process. */
#include "base/files.h"
#include "base/json.h"
#include "tests/train/tiny_run.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

// The records of a run but for its times.
static json_t *records_of(const char *name) {
    Error error = {0};
    json_t *all = json_array(), *record;
    char *path = tiny_run_path(&shared, name, "metrics.jsonl");
    JsonLines *lines = json_lines_open(path, &error);
    assert_non_null(lines);
    while (json_lines_next(lines, &record, &error) && record) {
        json_object_del(record, "seconds");
        json_object_del(record, "waited");
        json_object_del(record, "flop");
        json_array_append_new(all, record);
    }
    json_lines_close(lines);
    free(path);
    return all;
}

// As far as sums in another order allow.
static void assert_close_records(const char *a, const char *b) {
    json_t *x = records_of(a), *y = records_of(b);
    assert_int_equal(json_array_size(x), json_array_size(y));
    for (size_t i = 0; i < json_array_size(x); i++) {
        double p = json_get_number(json_array_get(x, i), "loss", NAN);
        double q = json_get_number(json_array_get(y, i), "loss", NAN);
        assert_true(fabs(p - q) <= 2e-4 * fabs(p));
    }
    json_decref(x);
    json_decref(y);
}

static void data_ranks_give_the_losses_of_one_process(void **state) {
    (void)state;
    const char *const settings[] = {"threads=1", "train.microbatches=8", NULL};
    train("one", 1, settings);
    for (int ranks = 2; ranks <= 8; ranks *= 2) {
        char name[16];
        snprintf(name, sizeof name, "data%d", ranks);
        train(name, ranks, settings);
        assert_close_records("one", name);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_ranks_give_the_losses_of_one_process),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
