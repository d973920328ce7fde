/* Finds out from the environment how this process was started: alone, by mpirun or by srun. See comm.h. */
#include "kernels/comm/comm_internal.h"
#include <stdlib.h>

static int number_in(const char *variable) {
    const char *text = getenv(variable);
    return text ? (int)strtol(text, NULL, 10) : 0;
}

// The variable by which a launcher that MPI knows says who this process is; NULL: there is none.
static const char *launcher(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE",
                                            "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        if (getenv(variables[i])) return variables[i];
    return NULL;
}

Comm *comm_world_new(Log *log, Error *error) {
    (void)log;
    int tasks = number_in("SLURM_STEP_NUM_TASKS");
    const char *variable = launcher();
    if (!variable && tasks <= 1) return comm_self_new();
    error_set(error, ERROR_USAGE,
              "this program was built without MPI, but %s says that several processes were started together; install "
              "libopenmpi-dev and openmpi-bin and build again",
              variable ? variable : "SLURM_STEP_NUM_TASKS");
    return NULL;
}
