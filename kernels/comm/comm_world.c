/* Finds out from the environment how this process was started: alone, by whoever sets BIFOCAL_RANKS, by mpirun (OMPI_*,
 * PMI_*), or by srun, with something that MPI can use to find the others (PMIX_*, PMI_*) or with Slurm's own variables
 * alone. See comm.h. */
#include "kernels/comm/comm_internal.h"
#include "kernels/comm/rendezvous.h"
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

#ifdef BIFOCAL_MPI
static const bool built_with_mpi = true;
#else
static const bool built_with_mpi = false;
#endif

Comm *comm_world_new(Log *log, Error *error) {
    Rendezvous rendezvous;
    int ranks;
    if (!rendezvous_of_variables(&rendezvous, &ranks, error)) return NULL;
    if (ranks > 1) return comm_tcp_new(&rendezvous, log, error);
    int expected = processes();
    if (ranks == 1 || expected <= 1) return comm_self_new();
    bool by_mpi = has_rendezvous();
    if (by_mpi && built_with_mpi) return comm_mpi_new(expected, log, error);
    if (!getenv("OMPI_COMM_WORLD_SIZE") && rendezvous_of_slurm(&rendezvous, expected))
        return comm_tcp_new(&rendezvous, log, error);
    if (by_mpi) return comm_mpi_new(expected, log, error); // which says what is missing
    error_set(error, ERROR_USAGE,
              "srun has started %d processes without telling them how they find one another; use `srun --mpi=pmix`, or "
              "mpirun inside the allocation",
              expected);
    return NULL;
}
