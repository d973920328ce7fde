/* A link between the GPUs of a group by NCCL, on a lane of its own: a call comes behind all that was put into the
 * lanes of the backend's calls, and what follows there waits for it when it is waited for. Shares that are not equally large go one by one in a
 * group (reduce to each owner, broadcast from each owner). Ordered sums, and sums in bf16, are formed by our own
 * kernels: owners get all contributions to their shares and add them along the tree of comm.h, as the host does. */
#include "base/error.h"
#include "kernels/comm/device_link.h"
#include "kernels/cuda/cuda_announce.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/cuda_nccl.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOT_ALIGNMENT = 64 }; // elements: contributions begin at multiples of 16 bytes

typedef struct Link {
    DeviceLink link;
    Backend *backend;
    CudaState *state;
    const NcclCalls *calls;
    ncclComm_t comm;
    int rank, size, lane;
    char name[32];
    LaneMark *marks; // (most) behind calls that were started
    bool *taken;     // (most)
    int most;
    void *room; // device memory of ordered sums
    size_t room_bytes;
    CudaAnnouncer *announcer;
    char fault[256];
} Link;

// A command of the list: what it is made of is 8 bytes wide, so that nothing lies between.
typedef struct Operation {
    const Link *link;
    void *out;
    const void *in;
    int64_t rows, width; // elements of a row
    int64_t type, reduction, peer;
} Operation;

// ---- errors ----

static void must(const Link *l, ncclResult_t status, const char *what) {
    cuda_nccl_must(l->state, l->calls, status, l->name, what);
}

static bool under_way(DeviceLink *link, DeviceUnderWay *out) {
    const Link *l = link->state;
    return cuda_announced(l->announcer, out);
}

static const char *fault(DeviceLink *link) {
    Link *l = link->state;
    ncclResult_t status = ncclSuccess;
    if (l->calls->fault(l->comm, &status) != ncclSuccess || status == ncclSuccess || status == ncclInProgress)
        return NULL;
    snprintf(l->fault, sizeof l->fault, "NCCL in group %s failed on rank %d of it: %s", l->name, l->rank,
             l->calls->text(status));
    return l->fault;
}

static void abort_link(DeviceLink *link) {
    const Link *l = link->state;
    (void)l->calls->abort(l->comm);
}

// ---- types ----

static ncclDataType_t type_of(CommType t) {
    static const ncclDataType_t types[] = {
        [COMM_U8] = ncclUint8,    [COMM_I32] = ncclInt32,   [COMM_I64] = ncclInt64,
        [COMM_F32] = ncclFloat32, [COMM_F64] = ncclFloat64, [COMM_BF16] = ncclBfloat16};
    return types[t];
}

static ncclRedOp_t reduction_of(CommReduction r) { return r == COMM_SUM ? ncclSum : r == COMM_MAX ? ncclMax : ncclMin; }

// ---- commands: what NCCL is asked for, in the lane's stream ----

typedef struct Shares { // of the rows of an operation
    const Link *link;
    int64_t rows, width;
    size_t size; // bytes of an element
} Shares;

static Shares shares_of(const Operation *o) {
    return (Shares){o->link, o->rows, o->width, comm_type_size((CommType)o->type)};
}
static int64_t begin_of(const Shares *s, int q) { return comm_share(s->rows, q, s->link->size) * s->width; }
static size_t count_of(const Shares *s, int q) { return (size_t)(begin_of(s, q + 1) - begin_of(s, q)); }
static size_t bytes_before(const Shares *s, int q) { return (size_t)begin_of(s, q) * s->size; }
static bool equal(const Shares *s) { return s->rows % s->link->size == 0; }

static void start_all_reduce(const void *arguments, CudaStream stream) {
    const Operation *o = arguments;
    const Link *l = o->link;
    must(l,
         l->calls->all_reduce(o->in, o->out, (size_t)(o->rows * o->width), type_of((CommType)o->type),
                              reduction_of((CommReduction)o->reduction), l->comm, stream),
         "all-reduce");
}

