/* See gradient_norm.h. What ranks exchange are tables of zeros in which each has its own places: their sum is exact
 * whatever its order. */
#include "kernels/nn/gradient_norm.h"
#include "kernels/comm/comm_device.h"
#include "kernels/nn/parameters_state.h"
#include <stdlib.h>

enum { AXES = 3 };

struct GradientNorm {
    Parameters *parameters;
    Backend *backend;
    Comm *axes[AXES]; // data, pipeline, tensor
    int ranks, own;   // of all three together; this one's number
    Gate *gate;       // device, where the host waits; NULL: it never did
    double *table;    // device; NULL: not taken yet
    NormOrder order;  // for which it is laid out
    int64_t room;     // of it
    int64_t blocks;   // of all trained buckets: squares of blocks lie at the table's start,
    double *sums;     // behind them those of parameters, those that are whole on every tensor rank first,
    double *parts;    // and what the gate takes
    int64_t whole;    // parameters
    DoubleSum *adds;  // (parameters + 1) work space
    FloatSpan *spans; // (ranges owned) likewise
};

static int tensor_ranks(const GradientNorm *g) { return comm_size(g->axes[2]); }

// ---- life ----

GradientNorm *gradient_norm_new(Parameters *p) {
    GradientNorm *g = calloc(1, sizeof *g);
    check(g);
    *g = (GradientNorm){.parameters = p,
                        .backend = p->backend,
                        .axes = {p->parallel.data, p->parallel.pipeline, p->parallel.tensor},
                        .ranks = 1,
                        .adds = calloc((size_t)p->count + 1, sizeof *g->adds),
                        .spans = calloc((size_t)p->owned_count + 1, sizeof *g->spans)};
    check(g->adds && g->spans);
    for (int a = 0; a < AXES; a++) {
        g->ranks *= comm_size(g->axes[a]);
        g->own = g->own * comm_size(g->axes[a]) + comm_rank(g->axes[a]);
    }
    for (int i = 0; i < p->bucket_count; i++)
        if (!p->buckets[i].frozen) g->blocks = p->buckets[i].block + p->buckets[i].blocks;
    for (int i = 0; i < p->count; i++) g->whole += p->items[i]->split.segments == 0;
    return g;
}

static void give_table(GradientNorm *g) {
    if (g->table) g->backend->release(g->backend, g->table, (size_t)g->room * sizeof *g->table);
    g->table = NULL;
}

void gradient_norm_free(GradientNorm *g) {
    if (!g) return;
    give_table(g);
    if (g->gate) g->backend->release(g->backend, g->gate, sizeof *g->gate);
    free(g->adds);
    free(g->spans);
    free(g);
}

static void take_table(GradientNorm *g, NormOrder order) {
    if (g->table && g->order == order) return;
    give_table(g);
    g->order = order;
    bool by_parameter = order == NORM_BY_PARAMETER;
    int64_t squares = by_parameter ? g->blocks + 1 : 2, sums = by_parameter ? g->parameters->count + 1 : 0;
    g->room = squares + sums + (by_parameter ? 2 * tensor_ranks(g) : 1 + 2 * g->ranks);
    g->table = g->backend->allocate(g->backend, (size_t)g->room * sizeof *g->table);
    check(g->table && "memory for the gradients' norm");
    g->sums = g->table + squares;
    g->parts = g->sums + sums;
}

// ---- both ways ----

static void zero(const GradientNorm *g, double *x, int64_t n) {
    g->backend->zero(g->backend, x, (size_t)n * sizeof *x);
}

static void add_over(const GradientNorm *g, int axis, double *x, int64_t n) {
    if (comm_size(g->axes[axis]) > 1)
        comm_device_all_reduce(g->backend, g->axes[axis], x, n, COMM_F64, COMM_SUM, COMM_FAST, "gradient norm");
}

static bool counts(const Parameter *p) { return p->bucket >= 0 && !p->frozen && !p->is_replica; }

// ---- by parameter ----

// At the table's start, on every rank: sums of squares of all blocks of trained parameters, and behind them 0, or a
// number that is not finite where one of finite is not.
static void square_blocks(const GradientNorm *g, const float *finite, int64_t n) {
    const Parameters *p = g->parameters;
    Backend *be = g->backend;
    double *bad = g->table + g->blocks;
    if (p->stage) zero(g, g->table, g->blocks);
    for (int i = 0; i < p->bucket_count; i++) {
        const Bucket *b = &p->buckets[i];
        if (!b->frozen) be->block_squares(be, g->table + b->block + b->own, b->sums, b->owned, PARAMETER_BLOCK);
    }
    if (n)
        be->sum_squares(be, bad, NULL, 0, finite, n);
    else
        zero(g, bad, 1);
    add_over(g, 0, p->stage ? g->table : bad, p->stage ? g->blocks + 1 : 1); // at stage 0 all have all blocks
}

