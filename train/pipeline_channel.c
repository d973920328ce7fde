/* See pipeline_channel.h. A receive is started when its header is here: as soon as it is looked for, a few ahead. So
 * both devices are given the same transfers in the same order, with the size that the sender says. */
#include "train/pipeline_channel.h"
#include "kernels/comm/comm_device.h"
#include <stdlib.h>
#include <string.h>

enum { AHEAD = 2 }; // messages that are received before they are asked for
static const char what[] = "microbatches";

typedef struct Envelope { // what goes by the host; the header follows
    int64_t tag, bytes;
} Envelope;

typedef struct Slot Slot; // a message's memory
struct Slot {
    ChannelMessage message; // the first member
    Slot *next;
    Envelope *envelope;   // of it; a header behind it
    size_t capacity;      // of the body
    CommRequest *request; // its transfer, until the backend waits for it
    int point;            // receiving: in what the backend was given, behind which it is free; 0: it is
    bool taken;           // by the caller
};

typedef struct Letter { // an envelope on its way
    struct Letter *next;
    CommRequest *request;
    char bytes[];
} Letter;

struct Channel {
    Backend *backend;
    Comm *pair;
    size_t header_bytes;
    int room, next; // sending: slots, and the one used next
    Slot **ring;    // (room)
    Letter *letters;
    Slot *free, *arrived; // receiving: arrived in their order
    Slot *coming;         // whose envelope is waited for; its request
    CommRequest *letter;
    int64_t expected, received;
    double bytes;
};

// ---- memory ----

static Slot *slot_new(const Channel *c) {
    Slot *s = calloc(1, sizeof *s);
    check(s);
    s->envelope = calloc(1, sizeof *s->envelope + c->header_bytes);
    check(s->envelope);
    s->message.header = s->envelope + 1;
    return s;
}

static void slot_free(const Channel *c, Slot *s) {
    if (!s) return;
    check(!s->taken);
    comm_wait(s->request);
    if (s->message.body) c->backend->release(c->backend, s->message.body, s->capacity);
    free(s->envelope);
    free(s);
}

// What was there need not stay, but a transfer into or out of it may still be under way: it grows where it stands, or
// is left to smaller messages.
static bool slot_reach(Channel *c, Slot *s, size_t bytes) {
    Backend *b = c->backend;
    if (s->capacity >= bytes) return true;
    size_t more = bytes - s->capacity;
    if (s->message.body && !(b->extend && b->extend(b, s->message.body, s->capacity, more))) return false;
    if (!s->message.body) s->message.body = b->allocate(b, bytes);
    check(s->message.body && "memory for messages");
    s->capacity = bytes;
    c->bytes += (double)more;
    return true;
}

Channel *channel_new(Backend *backend, Comm *pair, int room, size_t header_bytes) {
    Channel *c = calloc(1, sizeof *c);
    check(c && comm_device_route(pair) == ROUTE_LINKED && room > 0);
    *c = (Channel){.backend = backend, .pair = pair, .header_bytes = header_bytes, .room = room};
    c->ring = calloc((size_t)room, sizeof(Slot *));
    check(c->ring);
    return c;
}

static void free_slots(const Channel *c, Slot *s) {
    for (Slot *next; s; s = next) {
        next = s->next;
        slot_free(c, s);
    }
}

void channel_free(Channel *c) {
    if (!c) return;
    check(!c->letter && !c->arrived && c->received == c->expected);
    channel_settle(c);
    for (int i = 0; i < c->room; i++) free_slots(c, c->ring[i]);
    free_slots(c, c->free);
    free(c->ring);
    free(c);
}

double channel_bytes(const Channel *c) { return c->bytes; }

// ---- sending ----

static void drop_letters(Channel *c, bool all) {
    for (Letter **link = &c->letters; *link;) {
        Letter *l = *link;
        if (!all && !comm_done(l->request)) {
            link = &l->next;
            continue;
        }
        comm_wait(l->request);
        *link = l->next;
        free(l);
    }
}

void channel_settle(Channel *c) { drop_letters(c, true); }

