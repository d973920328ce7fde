/* See pipeline_lane.h. */
#include "train/pipeline_lane.h"
#include <stdlib.h>

enum { AHEAD = 2 }; // receives that are posted: the next message, and the one that comes while that is read

typedef struct LaneBuffer {
    struct LaneBuffer *next; // of all
    void *data;
    size_t capacity;
    bool taken;
    CommRequest *request; // it is on its way
} LaneBuffer;

struct LaneBuffers {
    LaneBuffer *all;
    double bytes; // of all
};

struct Lane {
    LaneBuffers *buffers;
    Comm *group;
    int peer, tag, most;
    bool local;
    size_t *bytes;             // (most) of messages expected, by their number
    LaneBuffer **posted;       // (most) by their number; local: sent
    int expected, ready, read; // how many were expected; posted, or sent inside this rank; received
};

// ---- buffers ----

LaneBuffers *lane_buffers_new(void) {
    LaneBuffers *b = calloc(1, sizeof *b);
    check(b);
    return b;
}

void lane_settle(LaneBuffers *b) {
    for (LaneBuffer *x = b->all; x; x = x->next) {
        comm_wait(x->request);
        x->request = NULL;
    }
}

void lane_buffers_free(LaneBuffers *b) {
    if (!b) return;
    for (LaneBuffer *x = b->all, *next; x; x = next) {
        next = x->next;
        check(!x->request);
        free(x->data);
        free(x);
    }
    free(b);
}

double lane_buffers_bytes(const LaneBuffers *b) { return b->bytes; }

static bool is_free(LaneBuffer *x) {
    if (x->taken || !comm_done(x->request)) return false;
    comm_wait(x->request);
    x->request = NULL;
    return true;
}

// Of a that fits and b: the smaller one that fits, else the larger one, which has less to grow.
static LaneBuffer *better(LaneBuffer *a, LaneBuffer *b, size_t bytes) {
    if (!b || (a->capacity >= bytes) != (b->capacity >= bytes)) return b && b->capacity >= bytes ? b : a;
    bool smaller = a->capacity < b->capacity;
    return smaller == (a->capacity >= bytes) ? a : b;
}

static LaneBuffer *take(LaneBuffers *b, size_t bytes) {
    LaneBuffer *best = NULL;
    for (LaneBuffer *x = b->all; x; x = x->next)
        if (is_free(x)) best = better(x, best, bytes);
    if (!best) {
        best = calloc(1, sizeof *best);
        check(best);
        best->next = b->all;
        b->all = best;
    }
    if (best->capacity < bytes) {
        free(best->data);
        best->data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        check(best->data && "memory for messages");
        b->bytes += (double)(bytes - best->capacity);
        best->capacity = bytes;
    }
    best->taken = true;
    return best;
}

static LaneBuffer *buffer_of(const LaneBuffers *b, const void *data) {
    LaneBuffer *x = b->all;
    while (x && x->data != data) x = x->next;
    check(x && x->taken);
    return x;
}

// ---- lanes ----

Lane *lane_new(LaneBuffers *buffers, Comm *group, int peer, int tag, int most) {
    Lane *l = calloc(1, sizeof *l);
    check(l);
    *l = (Lane){.buffers = buffers,
                .group = group,
                .peer = peer,
                .tag = tag,
                .most = most,
                .local = peer == comm_rank(group),
                .bytes = calloc((size_t)most, sizeof *l->bytes),
                .posted = calloc((size_t)most, sizeof(LaneBuffer *))};
    check(l->bytes && l->posted);
    return l;
}

void lane_free(Lane *l) {
    if (!l) return;
    check(l->expected == 0 && l->ready == 0);
    free(l->bytes);
    free(l->posted);
    free(l);
}

static void post(Lane *l) {
    for (; l->ready < l->expected && l->ready < l->read + AHEAD; l->ready++) {
        size_t bytes = l->bytes[l->ready];
        LaneBuffer *x = l->posted[l->ready] = take(l->buffers, bytes);
        x->request = comm_start_receive(l->group, x->data, (int64_t)bytes, l->peer, l->tag, "microbatches");
    }
}

void *lane_message(Lane *l, size_t bytes) { return take(l->buffers, bytes)->data; }

void lane_send(Lane *l, void *message, size_t bytes) {
    LaneBuffer *x = buffer_of(l->buffers, message);
    if (l->local) {
        check(l->ready < l->most);
        l->posted[l->ready++] = x;
        return;
    }
    x->request = comm_start_send(l->group, message, (int64_t)bytes, l->peer, l->tag, "microbatches");
    x->taken = false; // as soon as it has gone
}

void lane_expect(Lane *l, size_t bytes) {
    check(l->expected < l->most);
    l->bytes[l->expected++] = bytes;
    if (!l->local) post(l);
}

bool lane_waits(const Lane *l) { return !l->local && !comm_done(l->posted[l->read]->request); }

void *lane_receive(Lane *l) {
    check(l->read < l->ready);
    LaneBuffer *x = l->posted[l->read++];
    comm_wait(x->request);
    x->request = NULL;
    if (!l->local) post(l);
    if (l->read == l->most) l->expected = l->ready = l->read = 0; // of this run
    return x->data;
}

void lane_give_back(Lane *l, void *data) { buffer_of(l->buffers, data)->taken = false; }
