/* See comm_device.h. A staged call downloads what it brings when it is started, lets the host's call run beside what
 * the backend is given next, and uploads what came when it is waited for. */
#include "kernels/comm/comm_device.h"
#include "kernels/comm/comm_internal.h"
#include "kernels/comm/device_link.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct Staging { // host memory of a call
    struct Staging *next;
    char *data;
    int64_t capacity;
    bool taken;
} Staging;

typedef struct DeviceGroup {
    Backend *backend;
    DeviceLink *link; // NULL: staged
    Staging *staging; // all of it, used again
    char why[256];    // it is staged
} DeviceGroup;

typedef struct DeviceRequest {
    DeviceCall call;
    DeviceLink *link;             // NULL: staged, or the host's
    int started;                  // linked: the link's number
    CommRequest *host, *host_too; // else the host's call; of an exchange both
    Staging *staging;             // staged: where it works,
    int64_t up_at, up_bytes;      // and what is uploaded of that, to `call.out`
} DeviceRequest;

// ---- groups ----

// Why the ranks cannot be linked; "" where they can.
static void find_obstacle(const DeviceIdentity *all, int ranks, char *why, size_t size) {
    *why = 0;
    for (int r = 0; r < ranks && !*why; r++) {
        if (!all[r].can_link)
            snprintf(why, size, "%s", all[r].why_not);
        else if (all[r].version != all[0].version)
            snprintf(why, size, "ranks 0 and %d of the group have NCCL of different versions (%d, %d)", r,
                     all[0].version, all[r].version);
        for (int q = 0; q < r && !*why; q++)
            if (!memcmp(all[q].device, all[r].device, sizeof all[r].device))
                snprintf(why, size, "ranks %d and %d of the group share a GPU", q, r);
    }
}

// Collective: all ranks come to the same answer. False where what there is to link with must not be used.
static bool choose_route(const Comm *comm, DeviceGroup *g, Error *error) {
    Backend *b = g->backend;
    DeviceIdentity own, *all = calloc((size_t)comm->size, sizeof *all);
    check(all);
    memset(&own, 0, sizeof own); // what is compared and sent as bytes
    if (b->links)
        b->links->identify(b, &own);
    else
        snprintf(own.why_not, sizeof own.why_not, "backend %s has nothing to link with", b->name);
    comm_all_gather((Comm *)comm, all, &own, comm->size, sizeof own, "devices");
    find_obstacle(all, comm->size, g->why, sizeof g->why);
    for (int r = 0; r < comm->size && !error->kind; r++)
        if (all[r].wrong) error_set(error, ERROR_USAGE, "%s", all[r].why_not);
    free(all);
    return !error->kind;
}

// Collective; where one rank fails all do.
static bool open_link(Comm *comm, DeviceGroup *g, DeviceLinkKind kind, Error *error) {
    Backend *b = g->backend;
    struct {
        DeviceLinkId id;
        int32_t made;
    } first;
    memset(&first, 0, sizeof first);
    if (comm->rank == 0) first.made = b->links->new_id(b, &first.id, error);
    comm_broadcast(comm, &first, sizeof first, 0, "where links meet");
    if (first.made) g->link = b->links->open(b, kind, &first.id, comm->rank, comm->size, comm->name, error);
    int32_t all = g->link != NULL;
    comm_all_reduce(comm, &all, 1, COMM_I32, COMM_MIN, COMM_FAST, "links");
    if (!all && !error->kind)
        error_set(error, ERROR_FAILED, "another rank of group %s could not be linked: see what it says", comm->name);
    return all;
}

static void flush_backend(void *backend) { ((Backend *)backend)->flush(backend); }

