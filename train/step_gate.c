/* See step_gate.h. One block of device memory, which one read brings over: gate, squares, losses. */
#include "train/step_gate.h"
#include <stdlib.h>
#include <string.h>

typedef struct Header {
    Gate gate;
    double squares;
} Header;

struct StepGate {
    Backend *backend;
    Header *header; // device
    float *losses;  // (pieces, OBJECTIVES) device, behind the header
    int64_t count;  // of losses
    char *host;     // work space: what is read
};

static size_t loss_bytes(const StepGate *s) { return (size_t)s->count * sizeof(float); }
static size_t all_bytes(const StepGate *s) { return sizeof(Header) + loss_bytes(s); }

StepGate *step_gate_new(Backend *backend, int pieces) {
    StepGate *s = calloc(1, sizeof *s);
    check(s);
    s->backend = backend;
    s->count = (int64_t)pieces * OBJECTIVES;
    s->header = backend->allocate(backend, all_bytes(s));
    s->host = malloc(all_bytes(s));
    check(s->header && s->host);
    s->losses = (float *)(s->header + 1);
    backend->zero(backend, s->header, all_bytes(s));
    return s;
}

void step_gate_free(StepGate *s) {
    if (!s) return;
    s->backend->release(s->backend, s->header, all_bytes(s));
    free(s->host);
    free(s);
}

void step_gate_begin(StepGate *s) { s->backend->zero(s->backend, s->losses, loss_bytes(s)); }

void step_gate_loss(StepGate *s, int piece, Objective o, const Tensor *mean) {
    int64_t at = (int64_t)piece * OBJECTIVES + o;
    check(at < s->count && mean->dtype == F32 && tensor_count(mean) == 1);
    s->backend->copy(s->backend, s->losses + at, mean->data, sizeof(float));
}

const Gate *step_gate_close(StepGate *s, Gradients *g, double clip) {
    gradients_squares(g, &s->header->squares, s->losses, s->count);
    s->backend->gate(s->backend, &s->header->gate, &s->header->squares, 1, clip);
    return &s->header->gate;
}

BackendRead *step_gate_read(StepGate *s) { return backend_read_start(s->backend, s->header, all_bytes(s)); }

void step_gate_finish(StepGate *s, BackendRead *read, Gate *gate, float *mean) {
    backend_read_finish(s->backend, read, gate ? s->host : NULL);
    if (!gate) return;
    *gate = ((const Header *)(const void *)s->host)->gate;
    memcpy(mean, s->host + sizeof(Header), loss_bytes(s));
}
