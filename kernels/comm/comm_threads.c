/* Ranks that are threads of one process, for tests: a message is a copy from the sender's memory to the receiver's,
 * done by whoever comes second. See comm_internal.h. */
#include "kernels/comm/comm_internal.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

typedef struct Fabric {   // what the ranks share
    pthread_mutex_t lock; // of all that follows and of `complete` and `handle` of every message
    int size, open;
    Message **waiting; // (size) messages to each rank whose other side has not come; linked by handle, oldest first
    Engine **engines;  // (size)
} Fabric;

static bool pair_up(const Message *a, const Message *b) {
    return a->send != b->send && a->tag == b->tag && a->rank == b->peer && a->peer == b->rank;
}

// The place in the receiver's list of the oldest message that fits, or of the end of the list.
static Message **find(Fabric *fabric, const Message *message) {
    Message **place = &fabric->waiting[message->send ? message->peer : message->rank];
    while (*place && !pair_up(*place, message)) place = (Message **)&(*place)->handle.pointer;
    return place;
}

static void threads_post(void *state, Message *message) {
    Fabric *fabric = state;
    pthread_mutex_lock(&fabric->lock);
    Message **place = find(fabric, message), *other = *place;
    if (other) {
        *place = other->handle.pointer;
        check(other->bytes == message->bytes); // the two ranks disagree about the call
        const Message *from = message->send ? message : other, *to = message->send ? other : message;
        memcpy(to->data, from->data, (size_t)message->bytes);
        other->complete = message->complete = true;
        engine_wake(fabric->engines[message->peer]); // it cannot see the end, and leave, before the lock is free
    } else {
        message->handle.pointer = NULL;
        *place = message;
    }
    pthread_mutex_unlock(&fabric->lock);
}

static bool threads_test(void *state, Message *message) {
    Fabric *fabric = state;
    pthread_mutex_lock(&fabric->lock);
    bool complete = message->complete;
    pthread_mutex_unlock(&fabric->lock);
    return complete;
}

static void threads_close(void *state) {
    Fabric *fabric = state;
    pthread_mutex_lock(&fabric->lock);
    bool last = --fabric->open == 0;
    pthread_mutex_unlock(&fabric->lock);
    if (!last) return;
    pthread_mutex_destroy(&fabric->lock);
    free(fabric->waiting);
    free(fabric->engines);
    free(fabric);
}

// Not said to be one machine: the tests go the ways between machines too.
static const Transport transport = {
    .wakes = true, .post = threads_post, .test = threads_test, .close = threads_close, .tag_limit = INT_MAX};

void comm_threads_new(int size, Comm **ends) {
    check(size >= 1);
    Fabric *fabric = calloc(1, sizeof *fabric);
    check(fabric && pthread_mutex_init(&fabric->lock, NULL) == 0);
    fabric->size = fabric->open = size;
    fabric->waiting = calloc((size_t)size, sizeof *fabric->waiting);
    fabric->engines = calloc((size_t)size, sizeof *fabric->engines);
    check(fabric->waiting && fabric->engines);
    for (int r = 0; r < size; r++) {
        fabric->engines[r] = engine_new(&transport, fabric);
        ends[r] = comm_world_of(fabric->engines[r], r, size, "world");
    }
}
