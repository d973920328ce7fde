/* A library in place of NCCL, for ranks that are processes on the stand-in of CUDA's runtime: a call is work in a
 * stream, which runs when that does, beside other streams, and waits there for the other ranks. It is as strict as NCCL
 * may be: calls of a communicator come from one stream, one behind the other, those of a group together; a send has not
 * gone before its receive runs; both ends, and all ranks of a collective, must agree on what it is and how long, in the
 * order of the calls. What travels goes over the host's communication, as messages of a tag for each communicator. */
#include "kernels/comm/comm_internal.h"
#include "tests/simt/nccl_stand_in.h"
#include "tests/simt/runtime.h"
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

__attribute__((used)) static const char version_text[] = "NCCL version 2.28.9+cuda" STAND_IN_CUDA;
enum { MOST = 64 /* calls of a group */, MOST_RANKS = 8, FIRST_TAG = 64, TAGS = 1000 /* that a rank gives out */ };

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
    pthread_t thread; // that runs it: a device's, not the one that works with the backend
    bool begun;
    atomic_bool done;
} Work;

struct ncclComm {
    int rank, size, tag; // tag: of messages; the one behind it of answers
    int world[MOST_RANKS];
    int64_t collectives; // begun
    cudaStream_t stream; // of all calls
    Work *all, *running;
    atomic_bool aborted;
};

static int depth;        // of groups
static Work *open_group; // its calls so far
static cudaStream_t open_stream;
static int communicators; // that this rank has made ids for
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

// ---- messages ----

typedef struct Terms { // what both sides must agree on
    int64_t number;    // of a collective
    uint64_t count;
    int32_t kind, type, reduction, peer;
} Terms;

typedef struct Parcel { // that is on its way
    struct Parcel *next;
    CommRequest *terms, *data;
    char bytes[];
} Parcel;

static CommRequest *start_message(const ncclComm_t c, bool send, void *data, size_t bytes, int peer, bool answer) {
    pthread_mutex_lock(&starting);
    CommRequest *r =
        send ? comm_start_send(stand_in_world, data, (int64_t)bytes, c->world[peer], c->tag + answer, "stand-in")
             : comm_start_receive(stand_in_world, data, (int64_t)bytes, c->world[peer], c->tag + answer, "stand-in");
    pthread_mutex_unlock(&starting);
    return r;
}

static void receive(const ncclComm_t c, void *data, size_t bytes, int peer, bool answer) {
    comm_wait(start_message(c, false, data, bytes, peer, answer));
}

static Parcel *send(const ncclComm_t c, const Terms *terms, const void *data, size_t bytes, int peer, Parcel *before) {
    Parcel *p = malloc(sizeof *p + sizeof *terms + bytes);
    check(p);
    memcpy(p->bytes, terms, sizeof *terms);
    memcpy(p->bytes + sizeof *terms, data, bytes);
    p->next = before;
    p->terms = start_message(c, true, p->bytes, sizeof *terms, peer, false);
    p->data = bytes ? start_message(c, true, p->bytes + sizeof *terms, bytes, peer, false) : NULL;
    return p;
}

static void settle(Parcel *p) {
    for (Parcel *next; p; p = next) {
        next = p->next;
        comm_wait(p->terms);
        comm_wait(p->data);
        free(p);
    }
}

static void expect_terms(const ncclComm_t c, const Terms *own, int peer) {
    Terms terms;
    receive(c, &terms, sizeof terms, peer, false);
    if (!memcmp(&terms, own, sizeof terms)) return;
    fprintf(stderr,
            "stand-in of NCCL: rank %d of %d, call %lld: kind %d of %llu elements of type %d where rank %d has call "
            "%lld, kind %d of %llu of type %d\n",
            c->rank, c->size, (long long)own->number, own->kind, (unsigned long long)own->count, own->type, peer,
            (long long)terms.number, terms.kind, (unsigned long long)terms.count, terms.type);
    abort();
}

// ---- running ----

static size_t bytes_of(const Call *c) { return c->count * comm_type_size(c->type); }
static bool is_message(const Call *c) { return c->kind == SEND || c->kind == RECEIVE; }

static void expect_memory(const Call *c, int ranks) {
    bool gathers = c->kind == ALL_GATHER, scatters = c->kind == REDUCE_SCATTER;
    check(!c->in || stand_in_holds(c->in, bytes_of(c) * (size_t)(scatters ? ranks : 1)));
    check(!c->out || stand_in_holds(c->out, bytes_of(c) * (size_t)(gathers ? ranks : 1)));
}