static bool open_group(Comm *comm, Backend *backend, DeviceLinkKind kind, Error *error) {
    if (!backend->apart || comm_alone(comm) || comm_is_dry(comm)) return true;
    check(!comm->device);
    DeviceGroup *g = comm->device = calloc(1, sizeof *g);
    check(g);
    g->backend = backend;
    if (choose_route(comm, g, error) && (*g->why || open_link(comm, g, kind, error))) {
        if (g->link) engine_add_link(comm->engine, g->link, comm);
        if (g->link && backend->flush) engine_before_waits(comm->engine, flush_backend, backend);
        return true;
    }
    comm_device_close(comm);
    return false;
}

bool comm_device_open(Comm *comm, Backend *backend, Error *error) {
    return open_group(comm, backend, LINK_COLLECTIVE, error);
}

bool comm_device_open_messages(Comm *pair, Backend *backend, Error *error) {
    check(comm_size(pair) == 2);
    return open_group(pair, backend, LINK_MESSAGES, error);
}

void comm_device_close(Comm *comm) {
    if (!comm || !comm->device) return;
    DeviceGroup *g = comm->device;
    for (Staging *s = g->staging, *next; s; s = next) {
        next = s->next;
        check(!s->taken && "a group is closed once its calls were waited for");
        free(s->data);
        free(s);
    }
    if (g->link) {
        engine_remove_link(comm->engine, g->link);
        g->link->close(g->link);
    }
    free(g);
    comm->device = NULL;
}

DeviceRoute comm_device_route(const Comm *comm) {
    if (!comm || !comm->device) return ROUTE_HOST;
    return comm->device->link ? ROUTE_LINKED : ROUTE_STAGED;
}

const char *comm_device_why(const Comm *comm) { return comm && comm->device ? comm->device->why : ""; }

bool comm_device_fault(const Comm *world, char *why, size_t size) {
    return world && world->engine && engine_link_fault(world->engine, why, size);
}

void comm_device_abort(const Comm *world) {
    if (world && world->engine) engine_abort_links(world->engine);
}

// ---- staged calls ----

static Staging *take_staging(DeviceGroup *g, int64_t bytes) {
    Staging *best = NULL;
    for (Staging *s = g->staging; s; s = s->next)
        if (!s->taken && (!best || (s->capacity >= bytes ? best->capacity < bytes || s->capacity < best->capacity
                                                         : s->capacity > best->capacity)))
            best = s;
    if (!best) {
        best = calloc(1, sizeof *best);
        check(best);
        best->next = g->staging;
        g->staging = best;
    }
    if (best->capacity < bytes) {
        free(best->data);
        best->data = aligned_alloc(64, (size_t)(bytes + 63) & ~(size_t)63);
        check(best->data && "memory for staged communication");
        best->capacity = bytes;
    }
    best->taken = true;
    return best;
}

static int64_t sum_of(const int64_t *bytes, int count) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += bytes[i];
    return sum;
}

// Where what comes begins, behind what goes, in the memory of calls that have both.
static int64_t behind(int64_t bytes) { return (bytes + 63) & ~(int64_t)63; }

typedef struct Stages { // what of a call is copied, in host memory of `bytes`
    int64_t bytes, down_at, down, up_at, up;
} Stages;

static Stages stages_of(const DeviceCall *c, const Comm *comm) {
    int64_t bytes = device_call_bytes(c), row = c->rows ? bytes / c->rows : 0;
    int64_t own_at = comm_share(c->rows, comm->rank, comm->size) * row;
    int64_t own = comm_share(c->rows, comm->rank + 1, comm->size) * row - own_at;
    bool root = c->peer == comm->rank;
    switch (c->kind) {
    case CALL_ALL_REDUCE:
        return (Stages){.bytes = bytes, .down = bytes, .up = bytes};
    case CALL_REDUCE_SCATTER:
        return (Stages){.bytes = bytes, .down = bytes, .up_at = own_at, .up = own};
    case CALL_ALL_GATHER:
        return (Stages){.bytes = bytes, .down_at = own_at, .down = own, .up = bytes};
    case CALL_ALL_TO_ALL: {
        int64_t in = sum_of(c->in_bytes, comm->size), out = sum_of(c->out_bytes, comm->size);
        return (Stages){.bytes = behind(in) + out, .down = in, .up_at = behind(in), .up = out};
    }
    case CALL_BROADCAST:
        return (Stages){.bytes = bytes, .down = root ? bytes : 0, .up = root ? 0 : bytes};
    case CALL_SEND:
        return (Stages){.bytes = bytes, .down = bytes};
    case CALL_RECEIVE:
        return (Stages){.bytes = bytes, .up = bytes};
    case CALL_EXCHANGE:
        return (Stages){.bytes = behind(bytes) + bytes, .down = bytes, .up_at = behind(bytes), .up = bytes};
    }
    check_failed("a kind of call", __FILE__, __LINE__);
}

