/* See pipeline_lane.h. */
#include "train/pipeline_lane.h"
#include <stdlib.h>
#include <string.h>

enum { AHEAD = 2 }; // receives that are posted: the next message, and the one that comes while that is read

typedef struct Read { // of a device's memory, under way
    BackendRead *read;
    size_t at;
} Read;

typedef struct LaneBuffer {
    LaneMessage message;     // the first member
    struct LaneBuffer *next; // of all
    bool apart;              // `body` is the device's, and `header` apart from it
    size_t capacity, bytes;  // bytes: of the message in it
    bool taken;
    Read *reads; // that fill it, (read_room)
    int read_count, read_room;
    ChannelMessage *carried; // of a channel, whose memory it has
    CommRequest *request;    // it is on its way
} LaneBuffer;

struct LaneBuffers {
    Backend *backend;
    size_t header_bytes;
    LaneBuffer *all;
    double bytes; // of all
};

struct Lane {
    LaneBuffers *buffers;
    Comm *group;
    Channel *channel;
    int peer, tag, most;
    bool local;
    size_t *bytes;             // (most) of messages expected, by their number
    LaneBuffer **posted;       // (most) by their number; local: sent
    int expected, ready, read; // how many were expected; posted, or sent inside this rank; received
};

// ---- buffers ----

LaneBuffers *lane_buffers_new(Backend *backend, size_t header_bytes) {
    LaneBuffers *b = calloc(1, sizeof *b);
    check(b);
    b->backend = backend;
    b->header_bytes = header_bytes;
    return b;
}

void lane_settle(LaneBuffers *b) {
    for (LaneBuffer *x = b->all; x; x = x->next) {
        comm_wait(x->request);
        x->request = NULL;
    }
}

static void release(const LaneBuffers *b, LaneBuffer *x) {
    if (x->apart && x->message.body) b->backend->release(b->backend, x->message.body, x->capacity);
    if (!x->carried) free(x->message.header);
    x->message = (LaneMessage){0};
}

