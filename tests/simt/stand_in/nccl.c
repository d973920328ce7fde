/* A library in place of NCCL, for ranks that are processes on the stand-in of CUDA's runtime: a call is work in a
 * stream, which runs when that does, and waits there for the same call of the other ranks. Calls of a group run
 * together, sends and receives at once. What travels goes over the host's communication. */
#include "base/error.h"
#include "tests/simt/nccl_stand_in.h"
#include <nccl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

__attribute__((used)) static const char version_text[] = "NCCL version 2.28.9+cuda" STAND_IN_CUDA;
enum { MOST = 64 }; // calls of a group

typedef enum Kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, REDUCE, BROADCAST, SEND, RECEIVE } Kind;

typedef struct Call {
    Kind kind;
    const void *in;
    void *out;
    size_t count;
    CommType type;
    CommReduction reduction;
    int peer;
} Call;

typedef struct Work { // of a stream; graphs run it again and again
    struct Work *next;
    struct ncclComm *comm;
    int count;
    Call calls[MOST];
} Work;

struct ncclComm {
    Comm *group;
    Work *all;
};

static int depth;        // of groups
static Work *open_group; // its calls so far
static cudaStream_t open_stream;

// ---- running ----

static size_t bytes_of(const Call *c) { return c->count * comm_type_size(c->type); }

static void expect_memory(const Call *c, int ranks) {
    bool gathers = c->kind == ALL_GATHER, scatters = c->kind == REDUCE_SCATTER;
    check(!c->in || stand_in_holds(c->in, bytes_of(c) * (size_t)(scatters ? ranks : 1)));
    check(!c->out || stand_in_holds(c->out, bytes_of(c) * (size_t)(gathers ? ranks : 1)));
}

static void reduce(Comm *group, const Call *c) {
    void *sum = malloc(bytes_of(c));
    check(sum);
    memcpy(sum, c->in, bytes_of(c));
    comm_all_reduce(group, sum, (int64_t)c->count, c->type, c->reduction, COMM_FAST, "stand-in");
    if (comm_rank(group) == c->peer) memcpy(c->out, sum, bytes_of(c));
    free(sum);
}

static CommRequest *start(Comm *group, const Call *c) {
    int64_t count = (int64_t)c->count, bytes = (int64_t)bytes_of(c), size = (int64_t)comm_type_size(c->type);
    int ranks = comm_size(group);
    expect_memory(c, ranks);
    switch (c->kind) {
    case ALL_REDUCE:
        if (c->out != c->in) memcpy(c->out, c->in, bytes_of(c));
        return comm_start_all_reduce(group, c->out, count, c->type, c->reduction, COMM_FAST, "stand-in");
    case REDUCE_SCATTER:
        return comm_start_reduce_scatter(group, c->out, c->in, ranks * count, 1, c->type, COMM_FAST, "stand-in");
    case ALL_GATHER:
        return comm_start_all_gather(group, c->out, c->in, ranks * count, size, "stand-in");
    case REDUCE:
        reduce(group, c);
        return NULL;
    case BROADCAST:
        if (comm_rank(group) == c->peer && c->out != c->in) memcpy(c->out, c->in, bytes_of(c));
        return comm_start_broadcast(group, c->out, bytes, c->peer, "stand-in");
    case SEND:
        return comm_start_send(group, c->in, bytes, c->peer, 0, "stand-in");
    case RECEIVE:
        return comm_start_receive(group, c->out, bytes, c->peer, 0, "stand-in");
    }
    return NULL;
}

static void *run(void *context) {
    Work *w = context;
    CommRequest *requests[MOST];
    for (int i = 0; i < w->count; i++) requests[i] = start(w->comm->group, &w->calls[i]);
    for (int i = 0; i < w->count; i++) comm_wait(requests[i]);
    return NULL;
}

// On a thread of its own, as a device is: not the one that works with the backend.
static void run_apart(void *context) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, run, context) == 0);
    pthread_join(thread, NULL);
}

// ---- calls ----

static CommType type_of(ncclDataType_t t) {
    switch (t) {
    case ncclUint8:
        return COMM_U8;
    case ncclInt32:
        return COMM_I32;
    case ncclInt64:
        return COMM_I64;
    case ncclFloat32:
        return COMM_F32;
    case ncclFloat64:
        return COMM_F64;
    case ncclBfloat16:
        return COMM_BF16;
    default:
        check_failed("a type that is used", __FILE__, __LINE__);
    }
}

static CommReduction reduction_of(ncclRedOp_t r) {
    return r == ncclSum ? COMM_SUM : r == ncclMax ? COMM_MAX : COMM_MIN;
}

ncclResult_t ncclGroupStart(void) { return depth++, ncclSuccess; }

ncclResult_t ncclGroupEnd(void) {
    if (--depth > 0 || !open_group) return ncclSuccess;
    Work *w = open_group;
    open_group = NULL;
    return cudaLaunchHostFunc(open_stream, run_apart, w) == cudaSuccess ? ncclSuccess : ncclSystemError;
}

static ncclResult_t add(ncclComm_t comm, cudaStream_t stream, Call call) {
    ncclGroupStart();
    if (!open_group) {
        open_group = calloc(1, sizeof *open_group);
        check(open_group);
        open_group->comm = comm;
        open_group->next = comm->all;
        comm->all = open_group;
        open_stream = stream;
    }
    bool fits = open_group->comm == comm && open_stream == stream && open_group->count < MOST;
    if (fits && call.count) open_group->calls[open_group->count++] = call;
    ncclResult_t status = ncclGroupEnd();
    return fits ? status : ncclInvalidUsage;
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (Call){ALL_REDUCE, in, out, count, type_of(type), reduction_of(op), 0});
}

ncclResult_t ncclReduceScatter(const void *in, void *out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (Call){REDUCE_SCATTER, in, out, count, type_of(type), reduction_of(op), 0});
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return add(comm, stream, (Call){ALL_GATHER, in, out, count, type_of(type), COMM_SUM, 0});
}

ncclResult_t ncclReduce(const void *in, void *out, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    void *taken = comm_rank(comm->group) == root ? out : NULL;
    return add(comm, stream, (Call){REDUCE, in, taken, count, type_of(type), reduction_of(op), root});
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
    const void *given = comm_rank(comm->group) == root ? in : NULL;
    return add(comm, stream, (Call){BROADCAST, given, out, count, type_of(type), COMM_SUM, root});
}

ncclResult_t ncclSend(const void *in, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, (Call){SEND, in, NULL, count, type_of(type), COMM_SUM, peer});
}

ncclResult_t ncclRecv(void *out, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (Call){RECEIVE, NULL, out, count, type_of(type), COMM_SUM, peer});
}

// ---- the rest ----

ncclResult_t ncclGetVersion(int *version) { return *version = STAND_IN_VERSION, ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) { return memset(id, 7, sizeof *id), ncclSuccess; }

ncclResult_t ncclCommInitRank(ncclComm_t *out, int ranks, ncclUniqueId id, int rank) {
    if (id.internal[0] != 7 || ranks != comm_size(stand_in_group)) return ncclInvalidArgument;
    *out = calloc(1, sizeof **out);
    check(*out);
    (*out)->group = comm_split(stand_in_group, 0, rank, "stand-in");
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    comm_free(comm->group);
    for (Work *w = comm->all, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    return free(comm), ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) { return (void)comm, stand_in_has_failed = false, ncclSuccess; }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *status) {
    return (void)comm, *status = stand_in_has_failed ? ncclRemoteError : ncclSuccess, ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t status) {
    return status == ncclRemoteError ? "a remote process has ended" : "an error of the stand-in";
}
