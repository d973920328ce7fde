/* Whole runs that go on with another layout than the one they were saved with. */
#include "base/files.h"
#include "base/json.h"
#include "base/safetensors_set.h"
#include "tests/train/tiny_run.h"
#include "train/checkpoint_layout.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAST "checkpoints/step-00000006"

typedef struct How {
    int ranks;
    const char *tensor, *zero, *pipeline, *schedule;
} How;

static void train(const char *name, How how, bool resume) {
    TrainResult result;
    Error error = {0};
    const char *const settings[] = {"threads=1",
                                    "train.microbatches=4",
                                    "train.reproducible=layout",
                                    how.tensor,
                                    how.zero,
                                    how.pipeline,
                                    how.schedule,
                                    NULL};
    assert_done(tiny_train_ranks(&shared, name, settings, resume, how.ranks, NULL, &result, &error), &error);
    assert_int_equal(result.step, 6);
}

// Saved behind step 3 by one layout, ended by another.
static void train_on_two(const char *name, How first, How then) {
    Error error = {0};
    char *last = tiny_run_path(&shared, name, LAST);
    train(name, first, false);
    assert_done(folder_remove(last, &error), &error); // as if it had died behind step 3
    train(name, then, true);
    free(last);
}

static void open_last(const char *name, int part, SafeTensorsSet *out) {
    Error error = {0};
    char *folder = tiny_run_path(&shared, name, LAST);
    assert_done(safetensors_set_open(out, folder, checkpoint_part_names[part], &error), &error);
    free(folder);
}

// Masters and moments of the last checkpoints, bit for bit.
static void assert_same_end(const char *a, const char *b) {
    for (int part = 0; part < CHECKPOINT_PARTS; part++) {
        SafeTensorsSet x, y;
        open_last(a, part, &x);
        open_last(b, part, &y);
        assert_int_equal(x.all.count, y.all.count);
        for (int i = 0; i < x.all.count; i++) {
            const SafeTensor *p = &x.all.tensors[i], *q = &y.all.tensors[i];
            assert_string_equal(p->name, q->name);
            assert_int_equal(p->bytes, q->bytes);
            if (memcmp(p->data, q->data, (size_t)p->bytes) != 0) fail_msg("%s is not the same", p->name);
        }
        safetensors_set_close(&x);
        safetensors_set_close(&y);
    }
}

static double last_loss(const char *name) {
    Error error = {0};
    json_t *record;
    double loss = NAN;
    char *path = tiny_run_path(&shared, name, "metrics.jsonl");
    JsonLines *lines = json_lines_open(path, &error);
    assert_non_null(lines);
    while (json_lines_next(lines, &record, &error) && record) {
        loss = json_get_number(record, "loss", NAN);
        json_decref(record);
    }
    json_lines_close(lines);
    free(path);
    return loss;
}

#define NO_PIPELINE "parallel.pipeline=1", "parallel.schedule=1f1b"
static const How one = {1, "parallel.tensor=1", "parallel.zero=0", NO_PIPELINE};

static void a_run_goes_on_bit_for_bit_on_other_ranks_and_stages(void **state) {
    (void)state;
    static const How pair = {2, "parallel.tensor=1", "parallel.zero=3", NO_PIPELINE};
    static const How four = {4, "parallel.tensor=1", "parallel.zero=1", NO_PIPELINE};
    train("whole", one, false);
    train_on_two("spread", one, pair);
    assert_same_end("whole", "spread");
    train_on_two("gathered", four, one);
    assert_same_end("whole", "gathered");
    train_on_two("between", pair, four);
    assert_same_end("whole", "between");
}

static void a_run_goes_on_bit_for_bit_on_other_pipelines(void **state) {
    (void)state;
    static const How three = {3, "parallel.tensor=1", "parallel.zero=0", "parallel.pipeline=3",
                              "parallel.schedule=1f1b"};
    static const How folded = {4, "parallel.tensor=1", "parallel.zero=1", "parallel.pipeline=2",
                               "parallel.schedule=zb-v"};
    train("plain", one, false);
    train_on_two("to-stages", one, folded);
    assert_same_end("plain", "to-stages");
    train_on_two("from-stages", three, one);
    assert_same_end("plain", "from-stages");
    train_on_two("restaged", folded, three);
    assert_same_end("plain", "restaged");
}

// Sums in another order change the last digits alone.
static void a_run_over_tensor_ranks_goes_on_as_it_would_have(void **state) {
    (void)state;
    static const How split = {2, "parallel.tensor=2", "parallel.zero=0", NO_PIPELINE};
    train("split", split, false);
    train_on_two("split-again", split, split);
    assert_same_end("split", "split-again");
    train_on_two("to-split", one, split);
    train_on_two("from-split", split, one);
    assert_true(fabs(last_loss("to-split") - last_loss("split")) <= 1e-3 * fabs(last_loss("split")));
    assert_true(fabs(last_loss("from-split") - last_loss("split")) <= 1e-3 * fabs(last_loss("split")));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_goes_on_bit_for_bit_on_other_ranks_and_stages),
        cmocka_unit_test(a_run_goes_on_bit_for_bit_on_other_pipelines),
        cmocka_unit_test(a_run_over_tensor_ranks_goes_on_as_it_would_have),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
