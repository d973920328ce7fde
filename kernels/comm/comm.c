/* The front of communication: groups, and the calls as requests to the engine. A group of one copies at once. See
 * comm.h. */
#include "kernels/comm/comm_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- groups ----

static Comm *group_new(Engine *engine, int rank, int size, const char *name) {
    Comm *comm = calloc(1, sizeof *comm);
    check(comm);
    comm->engine = engine;
    comm->rank = rank;
    comm->size = size;
    comm->name = strdup(name);
    comm->world = malloc((size_t)size * sizeof *comm->world);
    comm->queue_end = &comm->queue;
    check(comm->name && comm->world);
    return comm;
}

Comm *comm_world_of(Engine *engine, int rank, int size, const char *name) {
    Comm *comm = group_new(engine, rank, size, name);
    for (int r = 0; r < size; r++) comm->world[r] = r;
    comm->owns_engine = true;
    comm->id = 0;
    engine_next_group(engine, 1);
    return comm;
}

Comm *comm_self_new(void) {
    Comm *comm = group_new(NULL, 0, 1, "self");
    comm->world[0] = 0;
    return comm;
}

Comm *comm_dry_new(int size) {
    Comm *comm = group_new(NULL, size - 1, size, "dry");
    for (int r = 0; r < size; r++) comm->world[r] = r;
    return comm;
}

void comm_free(Comm *comm) {
    if (!comm) return;
    check(comm->unfinished == 0 && "a group is freed once its calls were waited for");
    check(!comm->device && "comm_device_close comes first");
    if (comm->owns_engine) engine_free(comm->engine);
    free(comm->work);
    free(comm->world);
    free(comm->name);
    free(comm);
}

typedef struct Place { // what a rank says of itself when a group is split
    int colour, key, rank, next_group;
} Place;

static int by_key(const void *a, const void *b) {
    const Place *x = a, *y = b;
    return x->key != y->key ? (x->key > y->key) - (x->key < y->key) : x->rank - y->rank;
}

// The places of one colour, in the order of the new group. Returns how many.
static int members(Place *places, int count, int colour) {
    int kept = 0;
    for (int i = 0; i < count; i++)
        if (places[i].colour == colour) places[kept++] = places[i];
    qsort(places, (size_t)kept, sizeof *places, by_key);
    return kept;
}

Comm *comm_split(Comm *parent, int colour, int key, const char *name) {
    int p = comm_size(parent);
    if (parent && !parent->engine && p > 1) return colour < 0 ? NULL : comm_dry_new(p); // as if all were of one colour
    Place *places = calloc((size_t)p, sizeof *places);
    check(places);
    bool alone = p == 1;
    Place mine = {colour, key, comm_rank(parent), alone ? 0 : engine_next_group(parent->engine, 0)};
    comm_all_gather(parent, places, &mine, p, sizeof mine, "who belongs together");
    // Groups that share two ranks have different numbers: each of the ranks has moved on from the earlier one.
    int id = 0;
    for (int r = 0; r < p; r++)
        if (places[r].next_group > id) id = places[r].next_group;
    if (!alone) {
        engine_next_group(parent->engine, id + 1);
        check(id < engine_transport(parent->engine)->tag_limit /
                       (USER_TAGS + 1)); // too many groups in the life of a process
    }
    Comm *comm = NULL;
    if (colour >= 0) {
        int size = members(places, p, colour), rank = 0;
        while (places[rank].rank != mine.rank) rank++;
        comm = group_new(size > 1 ? parent->engine : NULL, rank, size, name);
        comm->id = id;
        for (int r = 0; r < size; r++) comm->world[r] = comm_world_rank(parent, places[r].rank);
    }
    free(places);
    return comm;
}

int comm_rank(const Comm *comm) { return comm ? comm->rank : 0; }
int comm_size(const Comm *comm) { return comm ? comm->size : 1; }
int comm_world_rank(const Comm *comm, int rank) { return comm ? comm->world[rank] : 0; }
void message_describe(const Message *m, char *out, size_t size) {
    const CommRequest *c = m->call;
    snprintf(out, size, " of %lld bytes %s rank %d, for %s %lld of group %s (%s),", (long long)m->bytes,
             m->send ? "to" : "from", m->peer, c->call, (long long)c->number, comm_name(c->comm), c->what);
}

const char *comm_name(const Comm *comm) { return comm ? comm->name : "self"; }

// ---- what calls are made of ----

static CommRequest *call_new(Comm *comm, const char *call, const char *what) {
    CommRequest *c = calloc(1, sizeof *c);
    check(c);
    c->comm = comm;
    c->call = call;
    c->what = what;
    c->in_turn = true;
    c->at_round = -1;
    return c;
}

