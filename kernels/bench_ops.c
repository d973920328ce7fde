/* See bench_ops.h. An operator is run through its example once, which leaves its node; the node's forward and backward
 * are then called again and again, so that making the inputs is not measured. */
#include "kernels/bench_ops.h"
#include "base/clock.h"
#include "base/error.h"
#include "kernels/cpu/peak.h"
#include "kernels/example.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROUNDS = 101, MIN_ROUNDS = 5 };
#define ROUND_SECONDS 2e-4 // calls shorter than this are timed several at once
#define PROBE_SECONDS 4e-3

double bench_floor_seconds(const BenchRow *r) {
    double compute = r->flop / (r->peak_gflops * 1e9), memory = r->bytes / (r->peak_gbytes * 1e9);
    return compute > memory ? compute : memory;
}

bool bench_is_compute_bound(const BenchRow *r) { return r->flop / r->peak_gflops > r->bytes / r->peak_gbytes; }

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double time_calls(void (*call)(void *), void *context, int64_t count) { // seconds of one
    double start = clock_seconds();
    for (int64_t i = 0; i < count; i++) call(context);
    return (clock_seconds() - start) / (double)count;
}

static void time_rounds(BenchRow *row, void (*call)(void *), void *context, double seconds) {
    double round[MAX_ROUNDS], until = clock_seconds() + seconds;
    int rounds = 0;
    call(context); // caches and scratch
    double once = time_calls(call, context, 1);
    int64_t count = once < ROUND_SECONDS ? (int64_t)(ROUND_SECONDS / (once + 1e-9)) + 1 : 1;
    while (rounds < MIN_ROUNDS || (rounds < MAX_ROUNDS && clock_seconds() < until))
        round[rounds++] = time_calls(call, context, count);
    qsort(round, (size_t)rounds, sizeof *round, by_value);
    row->seconds = round[rounds / 2];
    row->fastest = round[0];
    row->slowest = round[rounds - 1];
}

void bench_measure(const Backend *b, const BenchOps *o, BenchRow *row, void (*call)(void *), void *context) {
    bool bf16 = row->dtype == BF16 && o->peak.bf16 > 0;
    double before = peak_fma(b, bf16, PROBE_SECONDS);
    time_rounds(row, call, context, o->seconds);
    double after = peak_fma(b, bf16, PROBE_SECONDS);
    row->peak_gflops = before > after ? before : after;
    row->peak_gbytes = row->bytes <= PEAK_CACHED_BYTES ? o->peak.cached : o->peak.copy;
}

// ---- one operator ----

typedef struct Case {
    Node *node;
    void *out_grad;
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
    for (int i = 0; i < MAX_INPUTS; i++) {
        if (!WANTS(c->wanted, i)) continue;
        c->node->in[i]->grad_written = false;
        if (c->taken[i]) c->node->in[i]->grad = NULL;
    }
    c->node->op->backward(c->node, c->wanted);
    tape_end_scratch(c->node->tape);
}

// Runs backward once; from then on no call allocates.
static void prepare_backward(Case *c, Tape *tape) {
    Tensor *out = c->node->out;
    c->out_grad = tape_tensor(tape, out->dtype, out->rank, out->shape)->data;
    Backend *b = tape_backend(tape);
    b->copy(b, c->out_grad, out->data, tensor_bytes(out)); // any finite numbers
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
    e.size = EXAMPLE_LARGE;
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
