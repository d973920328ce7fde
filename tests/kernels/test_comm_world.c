/* How a process finds out who belongs to its run, and what it says where that fails or MPI does. With the argument
 * "disagree" the program is one of two ranks that do not agree on a message. */
#include "base/buffer.h"
#include "kernels/comm/comm.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE",     "PMI_RANK",     "PMIX_RANK",
                                        "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "BIFOCAL_RANKS"};
static const char *program; // this one

static int forget_launchers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) unsetenv(variables[i]);
    return 0;
}

static void assert_alone(void) {
    Error error = {0};
    Comm *world = comm_world_new(NULL, &error);
    if (!world) fail_msg("%s", error.message);
    assert_int_equal(comm_size(world), 1);
    comm_free(world);
}

static void a_process_that_nobody_launched_is_alone(void **state) {
    (void)state;
    assert_alone();
}

static void one_process_of_a_launcher_is_alone(void **state) {
    (void)state;
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    assert_alone();
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    assert_alone();
}

static void srun_that_tells_mpi_nothing_is_refused_with_the_remedy(void **state) {
    (void)state;
    Error error = {0};
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    assert_null(comm_world_new(NULL, &error));
    assert_message_has(&error, "4 processes");
    assert_message_has(&error, "srun --mpi=pmix");
}

// ---- MPI fails ----

static int disagree(void) {
    Error error = {0};
    Log *log = log_new(LOG_INFO, stderr);
    Comm *world = comm_world_new(log, &error);
    char bytes[64] = "";
    if (!world) return fprintf(stderr, "%s\n", error.message), 77;
    if (comm_rank(world) == 0)
        comm_send(world, bytes, 64, 1, 0, "much");
    else
        comm_receive(world, bytes, 4, 0, 0, "little");
    comm_barrier(world, "never"); // rank 0 waits here when it is ended
    comm_free(world);
    log_free(log);
    return 0;
}

static void a_failure_of_mpi_names_rank_host_and_call(void **state) {
    (void)state;
    Buffer said = {0};
    char command[4096], line[1024];
    snprintf(command, sizeof command, "'%s/tests/support/mpirun.sh' 2 '%s' disagree 2>&1", SOURCE_FOLDER, program);
    FILE *pipe = popen(command, "r"); // NOLINT(bugprone-command-processor): its words are ours
    check(pipe);
    while (fgets(line, sizeof line, pipe)) buffer_text(&said, line);
    int status = pclose(pipe);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        buffer_free(&said);
        skip();
    }
    assert_int_not_equal(status, 0);
    check(said.data);
    const char *message = strstr(said.data, "rank 1 on ");
    if (!message || !strstr(message, "of 4 bytes from rank 0, for receive 1 of group world (little), failed:"))
        fail_msg("it said: %s", said.data);
    buffer_free(&said);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "disagree")) return disagree();
    program = argv[0];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_process_that_nobody_launched_is_alone, forget_launchers),
        cmocka_unit_test_setup(one_process_of_a_launcher_is_alone, forget_launchers),
        cmocka_unit_test_setup(srun_that_tells_mpi_nothing_is_refused_with_the_remedy, forget_launchers),
        cmocka_unit_test_setup(a_failure_of_mpi_names_rank_host_and_call, forget_launchers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
