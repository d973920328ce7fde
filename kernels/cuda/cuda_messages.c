/* A way for messages from one GPU to another by NCCL: a communicator of two and a stream of its own, which no list of
 * commands waits for. Messages are started between lists, not in them: a CUDA graph ends when all of it has ended, so
 * that whatever came behind it would wait until the other side has taken what was sent, and the other side may be
 * waiting for that. One way goes in one direction: then both ends see its messages in one order. */
#include "base/error.h"
#include "kernels/comm/device_link.h"
#include "kernels/cuda/cuda_announce.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/cuda_nccl.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Blocks that NCCL may run for a message at the most: a receive that waits for its sender keeps them from arithmetic.
enum { BLOCKS = 4 };

typedef struct Way {
    DeviceLink link;
    CudaState *state;
    const NcclCalls *calls;
    ncclComm_t comm;
    int peer;
    char name[32];
    cudaStream_t stream;
    cudaEvent_t *events; // (most) behind messages that were started; points in what the first lane was given
    bool *taken;         // (most)
    CudaAnnouncer *announcer;
    int most; // number 0 is for what is wanted at once
    char fault[256];
} Way;

static bool under_way(DeviceLink *link, DeviceUnderWay *out) {
    const Way *w = link->state;
    return cuda_announced(w->announcer, out);
}

static const char *fault(DeviceLink *link) {
    Way *w = link->state;
    ncclResult_t status = ncclSuccess;
    if (w->calls->fault(w->comm, &status) != ncclSuccess || status == ncclSuccess || status == ncclInProgress)
        return NULL;
    snprintf(w->fault, sizeof w->fault, "NCCL on the way %s failed: %s", w->name, w->calls->text(status));
    return w->fault;
}

static void abort_way(DeviceLink *link) {
    const Way *w = link->state;
    (void)w->calls->abort(w->comm);
}

static int take_event(Way *w) {
    int number = 1;
    while (number < w->most && w->taken[number]) number++;
    for (; w->most <= number; w->most++) {
        w->events = realloc(w->events, (size_t)(w->most + 1) * sizeof *w->events);
        w->taken = realloc(w->taken, (size_t)(w->most + 1) * sizeof *w->taken);
        check(w->events && w->taken);
        cuda_must(w->state, cudaEventCreateWithFlags(&w->events[w->most], cudaEventDisableTiming), "an event");
    }
    w->taken[number] = true;
    return number;
}

// What follows in `stream` comes behind the event, which is free for others then.
static void follow(Way *w, cudaStream_t stream, int number) {
    cuda_must(w->state, cudaStreamWaitEvent(stream, w->events[number], 0), "a message");
    w->taken[number] = false;
}

static int point(DeviceLink *link) {
    Way *w = link->state;
    int number = take_event(w);
    cuda_list_flush(w->state);
    cuda_must(w->state, cudaEventRecord(w->events[number], w->state->stream), "a message");
    return number;
}

static int start(DeviceLink *link, const DeviceCall *c) {
    Way *w = link->state;
    size_t bytes = (size_t)device_call_bytes(c);
    bool sends = c->kind == CALL_SEND;
    check(bytes && (sends || c->kind == CALL_RECEIVE));
    CudaQueue queue = {.stream = w->stream};
    int call = cuda_announced_call(w->announcer, c);
    if (c->behind >= 0) follow(w, w->stream, c->behind ? c->behind : point(link));
    cuda_announce_begin(w->announcer, &queue, call);
    cuda_nccl_must(w->state, w->calls,
                   sends ? w->calls->send(c->in, bytes, ncclUint8, w->peer, w->comm, w->stream)
                         : w->calls->receive(c->out, bytes, ncclUint8, w->peer, w->comm, w->stream),
                   w->name, c->what);
    cuda_announce_end(w->announcer, &queue, call);
    int number = take_event(w);
    cuda_must(w->state, cudaEventRecord(w->events[number], w->stream), "a message");
    return number;
}

static void wait_for(DeviceLink *link, int number) {
    Way *w = link->state;
    check(w->taken[number]);
    cuda_list_flush(w->state);
    follow(w, w->state->stream, number);
}

static void close_way(DeviceLink *link) {
    Way *w = link->state;
    if (w->stream) (void)cudaStreamSynchronize(w->stream);
    if (w->comm) (void)w->calls->destroy(w->comm);
    for (int i = 0; i < w->most; i++) (void)cudaEventDestroy(w->events[i]);
    if (w->stream) (void)cudaStreamDestroy(w->stream);
    cuda_announcer_free(w->announcer);
    free(w->events);
    free(w->taken);
    free(w);
}

// NCCL connects two ranks when they first exchange something, and its calls wait for the other side until it has: here,
// where both are at the same thing, and not within a step, where they are not.
static void connect(Way *w, Backend *b, int rank) {
    enum { BYTES = 256 };
    void *memory = b->allocate(b, BYTES);
    check(memory && "memory for a first message");
    cuda_nccl_must(w->state, w->calls,
                   rank ? w->calls->receive(memory, BYTES, ncclUint8, w->peer, w->comm, w->stream)
                        : w->calls->send(memory, BYTES, ncclUint8, w->peer, w->comm, w->stream),
                   w->name, "a first message");
    cuda_must(w->state, cudaStreamSynchronize(w->stream), "a first message");
    b->release(b, memory, BYTES);
}

DeviceLink *cuda_messages_open(Backend *b, const CudaNccl *n, const ncclUniqueId *id, int rank, const char *name,
                               Error *error) {
    Way *w = calloc(1, sizeof *w);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    check(w);
    *w = (Way){.link = {w, start, wait_for, point, under_way, fault, abort_way, close_way},
               .state = cuda_state(b),
               .calls = &n->calls,
               .peer = !rank,
               .announcer = cuda_announcer_new(b)};
    snprintf(w->name, sizeof w->name, "%s", name);
    config.maxCTAs = BLOCKS;
    cudaError_t status = cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking);
    if (status != cudaSuccess) {
        error_set(error, ERROR_FAILED, "no stream for messages: %s", cudaGetErrorString(status));
        close_way(&w->link);
        return NULL;
    }
    ncclResult_t answer = n->calls.open_with(&w->comm, 2, *id, rank, &config);
    if (answer != ncclSuccess) {
        error_set(error, ERROR_FAILED, "NCCL does not link %s: %s (NCCL_DEBUG=INFO says more)", name,
                  n->calls.text(answer));
        w->comm = NULL;
        close_way(&w->link);
        return NULL;
    }
    connect(w, b, rank);
    return &w->link;
}