static void add_message(CommRequest *c, bool send, int peer, void *data, int64_t bytes) {
    const Comm *comm = c->comm;
    if (bytes == 0) return;
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 4;
        c->messages = realloc(c->messages, (size_t)c->capacity * sizeof *c->messages);
        check(c->messages);
    }
    c->messages[c->count++] = (Message){.send = send,
                                        .rank = comm->world[comm->rank],
                                        .peer = comm->world[peer],
                                        .tag = comm->id * (USER_TAGS + 1) + (c->in_turn ? USER_TAGS : c->tag),
                                        .data = data,
                                        .bytes = bytes,
                                        .call = c};
}

void call_send(CommRequest *c, int peer, const void *data, int64_t bytes) {
    add_message(c, true, peer, (void *)data, bytes);
}

void call_receive(CommRequest *c, int peer, void *data, int64_t bytes) { add_message(c, false, peer, data, bytes); }

void call_share_out(CommRequest *c) {
    int p = c->comm->size;
    c->at = malloc((size_t)(p + 1) * sizeof *c->at);
    check(c->at);
    int64_t longest = 0;
    for (int q = 0; q <= p; q++) {
        c->at[q] = comm_share(c->rows, q, p) * c->row_bytes;
        if (q && c->at[q] - c->at[q - 1] > longest) longest = c->at[q] - c->at[q - 1];
    }
    c->chunks = c->chunk ? (longest + c->chunk - 1) / c->chunk : 0;
}

void call_take_work(const CommRequest *c) {
    Comm *comm = c->comm;
    if (comm->work_bytes >= c->work_bytes) return;
    free(comm->work);
    comm->work = calloc(1, (size_t)c->work_bytes);
    check(comm->work);
    comm->work_bytes = c->work_bytes;
}

static void call_free(CommRequest *c) {
    free(c->at);
    free(c->messages);
    free(c);
}

// ---- the calls: each hands out its request, or does the work at once where a rank is alone ----

static CommRequest *all_reduce(Comm *comm, void *data, int64_t n, CommType type, CommReduction reduction,
                               CommOrder order, const char *what) {
    if (comm_alone(comm) || comm_is_dry(comm)) return NULL;
    CommRequest *c = call_new(comm, "all-reduce", what);
    c->in = c->out = data;
    c->rows = n;
    c->row_bytes = (int64_t)comm_type_size(type);
    c->type = type;
    c->reduction = reduction;
    plan_all_reduce(c, order);
    return c;
}

static CommRequest *reduce_scatter(Comm *comm, void *out, const void *in, int64_t rows, int64_t width, CommType type,
                                   CommOrder order, const char *what) {
    int64_t row_bytes = width * (int64_t)comm_type_size(type);
    if (comm_is_dry(comm)) return NULL;
    if (comm_alone(comm)) return copy_bytes(out, in, rows * row_bytes), NULL;
    CommRequest *c = call_new(comm, "reduce-scatter", what);
    c->in = in;
    c->out = out;
    c->rows = rows;
    c->row_bytes = row_bytes;
    c->type = type;
    c->reduction = COMM_SUM;
    plan_reduce_scatter(c, order);
    return c;
}

static CommRequest *all_gather(Comm *comm, void *out, const void *in, int64_t rows, int64_t row_bytes,
                               const char *what) {
    if (comm_is_dry(comm)) return NULL;
    if (comm_alone(comm)) return copy_bytes(out, in, rows * row_bytes), NULL;
    CommRequest *c = call_new(comm, "all-gather", what);
    c->in = in;
    c->out = out;
    c->rows = rows;
    c->row_bytes = row_bytes;
    plan_all_gather(c);
    return c;
}

static CommRequest *all_to_all(Comm *comm, void *out, const int64_t *out_bytes, const void *in, const int64_t *in_bytes,
                               const char *what) {
    if (comm_is_dry(comm)) return NULL;
    if (comm_alone(comm)) return check(in_bytes[0] == out_bytes[0]), copy_bytes(out, in, in_bytes[0]), NULL;
    CommRequest *c = call_new(comm, "all-to-all", what);
    int p = comm->size;
    c->in = in;
    c->out = out;
    c->at = calloc(2 * ((size_t)p + 1), sizeof *c->at);
    check(c->at);
    for (int q = 0; q < p; q++) {
        c->at[q + 1] = c->at[q] + in_bytes[q];
        c->at[p + 1 + q + 1] = c->at[p + 1 + q] + out_bytes[q];
    }
    plan_all_to_all(c);
    return c;
}

static CommRequest *broadcast(Comm *comm, void *data, int64_t bytes, int root, const char *what) {
    if (comm_is_dry(comm)) return NULL;
    if (comm_alone(comm)) return check(root == 0), NULL;
    CommRequest *c = call_new(comm, "broadcast", what);
    c->out = data;
    c->row_bytes = bytes;
    c->peer = root;
    plan_broadcast(c);
    return c;
}

static CommRequest *message(Comm *comm, const void *in, void *out, int64_t bytes, int peer, int tag, bool send,
                            const char *what) {
    check(!comm_alone(comm)); // nobody to send to
    if (comm_is_dry(comm)) return NULL;
    CommRequest *c = call_new(comm, send ? "send" : "receive", what);
    c->in_turn = false;
    c->in = in;
    c->out = out;
    c->row_bytes = bytes;
    c->peer = peer;
    c->tag = tag;
    plan_message(c, send);
    return c;
}

