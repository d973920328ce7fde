/* Whole runs: the same bits on any number of threads, over a stop, a kill and a resume; errors that stop a run. */
#include "base/files.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "tests/train/tiny_compare.h"
#include "train/checkpoint_state.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void train(const char *name, const char *const *settings, bool resume) {
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train(&shared, name, settings, resume, NULL, &result, &error), &error);
}

static Buffer read_file(const char *name, const char *file) {
    Buffer out = {0};
    Error error = {0};
    char *path = tiny_run_path(&shared, name, file);
    assert_done(file_read(path, &out, &error), &error);
    free(path);
    return out;
}

#define LAST "checkpoints/step-00000006"

// The losses of a run, step by step.
static int losses_of(const char *name, double *losses, int most) {
    Error error = {0};
    json_t *record;
    int count = 0;
    char *path = tiny_run_path(&shared, name, "metrics.jsonl");
    JsonLines *lines = json_lines_open(path, &error);
    assert_non_null(lines);
    while (json_lines_next(lines, &record, &error) && record) {
        if (json_object_get(record, "loss") && count < most) losses[count++] = json_get_number(record, "loss", NAN);
        json_decref(record);
    }
    json_lines_close(lines);
    free(path);
    return count;
}

static void assert_same_losses(const char *a, const char *b) {
    double x[16], y[16];
    int n = losses_of(a, x, 16);
    assert_int_equal(n, losses_of(b, y, 16));
    assert_int_equal(n, 6);
    for (int i = 0; i < n; i++) assert_true(x[i] == y[i]);
}

static void remove_in_run(const char *name, const char *file) {
    Error error = {0};
    char *path = tiny_run_path(&shared, name, file);
    assert_done(folder_remove(path, &error), &error);
    free(path);
}

static void every_number_of_threads_gives_the_same_bits(void **state) {
    (void)state;
    train("threads1", (const char *[]){"threads=1", "loader.threads=1", NULL}, false);
    train("threads4", (const char *[]){"threads=4", "loader.threads=3", "loader.ahead=2", "loader.cache=0", NULL},
          false);
    assert_same_end(&shared, "threads1", "threads4");
    assert_same_losses("threads1", "threads4");
}

static void resume_is_bit_exact(void **state) {
    (void)state;
    train("whole", NULL, false);
    train("resumed", NULL, false);
    remove_in_run("resumed", LAST); // as if it had died behind step 3
    train("resumed", NULL, true);
    assert_same_end(&shared, "whole", "resumed");
    assert_same_losses("whole", "resumed");
}

static void resume_is_bit_exact_in_bf16(void **state) {
    (void)state;
    const char *settings[] = {"precision=bf16", NULL};
    train("whole16", settings, false);
    train("resumed16", settings, false);
    remove_in_run("resumed16", LAST);
    train("resumed16", settings, true);
    assert_same_end(&shared, "whole16", "resumed16");
}

static void resume_with_validation_and_microbatches_is_bit_exact(void **state) {
    (void)state;
    char pictures[512], text[512];
    snprintf(pictures, sizeof pictures, "data.0.validation=%s/train", shared.folder);
    snprintf(text, sizeof text, "data.2.validation=%s/text", shared.folder);
    const char *settings[] = {pictures, text, "validation.every=2", "validation.batches=3", "train.microbatches=3",
                              NULL};
    train("measured", settings, false);
    train("measured-again", settings, false);
    remove_in_run("measured-again", LAST);
    train("measured-again", settings, true);
    assert_same_end(&shared, "measured", "measured-again");
    json_t *a = tiny_records(&shared, "measured"), *b = tiny_records(&shared, "measured-again");
    assert_int_equal(json_array_size(a), 6 + 3);
    assert_true(json_equal(a, b));
    json_t *last = json_array_get(a, json_array_size(a) - 1);
    assert_true(json_get_number(last, "validation/lm", 0) > 0 && json_get_number(last, "validation/mae", 0) > 0);
    json_decref(a);
    json_decref(b);
    // Measuring changes nothing that is learned.
    train("not-measured", (const char *[]){"train.microbatches=3", NULL}, false);
    assert_same_end(&shared, "measured", "not-measured");
}

static void a_signal_saves_and_the_run_goes_on_from_there(void **state) {
    (void)state;
    static volatile sig_atomic_t stop = 1;
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train(&shared, "stopped", NULL, false, &stop, &result, &error), &error);
    assert_true(result.interrupted);
    assert_int_equal(result.step, 0);
    train("stopped", NULL, true);
    train("not-stopped", NULL, false);
    assert_same_end(&shared, "stopped", "not-stopped");
}