// The host's call in host memory `data`.
static void start_host(DeviceRequest *r, Comm *comm, char *data, const Stages *s) {
    const DeviceCall *c = &r->call;
    int64_t bytes = device_call_bytes(c);
    char *out = data + s->up_at;
    switch (c->kind) {
    case CALL_ALL_REDUCE:
        r->host = comm_start_all_reduce(comm, data, c->rows, c->type, c->reduction, c->order, c->what);
        break;
    case CALL_REDUCE_SCATTER:
        r->host = comm_start_reduce_scatter(comm, out, data, c->rows, c->width, c->type, c->order, c->what);
        break;
    case CALL_ALL_GATHER:
        r->host = comm_start_all_gather(comm, data, data + s->down_at, c->rows, c->width, c->what);
        break;
    case CALL_ALL_TO_ALL:
        r->host = comm_start_all_to_all(comm, out, c->out_bytes, data, c->in_bytes, c->what);
        break;
    case CALL_BROADCAST:
        r->host = comm_start_broadcast(comm, data, bytes, c->peer, c->what);
        break;
    case CALL_EXCHANGE:
        r->host_too = comm_start_receive(comm, out, bytes, c->peer, c->tag, c->what);
        r->host = comm_start_send(comm, data, bytes, c->peer, c->tag, c->what);
        break;
    case CALL_SEND:
        r->host = comm_start_send(comm, data, bytes, c->peer, c->tag, c->what);
        break;
    case CALL_RECEIVE:
        r->host = comm_start_receive(comm, data, bytes, c->peer, c->tag, c->what);
        break;
    }
}

static void start_staged(DeviceRequest *r, Comm *comm) {
    DeviceGroup *g = comm->device;
    Backend *b = g->backend;
    const DeviceCall *c = &r->call;
    Stages s = stages_of(c, comm);
    r->staging = take_staging(g, s.bytes);
    r->up_at = s.up_at;
    r->up_bytes = s.up;
    if (s.down) b->download(b, r->staging->data + s.down_at, c->in, (size_t)s.down);
    start_host(r, comm, r->staging->data, &s);
}

// ---- both ----

// Sums of bf16 and of f32 go along the tree where they are asked to; what has no order has a kernel of the link's.
static bool link_takes(const DeviceCall *c) {
    bool adds = c->kind == CALL_ALL_REDUCE || c->kind == CALL_REDUCE_SCATTER;
    if (!adds || (c->reduction == COMM_SUM && (c->type == COMM_F32 || c->type == COMM_BF16))) return true;
    if (c->type == COMM_F32 || c->type == COMM_F64 || c->type == COMM_BF16)
        return c->reduction == COMM_SUM && c->order == COMM_FAST; // a greatest or least must let NaN pass
    return true;
}

static CommRequest *request_new(Comm *comm, const DeviceCall *call) {
    CommRequest *c = calloc(1, sizeof *c);
    DeviceRequest *r = calloc(1, sizeof *r);
    check(c && r);
    c->comm = comm;
    c->device = r;
    r->call = *call;
    return c;
}