static CommRequest *barrier(Comm *comm, const char *what) {
    if (comm_alone(comm) || comm_is_dry(comm)) return NULL;
    CommRequest *c = call_new(comm, "barrier", what);
    plan_barrier(c);
    return c;
}

// ---- started ----

static CommRequest *start(CommRequest *c) {
    if (c) engine_start(c->comm->engine, c, true);
    return c;
}

void comm_wait(CommRequest *c) {
    if (!c) return;
    if (c->device) {
        device_request_wait(c);
        return;
    }
    engine_wait(c->comm->engine, c);
    call_free(c);
}

bool comm_done(const CommRequest *c) {
    if (!c) return true;
    return c->device ? device_request_done(c) : atomic_load_explicit(&c->done, memory_order_acquire);
}

CommRequest *comm_start_all_reduce(Comm *comm, void *data, int64_t n, CommType type, CommReduction reduction,
                                   CommOrder order, const char *what) {
    return start(all_reduce(comm, data, n, type, reduction, order, what));
}

CommRequest *comm_start_reduce_scatter(Comm *comm, void *out, const void *in, int64_t rows, int64_t width,
                                       CommType type, CommOrder order, const char *what) {
    return start(reduce_scatter(comm, out, in, rows, width, type, order, what));
}

CommRequest *comm_start_all_gather(Comm *comm, void *out, const void *in, int64_t rows, int64_t row_bytes,
                                   const char *what) {
    return start(all_gather(comm, out, in, rows, row_bytes, what));
}

CommRequest *comm_start_all_to_all(Comm *comm, void *out, const int64_t *out_bytes, const void *in,
                                   const int64_t *in_bytes, const char *what) {
    return start(all_to_all(comm, out, out_bytes, in, in_bytes, what));
}

CommRequest *comm_start_broadcast(Comm *comm, void *data, int64_t bytes, int root, const char *what) {
    return start(broadcast(comm, data, bytes, root, what));
}

CommRequest *comm_start_send(Comm *comm, const void *data, int64_t bytes, int to, int tag, const char *what) {
    return start(message(comm, data, NULL, bytes, to, tag, true, what));
}

CommRequest *comm_start_receive(Comm *comm, void *data, int64_t bytes, int from, int tag, const char *what) {
    return start(message(comm, NULL, data, bytes, from, tag, false, what));
}

// ---- blocking ----

// The caller moves the call on itself; the communication thread is not woken.
static void finish(CommRequest *c) {
    if (!c) return;
    engine_start(c->comm->engine, c, false);
    comm_wait(c);
}

void comm_all_reduce(Comm *comm, void *data, int64_t n, CommType type, CommReduction reduction, CommOrder order,
                     const char *what) {
    finish(all_reduce(comm, data, n, type, reduction, order, what));
}

void comm_reduce_scatter(Comm *comm, void *out, const void *in, int64_t rows, int64_t width, CommType type,
                         CommOrder order, const char *what) {
    finish(reduce_scatter(comm, out, in, rows, width, type, order, what));
}

void comm_all_gather(Comm *comm, void *out, const void *in, int64_t rows, int64_t row_bytes, const char *what) {
    finish(all_gather(comm, out, in, rows, row_bytes, what));
}

void comm_all_to_all(Comm *comm, void *out, const int64_t *out_bytes, const void *in, const int64_t *in_bytes,
                     const char *what) {
    finish(all_to_all(comm, out, out_bytes, in, in_bytes, what));
}

void comm_broadcast(Comm *comm, void *data, int64_t bytes, int root, const char *what) {
    finish(broadcast(comm, data, bytes, root, what));
}

void comm_send(Comm *comm, const void *data, int64_t bytes, int to, int tag, const char *what) {
    finish(message(comm, data, NULL, bytes, to, tag, true, what));
}

void comm_receive(Comm *comm, void *data, int64_t bytes, int from, int tag, const char *what) {
    finish(message(comm, NULL, data, bytes, from, tag, false, what));
}

void comm_barrier(Comm *comm, const char *what) { finish(barrier(comm, what)); }

// ---- for the watchdog, the trace and the metrics ----

static Engine *engine_of(const Comm *comm) { return comm ? comm->engine : NULL; }

CommStatus comm_status(const Comm *world, Buffer *members) {
    if (members) buffer_clear(members);
    return engine_of(world) ? engine_status(world->engine, members) : (CommStatus){0};
}

void comm_set_trace(Comm *world, struct Trace *trace) {
    if (engine_of(world)) engine_set_trace(world->engine, trace);
}

double comm_waited(const Comm *world) { return engine_of(world) ? engine_waited(world->engine) : 0; }

int64_t comm_sent_bytes(const Comm *world) { return engine_of(world) ? engine_bytes(world->engine) : 0; }
