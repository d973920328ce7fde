/* See bench_ops.h. An operator is run through its example once, which leaves its node; the node's forward and backward
 * are then called again and again, so that making the inputs is not measured. */
#include "kernels/bench_ops.h"
#include "base/clock.h"
#include "base/error.h"
#include "kernels/cpu/peak.h"
#include "kernels/example.h"
#include "kernels/gpus.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROUNDS = 101, MIN_ROUNDS = 5 };
#define ROUND_SECONDS        2e-4 // calls shorter than this are timed several at once
#define DEVICE_ROUND_SECONDS 2e-3 // there a call only starts the work
#define PROBE_SECONDS        4e-3
enum { DEVICE_COPY_BYTES = 1 << 30, DEVICE_PRODUCT = 8192 }; // from and to together; the side of the largest product

static bool on_cpu(const Backend *b) { return !strcmp(b->name, "cpu"); }

double bench_floor_seconds(const BenchRow *r) {
    double compute = r->flop / (r->peak_gflops * 1e9), memory = r->bytes / (r->peak_gbytes * 1e9);
    return compute > memory ? compute : memory;
}

bool bench_is_compute_bound(const BenchRow *r) { return r->flop / r->peak_gflops > r->bytes / r->peak_gbytes; }

double bench_goal(const BenchRow *r) {
    if (bench_is_compute_bound(r)) return 0;
    return strcmp(r->name, "adamw") ? 0.85 : 0.9;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double time_calls(Backend *b, void (*call)(void *), void *context, int64_t count) { // seconds of one
    b->wait(b);
    double start = clock_seconds();
    for (int64_t i = 0; i < count; i++) call(context);
    b->wait(b);
    return (clock_seconds() - start) / (double)count;
}

static void time_rounds(Backend *b, BenchRow *row, void (*call)(void *), void *context, double seconds) {
    double round[MAX_ROUNDS], until = clock_seconds() + seconds;
    int rounds = 0;
    call(context); // caches and scratch
    double once = time_calls(b, call, context, 1), round_seconds = on_cpu(b) ? ROUND_SECONDS : DEVICE_ROUND_SECONDS;
    int64_t count = once < round_seconds ? (int64_t)(round_seconds / (once + 1e-9)) + 1 : 1;
    while (rounds < MIN_ROUNDS || (rounds < MAX_ROUNDS && clock_seconds() < until))
        round[rounds++] = time_calls(b, call, context, count);
    qsort(round, (size_t)rounds, sizeof *round, by_value);
    row->seconds = round[rounds / 2];
    row->fastest = round[0];
    row->slowest = round[rounds - 1];
}

// A GPU's clock does not depend on its neighbours' work as a core's does: it is not probed again.
static double probe(Backend *b, const BenchOps *o, bool bf16) {
    return on_cpu(b) ? peak_fma(b, bf16, PROBE_SECONDS) : bf16 ? o->peak.bf16 : o->peak.f32;
}

void bench_measure(Backend *b, const BenchOps *o, BenchRow *row, void (*call)(void *), void *context) {
    bool bf16 = row->dtype == BF16 && o->peak.bf16 > 0;
    double before = probe(b, o, bf16);
    time_rounds(b, row, call, context, o->seconds);
    double after = probe(b, o, bf16);
    row->peak_gflops = before > after ? before : after;
    row->peak_gbytes = row->bytes <= PEAK_CACHED_BYTES ? o->peak.cached : o->peak.copy;
    row->goal = on_cpu(b) ? 0 : bench_goal(row);
}

// ---- what a GPU can do at most ----

typedef struct Probe {
    Backend *backend;
    Matmul product;
    void *to, *from; // (bytes)
    size_t bytes;
} Probe;

static void run_copy(void *context) {
    const Probe *p = context;
    p->backend->copy(p->backend, p->to, p->from, p->bytes);
}

static void run_product(void *context) {
    const Probe *p = context;
    p->backend->matmul(p->backend, &p->product);
}

static double fastest(Backend *b, void (*run)(void *), Probe *p, double seconds) {
    BenchRow row = {0};
    time_rounds(b, &row, run, p, seconds);
    return row.fastest;
}

static double product_gflops(Backend *b, Probe *p, Dtype t, double seconds) {
    double best = 0;
    for (int64_t n = 2048; n <= DEVICE_PRODUCT; n *= 2) {
        p->product =
            (Matmul){.m = n, .n = n, .k = n, .batch = 1, .a = p->from, .b = p->from, .c = p->to, .in = t, .out = t};
        p->product.a_row = p->product.b_column = p->product.c_row = n, p->product.a_column = p->product.b_row = 1;
        double rate = 2e-9 * (double)n * (double)n * (double)n / fastest(b, run_product, p, seconds);
        if (rate > best) best = rate;
    }
    return best;
}

static Peak device_peak(Backend *b, double seconds) {
    Peak peak = {0};
    size_t bytes = DEVICE_COPY_BYTES / 2, left, all;
    if (b->memory && b->memory(b, &left, &all) && left < 2 * (size_t)DEVICE_COPY_BYTES) return peak; // nor room to work
    Probe p = {.backend = b, .to = b->allocate(b, bytes), .from = b->allocate(b, bytes), .bytes = bytes};
    if (!p.to || !p.from) { // little memory, or little left of it
        b->release(b, p.to, bytes);
        b->release(b, p.from, bytes);
        return peak;
    }
    b->zero(b, p.from, bytes);
    peak.copy = 2e-9 * (double)bytes / fastest(b, run_copy, &p, seconds);
    p.bytes = PEAK_CACHED_BYTES / 2;
    peak.cached = 2e-9 * (double)p.bytes / fastest(b, run_copy, &p, seconds);
    peak.f32 = product_gflops(b, &p, F32, seconds);
    peak.bf16 = product_gflops(b, &p, BF16, seconds);
    b->release(b, p.to, bytes);
    b->release(b, p.from, bytes);
    return peak;
}

Peak bench_peak(Backend *b, double seconds) { return on_cpu(b) ? peak_measure(b, seconds) : device_peak(b, seconds); }

double bench_most_flops(Backend *b, Dtype t) {
    const GpuKind *kind = b->device ? gpu_kind(b->device) : NULL;
    if (kind) return gpu_peak(kind, t);
    Peak measured = bench_peak(b, 0.05);
    return 1e9 * (t == BF16 && measured.bf16 > 0 ? measured.bf16 : measured.f32);
}

// ---- one operator ----

typedef struct Case {
    Node *node;
    void *out_grad, *second_grad;
    unsigned wanted;
    bool taken[MAX_INPUTS]; // this input's gradient is the output's, handed on without work
} Case;

static void run_forward(void *context) {
    const Case *c = context;
    c->node->op->forward(c->node);
    tape_end_scratch(c->node->tape);
}

static void run_backward(void *context) {
    const Case *c = context;
    c->node->out->grad = c->out_grad;
    c->node->out->grad_written = true;
    if (c->node->second) c->node->second->grad = c->second_grad;
    for (int i = 0; i < MAX_INPUTS; i++) {
        if (!WANTS(c->wanted, i)) continue;
        c->node->in[i]->grad_written = false;
        if (c->taken[i]) c->node->in[i]->grad = NULL;
    }
    c->node->op->backward(c->node, c->wanted);
    tape_end_scratch(c->node->tape);
}

// Any finite numbers.
static void *make_gradient(Tape *tape, const Tensor *out) {
    void *grad = tape_tensor(tape, out->dtype, out->rank, out->shape)->data;
    Backend *b = tape_backend(tape);
    b->copy(b, grad, out->data, tensor_bytes(out));
    return grad;
}

// Runs backward once; from then on no call allocates.
static void prepare_backward(Case *c, Tape *tape) {
    c->out_grad = make_gradient(tape, c->node->out);
    if (c->node->second) c->second_grad = make_gradient(tape, c->node->second);
    for (int i = 0; i < MAX_INPUTS; i++)
        if (c->node->in[i] && c->node->in[i]->needs_grad) c->wanted |= 1u << i;
    if (!c->wanted) return;
    run_backward(c);
    for (int i = 0; i < MAX_INPUTS; i++) c->taken[i] = WANTS(c->wanted, i) && c->node->in[i]->grad == c->out_grad;
}

// One variant of an operator; returns how many it has.
static int bench_variant(Backend *b, const BenchOps *o, const Operator *op, int variant, Dtype dtype, Log *log) {
    Tape *tape = tape_new(b, true);
    Example e = {.tape = tape, .rng = rng_for(1, PURPOSE_TEST, (uint64_t)variant), .dtype = dtype};
    e.size = o->size;
    e.variant = variant;
    op->example(&e);
    Case c = {.node = tape_last(tape)};
    if (!e.out || !c.node || c.node->op != op) {
        log_warning(log, "%s, variant %d: %s", op->name, variant, tape_error(tape) ? tape_error(tape) : "not measured");
    } else {
        Cost cost = op->cost(c.node);
        BenchRow row = {.dtype = dtype, .pass = "forward", .flop = cost.flop, .bytes = cost.bytes};
        snprintf(row.name, sizeof row.name, e.variants > 1 ? "%s/%d" : "%s", op->name, variant);
        bench_measure(b, o, &row, run_forward, &c);
        o->row(o->context, &row);
        prepare_backward(&c, tape);
        row.pass = "backward", row.flop = cost.backward_flop, row.bytes = cost.backward_bytes;
        if (c.wanted) {
            bench_measure(b, o, &row, run_backward, &c);
            o->row(o->context, &row);
        }
    }
    tape_free(tape);
    return e.variants;
}

void bench_operators(Backend *b, const BenchOps *o, Dtype dtype, Log *log) {
    for (int i = 0; operator_list[i]; i++) {
        const Operator *op = operator_list[i];
        if (o->only && !strstr(op->name, o->only)) continue;
        int variants = 1;
        for (int v = 0; v < variants; v++) {
            int has = bench_variant(b, o, op, v, dtype, log);
            variants = has > 1 ? has : 1;
        }
    }
}
