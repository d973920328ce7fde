/* See cuda_announce.h. Calls have numbers by what they are, so that the same list stays the same; how many there were
 * is counted on the device, so that one which comes again is told from one that goes on. */
#include "kernels/cuda/cuda_announce.h"
#include "base/error.h"
#include "kernels/cuda/announce.h"
#include <stdatomic.h>
#include <stdlib.h>

enum { MOST_CALLS = 1024 }; // that differ; what comes behind them has the last one's name

typedef struct Announced {
    DeviceCallKind kind;
    const char *what;
    int64_t bytes;
    int peer;
} Announced;

struct CudaAnnouncer {
    Backend *backend;
    uint64_t *count;        // device
    _Atomic uint64_t *word; // pinned
    Announced *calls;       // (MOST_CALLS)
    int used;
};

CudaAnnouncer *cuda_announcer_new(Backend *b) {
    CudaAnnouncer *a = calloc(1, sizeof *a);
    check(a);
    a->backend = b;
    a->count = b->allocate(b, sizeof *a->count);
    a->word = cuda_pinned_for_kernels(cuda_state(b), sizeof *a->word);
    a->calls = calloc(MOST_CALLS, sizeof *a->calls);
    check(a->count && a->calls);
    atomic_init(a->word, 0);
    b->zero(b, a->count, sizeof *a->count);
    b->wait(b); // other streams count
    return a;
}

void cuda_announcer_free(CudaAnnouncer *a) {
    if (!a) return;
    a->backend->release(a->backend, a->count, sizeof *a->count);
    cuda_pinned_free((void *)a->word);
    free(a->calls);
    free(a);
}

int cuda_announced_call(CudaAnnouncer *a, const DeviceCall *c) {
    int64_t bytes = c->kind == CALL_ALL_TO_ALL ? 0 : device_call_bytes(c);
    bool pair = c->kind == CALL_SEND || c->kind == CALL_RECEIVE || c->kind == CALL_EXCHANGE;
    Announced call = {c->kind, c->what, bytes, pair ? c->peer : -1};
    for (int i = 0; i < a->used; i++) {
        const Announced *x = &a->calls[i];
        if (x->kind == call.kind && x->what == call.what && x->bytes == call.bytes && x->peer == call.peer) return i;
    }
    if (a->used < MOST_CALLS) a->calls[a->used++] = call;
    return a->used - 1;
}

void cuda_announce_begin(CudaAnnouncer *a, const CudaQueue *q, int call) {
    cuda_announce(q, (uint64_t *)a->word, a->count, (uint64_t)call, true);
}

void cuda_announce_end(CudaAnnouncer *a, const CudaQueue *q, int call) {
    cuda_announce(q, (uint64_t *)a->word, a->count, (uint64_t)call, false);
}

// The device has begun the call, so its entry was written before.
bool cuda_announced(const CudaAnnouncer *a, DeviceUnderWay *out) {
    static const char *const names[] = {[CALL_ALL_REDUCE] = "all-reduce", [CALL_REDUCE_SCATTER] = "reduce-scatter",
                                        [CALL_ALL_GATHER] = "all-gather", [CALL_ALL_TO_ALL] = "all-to-all",
                                        [CALL_BROADCAST] = "broadcast",   [CALL_SEND] = "send",
                                        [CALL_RECEIVE] = "receive",       [CALL_EXCHANGE] = "exchange"};
    uint64_t word = atomic_load(a->word);
    if (!(word & 1)) return false;
    const Announced *c = &a->calls[(word >> 1) % MOST_CALLS];
    *out = (DeviceUnderWay){(int64_t)(word >> ANNOUNCED_BITS), names[c->kind], c->what, c->bytes, c->peer};
    return true;
}
