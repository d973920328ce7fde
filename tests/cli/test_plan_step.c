/* `bifocal plan step`: what it prints and draws of a config on a cluster, what it refuses, and the configs that come
 * with the program. */
#include "base/files.h"
#include "tests/cli/command.h"
#include "tests/cli/tiny_project.h"
#include <stdlib.h>
#include <string.h>

#define STEP "plan", "step", "config.yaml"

static void a_step_on_a_cluster_is_told_and_drawn(void **state) {
    (void)state;
    char *path = temporary_path(project, "step.svg");
    Buffer svg = {0};
    Error error = {0};
    assert_prints("4 processes: data 2 x pipeline 2 (1f1b)", project, STEP, "parallel.pipeline=2",
                  "parallel.schedule=1f1b", "train.microbatches=8", "--ranks", "4", "--svg", "step.svg");
    assert_prints("of the devices' peak (MFU)", project, STEP, "--ranks", "1", "--flops", "1e12", "--peak", "2e12");
    assert_done(file_read(path, &svg, &error), &error);
    assert_non_null(strstr(svg.data, "1f1b: 2 stages, 4 microbatches"));
    buffer_free(&svg);
    free(path);
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    assert_refuses(2, "--ranks is missing", project, STEP);
    assert_refuses(2, "CONFIG is missing", project, "plan", "step", "--ranks", "2");
    assert_refuses(2, "--ranks '2.5' is not a whole number", project, STEP, "--ranks", "2.5");
    assert_refuses(2, "--flops '0'", project, STEP, "--ranks", "2", "--flops", "0");
    assert_refuses(2, "fit", project, STEP, "parallel.pipeline=2", "train.microbatches=8", "--ranks", "2", "--memory",
                   "1e5");
    assert_refuses(2, "too few", project, STEP, "parallel.pipeline=64", "train.microbatches=64", "--ranks", "64");
    assert_prints("--outside", "/", "plan", "step", "--help");
}

#define DATA "tokenizer=words.model", "data.0.path=data", "data.0.text={caption}", "data.1.path=text"

static void the_large_configs_that_come_along_are_accepted(void **state) {
    (void)state;
    assert_prints("235.98 M weights", project, "plan", SOURCE_FOLDER "/configs/joint_b.yaml", DATA, "--ranks", "8");
    assert_prints("683.61 M weights", project, "plan", SOURCE_FOLDER "/configs/joint_l.yaml", DATA, "--ranks", "64");
    assert_prints("9897.97 M weights", project, "plan", SOURCE_FOLDER "/configs/joint_10b.yaml", DATA,
                  "parallel.pipeline=8", "parallel.zero=1", "train.microbatches=512", "--ranks", "64");
    assert_prints("gradients of words, to their copy", project, "plan", SOURCE_FOLDER "/configs/joint_b.yaml",
                  "parallel.pipeline=4", "train.microbatches=16"); // its data are not here
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_on_a_cluster_is_told_and_drawn),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(the_large_configs_that_come_along_are_accepted),
    };
    return cmocka_run_group_tests(tests, open_project, close_project);
}
