/* Messages between processes by MPI. Whoever moves calls on (see comm_engine.c) makes the calls to MPI, one thread at a
 * time; nothing here blocks. An error of MPI ends all processes with a message that says who was at what. See
 * comm_internal.h. */
#include "kernels/comm/comm_internal.h"
#ifdef BIFOCAL_MPI
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Mpi {
    Transport transport;
    MPI_Comm comm; // ours alone
    int rank;
    char host[256];
    Log *log; // borrowed; may be NULL
} Mpi;

// Ends the run where MPI failed. message: what was moved, or NULL.
static void must(const Mpi *mpi, int code, const char *function, const Message *message) {
    char text[MPI_MAX_ERROR_STRING] = "", what[512] = "";
    int length = 0;
    if (code == MPI_SUCCESS) return;
    MPI_Error_string(code, text, &length);
    if (message) message_describe(message, what, sizeof what);
    log_error(mpi->log, "rank %d on %s: %s%s failed: %s", mpi->rank, mpi->host, function, what, text);
    if (!mpi->log) fprintf(stderr, "rank %d on %s: %s%s failed: %s\n", mpi->rank, mpi->host, function, what, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort(); // should MPI not have done it
}

// A request of MPI is a pointer or a number, as the implementation likes.
_Static_assert(sizeof(MPI_Request) <= sizeof(((Message *)0)->handle), "a handle holds a request");

static void mpi_post(void *state, Message *m) {
    Mpi *mpi = state;
    MPI_Request request;
    if (m->send)
        must(mpi, MPI_Isend(m->data, (int)m->bytes, MPI_BYTE, m->peer, m->tag, mpi->comm, &request), "MPI_Isend", m);
    else
        must(mpi, MPI_Irecv(m->data, (int)m->bytes, MPI_BYTE, m->peer, m->tag, mpi->comm, &request), "MPI_Irecv", m);
    memcpy(&m->handle, &request, sizeof request);
}

static bool mpi_test(void *state, Message *m) {
    MPI_Request request;
    int complete = 0;
    memcpy(&request, &m->handle, sizeof request);
    must(state, MPI_Test(&request, &complete, MPI_STATUS_IGNORE), "MPI_Test", m);
    memcpy(&m->handle, &request, sizeof request);
    return complete;
}

static void mpi_bare_all_reduce(void *state, float *data, int64_t n) {
    Mpi *mpi = state;
    check(n <= INT_MAX);
    must(mpi, MPI_Allreduce(MPI_IN_PLACE, data, (int)n, MPI_FLOAT, MPI_SUM, mpi->comm), "MPI_Allreduce", NULL);
}

static void mpi_close(void *state) {
    Mpi *mpi = state;
    must(mpi, MPI_Comm_free(&mpi->comm), "MPI_Comm_free", NULL);
    must(mpi, MPI_Finalize(), "MPI_Finalize", NULL);
    free(mpi);
}

static int tag_limit(const Mpi *mpi) {
    int *limit = NULL, found = 0;
    must(mpi, MPI_Comm_get_attr(mpi->comm, MPI_TAG_UB, &limit, &found), "MPI_Comm_get_attr", NULL);
    return found ? *limit : 32767; // what every MPI has
}

// Whether all ranks share one machine's memory.
static bool one_machine(const Mpi *mpi, int size) {
    MPI_Comm here;
    int count = 0;
    must(mpi, MPI_Comm_split_type(mpi->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here), "MPI_Comm_split_type",
         NULL);
    must(mpi, MPI_Comm_size(here, &count), "MPI_Comm_size", NULL);
    must(mpi, MPI_Comm_free(&here), "MPI_Comm_free", NULL);
    return count == size;
}

static Mpi *mpi_new(Log *log, int *size) {
    Mpi *mpi = calloc(1, sizeof *mpi);
    check(mpi);
    mpi->log = log;
    gethostname(mpi->host, sizeof mpi->host - 1);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    must(mpi, MPI_Comm_dup(MPI_COMM_WORLD, &mpi->comm), "MPI_Comm_dup", NULL);
    must(mpi, MPI_Comm_set_errhandler(mpi->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", NULL);
    must(mpi, MPI_Comm_rank(mpi->comm, &mpi->rank), "MPI_Comm_rank", NULL);
    must(mpi, MPI_Comm_size(mpi->comm, size), "MPI_Comm_size", NULL);
    mpi->transport = (Transport){.post = mpi_post,
                                 .test = mpi_test,
                                 .bare_all_reduce = mpi_bare_all_reduce,
                                 .tag_limit = tag_limit(mpi),
                                 .one_machine = one_machine(mpi, *size),
                                 .close = mpi_close};
    return mpi;
}

Comm *comm_mpi_new(int expected, Log *log, Error *error) {
    int provided = MPI_THREAD_SINGLE, size = 0;
    // The engine decides when a thread that finds nothing new sleeps. Open MPI, where there are more processes than
    // cores, gives the core away in every look that finds nothing, while the engine's lock is held: on cores that all
    // compute that is a time slice, and a message takes that long to be posted.
    setenv("OMPI_MCA_mpi_yield_when_idle", "0", 1);
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS)
        return error_set(error, ERROR_FAILED, "MPI_Init_thread failed"), NULL;
    if (provided < MPI_THREAD_SERIALIZED) {
        MPI_Finalize();
        return error_set(error, ERROR_FAILED,
                         "this MPI allows only its first thread to call it (it gives thread level "
                         "%d); one with MPI_THREAD_SERIALIZED is needed",
                         provided),
               NULL;
    }
    Mpi *mpi = mpi_new(log, &size);
    if (size == 1 && expected > 1) {
        mpi_close(mpi);
        return error_set(error, ERROR_USAGE,
                         "%d processes were started together, but MPI knows of this one alone: it does not understand "
                         "this launcher. Use `srun --mpi=pmix`, or mpirun inside the allocation",
                         expected),
               NULL;
    }
    return comm_world_of(engine_new(&mpi->transport, mpi), mpi->rank, size, "world");
}

#else

Comm *comm_mpi_new(int expected, Log *log, Error *error) {
    (void)log;
    error_set(
        error, ERROR_USAGE,
        "%d processes were started together, but this program was built without MPI and cannot join them; install "
        "libopenmpi-dev and openmpi-bin, then build again",
        expected);
    return NULL;
}

#endif
