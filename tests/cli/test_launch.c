/* `bifocal launch`: ranks that are killed, stopped and asked to stop while they train; restarts. The ranks are real
 * processes under mpirun; without mpirun, or in a program built without MPI, all of it is skipped. */
#include "base/clock.h"
#include "base/files.h"
#include "tests/cli/command.h"
#include "tests/cli/runs.h"
#include "tests/cli/tiny_project.h"
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SKIPPED = 77, MOST_PROCESSES = 64, LIMIT_SECONDS = 10 };

#define TRAIN   "train", "config.yaml", "threads=1", "parallel.tensor=1", "checkpoint.keep=1000"
#define ENDLESS TRAIN, "train.steps=1000000", "checkpoint.every=0"

// ---- the processes of a launch: those that work in the project's folder ----

static bool in_project(const char *process) {
    char link[64], folder[4096];
    snprintf(link, sizeof link, "/proc/%.20s/cwd", process);
    ssize_t n = readlink(link, folder, sizeof folder - 1);
    folder[n > 0 ? n : 0] = 0;
    return !strcmp(folder, project);
}

// The rank that a process is, from its environment; -1: none (mpirun, the launcher), -2: it has ended.
static int rank_of(const char *process) {
    static const char name[] = "OMPI_COMM_WORLD_RANK=";
    char path[64];
    Buffer variables = {0};
    Error ignored = {0};
    int rank = -1;
    snprintf(path, sizeof path, "/proc/%.20s/environ", process);
    bool there = file_read(path, &variables, &ignored) && variables.size;
    for (size_t i = 0; there && i < variables.size; i += strlen(variables.data + i) + 1)
        if (!strncmp(variables.data + i, name, sizeof name - 1)) rank = atoi(variables.data + i + sizeof name - 1);
    buffer_free(&variables);
    return there ? rank : -2;
}

// All processes of the project, or those that are `rank` (-1: any rank).
static int find_processes(int rank, bool ranks_only, pid_t found[MOST_PROCESSES]) {
    int count = 0;
    DIR *all = opendir("/proc");
    assert_non_null(all);
    for (const struct dirent *e; (e = readdir(all)) && count < MOST_PROCESSES;) {
        int number = atoi(e->d_name);
        if (number <= 0 || number == getpid() || !in_project(e->d_name)) continue;
        int is = rank_of(e->d_name);
        if (is == -2 || (ranks_only && (is < 0 || (rank >= 0 && is != rank)))) continue;
        found[count++] = number;
    }
    closedir(all);
    return count;
}

static pid_t find_rank(int rank) {
    pid_t found[MOST_PROCESSES];
    assert_int_equal(find_processes(rank, true, found), 1);
    return found[0];
}

static void assert_no_process_left_within(double seconds, bool ranks_only) {
    pid_t left[MOST_PROCESSES];
    double until = clock_seconds() + seconds;
    while (find_processes(-1, ranks_only, left) && clock_seconds() < until) usleep(20000);
    assert_int_equal(find_processes(-1, ranks_only, left), 0);
}

// ---- logs ----

static void assert_log_says(const char *run, int rank, const char *part) {
    char name[64] = "log.txt";
    Buffer log = {0};
    Error error = {0};
    if (rank) snprintf(name, sizeof name, "logs/rank-%05d.txt", rank);
    char *path = run_path(project, run, name);
    assert_done(file_read(path, &log, &error), &error);
    if (!strstr(log.data, part)) fail_msg("%s/%s does not say '%s':\n%s", run, name, part, log.data);
    buffer_free(&log);
    free(path);
}

// ---- tests ----

