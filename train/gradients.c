/* See gradients.h. Reductions must start in the same order on every data rank, though their graphs may differ (a rank
 * without pictures): the order is agreed once, after the first step, as the one in which the first rank's buckets were
 * complete, and a bucket waits for those before it. */
#include "train/gradients.h"
#include "kernels/nn/buckets.h"
#include "kernels/nn/buffers.h"
#include <stdlib.h>

enum {
    LEVELS = 31, // of a tree over pieces
    FLYING = 2,  // reductions under way, at the most, before another bucket of gradients is taken (stages 2 and 3)
};

typedef struct Flow {       // a trained bucket's way through a step
    float *home;            // its gradients in the flat buffer (stages 0 and 1)
    float *waiting[LEVELS]; // ordered: sums over 1, 2, 4, ... pieces whose other half is to come; (blocks) each
    CommRequest *request;   // its reduction
    float *sent;            // (blocks) what is reduced, to be given back afterwards (stages 2 and 3)
    float *part;            // (owned) what comes back, to be added to the sums; NULL: it goes there directly
    bool summed;            // an earlier piece of the step has gone to the sums
    bool started;           // in this piece
} Flow;

struct Gradients {
    Parameters *parameters;
    const Parallel *parallel;
    Backend *backend;
    Tape *tape;
    Trace *trace;
    Buffers *buffers;
    Flow *flows;  // (buckets_count); those of frozen buckets stay empty
    int *order;   // (count) trained buckets, in the order of their reductions
    int *noticed; // (noticed_count) trained buckets, in the order in which the first step completed them
    int count, noticed_count;
    bool agreed; // the order
    int stage, pieces, piece;
    int next;         // of `order`: the bucket to be reduced next in this piece
    bool reducing;    // this piece ends with reductions
    bool adopted;     // flat buffers take part in the exchange of buffers
    double since;     // when the half of the piece under way began
    bool in_backward; // which half
};

static bool keeps_tree(const Gradients *g) { return g->parallel->ordered && g->pieces > 1; }
static int64_t elements(int64_t blocks) { return blocks * PARAMETER_BLOCK; }

// ---- reductions ----

// Ends the bucket's reduction, if there is one.
static void collect(Gradients *g, int number) {
    Flow *f = &g->flows[number];
    const Bucket *b = bucket_at(g->parameters, number);
    comm_wait(f->request);
    if (f->part) g->backend->add_in_place(g->backend, b->sums, f->part, elements(b->owned), F32, F32);
    buffers_give(g->buffers, f->part);
    buffers_give(g->buffers, f->sent);
    f->request = NULL;
    f->part = f->sent = NULL;
}

// Gives back what has been reduced, and waits for the oldest where too much is under way. Not at stage 3: there another
// rank may need this one for its parameters before it comes to that reduction.
static void make_room(Gradients *g) {
    int flying = 0;
    for (int i = 0; i < g->count; i++) {
        if (g->flows[g->order[i]].request && comm_done(g->flows[g->order[i]].request)) collect(g, g->order[i]);
        flying += g->flows[g->order[i]].request != NULL;
    }
    for (int i = 0; i < g->count && flying >= FLYING && g->stage < 3; i++) {
        flying -= g->flows[g->order[i]].request != NULL;
        collect(g, g->order[i]);
    }
}

static void need_gradients(Gradients *g, Bucket *b) {
    if (b->gradients) return;
    make_room(g);
    bucket_set_gradients(b, buffers_take(g->buffers, bucket_bytes(b->blocks, F32)));
}

// Parameters that tensor ranks use on some of the rows each: their gradients are summed first.
static void sum_partial(const Gradients *g, const Bucket *b) {
    if (comm_size(g->parallel->tensor) == 1 || !b->partial_blocks) return;
    comm_all_reduce(g->parallel->tensor, b->gradients, elements(b->partial_blocks), COMM_F32, COMM_SUM, COMM_ORDERED,
                    "gradients of parts");
}

