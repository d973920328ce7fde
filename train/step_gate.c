/* See step_gate.h. One block of device memory, which one read brings over: the gate, and a record of each rank that has
 * losses of its own. */
#include "train/step_gate.h"
#include "kernels/comm/comm_device.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct StepGate {
    Backend *backend;
    Comm *data, *stages;
    int pieces;           // of a rank
    Gate *gate;           // device; behind it
    char *records;        // (data ranks, stages): of each its pieces' sums over pairs, then their means
    CommRequest *request; // the exchange of records
    char *host;           // work space: what is read
};

static size_t pair_bytes(const StepGate *s) { return (size_t)s->pieces * sizeof(double); }
static int64_t mean_count(const StepGate *s) { return (int64_t)s->pieces * OBJECTIVES; }
static size_t record_bytes(const StepGate *s) { return pair_bytes(s) + (size_t)mean_count(s) * sizeof(float); }

static size_t all_bytes(const StepGate *s) {
    return sizeof(Gate) + (size_t)(comm_size(s->data) * comm_size(s->stages)) * record_bytes(s);
}

static char *record_of(const StepGate *s, char *records, int place, int stage) {
    return records + (size_t)(place * comm_size(s->stages) + stage) * record_bytes(s);
}

static char *own_record(const StepGate *s) {
    return record_of(s, s->records, comm_rank(s->data), comm_rank(s->stages));
}

static float *own_means(const StepGate *s) { return (float *)(void *)(own_record(s) + pair_bytes(s)); }

StepGate *step_gate_new(Backend *backend, int pieces, Comm *data, Comm *stages) {
    StepGate *s = calloc(1, sizeof *s);
    check(s && pieces > 0);
    *s = (StepGate){.backend = backend, .data = data, .stages = stages, .pieces = pieces};
    s->gate = backend->allocate(backend, all_bytes(s));
    s->host = malloc(all_bytes(s));
    check(s->gate && s->host);
    s->records = (char *)(s->gate + 1);
    backend->zero(backend, s->gate, all_bytes(s));
    return s;
}

void step_gate_free(StepGate *s) {
    if (!s) return;
    comm_wait(s->request);
    s->backend->release(s->backend, s->gate, all_bytes(s));
    free(s->host);
    free(s);
}

void step_gate_begin(StepGate *s) { s->backend->zero(s->backend, own_record(s), record_bytes(s)); }

void step_gate_loss(StepGate *s, int piece, Objective o, const Tensor *mean) {
    int64_t at = (int64_t)piece * OBJECTIVES + o;
    check(at < mean_count(s) && mean->dtype == F32 && tensor_count(mean) == 1);
    s->backend->copy(s->backend, own_means(s) + at, mean->data, sizeof(float));
}

void step_gate_pairs(StepGate *s, const double *sums) {
    Backend *b = s->backend;
    b->copy(b, own_record(s), sums, pair_bytes(s));
    b->sum_rows(b, own_means(s) + OBJECTIVE_CONTRASTIVE, false, sums, s->pieces); // where it is looked at, if finite
}

void step_gate_fail(StepGate *s) {
    const float bad = NAN;
    s->backend->upload(s->backend, own_means(s), &bad, sizeof bad);
}

// Records of all stages, then of all data ranks, who bring those of their stages.
static void exchange(StepGate *s) {
    Backend *b = s->backend;
    int64_t bytes = (int64_t)record_bytes(s), stages = comm_size(s->stages), ranks = comm_size(s->data);
    char *place = record_of(s, s->records, comm_rank(s->data), 0);
    if (stages > 1) comm_device_all_gather(b, s->stages, place, own_record(s), stages, bytes, "losses");
    if (ranks > 1)
        s->request = comm_device_start_all_gather(b, s->data, s->records, place, ranks, stages * bytes, "losses");
}

const Gate *step_gate_close(StepGate *s, Gradients *g, double clip) {
    int64_t count;
    const double *parts = gradients_norm_parts(g, own_means(s), mean_count(s), &count);
    s->backend->gate(s->backend, s->gate, parts, count, clip);
    exchange(s); // beside the update, which does not wait for it
    return s->gate;
}

BackendRead *step_gate_read(StepGate *s) {
    comm_wait(s->request);
    s->request = NULL;
    return backend_read_start(s->backend, s->gate, all_bytes(s));
}

// Each number is formed on one stage, and 0 on the others.
static void add_record(const StepGate *s, const char *record, GateLoss *losses) {
    const double *pairs = (const double *)(const void *)record;
    const float *means = (const float *)(const void *)(record + pair_bytes(s));
    for (int i = 0; i < s->pieces; i++) {
        losses[i].pairs += pairs[i];
        for (int o = 0; o < OBJECTIVES; o++) losses[i].mean[o] += (double)means[i * OBJECTIVES + o];
    }
}

void step_gate_finish(StepGate *s, BackendRead *read, Gate *gate, GateLoss *losses) {
    int ranks = comm_size(s->data);
    backend_read_finish(s->backend, read, gate ? s->host : NULL);
    if (!gate) return;
    memcpy(gate, s->host, sizeof *gate);
    memset(losses, 0, (size_t)(ranks * s->pieces) * sizeof *losses);
    for (int d = 0; d < ranks; d++)
        for (int stage = 0; stage < comm_size(s->stages); stage++)
            add_record(s, record_of(s, s->host + sizeof *gate, d, stage), losses + d * s->pieces);
}