static void a_killed_rank_is_named_by_all_others_and_all_end(void **state) {
    (void)state;
    static const char *const stages[] = {"parallel.pipeline=1", "parallel.pipeline=3"}; // data ranks; stages of a step
    for (int i = 0; i < 6; i++) {
        int victim = i % 3;
        char run[16], dead[64], own[64];
        snprintf(run, sizeof run, "dead-%d", i);
        pid_t launch = command_start(
            project, WORDS("launch", "-n", "3", ENDLESS, "train.microbatches=6", stages[i / 3], "--run", run));
        run_wait_for_lines(project, run, 1 + 2 * victim);
        pid_t process = find_rank(victim);
        snprintf(dead, sizeof dead, "process %d) died; ", process);
        kill(process, SIGKILL);
        assert_no_process_left_within(LIMIT_SECONDS, true);
        int status = command_end(launch);
        assert_true(status == 1 || status == 128 + SIGKILL);
        for (int r = 0; r < 3; r++) {
            if (r == victim) continue;
            snprintf(own, sizeof own, "Rank %d, at step ", r);
            assert_log_says(run, r, dead);
            assert_log_says(run, r, own);
        }
        assert_no_process_left_within(0, false);
    }
}

static void a_stopped_rank_is_named_with_the_call_that_waits_for_it(void **state) {
    (void)state;
    for (int victim = 0; victim < 2; victim++) {
        char run[16], name[64];
        snprintf(run, sizeof run, "stopped-%d", victim);
        pid_t launch = command_start(project, WORDS("launch", "-n", "3", ENDLESS, "parallel.watchdog=3", "--run", run));
        run_wait_for_lines(project, run, 2);
        pid_t process = find_rank(victim);
        kill(process, SIGSTOP);
        assert_true(command_end(launch) != 0);
        snprintf(name, sizeof name, "process %d) has given no sign of life for ", process);
        assert_log_says(run, 2, name);
        snprintf(name, sizeof name, "; not there: rank %d (silent; last seen ", victim);
        assert_log_says(run, 2, name);
        assert_log_says(run, 2, "' of group ");
        assert_log_says(run, 2, "; there: rank ");
        assert_no_process_left_within(LIMIT_SECONDS, false);
    }
}

static void a_run_that_is_restarted_has_the_losses_of_one_that_was_not_disturbed(void **state) {
    (void)state;
#define SHORT TRAIN, "train.steps=40", "checkpoint.every=4"
    assert_status(0, project, "launch", "-n", "2", SHORT, "--run", "undisturbed");
    pid_t launch =
        command_start(project, WORDS("launch", "-n", "2", "--restarts", "1", "--", SHORT, "--run", "restarted"));
    run_wait_for_lines(project, "restarted", 10);
    kill(find_rank(1), SIGKILL);
    assert_int_equal(command_end(launch), 0);
    assert_log_says("restarted", 0, "resuming after step ");
    assert_same_runs(project, "undisturbed", "restarted", 40);
    assert_same_checkpoints(project, "undisturbed/checkpoints/step-00000040", "restarted/checkpoints/step-00000040");
}

static void a_rank_or_the_launcher_that_is_asked_to_stop_makes_all_save_and_leave(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *run = i ? "asked-launcher" : "asked-rank";
        pid_t launch = command_start(
            project, WORDS("launch", "-n", "2", "--restarts", "3", SHORT, "checkpoint.every=0", "--run", run));
        run_wait_for_lines(project, run, 5);
        kill(i ? launch : find_rank(1), SIGTERM);
        assert_int_equal(command_end(launch), 128 + SIGTERM); // and it is not started again
        assert_log_says(run, 0, "saved; go on with");
        assert_true(run_lines(project, run) < 40);
        assert_status(0, project, "launch", "-n", "2", SHORT, "--resume", "--run", run);
        assert_same_runs(project, "undisturbed", run, 40);
    }
}

static void ranks_do_not_outlive_a_launcher_that_is_killed(void **state) {
    (void)state;
    pid_t launch = command_start(project, WORDS("launch", "-n", "2", ENDLESS, "--run", "alone"));
    run_wait_for_lines(project, "alone", 2);
    kill(launch, SIGKILL);
    command_end(launch);
    assert_no_process_left_within(LIMIT_SECONDS, false);
}

