/* `bifocal plan`, and `bifocal train` as several processes, under mpirun or over TCP: the losses of one process. */
#include "tests/cli/command.h"
#include "tests/cli/runs.h"
#include "tests/cli/tiny_project.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void a_plan_tells_the_layout_and_refuses_what_does_not_fit(void **state) {
    (void)state;
    assert_prints("4 processes: data 2 x tensor 2, ZeRO 1", project, "plan", "config.yaml", "parallel.tensor=2",
                  "parallel.zero=1", "--ranks", "4");
    assert_prints("weights, gradients, moments", project, "plan", "config.yaml");
    assert_prints("memory of a rank of stage", project, "plan", "config.yaml", "parallel.pipeline=2");
    assert_prints("usage: bifocal plan", project, "plan", "--help");
    assert_refuses(2, "parallel.tensor to one of 1", project, "plan", "config.yaml", "parallel.tensor=2", "--ranks",
                   "3");
    assert_refuses(2, "CONFIG is missing", project, "plan");
    assert_refuses(2, "'0' is not a number from 1", project, "plan", "config.yaml", "--ranks", "0");
    assert_refuses(2, "did you mean '--ranks'", project, "plan", "config.yaml", "--rnks", "2");
    assert_refuses(2, "a second CONFIG", project, "plan", "config.yaml", "config.yaml");
    assert_refuses(2, "did you mean", project, "plan", "config.yaml", "parallel.tensr=2");
}

#define TRAIN "train", "config.yaml", "threads=1", "train.reproducible=layout", "train.microbatches=4"

static void processes_under_mpirun_have_the_losses_of_one(void **state) {
    (void)state;
    if (!command_can_launch()) skip();
    assert_status(0, project, TRAIN, "--run", "one");
    assert_status(0, project, "launch", "-n", "2", TRAIN, "parallel.zero=3", "--run", "two");
    assert_same_runs(project, "one", "two", 4);
    assert_status(0, project, "launch", "-n", "4", TRAIN, "parallel.tensor=2", "parallel.sequence=true", "--run",
                  "four");
    json_t *x[MOST_RECORDS], *y[MOST_RECORDS];
    int n = run_records(project, "one", x);
    assert_int_equal(run_records(project, "four", y), n);
    for (int i = 0; i < n; i++) {
        double p = json_get_number(x[i], "loss", NAN), q = json_get_number(y[i], "loss", NAN);
        assert_true(fabs(p - q) <= 1e-4 * p);
        json_decref(x[i]);
        json_decref(y[i]);
    }
}

// Three variables are all that a starter needs to set, and no MPI is needed.
static void processes_over_tcp_have_the_losses_of_one(void **state) {
    (void)state;
    static const char *const words[] = {TRAIN, "parallel.zero=1", "--run", "tcp", NULL};
    char master[32];
    assert_status(0, project, TRAIN, "--run", "alone");
    snprintf(master, sizeof master, "localhost:%d", 20000 + (int)(getpid() % 12000));
    setenv("BIFOCAL_MASTER", master, 1);
    setenv("BIFOCAL_RANKS", "2", 1);
    setenv("BIFOCAL_RANK", "1", 1);
    pid_t other = command_start(project, words);
    setenv("BIFOCAL_RANK", "0", 1);
    assert_status_at(0, project, NULL, NULL, NULL, words, __FILE__, __LINE__);
    assert_int_equal(command_end(other), 0);
    unsetenv("BIFOCAL_RANKS");
    assert_same_runs(project, "alone", "tcp", 4);
}

// One message, whichever ranks find something wrong.
static void what_is_wrong_is_said_once(void **state) {
    (void)state;
    if (!command_can_launch()) skip();
    Answer a = command_run(project, NULL, WORDS("launch", "-n", "2", TRAIN, "parallel.tensor=4", "--run", "wrong"));
    assert_int_equal(a.status, 2);
    const char *found = strstr(a.err.data, "parallel.tensor");
    assert_non_null(found);
    assert_non_null(strstr(found, "to one of 1, 2"));
    assert_null(strstr(strstr(found, "to one of"), "shared out"));
    answer_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_tells_the_layout_and_refuses_what_does_not_fit),
        cmocka_unit_test(processes_under_mpirun_have_the_losses_of_one),
        cmocka_unit_test(processes_over_tcp_have_the_losses_of_one),
        cmocka_unit_test(what_is_wrong_is_said_once),
    };
    return cmocka_run_group_tests(tests, open_project, close_project);
}