void lane_buffers_free(LaneBuffers *b) {
    if (!b) return;
    for (LaneBuffer *x = b->all, *next; x; x = next) {
        next = x->next;
        check(!x->request && !x->carried);
        release(b, x);
        free(x->reads);
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

// One that no other message has; capacity 0 where it is new.
static LaneBuffer *find(LaneBuffers *b, bool apart, size_t bytes) {
    LaneBuffer *best = NULL;
    for (LaneBuffer *x = b->all; x; x = x->next)
        if (x->apart == apart && is_free(x)) best = better(x, best, bytes);
    if (!best) {
        best = calloc(1, sizeof *best);
        check(best);
        best->next = b->all;
        best->apart = apart;
        b->all = best;
    }
    best->bytes = bytes;
    best->taken = true;
    return best;
}

static LaneBuffer *take(LaneBuffers *b, bool apart, size_t bytes) {
    LaneBuffer *x = find(b, apart, bytes);
    if (x->capacity >= bytes) return x;
    b->bytes += (double)(bytes - x->capacity);
    release(b, x);
    if (apart) {
        x->message.header = malloc(b->header_bytes);
        x->message.body = b->backend->allocate(b->backend, bytes);
    } else {
        x->message.header = x->message.body = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    }
    check(x->message.header && x->message.body && "memory for messages");
    x->capacity = bytes;
    return x;
}

// One that stands for a message of a channel.
static LaneBuffer *carry(ChannelMessage *m) {
    LaneBuffer *x = calloc(1, sizeof *x);
    check(x);
    *x = (LaneBuffer){.message = {m->header, m->body}, .apart = true, .taken = true, .carried = m};
    return x;
}

// ---- lanes ----

Lane *lane_new(LaneBuffers *buffers, Comm *group, Channel *channel, int peer, int tag, int most) {
    Lane *l = calloc(1, sizeof *l);
    check(l);
    *l = (Lane){.buffers = buffers,
                .group = group,
                .channel = channel,
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
        LaneBuffer *x = l->posted[l->ready] = take(l->buffers, false, bytes);
        x->request = comm_start_receive(l->group, x->message.header, (int64_t)bytes, l->peer, l->tag, "microbatches");
    }
}

LaneMessage *lane_message(Lane *l, size_t bytes) {
    if (l->channel) return &carry(channel_message(l->channel, bytes))->message;
    return &take(l->buffers, l->local && l->buffers->backend->apart, bytes)->message;
}

// What lies on a device and goes by the host is read beside what else is read, and waited for when it goes.
static void start_read(LaneBuffer *x, Backend *b, size_t at, const void *from, size_t bytes) {
    if (x->read_count == x->read_room) {
        x->read_room += 8;
        x->reads = realloc(x->reads, (size_t)x->read_room * sizeof *x->reads);
        check(x->reads);
    }
    x->reads[x->read_count++] = (Read){backend_read_start(b, from, bytes), at};
}

void lane_put(Lane *l, LaneMessage *m, size_t at, const void *from, size_t bytes) {
    LaneBuffer *x = (LaneBuffer *)m;
    Backend *b = l->buffers->backend;
    if (x->apart)
        b->copy(b, (char *)m->body + at, from, bytes);
    else if (b->apart)
        start_read(x, b, at, from, bytes);
    else
        b->download(b, (char *)m->body + at, from, bytes);
}

void lane_clear(Lane *l, LaneMessage *m, size_t at, size_t bytes) {
    Backend *b = l->buffers->backend;
    if (!((LaneBuffer *)m)->apart)
        memset((char *)m->body + at, 0, bytes);
    else if (bytes)
        b->zero(b, (char *)m->body + at, bytes);
}

void lane_get(Lane *l, const LaneMessage *m, size_t at, void *to, size_t bytes) {
    Backend *b = l->buffers->backend;
    if (((const LaneBuffer *)m)->apart)
        b->copy(b, to, (const char *)m->body + at, bytes);
    else
        b->upload(b, to, (const char *)m->body + at, bytes);
}

void lane_send(Lane *l, LaneMessage *m) {
    LaneBuffer *x = (LaneBuffer *)m;
    for (int i = 0; i < x->read_count; i++)
        backend_read_finish(l->buffers->backend, x->reads[i].read, (char *)m->body + x->reads[i].at);
    x->read_count = 0;
    if (x->carried) {
        channel_send(l->channel, x->carried, l->tag);
        free(x);
    } else if (l->local) {
        check(l->ready < l->most);
        l->posted[l->ready++] = x;
    } else {
        x->request = comm_start_send(l->group, m->header, (int64_t)x->bytes, l->peer, l->tag, "microbatches");
        x->taken = false; // as soon as it has gone
    }
}

void lane_expect(Lane *l, size_t bytes) {
    check(l->expected < l->most);
    l->bytes[l->expected++] = bytes;
    if (l->channel)
        channel_expect(l->channel);
    else if (!l->local)
        post(l);
}

bool lane_waits(const Lane *l) {
    if (l->channel) return channel_waits(l->channel, l->tag);
    return !l->local && !comm_done(l->posted[l->read]->request);
}

static LaneBuffer *next_buffer(Lane *l) {
    if (l->channel) return carry(channel_receive(l->channel, l->tag));
    check(l->read < l->ready);
    LaneBuffer *x = l->posted[l->read];
    comm_wait(x->request);
    x->request = NULL;
    return x;
}

LaneMessage *lane_receive(Lane *l) {
    LaneBuffer *x = next_buffer(l);
    l->read++;
    if (!l->local && !l->channel) post(l);
    if (l->read == l->most) l->expected = l->ready = l->read = 0; // of this run
    return &x->message;
}

void lane_give_back(Lane *l, LaneMessage *m) {
    LaneBuffer *x = (LaneBuffer *)m;
    check(x->taken);
    x->taken = false;
    if (!x->carried) return;
    channel_give_back(l->channel, x->carried);
    free(x);
}