static Terms terms_of(const Call *c, int64_t number) {
    if (is_message(c)) return (Terms){.count = c->count, .kind = SEND, .type = (int32_t)c->type};
    return (Terms){number, c->count, (int32_t)c->kind, (int32_t)c->type, (int32_t)c->reduction, c->peer};
}

// What a rank of a collective brings.
static size_t brings(const ncclComm_t comm, const Call *c, int rank) {
    if (c->kind == BROADCAST && rank != c->peer) return 0;
    return bytes_of(c) * (size_t)(c->kind == REDUCE_SCATTER ? comm->size : 1);
}

static Parcel *send_all(const ncclComm_t comm, const Call *c, const Terms *terms, Parcel *sent) {
    if (c->kind == RECEIVE) return sent;
    if (c->kind == SEND) return send(comm, terms, c->in, bytes_of(c), c->peer, sent);
    for (int q = 0; q < comm->size; q++)
        if (q != comm->rank) sent = send(comm, terms, c->in, brings(comm, c, comm->rank), q, sent);
    return sent;
}

static void compute(const ncclComm_t comm, const Call *c, const void *const *parts) {
    const void *shares[MOST_RANKS];
    size_t share = c->kind == REDUCE_SCATTER ? (size_t)comm->rank * bytes_of(c) : 0;
    for (int q = 0; q < comm->size; q++) shares[q] = (const char *)parts[q] + share;
    if (c->kind == BROADCAST) memcpy(c->out, parts[c->peer], bytes_of(c));
    for (int q = 0; q < comm->size && c->kind == ALL_GATHER; q++)
        memcpy((char *)c->out + (size_t)q * bytes_of(c), parts[q], bytes_of(c));
    if (c->kind == BROADCAST || c->kind == ALL_GATHER || !c->out) return;
    void *sum = malloc(bytes_of(c)); // `out` may be one of the parts
    check(sum);
    combine_tree(sum, shares, comm->size, (int64_t)c->count, c->type, c->reduction);
    memcpy(c->out, sum, bytes_of(c));
    free(sum);
}

static void take_part(const ncclComm_t comm, const Call *c, const Terms *terms) {
    const void *parts[MOST_RANKS];
    char *came[MOST_RANKS] = {0};
    for (int q = 0; q < comm->size; q++) {
        size_t bytes = brings(comm, c, q);
        parts[q] = c->in;
        if (q == comm->rank) continue;
        parts[q] = came[q] = malloc(bytes + 1);
        check(came[q]);
        expect_terms(comm, terms, q);
        if (bytes) receive(comm, came[q], bytes, q, false);
    }
    compute(comm, c, parts);
    for (int q = 0; q < comm->size; q++) free(came[q]);
}

// What comes, and answers: to each receive one, by which its send knows that it has gone.
static Parcel *receive_all(const ncclComm_t comm, const Call *c, const Terms *terms, Parcel *sent) {
    if (c->kind == SEND) return sent;
    if (c->kind != RECEIVE) {
        take_part(comm, c, terms);
        return sent;
    }
    expect_terms(comm, terms, c->peer);
    receive(comm, c->out, bytes_of(c), c->peer, false);
    Parcel *p = calloc(1, sizeof *p + 1);
    check(p);
    p->next = sent;
    p->data = start_message(comm, true, p->bytes, 1, c->peer, true);
    return p;
}

static void *run(void *context) {
    Work *w = context;
    struct ncclComm *comm = w->comm;
    Terms terms[MOST];
    Parcel *sent = NULL;
    char answer;
    for (int i = 0; i < w->count; i++) {
        expect_memory(&w->calls[i], comm->size);
        terms[i] = terms_of(&w->calls[i], is_message(&w->calls[i]) ? 0 : ++comm->collectives);
        sent = send_all(comm, &w->calls[i], &terms[i], sent);
    }
    for (int i = 0; i < w->count; i++) sent = receive_all(comm, &w->calls[i], &terms[i], sent);
    for (int i = 0; i < w->count; i++)
        if (w->calls[i].kind == SEND) receive(comm, &answer, 1, w->calls[i].peer, true);
    settle(sent);
    atomic_store(&w->done, true);
    return NULL;
}