static void reduce(Gradients *g, int number) {
    Flow *f = &g->flows[number];
    Bucket *b = bucket_at(g->parameters, number);
    Comm *data = g->parallel->data;
    CommOrder order = g->parallel->ordered ? COMM_ORDERED : COMM_FAST;
    if (comm_size(data) == 1) return;
    if (g->stage == 0) {
        f->request =
            comm_start_all_reduce(data, b->gradients, elements(b->blocks), COMM_F32, COMM_SUM, order, "gradients");
        return;
    }
    float *out = g->stage == 1 ? b->gradients + elements(b->own) : b->sums;
    if (g->stage >= 2) {
        f->sent = b->gradients;
        if (f->summed) out = f->part = buffers_take(g->buffers, bucket_bytes(b->owned, F32));
        f->summed = true;
    }
    f->request =
        comm_start_reduce_scatter(data, out, b->gradients, b->blocks, PARAMETER_BLOCK, COMM_F32, order, "gradients");
    if (g->stage >= 2) bucket_set_gradients(b, NULL);
}

// ---- the tree over pieces ----

// Adds the halves that wait to the gradients just formed, as many as the piece's number says; returns their number.
static int climb(Gradients *g, int number) {
    Flow *f = &g->flows[number];
    const Bucket *b = bucket_at(g->parameters, number);
    int level = 0;
    for (; g->piece >> level & 1; level++) {
        g->backend->add_in_place(g->backend, b->gradients, f->waiting[level], elements(b->blocks), F32, F32);
        buffers_give(g->buffers, f->waiting[level]);
        f->waiting[level] = NULL;
    }
    return level;
}

// Flat buffers of gradients become some among those that are exchanged.
static void adopt(Gradients *g) {
    if (g->adopted) return;
    g->adopted = true;
    for (int i = 0; i < g->count; i++) {
        const Bucket *b = bucket_at(g->parameters, g->order[i]);
        if (b->gradients) buffers_adopt(g->buffers, b->gradients, bucket_bytes(b->blocks, F32));
    }
}

// ---- a piece's end, bucket by bucket ----

static void finish(Gradients *g, int number) {
    Bucket *b = bucket_at(g->parameters, number);
    Flow *f = &g->flows[number];
    f->started = true;
    if (f->request) collect(g, number);
    need_gradients(g, b);
    bucket_end_backward(g->parameters, b);
    int level = keeps_tree(g) ? climb(g, number) : 0;
    if (g->reducing) {
        sum_partial(g, b);
        reduce(g, number);
        return;
    }
    f->waiting[level] = b->gradients;
    bucket_set_gradients(b, NULL);
}

static bool bucket_complete(const Bucket *b) {
    for (int i = 0; i < b->count; i++)
        if (b->items[i]->tensor.writers) return false;
    return true;
}

static void notice(Gradients *g, int number) {
    for (int i = 0; i < g->noticed_count; i++)
        if (g->noticed[i] == number) return;
    if (bucket_complete(bucket_at(g->parameters, number))) g->noticed[g->noticed_count++] = number;
}

static void agree(Gradients *g) {
    for (int i = 0; i < g->count; i++) notice(g, g->order[i]);
    check(g->noticed_count == g->count);
    comm_broadcast(g->parallel->data, g->noticed, g->count * (int64_t)sizeof *g->noticed, 0, "order of reductions");
    for (int i = 0; i < g->count; i++) g->order[i] = g->noticed[i];
    g->agreed = true;
}

// ---- hooks ----

static void on_backward(void *context) {
    Gradients *g = context;
    double now = trace_now();
    if (!g->in_backward) trace_slice(g->trace, "compute", "forward", g->since, now);
    g->since = now;
    g->in_backward = true;
}

static void on_use(void *context, const Node *n) {
    Gradients *g = context;
    parameters_use(g->parameters, n);
}

static void on_gradient(void *context, Tensor *t) {
    Gradients *g = context;
    int number = ((const Parameter *)t)->bucket;
    check(!g->flows[number].started && "a piece has one backward pass");
    need_gradients(g, bucket_at(g->parameters, number));
}

static void on_complete(void *context, Tensor *t) {
    Gradients *g = context;
    if (!g->reducing) return;
    if (!g->agreed) notice(g, ((const Parameter *)t)->bucket);
    while (g->next < g->count && bucket_complete(bucket_at(g->parameters, g->order[g->next])))
        finish(g, g->order[g->next++]);
}