// What is left of a call where a rank is alone.
static void copy_alone(Backend *b, const DeviceCall *c) {
    bool moves = c->kind == CALL_REDUCE_SCATTER || c->kind == CALL_ALL_GATHER || c->kind == CALL_ALL_TO_ALL;
    int64_t bytes = c->kind == CALL_ALL_TO_ALL ? c->in_bytes[0] : device_call_bytes(c);
    if (moves && c->out != c->in && bytes) b->copy(b, c->out, c->in, (size_t)bytes);
}

static CommRequest *start(Backend *b, Comm *comm, const DeviceCall *call) {
    if (comm_is_dry(comm)) return NULL;
    if (comm_alone(comm)) {
        copy_alone(b, call);
        return NULL;
    }
    DeviceGroup *g = comm->device;
    check(g && g->backend == b && "the group was opened for the backend");
    CommRequest *c = request_new(comm, call);
    c->device->link = link_takes(call) ? g->link : NULL;
    if (c->device->link)
        c->device->started = g->link->start(g->link, call);
    else
        start_staged(c->device, comm);
    return c;
}

void device_request_wait(CommRequest *c) {
    DeviceGroup *g = c->comm->device;
    DeviceRequest *r = c->device;
    if (r->link) r->link->wait(r->link, r->started);
    comm_wait(r->host_too);
    comm_wait(r->host);
    if (r->up_bytes) {
        g->backend->upload(g->backend, r->call.out, r->staging->data + r->up_at, (size_t)r->up_bytes);
        backend_lanes_meet(g->backend); // whichever reads it
    }
    if (r->staging) r->staging->taken = false;
    free(r);
    free(c);
}

bool device_request_done(const CommRequest *c) {
    return !c->device->link && comm_done(c->device->host) && comm_done(c->device->host_too);
}

// ---- the calls ----

CommRequest *comm_device_start_all_reduce(Backend *b, Comm *comm, void *data, int64_t n, CommType type,
                                          CommReduction reduction, CommOrder order, const char *what) {
    if (!b->apart) return comm_start_all_reduce(comm, data, n, type, reduction, order, what);
    return start(b, comm,
                 &(DeviceCall){.kind = CALL_ALL_REDUCE,
                               .out = data,
                               .in = data,
                               .rows = n,
                               .width = 1,
                               .type = type,
                               .reduction = reduction,
                               .order = order,
                               .what = what});
}

CommRequest *comm_device_start_reduce_scatter(Backend *b, Comm *comm, void *out, const void *in, int64_t rows,
                                              int64_t width, CommType type, CommOrder order, const char *what) {
    if (!b->apart) return comm_start_reduce_scatter(comm, out, in, rows, width, type, order, what);
    return start(b, comm,
                 &(DeviceCall){.kind = CALL_REDUCE_SCATTER,
                               .out = out,
                               .in = in,
                               .rows = rows,
                               .width = width,
                               .type = type,
                               .reduction = COMM_SUM,
                               .order = order,
                               .what = what});
}

CommRequest *comm_device_start_all_gather(Backend *b, Comm *comm, void *out, const void *in, int64_t rows,
                                          int64_t row_bytes, const char *what) {
    if (!b->apart) return comm_start_all_gather(comm, out, in, rows, row_bytes, what);
    return start(b, comm,
                 &(DeviceCall){.kind = CALL_ALL_GATHER,
                               .out = out,
                               .in = in,
                               .rows = rows,
                               .width = row_bytes,
                               .type = COMM_U8,
                               .what = what});
}

CommRequest *comm_device_start_all_to_all(Backend *b, Comm *comm, void *out, const int64_t *out_bytes, const void *in,
                                          const int64_t *in_bytes, const char *what) {
    if (!b->apart) return comm_start_all_to_all(comm, out, out_bytes, in, in_bytes, what);
    return start(
        b, comm,
        &(DeviceCall){
            .kind = CALL_ALL_TO_ALL, .out = out, .in = in, .out_bytes = out_bytes, .in_bytes = in_bytes, .what = what});
}