static void start_reduce_scatter(const void *arguments, CudaStream stream) {
    const Operation *o = arguments;
    const Link *l = o->link;
    Shares s = shares_of(o);
    ncclDataType_t type = type_of((CommType)o->type);
    if (equal(&s)) {
        must(l, l->calls->reduce_scatter(o->in, o->out, count_of(&s, 0), type, ncclSum, l->comm, stream),
             "reduce-scatter");
        return;
    }
    must(l, l->calls->group_start(), "reduce-scatter");
    for (int q = 0; q < l->size; q++)
        if (count_of(&s, q))
            must(l,
                 l->calls->reduce((const char *)o->in + bytes_before(&s, q), o->out, count_of(&s, q), type, ncclSum, q,
                                  l->comm, stream),
                 "reduce-scatter");
    must(l, l->calls->group_end(), "reduce-scatter");
}

static void start_all_gather(const void *arguments, CudaStream stream) {
    const Operation *o = arguments;
    const Link *l = o->link;
    Shares s = shares_of(o);
    ncclDataType_t type = type_of((CommType)o->type);
    if (equal(&s)) {
        must(l, l->calls->all_gather(o->in, o->out, count_of(&s, 0), type, l->comm, stream), "all-gather");
        return;
    }
    must(l, l->calls->group_start(), "all-gather");
    for (int q = 0; q < l->size; q++) {
        char *part = (char *)o->out + bytes_before(&s, q);
        if (count_of(&s, q))
            must(l, l->calls->broadcast(q == l->rank ? o->in : part, part, count_of(&s, q), type, q, l->comm, stream),
                 "all-gather");
    }
    must(l, l->calls->group_end(), "all-gather");
}