// Whether the work is done; what was aborted is, whatever became of it.
static bool step(void *context) {
    Work *w = context;
    struct ncclComm *comm = w->comm;
    if (atomic_load(&comm->aborted)) return true;
    if (!w->begun) {
        check(!comm->running && "one call of a communicator at a time");
        comm->running = w;
        w->begun = true;
        atomic_store(&w->done, false);
        check(pthread_create(&w->thread, NULL, run, w) == 0);
    }
    if (!atomic_load(&w->done)) return false;
    pthread_join(w->thread, NULL);
    w->begun = false;
    comm->running = NULL;
    return true;
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
    if (w->count) runtime_put(open_stream, step, w);
    return ncclSuccess;
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
    if (!comm->stream) comm->stream = stream;
    bool fits = open_group->comm == comm && comm->stream == stream && open_group->count < MOST && call.peer >= 0 &&
                call.peer < comm->size && !(is_message(&call) && call.peer == comm->rank);
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
    void *taken = comm->rank == root ? out : NULL;
    return add(comm, stream, (Call){REDUCE, in, taken, count, type_of(type), reduction_of(op), root});
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
    const void *given = comm->rank == root ? in : NULL;
    return add(comm, stream, (Call){BROADCAST, given, out, count, type_of(type), COMM_SUM, root});
}

ncclResult_t ncclSend(const void *in, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, (Call){SEND, in, NULL, count, type_of(type), COMM_SUM, peer});
}

ncclResult_t ncclRecv(void *out, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (Call){RECEIVE, NULL, out, count, type_of(type), COMM_SUM, peer});
}

// ---- communicators ----

typedef struct Id {
    char magic;
    int maker, number; // rank in the world; of the ids it made
} Id;

ncclResult_t ncclGetVersion(int *version) { return *version = STAND_IN_VERSION, ncclSuccess; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *out) {
    Id id = {7, comm_rank(stand_in_world), communicators++};
    check(2 * id.number + 1 < TAGS);
    memset(out, 0, sizeof *out);
    memcpy(out->internal, &id, sizeof id);
    return ncclSuccess;
}

static void place_of(char *path, size_t size, const Id *id, int rank) {
    const char *folder = getenv("TMPDIR"), *run = getenv("BIFOCAL_MASTER");
    int n = snprintf(path, size, "%s/nccl-stand-in-%s", folder ? folder : "/tmp", run ? run : "");
    (void)mkdir(path, 0700);
    if (id) snprintf(path + n, size - (size_t)n, "/%d-%d-%d", id->maker, id->number, rank);
}

// Ranks of a communicator learn of one another from files, named after its id and their ranks in it.
static void meet(struct ncclComm *c, const Id *id) {
    char path[512], part[520];
    place_of(path, sizeof path, id, c->rank);
    snprintf(part, sizeof part, "%s.part", path);
    FILE *f = fopen(part, "w");
    check(f && fprintf(f, "%d", comm_rank(stand_in_world)) > 0 && fclose(f) == 0 && rename(part, path) == 0);
    for (int q = 0; q < c->size; q++) {
        place_of(path, sizeof path, id, q);
        while (!(f = fopen(path, "r"))) usleep(500);
        check(fscanf(f, "%d", &c->world[q]) == 1 && fclose(f) == 0);
    }
    Parcel *sent = NULL; // until all have read the own file
    const Terms hello = {.number = -1};
    for (int q = 0; q < c->size; q++)
        if (q != c->rank) sent = send(c, &hello, "", 0, q, sent);
    for (int q = 0; q < c->size; q++)
        if (q != c->rank) expect_terms(c, &hello, q);
    settle(sent);
    place_of(path, sizeof path, id, c->rank);
    (void)unlink(path);
    place_of(path, sizeof path, NULL, 0);
    (void)rmdir(path); // the last one's
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int ranks, ncclUniqueId unique, int rank) {
    Id id;
    memcpy(&id, unique.internal, sizeof id);
    if (id.magic != 7 || ranks > MOST_RANKS || rank >= ranks) return ncclInvalidArgument;
    struct ncclComm *c = *out = calloc(1, sizeof *c);
    check(c);
    c->rank = rank;
    c->size = ranks;
    c->tag = FIRST_TAG + id.maker * TAGS + 2 * id.number;
    meet(c, &id);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    return config->maxCTAs > 0 ? ncclCommInitRank(out, ranks, id, rank) : ncclInvalidArgument;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    check((!comm->running || comm->aborted) && "all calls have ended");
    if (comm->running) return ncclSuccess; // its thread still waits
    for (Work *w = comm->all, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    return free(comm), ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    atomic_store(&comm->aborted, true);
    return stand_in_has_failed = false, ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *status) {
    return (void)comm, *status = stand_in_has_failed ? ncclRemoteError : ncclSuccess, ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t status) {
    return status == ncclRemoteError ? "a remote process has ended" : "an error of the stand-in";
}