// The rest moves bytes as they are.
static DeviceCall bytes_call(DeviceCallKind kind, void *out, const void *in, int64_t bytes, int peer, int tag,
                             const char *what) {
    return (DeviceCall){.kind = kind,
                        .out = out,
                        .in = in,
                        .rows = bytes,
                        .width = 1,
                        .type = COMM_U8,
                        .peer = peer,
                        .tag = tag,
                        .what = what};
}

CommRequest *comm_device_start_broadcast(Backend *b, Comm *comm, void *data, int64_t bytes, int root,
                                         const char *what) {
    if (!b->apart) return comm_start_broadcast(comm, data, bytes, root, what);
    DeviceCall call = bytes_call(CALL_BROADCAST, data, data, bytes, root, 0, what);
    return start(b, comm, &call);
}

CommRequest *comm_device_start_send(Backend *b, Comm *comm, const void *data, int64_t bytes, int to, int tag,
                                    const char *what) {
    if (!b->apart) return comm_start_send(comm, data, bytes, to, tag, what);
    DeviceCall call = bytes_call(CALL_SEND, NULL, data, bytes, to, tag, what);
    return start(b, comm, &call);
}

CommRequest *comm_device_start_receive(Backend *b, Comm *comm, void *data, int64_t bytes, int from, int tag,
                                       const char *what) {
    if (!b->apart) return comm_start_receive(comm, data, bytes, from, tag, what);
    DeviceCall call = bytes_call(CALL_RECEIVE, data, NULL, bytes, from, tag, what);
    return start(b, comm, &call);
}

int comm_device_point(Comm *pair) {
    DeviceLink *link = pair->device->link;
    return link->point(link);
}

CommRequest *comm_device_start_receive_behind(Backend *b, Comm *pair, void *data, int64_t bytes, int point,
                                              const char *what) {
    DeviceCall call = bytes_call(CALL_RECEIVE, data, NULL, bytes, 0, 0, what);
    check(comm_device_route(pair) == ROUTE_LINKED && comm_rank(pair) == 1);
    call.behind = point ? point : -1;
    return start(b, pair, &call);
}

CommRequest *comm_device_start_exchange(Backend *b, Comm *comm, void *out, const void *in, int64_t bytes, int with,
                                        int tag, const char *what) {
    DeviceCall call = bytes_call(CALL_EXCHANGE, out, in, bytes, with, tag, what);
    if (b->apart || comm_is_dry(comm)) return start(b, comm, &call);
    CommRequest *c = request_new(comm, &call);
    c->device->host_too = comm_start_receive(comm, out, bytes, with, tag, what);
    c->device->host = comm_start_send(comm, in, bytes, with, tag, what);
    return c;
}

void comm_device_all_reduce(Backend *b, Comm *comm, void *data, int64_t n, CommType type, CommReduction reduction,
                            CommOrder order, const char *what) {
    if (b->apart)
        comm_wait(comm_device_start_all_reduce(b, comm, data, n, type, reduction, order, what));
    else
        comm_all_reduce(comm, data, n, type, reduction, order, what);
}

void comm_device_reduce_scatter(Backend *b, Comm *comm, void *out, const void *in, int64_t rows, int64_t width,
                                CommType type, CommOrder order, const char *what) {
    if (b->apart)
        comm_wait(comm_device_start_reduce_scatter(b, comm, out, in, rows, width, type, order, what));
    else
        comm_reduce_scatter(comm, out, in, rows, width, type, order, what);
}

void comm_device_all_gather(Backend *b, Comm *comm, void *out, const void *in, int64_t rows, int64_t row_bytes,
                            const char *what) {
    if (b->apart)
        comm_wait(comm_device_start_all_gather(b, comm, out, in, rows, row_bytes, what));
    else
        comm_all_gather(comm, out, in, rows, row_bytes, what);
}