// Contributions to each share go to its owner: (size, slot) elements at `out`, the own one is not sent.
static int64_t slot_of(const Shares *s) {
    int64_t own = (int64_t)count_of(s, s->link->rank);
    return (own + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
}

static void start_contributions(const void *arguments, CudaStream stream) {
    const Operation *o = arguments;
    const Link *l = o->link;
    Shares s = shares_of(o);
    ncclDataType_t type = type_of((CommType)o->type);
    size_t own = count_of(&s, l->rank), slot = (size_t)slot_of(&s) * s.size;
    must(l, l->calls->group_start(), "contributions");
    for (int q = 0; q < l->size; q++) {
        if (q == l->rank) continue;
        const char *sent = (const char *)o->in + bytes_before(&s, q);
        if (count_of(&s, q)) must(l, l->calls->send(sent, count_of(&s, q), type, q, l->comm, stream), "contributions");
        if (own)
            must(l, l->calls->receive((char *)o->out + (size_t)q * slot, own, type, q, l->comm, stream),
                 "contributions");
    }
    must(l, l->calls->group_end(), "contributions");
}

static void start_broadcast(const void *arguments, CudaStream stream) {
    const Operation *o = arguments;
    const Link *l = o->link;
    must(l,
         l->calls->broadcast(o->in, o->out, (size_t)(o->rows * o->width), type_of((CommType)o->type), (int)o->peer,
                             l->comm, stream),
         "broadcast");
}

// A send, a receive, or both: `in`, `out` or neither NULL.
static void start_messages(const void *arguments, CudaStream stream) {
    const Operation *o = arguments;
    const Link *l = o->link;
    size_t count = (size_t)(o->rows * o->width);
    must(l, l->calls->group_start(), "messages");
    if (o->in) must(l, l->calls->send(o->in, count, ncclUint8, (int)o->peer, l->comm, stream), "messages");
    if (o->out) must(l, l->calls->receive(o->out, count, ncclUint8, (int)o->peer, l->comm, stream), "messages");
    must(l, l->calls->group_end(), "messages");
}

typedef struct AllToAll {
    const Link *link;
    char *out;
    const char *in;
    int64_t bytes[]; // (2, size): that go to each rank, that come from each
} AllToAll;

static void start_all_to_all(const void *arguments, CudaStream stream) {
    const AllToAll *a = arguments;
    const Link *l = a->link;
    const int64_t *in_bytes = a->bytes, *out_bytes = a->bytes + l->size;
    const char *in = a->in;
    char *out = a->out;
    must(l, l->calls->group_start(), "all-to-all");
    for (int q = 0; q < l->size; in += in_bytes[q], out += out_bytes[q], q++) {
        size_t sent = (size_t)in_bytes[q], received = (size_t)out_bytes[q];
        if (q == l->rank) {
            if (sent)
                cuda_must(l->state, cudaMemcpyAsync(out, in, sent, cudaMemcpyDeviceToDevice, stream), "all-to-all");
            continue;
        }
        if (sent) must(l, l->calls->send(in, sent, ncclUint8, q, l->comm, stream), "all-to-all");
        if (received) must(l, l->calls->receive(out, received, ncclUint8, q, l->comm, stream), "all-to-all");
    }
    must(l, l->calls->group_end(), "all-to-all");
}

typedef struct Copy {
    CudaState *state;
    void *out;
    const void *in;
    size_t bytes;
} Copy;

static void start_copy(const void *arguments, CudaStream stream) {
    const Copy *c = arguments;
    cuda_must(c->state, cudaMemcpyAsync(c->out, c->in, c->bytes, cudaMemcpyDeviceToDevice, stream), "a copy");
}

// ---- ordered sums ----

static void put(const Link *l, CudaStart *start, const Operation *o) {
    cuda_list_call_on(l->state, l->lane, start, o, sizeof *o);
}

static void copy(const Link *l, void *out, const void *in, size_t bytes) {
    Copy c = {l->state, out, in, bytes};
    if (bytes && out != in) cuda_list_call_on(l->state, l->lane, start_copy, &c, sizeof c);
}

static void put_kernel(void *owner, CudaStart *start, const void *arguments, size_t bytes) {
    const Link *l = owner;
    cuda_list_call_on(l->state, l->lane, start, arguments, bytes);
}

// The sum of contributions [first, end) becomes contribution `first`; lower half first.
static void add_tree(const CudaQueue *queue, float *slots, int64_t slot, int64_t count, int first, int end) {
    if (end - first == 1) return;
    int middle = first + (end - first) / 2;
    add_tree(queue, slots, slot, count, first, middle);
    add_tree(queue, slots, slot, count, middle, end);
    cuda_add_in_place(queue, slots + first * slot, slots + middle * slot, count, F32, F32);
}

// Work space of the link: its calls run one behind the other.
static void *take_room(Link *l, size_t bytes) {
    Backend *b = l->backend;
    if (bytes <= l->room_bytes) return l->room;
    b->release(b, l->room, l->room_bytes);
    l->room_bytes = bytes;
    l->room = b->allocate(b, bytes);
    if (!l->room) cuda_fail(l->state, "room for sums over ranks", "there is no memory left for it");
    return l->room;
}

// out: the own share of the sum.
static void sum_ordered(Link *l, const Operation *o, void *out) {
    Shares s = shares_of(o);
    bool narrow = o->type == COMM_BF16;
    int64_t own = (int64_t)count_of(&s, l->rank), slot = slot_of(&s), all = l->size * slot;
    float *slots = take_room(l, (size_t)all * (sizeof(float) + (narrow ? s.size : 0)) + SLOT_ALIGNMENT);
    char *arriving = narrow ? (char *)(slots + all) : (char *)slots;
    CudaQueue queue = {.start = put_kernel, .owner = l};
    Operation contributions = *o;
    contributions.out = arriving;
    put(l, start_contributions, &contributions);
    if (!own) return;
    copy(l, arriving + (size_t)(l->rank * slot) * s.size, (const char *)o->in + bytes_before(&s, l->rank),
         (size_t)own * s.size);
    for (int q = 0; q < l->size && narrow; q++)
        cuda_convert(&queue, slots + q * slot, F32, arriving + (size_t)(q * slot) * s.size, BF16, own);
    add_tree(&queue, slots, slot, own, 0, l->size);
    if (narrow)
        cuda_convert(&queue, out, BF16, slots, F32, own);
    else
        copy(l, out, slots, (size_t)own * s.size);
}

// ---- calls ----

static void put_all_to_all(const Link *l, const DeviceCall *c) {
    size_t row = (size_t)l->size * sizeof(int64_t), bytes = sizeof(AllToAll) + 2 * row;
    AllToAll *a = malloc(bytes);
    check(a);
    *a = (AllToAll){l, c->out, c->in};
    memcpy(a->bytes, c->in_bytes, row);
    memcpy(a->bytes + l->size, c->out_bytes, row);
    cuda_list_call_on(l->state, l->lane, start_all_to_all, a, bytes);
    free(a);
}

// Whether our own kernels form the sum.
static bool adds_itself(const DeviceCall *c) {
    return (c->order == COMM_ORDERED && c->type == COMM_F32) || c->type == COMM_BF16;
}

static void put_all_reduce(Link *l, const DeviceCall *c, const Operation *o) {
    if (!adds_itself(c)) {
        put(l, start_all_reduce, o);
        return;
    }
    Shares s = shares_of(o);
    Operation gather = *o;
    gather.in = (char *)c->out + bytes_before(&s, l->rank);
    sum_ordered(l, o, (char *)c->out + bytes_before(&s, l->rank));
    put(l, start_all_gather, &gather);
}

static void put_call(Link *l, const DeviceCall *c) {
    Operation o = {.link = l,
                   .out = c->out,
                   .in = c->in,
                   .rows = c->rows,
                   .width = c->width,
                   .type = c->type,
                   .reduction = c->reduction,
                   .peer = c->peer};
    switch (c->kind) {
    case CALL_ALL_REDUCE:
        put_all_reduce(l, c, &o);
        break;
    case CALL_REDUCE_SCATTER:
        if (adds_itself(c))
            sum_ordered(l, &o, c->out);
        else
            put(l, start_reduce_scatter, &o);
        break;
    case CALL_ALL_GATHER:
        put(l, start_all_gather, &o);
        break;
    case CALL_ALL_TO_ALL:
        put_all_to_all(l, c);
        break;
    case CALL_BROADCAST:
        put(l, start_broadcast, &o);
        break;
    case CALL_SEND:
    case CALL_RECEIVE:
    case CALL_EXCHANGE:
        put(l, start_messages, &o);
        break;
    }
}

static int free_mark(Link *l) {
    for (int i = 0; i < l->most; i++)
        if (!l->taken[i]) return i;
    int more = l->most ? 2 * l->most : 16, first = l->most;
    l->marks = realloc(l->marks, (size_t)more * sizeof *l->marks);
    l->taken = realloc(l->taken, (size_t)more * sizeof *l->taken);
    check(l->marks && l->taken);
    memset(l->taken + first, 0, (size_t)(more - first) * sizeof *l->taken);
    l->most = more;
    return first;
}

static int start(DeviceLink *link, const DeviceCall *c) {
    Link *l = link->state;
    int number = free_mark(l);
    bool nothing = c->kind != CALL_ALL_TO_ALL && device_call_bytes(c) == 0; // on every rank
    cuda_list_follow_all(l->state, l->lane);
    if (!nothing) {
        CudaQueue queue = {.start = put_kernel, .owner = l};
        int call = cuda_announced_call(l->announcer, c);
        cuda_announce_begin(l->announcer, &queue, call);
        put_call(l, c);
        cuda_announce_end(l->announcer, &queue, call);
    }
    cuda_after(l->state, c->what);
    l->marks[number] = cuda_list_mark(l->state, l->lane);
    l->taken[number] = true;
    return number;
}

static void wait_for(DeviceLink *link, int number) {
    Link *l = link->state;
    check(l->taken[number]);
    cuda_list_wait(l->state, 0, l->marks[number]);
    cuda_list_meet(l->state);
    l->taken[number] = false;
}

static void close_link(DeviceLink *link) {
    Link *l = link->state;
    l->backend->wait(l->backend);
    l->backend->release(l->backend, l->room, l->room_bytes);
    cuda_announcer_free(l->announcer);
    cuda_list_drop_graphs(l->state); // which name the communicator
    (void)l->calls->destroy(l->comm);
    free(l->marks);
    free(l->taken);
    free(l);
}

DeviceLink *cuda_link_open(Backend *b, const CudaNccl *n, const ncclUniqueId *id, int rank, int size, int lane,
                           const char *name, Error *error) {
    Link *l = calloc(1, sizeof *l);
    check(l);
    *l = (Link){.link = {l, start, wait_for, NULL, under_way, fault, abort_link, close_link},
                .backend = b,
                .state = cuda_state(b),
                .calls = &n->calls,
                .rank = rank,
                .size = size,
                .lane = lane,
                .announcer = cuda_announcer_new(b)};
    snprintf(l->name, sizeof l->name, "%s", name);
    ncclResult_t status = n->calls.open(&l->comm, size, *id, rank);
    if (status == ncclSuccess) return &l->link;
    error_set(error, ERROR_FAILED, "NCCL does not link group %s: %s (NCCL_DEBUG=INFO says more)", name,
              n->calls.text(status));
    cuda_announcer_free(l->announcer);
    free(l);
    return NULL;
}
