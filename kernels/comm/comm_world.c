/* Finds out from the environment how this process was started: alone, by mpirun (OMPI_*, PMI_*), or by srun, with or
 * without something that MPI can use to find the others (PMIX_*, PMI_*). See comm.h. */
#include "kernels/comm/comm_internal.h"
#include <stdlib.h>

static int number_in(const char *variable) {
    const char *text = getenv(variable);
    return text ? (int)strtol(text, NULL, 10) : 0;
}

// Processes that were started together; 0: nobody says so.
static int processes(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        if (number_in(variables[i]) > 0) return number_in(variables[i]);
    return 0;
}

// Whether there is something from which MPI learns of the other processes. Without, it would end us with a long text.
static bool has_rendezvous(void) {
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK") || getenv("PMI_SIZE");
}

Comm *comm_world_new(Log *log, Error *error) {
    int expected = processes();
    if (expected <= 1) return comm_self_new();
    if (has_rendezvous()) return comm_mpi_new(expected, log, error);
    error_set(error, ERROR_USAGE,
              "srun has started %d processes without telling MPI how they find one another; use `srun --mpi=pmix`, or "
              "mpirun inside the allocation",
              expected);
    return NULL;
}