// From them those of parameters, in the order of declaration: whole ones, what is not finite, split ones; 0 of those
// that are nowhere on this stage and of replicas. Then those of all stages.
static void add_blocks(const GradientNorm *g) {
    const Parameters *p = g->parameters;
    int64_t place[2] = {0, g->whole + 1}; // of the next whole one, of the next split one
    int adds = 0;
    zero(g, g->sums, p->count + 1);
    for (int i = 0; i < p->count; i++) {
        const Parameter *item = p->items[i];
        int64_t first = item->offset / PARAMETER_BLOCK;
        int64_t end = (item->offset + tensor_count(&item->tensor) + PARAMETER_BLOCK - 1) / PARAMETER_BLOCK;
        double *out = g->sums + place[item->split.segments > 0]++;
        if (counts(item)) g->adds[adds++] = (DoubleSum){.x = g->table + first, .out = out, .n = end - first};
    }
    g->adds[adds++] = (DoubleSum){.x = g->table + g->blocks, .out = g->sums + g->whole, .n = 1};
    g->backend->sum_doubles(g->backend, g->adds, adds);
    add_over(g, 1, g->sums, p->count + 1);
}

// Of each tensor rank what it holds whole, where the first one's stands for all, then of each what it holds of the
// split ones.
static const double *parts_by_parameter(const GradientNorm *g, const float *finite, int64_t n, int64_t *count) {
    int ranks = tensor_ranks(g), own = comm_rank(g->axes[2]);
    square_blocks(g, finite, n);
    add_blocks(g);
    if (ranks > 1) zero(g, g->parts, 2 * ranks);
    DoubleSum of[2] = {
        {.x = g->sums, .out = g->parts + own, .n = g->whole + 1, .elsewhere = own > 0},
        {.x = g->sums + g->whole + 1, .out = g->parts + ranks + own, .n = g->parameters->count - g->whole}};
    g->backend->sum_doubles(g->backend, of, 2);
    add_over(g, 2, g->parts, 2 * ranks);
    *count = 2 * ranks;
    return g->parts;
}

// ---- as held ----

// The ranges of this rank whose squares count here, or those that count on another rank, which holds them too.
static int list_ranges(const GradientNorm *g, bool elsewhere) {
    const Parameters *p = g->parameters;
    int count = 0;
    for (int i = 0; i < p->owned_count; i++) {
        const OwnedRange *r = &p->owned[i];
        bool again = (!p->stage && comm_rank(g->axes[0])) || (!r->parameter->split.segments && comm_rank(g->axes[2]));
        if (counts(r->parameter) && again == elsewhere) g->spans[count++] = (FloatSpan){r->gradient, r->count};
    }
    return count;
}

static const double *parts_as_held(const GradientNorm *g, const float *finite, int64_t n, int64_t *count) {
    Backend *be = g->backend;
    double *places = g->parts + 1, *own = places + g->own, *again = own + g->ranks;
    *count = 1;
    if (g->ranks == 1) {
        be->sum_squares(be, g->parts, g->spans, list_ranges(g, false), finite, n);
        return g->parts;
    }
    zero(g, places, 2 * g->ranks);
    be->sum_squares(be, own, g->spans, list_ranges(g, false), finite, n);
    int others = list_ranges(g, true);
    if (others) {
        be->sum_squares(be, g->table, g->spans, others, NULL, 0);
        be->sum_doubles(be, &(DoubleSum){.x = g->table, .out = again, .n = 1, .elsewhere = true}, 1);
    }
    for (int a = 0; a < AXES; a++) add_over(g, a, places, 2 * g->ranks);
    be->sum_doubles(be, &(DoubleSum){.x = places, .out = g->parts, .n = 2 * g->ranks}, 1);
    return g->parts;
}

// ---- the whole ----

const double *gradient_norm_parts(GradientNorm *g, NormOrder order, const float *finite, int64_t n, int64_t *count) {
    take_table(g, order);
    return order == NORM_BY_PARAMETER ? parts_by_parameter(g, finite, n, count) : parts_as_held(g, finite, n, count);
}

double gradient_norm(GradientNorm *g) {
    Backend *be = g->backend;
    Gate found;
    int64_t count;
    if (!g->gate) g->gate = be->allocate(be, sizeof *g->gate);
    check(g->gate && "memory for the gradients' norm");
    const double *parts = gradient_norm_parts(g, NORM_BY_PARAMETER, NULL, 0, &count);
    be->gate(be, g->gate, parts, count, 0);
    be->download(be, &found, g->gate, sizeof found);
    return found.norm;
}

double parameters_gradient_norm(Parameters *p) {
    GradientNorm *g = gradient_norm_new(p);
    double norm = gradient_norm(g);
    gradient_norm_free(g);
    return norm;
}