// ---- a step ----

Gradients *gradients_new(Parameters *parameters, Tape *tape, Trace *trace) {
    Gradients *g = calloc(1, sizeof *g);
    int buckets = buckets_count(parameters);
    check(g);
    *g = (Gradients){.parameters = parameters,
                     .parallel = parameters_parallel(parameters),
                     .backend = parameters_backend(parameters),
                     .tape = tape,
                     .trace = trace,
                     .buffers = buffers_new(parameters_backend(parameters)),
                     .stage = parameters_stage(parameters)};
    g->flows = calloc((size_t)buckets + 1, sizeof *g->flows);
    g->order = calloc((size_t)buckets + 1, sizeof *g->order);
    g->noticed = calloc((size_t)buckets + 1, sizeof *g->noticed);
    check(g->flows && g->order && g->noticed);
    for (int i = buckets - 1; i >= 0; i--) { // until they agree: as backward passes go
        if (bucket_at(parameters, i)->frozen) continue;
        g->flows[i].home = bucket_at(parameters, i)->gradients;
        g->order[g->count++] = i;
    }
    tape_set_hooks(
        tape,
        &(TapeHooks){
            .context = g, .backward = on_backward, .use = on_use, .gradient = on_gradient, .complete = on_complete});
    return g;
}

void gradients_free(Gradients *g) {
    if (!g) return;
    tape_set_hooks(g->tape, NULL);
    for (int i = 0; i < g->count; i++) {
        collect(g, g->order[i]);
        bucket_set_gradients(bucket_at(g->parameters, g->order[i]), g->flows[g->order[i]].home);
    }
    buffers_free(g->buffers);
    free(g->flows);
    free(g->order);
    free(g->noticed);
    free(g);
}

void gradients_begin_step(Gradients *g, int pieces) {
    check(pieces >= 1 && (!g->parallel->ordered || (pieces & (pieces - 1)) == 0));
    g->pieces = pieces;
    if (keeps_tree(g)) adopt(g);
    for (int i = 0; i < g->count; i++) {
        collect(g, g->order[i]); // of a step whose norm nobody wanted
        g->flows[g->order[i]].summed = false;
    }
    parameters_begin_step(g->parameters);
}

void gradients_begin_piece(Gradients *g, int piece) {
    check(piece >= 0 && piece < g->pieces);
    bool last = piece == g->pieces - 1, tree = keeps_tree(g);
    g->piece = piece;
    g->next = 0;
    g->reducing = last || (g->stage >= 2 && !tree);
    if (tree || g->stage >= 2) parameters_begin_step(g->parameters); // each piece's gradients stand alone
    for (int i = 0; i < g->count; i++) g->flows[g->order[i]].started = false;
    g->since = trace_now();
    g->in_backward = false;
}

void gradients_end_piece(Gradients *g) {
    if (g->reducing || keeps_tree(g))
        while (g->next < g->count) finish(g, g->order[g->next++]);
    parameters_meet(g->parameters);
    if (g->piece == g->pieces - 1) parameters_give_back(g->parameters);
    if (g->reducing && !g->agreed) agree(g);
    g->reducing = false;
    trace_slice(g->trace, "compute", g->in_backward ? "backward" : "forward", g->since, trace_now());
}

double gradients_norm(Gradients *g) {
    double begin = trace_now();
    for (int i = 0; i < g->count; i++) {
        Bucket *b = bucket_at(g->parameters, g->order[i]);
        collect(g, g->order[i]);
        if (g->stage < 2) bucket_set_sums(g->parameters, b, b->gradients + elements(b->own));
    }
    double norm = parameters_gradient_norm(g->parameters);
    trace_slice(g->trace, "compute", "gradient norm", begin, trace_now());
    return norm;
}

ParameterMemory gradients_memory(const Gradients *g) {
    ParameterMemory memory = parameters_memory(g->parameters);
    memory.buckets += (double)buffers_bytes(g->buffers);
    return memory;
}