static void a_killed_run_goes_on_bit_for_bit(void **state) {
    (void)state;
    const char *settings[] = {"checkpoint.every=1", NULL};
    train("unharmed", settings, false);
    for (int attempt = 0; attempt < 4; attempt++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (!child) {
            TrainResult result;
            Error error = {0};
            tiny_train(&shared, "killed", settings, true, NULL, &result, &error);
            _exit(0);
        }
        usleep(20000 + 15000 * (useconds_t)attempt);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    train("killed", settings, true);
    assert_same_end(&shared, "unharmed", "killed");
    assert_same_losses("unharmed", "killed");
}

static void microbatches_do_not_change_the_loss(void **state) {
    (void)state;
    double one[16], three[16];
    train("one-piece", NULL, false);
    train("three-pieces", (const char *[]){"train.microbatches=3", NULL}, false);
    losses_of("one-piece", one, 16);
    losses_of("three-pieces", three, 16);
    for (int i = 0; i < 6; i++) assert_true(fabs(one[i] - three[i]) <= 2e-4 * fabs(one[i]));
    assert_true(fabs(one[0] - three[0]) <= 1e-6 * fabs(one[0])); // before any update: the forward pass alone
}

// Pieces then show images that do not stand together in the batch; each must keep its draws of dropout.
static void microbatches_of_sources_with_different_objectives_draw_the_same(void **state) {
    (void)state;
    const char *const sources[] = {"contrastive", "mae", "contrastive,mae"};
    for (int i = 0; i < 3; i++) {
        double one[16], three[16];
        char objectives[64], whole[16], pieces[16];
        snprintf(objectives, sizeof objectives, "data.0.objectives=%s", sources[i]);
        snprintf(whole, sizeof whole, "mixed-one-%d", i);
        snprintf(pieces, sizeof pieces, "mixed-three-%d", i);
        const char *const some[] = {objectives, "train.steps=1", "optimizer.warmup_steps=0", NULL};
        const char *const cut[] = {objectives, some[1], some[2], "train.microbatches=3", NULL};
        train(whole, some, false);
        train(pieces, cut, false);
        assert_int_equal(losses_of(whole, one, 16), 1);
        assert_int_equal(losses_of(pieces, three, 16), 1);
        assert_true(fabs(one[0] - three[0]) <= 1e-6 * fabs(one[0]));
    }
}

static void a_run_is_not_overwritten(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    train("there", NULL, false);
    assert_false(tiny_train(&shared, "there", NULL, false, NULL, &result, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, "--resume");
}

static void a_loss_that_is_not_finite_names_the_first_bad_tensor(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    train("poisoned", NULL, false);
    remove_in_run("poisoned", LAST);
    tiny_poison(&shared, "poisoned", "checkpoints/step-00000003", "text.blocks.0.up.weight");
    assert_false(tiny_train(&shared, "poisoned", NULL, true, NULL, &result, &error));
    assert_int_equal(error.kind, ERROR_FAILED);
    assert_message_has(&error, "step 4");
    assert_message_has(&error, "text.blocks.0.up.weight");
    char *path = tiny_run_path(&shared, "poisoned", LAST);
    assert_false(folder_exists(path));
    free(path);
}

static void assert_not_resumed(const char *name, const char *const *settings, const char *part) {
    TrainResult result;
    Error error = {0};
    assert_false(tiny_train(&shared, name, settings, true, NULL, &result, &error));
    assert_int_equal(error.kind, ERROR_FAILED);
    assert_message_has(&error, part);
}

static void every_damaged_file_of_a_checkpoint_is_refused(void **state) {
    (void)state;
    static const char *const files[] = {"state.json", "model.json", "model.safetensors", "optimizer.safetensors"};
    Error error = {0};
    train("damaged", NULL, false);
    for (int i = 0; i < 4; i++) {
        char name[256];
        snprintf(name, sizeof name, LAST "/%s", files[i]);
        Buffer bytes = read_file("damaged", name);
        char *path = tiny_run_path(&shared, "damaged", name);
        size_t step = bytes.size / 10 + 1;
        for (size_t at = 0; at < bytes.size; at += step) {
            bytes.data[at] ^= 4;
            assert_done(file_write(path, bytes.data, bytes.size, &error), &error);
            assert_not_resumed("damaged", NULL, files[i]);
            bytes.data[at] ^= 4;
        }
        assert_done(file_write(path, bytes.data, bytes.size, &error), &error);
        buffer_free(&bytes);
        free(path);
    }
    train("damaged", NULL, true);
    remove_in_run("damaged", LAST "/optimizer.safetensors");
    assert_not_resumed("damaged", NULL, "optimizer.safetensors");
}

static void another_tokenizer_is_refused_on_resume(void **state) {
    (void)state;
    TinyRun own;
    char setting[4096];
    train("words", NULL, false);
    tiny_run_open(&own, 9);
    char *other = temporary_path(own.folder, "words.model");
    snprintf(setting, sizeof setting, "tokenizer=%s", other);
    assert_not_resumed("words", (const char *[]){setting, NULL}, "not the tokenizer the model was trained with");
    free(other);
    tiny_run_close(&own);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(resume_is_bit_exact),
        cmocka_unit_test(resume_is_bit_exact_in_bf16),
        cmocka_unit_test(resume_with_validation_and_microbatches_is_bit_exact),
        cmocka_unit_test(a_signal_saves_and_the_run_goes_on_from_there),
        cmocka_unit_test(a_killed_run_goes_on_bit_for_bit),
        cmocka_unit_test(microbatches_do_not_change_the_loss),
        cmocka_unit_test(microbatches_of_sources_with_different_objectives_draw_the_same),
        cmocka_unit_test(a_run_is_not_overwritten),
        cmocka_unit_test(a_loss_that_is_not_finite_names_the_first_bad_tensor),
        cmocka_unit_test(every_damaged_file_of_a_checkpoint_is_refused),
        cmocka_unit_test(another_tokenizer_is_refused_on_resume),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