static void ranks_do_not_outlive_an_mpirun_that_is_killed(void **state) {
    (void)state;
    pid_t found[MOST_PROCESSES];
    pid_t launch = command_start(project, WORDS("launch", "-n", "2", ENDLESS, "--run", "orphans"));
    run_wait_for_lines(project, "orphans", 2);
    int count = find_processes(-1, false, found);
    for (int i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "%d", found[i]);
        if (found[i] != launch && rank_of(name) == -1) kill(found[i], SIGKILL);
    }
    assert_true(command_end(launch) != 0);
    assert_log_says("orphans", 0, "is gone");
    assert_no_process_left_within(1, false);
}

static void a_launch_that_cannot_work_says_why(void **state) {
    (void)state;
    assert_refuses(2, "-n N is missing", project, "launch", "train", "config.yaml");
    assert_refuses(2, "'0' is not a number from 1", project, "launch", "-n", "0", "train", "config.yaml");
    assert_refuses(2, "train CONFIG", project, "launch", "-n", "2");
    assert_refuses(2, "only `train`", project, "launch", "-n", "2", "eval", "run");
    assert_refuses(2, "did you mean '--restarts'", project, "launch", "--restrats", "1", "-n", "2", "train");
    assert_refuses(2, "did you mean", project, "launch", "-n", "2", "--restarts", "2", "train", "config.yaml",
                   "train.step=3", "--run", "none");
    const char *own = getenv("PATH");
    char *path = strdup(own ? own : "/usr/bin");
    setenv("PATH", "/nowhere", 1);
    assert_refuses(2, "no mpirun on the PATH", project, "launch", "-n", "2", "train", "config.yaml");
    setenv("PATH", path, 1);
    free(path);
}

static void one_process_reads_what_several_wrote(void **state) {
    (void)state;
    char *second = run_path(project, "spread", "checkpoints/step-00000004/model-00002-of-00002.safetensors");
    assert_status(0, project, "launch", "-n", "2", TRAIN, "parallel.zero=3", "--run", "spread");
    assert_true(file_exists(second));
    assert_status(0, project, "generate", "spread", "--prompt", "a", "--max-tokens", "2");
    assert_status(0, project, "eval", "spread", "--task", "retrieval", "--data", "data", "--limit", "4");
    char *whole = run_path(project, "whole", "model.safetensors");
    assert_prints("whole", project, "export", "spread", "--out", "whole");
    assert_true(file_exists(whole));
    Answer spread = command_run(project, NULL, WORDS("generate", "spread", "--prompt", "a", "--max-tokens", "8"));
    Answer exported = command_run(project, NULL, WORDS("generate", "whole", "--prompt", "a", "--max-tokens", "8"));
    assert_int_equal(exported.status, 0);
    assert_string_equal(exported.out.data, spread.out.data);
    assert_refuses(2, "exists already", project, "export", "spread", "--out", "whole");
    assert_status(0, project, "train", "--run", "spread", "--resume", "parallel.zero=0", "train.steps=6");
    assert_int_equal(run_lines(project, "spread"), 6);
    answer_free(&spread);
    answer_free(&exported);
    free(whole);
    free(second);
}

int main(void) {
    if (!command_can_launch()) {
        fprintf(stderr, "skipped: there is no mpirun, or the program was built without MPI\n");
        return SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_launch_that_cannot_work_says_why),
        cmocka_unit_test(one_process_reads_what_several_wrote),
        cmocka_unit_test(a_killed_rank_is_named_by_all_others_and_all_end),
        cmocka_unit_test(a_stopped_rank_is_named_with_the_call_that_waits_for_it),
        cmocka_unit_test(a_run_that_is_restarted_has_the_losses_of_one_that_was_not_disturbed),
        cmocka_unit_test(a_rank_or_the_launcher_that_is_asked_to_stop_makes_all_save_and_leave),
        cmocka_unit_test(ranks_do_not_outlive_a_launcher_that_is_killed),
        cmocka_unit_test(ranks_do_not_outlive_an_mpirun_that_is_killed),
    };
    return cmocka_run_group_tests(tests, open_project, close_project);
}
