/* Whole runs with products in fp8: near those in bf16, the same when they go on and over ranks, refused where they
 * cannot be. */
#include "base/files.h"
#include "base/safetensors_set.h"
#include "kernels/fp8.h"
#include "tests/train/tiny_compare.h"
#include "tests/train/tiny_run.h"
#include "train/checkpoint_layout.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LAST "checkpoints/step-00000006"

static double train(const char *name, int ranks, const char *precision, const char *more, bool resume) {
    TrainResult result;
    Error error = {0};
    const char *const settings[] = {"threads=1", "train.microbatches=2", "train.reproducible=layout", precision, more,
                                    NULL};
    assert_done(tiny_train_ranks(&shared, name, settings, resume, ranks, NULL, &result, &error), &error);
    assert_int_equal(result.step, 6);
    json_t *records = tiny_records(&shared, name);
    double loss = json_get_number(json_array_get(records, json_array_size(records) - 1), "loss", NAN);
    json_decref(records);
    return loss;
}

// How many scalings of a run's last checkpoint have found their scales.
static int scalings(const char *name) {
    Error error = {0};
    SafeTensorsSet files;
    int count = 0;
    char *folder = tiny_run_path(&shared, name, LAST);
    assert_done(safetensors_set_open(&files, folder, checkpoint_part_names[PART_MODEL], &error), &error);
    for (int i = 0; i < files.all.count; i++) {
        const SafeTensor *t = &files.all.tensors[i];
        size_t length = strlen(t->name);
        if (length < 8 || strcmp(t->name + length - 8, ".scaling") != 0) continue;
        Fp8Scaling s[FP8_SIDES];
        assert_int_equal(t->bytes, sizeof s);
        memcpy(s, t->data, sizeof s);
        count += s[0].scale != 1 && s[1].scale > 1 && s[2].scale > 1 && s[0].history[0] > 0;
    }
    safetensors_set_close(&files);
    free(folder);
    return count;
}

static void losses_in_fp8_stay_near_those_in_bf16(void **state) {
    (void)state;
    double bf16 = train("bf16", 1, "precision=bf16", NULL, false);
    double fp8 = train("fp8", 1, "precision=fp8", NULL, false);
    assert_true(fp8 != bf16 && fabs(fp8 - bf16) < 0.03 * bf16);
    assert_true(scalings("fp8") >= 4);
    assert_int_equal(scalings("bf16"), 0);
}

static void a_run_in_fp8_goes_on_with_its_scales(void **state) {
    (void)state;
    Error error = {0};
    train("whole", 1, "precision=fp8", NULL, false);
    train("halves", 1, "precision=fp8", NULL, false);
    char *last = tiny_run_path(&shared, "halves", LAST);
    assert_done(folder_remove(last, &error), &error); // as if it had died behind step 3
    train("halves", 1, "precision=fp8", NULL, true);
    assert_same_end(&shared, "whole", "halves");
    free(last);
}

static void ranks_agree_on_scales(void **state) {
    (void)state;
    train("alone", 1, "precision=fp8", NULL, false);
    train("shared", 2, "precision=fp8", "parallel.zero=1", false);
    assert_same_end(&shared, "alone", "shared");
}

static void scales_that_would_move_are_refused(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    const char *const settings[] = {"precision=fp8", "parallel.zero=3", NULL};
    assert_false(tiny_train_ranks(&shared, "refused", settings, false, 2, NULL, &result, &error));
    assert_non_null(strstr(error.message, "parallel.zero 0 to 2"));
    char *folder = tiny_run_path(&shared, "refused", "metrics.jsonl");
    assert_false(file_exists(folder));
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_in_fp8_stay_near_those_in_bf16),
        cmocka_unit_test(a_run_in_fp8_goes_on_with_its_scales),
        cmocka_unit_test(ranks_agree_on_scales),
        cmocka_unit_test(scales_that_would_move_are_refused),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