ChannelMessage *channel_message(Channel *c, size_t bytes) {
    Slot **place = &c->ring[c->next], *s = *place;
    c->next = (c->next + 1) % c->room;
    if (!s) s = *place = slot_new(c);
    check(!s->taken);
    comm_wait(s->request); // what fills it comes behind what went before
    s->request = NULL;
    if (!slot_reach(c, s, bytes)) {
        Slot *larger = slot_new(c);
        larger->next = s;
        s = *place = larger;
        check(slot_reach(c, s, bytes));
    }
    s->taken = true;
    s->envelope->bytes = (int64_t)bytes;
    return &s->message;
}

static void send_letter(Channel *c, const Envelope *envelope) {
    size_t bytes = sizeof *envelope + c->header_bytes;
    Letter *l = malloc(sizeof *l + bytes);
    check(l);
    memcpy(l->bytes, envelope, bytes);
    drop_letters(c, false);
    l->next = c->letters;
    c->letters = l;
    l->request = comm_start_send(c->pair, l->bytes, (int64_t)bytes, 1, 0, what);
}

// The header first: it lets the other side start its receive, without which what is sent does not go.
void channel_send(Channel *c, ChannelMessage *m, int tag) {
    Slot *s = (Slot *)m;
    int64_t bytes = s->envelope->bytes - (int64_t)c->header_bytes;
    s->envelope->tag = tag;
    send_letter(c, s->envelope);
    if (bytes > 0)
        s->request = comm_device_start_send(c->backend, c->pair, (char *)m->body + c->header_bytes, bytes, 1, 0, what);
    s->taken = false;
}

// ---- receiving ----

static void look_out(Channel *c) {
    if (c->letter || c->received == c->expected) return;
    if (c->free) {
        c->coming = c->free;
        c->free = c->free->next;
    } else {
        c->coming = slot_new(c);
    }
    c->coming->next = NULL;
    c->letter = comm_start_receive(c->pair, c->coming->envelope,
                                   (int64_t)(sizeof *c->coming->envelope + c->header_bytes), 0, 0, what);
}

void channel_expect(Channel *c) {
    c->expected++;
    look_out(c);
}

// Another slot for what a smaller one was to take.
static Slot *enough(Channel *c, Slot *s, size_t bytes) {
    if (slot_reach(c, s, bytes)) return s;
    Slot *larger = slot_new(c);
    memcpy(larger->envelope, s->envelope, sizeof *s->envelope + c->header_bytes);
    s->next = c->free;
    c->free = s;
    check(slot_reach(c, larger, bytes));
    return larger;
}

// Waits for the envelope that comes next, and starts the receive of what belongs to it.
static void take_envelope(Channel *c) {
    check(c->letter);
    comm_wait(c->letter);
    Slot *s = enough(c, c->coming, (size_t)c->coming->envelope->bytes), **end = &c->arrived;
    int64_t bytes = s->envelope->bytes - (int64_t)c->header_bytes;
    c->letter = NULL;
    c->received++;
    if (bytes > 0)
        s->request = comm_device_start_receive_behind(c->backend, c->pair, (char *)s->message.body + c->header_bytes,
                                                      bytes, s->point, what);
    if (bytes > 0) s->point = 0;
    while (*end) end = &(*end)->next;
    *end = s;
    s->next = NULL;
    look_out(c);
}

static int waiting(const Channel *c) {
    int count = 0;
    for (const Slot *s = c->arrived; s; s = s->next) count++;
    return count;
}

static Slot **find(const Channel *c, int tag) {
    Slot **link = (Slot **)&c->arrived;
    while (*link && (*link)->envelope->tag != tag) link = &(*link)->next;
    return link;
}

bool channel_waits(const Channel *c, int tag) { return !*find(c, tag) && !comm_done(c->letter); }

ChannelMessage *channel_receive(Channel *c, int tag) {
    while (!*find(c, tag)) take_envelope(c);
    Slot **link = find(c, tag), *s = *link;
    *link = s->next;
    s->next = NULL;
    s->taken = true;
    while (c->letter && waiting(c) < AHEAD && comm_done(c->letter)) take_envelope(c);
    comm_wait(s->request);
    s->request = NULL;
    return &s->message;
}

void channel_give_back(Channel *c, ChannelMessage *m) {
    Slot *s = (Slot *)m;
    check(s->taken);
    s->taken = false;
    if (!s->point) s->point = comm_device_point(c->pair);
    s->next = NULL;
    Slot **end = &c->free;
    while (*end) end = &(*end)->next; // the one that has been free for longest is used next
    *end = s;
}
