/* See gradients.h. Reductions must start in the same order on every data rank, though their graphs may differ (a rank
 * without pictures): the order is agreed once for each part of the model, after its first step, as the one in which the
 * first rank's buckets were complete, and a bucket waits for those before it. Parts end in the same order on all data
 * ranks: that of the schedule's table. */
#include "train/gradients.h"
#include "kernels/comm/comm_device.h"
#include "kernels/nn/buckets.h"
#include "kernels/nn/buffers.h"
#include "kernels/nn/gradient_norm.h"
#include <stdlib.h>

enum {
    LEVELS = 31, // of a tree over pieces
    FLYING = 2,  // reductions under way, at the most, before another bucket of gradients is taken (stages 2 and 3)
    COPIES_TAG = 4000, // of messages over the pipeline: above those of its boundaries
};

typedef struct Flow {       // a trained bucket's way through a step
    float *home;            // its gradients in the flat buffer (stages 0 and 1)
    float *waiting[LEVELS]; // ordered: sums over 1, 2, 4, ... pieces whose other half is to come; (blocks) each
    CommRequest *request;   // its reduction; then the exchange of sums with its copy
    float *sent;            // (blocks) what is reduced, to be given back afterwards (stages 2 and 3)
    float *part;            // (owned) what comes back, to be added to the sums; NULL: it goes there directly
    bool summed;            // an earlier piece of the step has gone to the sums
    bool started;           // in this piece
} Flow;

typedef struct Part { // of the model: a chunk
    int first, count; // its trained buckets, in `order`
    int noticed;      // of them: those that the first step has completed
    int done;         // pieces of the step
    bool agreed;      // the order
} Part;

struct Gradients {
    Parameters *parameters;
    const Parallel *parallel;
    Backend *backend;
    Tape *tape; // NULL: several
    Trace *trace;
    Buffers *buffers;
    Flow *flows;  // (buckets_count); those of frozen buckets stay empty
    int *order;   // (count) trained buckets, part by part, each in the order of its reductions
    int *noticed; // (count) the same in the order in which the first step completed them
    int count, part_count;
    Part *parts; // (part_count)
    Part empty;  // stands for parts without trained parameters
    int stage, pieces;
    Part *open;       // between begin and end; NULL: none
    int piece, next;  // of it; which of its buckets is to be reduced next
    bool reducing;    // the pass ends with reductions
    bool adopted;     // flat buffers take part in the exchange of buffers
    bool draws;       // whole pieces: their halves are drawn
    double since;     // when the half of the piece under way began
    bool in_backward; // which half
    GradientNorm *norm;
};

static bool keeps_tree(const Gradients *g) { return g->parallel->ordered && g->pieces > 1; }
static int64_t elements(int64_t blocks) { return blocks * PARAMETER_BLOCK; }

// ---- reductions ----

// Ends the bucket's reduction, if there is one.
static void collect(Gradients *g, int number) {
    Flow *f = &g->flows[number];
    const Bucket *b = bucket_at(g->parameters, number);
    bool held = f->part || f->sent;
    comm_wait(f->request);
    if (f->part) g->backend->add_in_place(g->backend, b->sums, f->part, elements(b->owned), F32, F32);
    buffers_give(g->buffers, f->part);
    buffers_give(g->buffers, f->sent);
    f->request = NULL;
    f->part = f->sent = NULL;
    if (held) backend_lanes_meet(g->backend); // others may get that memory
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
    comm_device_all_reduce(g->backend, g->parallel->tensor, b->gradients, elements(b->partial_blocks), COMM_F32,
                           COMM_SUM, COMM_ORDERED, "gradients of parts");
}

static void reduce(Gradients *g, int number) {
    Flow *f = &g->flows[number];
    Bucket *b = bucket_at(g->parameters, number);
    Comm *data = g->parallel->data;
    CommOrder order = g->parallel->ordered ? COMM_ORDERED : COMM_FAST;
    if (comm_size(data) == 1) return;
    if (g->stage == 0) {
        f->request = comm_device_start_all_reduce(g->backend, data, b->gradients, elements(b->blocks), COMM_F32,
                                                  COMM_SUM, order, "gradients");
        return;
    }
    float *out = g->stage == 1 ? b->gradients + elements(b->own) : b->sums;
    if (g->stage >= 2) {
        f->sent = b->gradients;
        if (f->summed) out = f->part = buffers_take(g->buffers, bucket_bytes(b->owned, F32));
        f->summed = true;
    }
    f->request = comm_device_start_reduce_scatter(g->backend, data, out, b->gradients, b->blocks, PARAMETER_BLOCK,
                                                  COMM_F32, order, "gradients");
    if (g->stage >= 2) bucket_set_gradients(b, NULL);
}

// ---- the tree over pieces ----

// Adds the halves that wait to the gradients just formed, as many as the piece's number says; returns their number.
static int climb(Gradients *g, int number) {
    Flow *f = &g->flows[number];
    const Bucket *b = bucket_at(g->parameters, number);
    int level = 0;
    bool adds = g->piece & 1; // what several lanes formed
    if (adds) backend_lanes_meet(g->backend);
    for (; g->piece >> level & 1; level++) {
        g->backend->add_in_place(g->backend, b->gradients, f->waiting[level], elements(b->blocks), F32, F32);
        buffers_give(g->buffers, f->waiting[level]);
        f->waiting[level] = NULL;
    }
    if (adds) backend_lanes_meet(g->backend); // which may get the memory
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

// A bucket of the open part.
static void notice(Gradients *g, int number) {
    Part *part = g->open;
    int *noticed = g->noticed + part->first;
    for (int i = 0; i < part->noticed; i++)
        if (noticed[i] == number) return;
    if (bucket_complete(bucket_at(g->parameters, number))) noticed[part->noticed++] = number;
}

static void agree(Gradients *g) {
    Part *part = g->open;
    int *order = g->order + part->first, *noticed = g->noticed + part->first;
    for (int i = 0; i < part->count; i++) notice(g, order[i]);
    check(part->noticed == part->count);
    comm_broadcast(g->parallel->data, noticed, part->count * (int64_t)sizeof *noticed, 0, "order of reductions");
    for (int i = 0; i < part->count; i++) order[i] = noticed[i];
    part->agreed = true;
}

// ---- hooks ----

static void on_backward(void *context) {
    Gradients *g = context;
    double now = trace_now();
    if (!g->draws) return;
    if (!g->in_backward) trace_slice(g->trace, "compute", "forward", g->since, now);
    g->since = now;
    g->in_backward = true;
}

static void on_use(void *context, const Node *n) {
    Gradients *g = context;
    parameters_use(g->parameters, n);
}

static bool is_open(const Gradients *g, const Tensor *t) {
    return g->open && g->open == &g->parts[((const Parameter *)t)->chunk];
}

static void on_gradient(void *context, Tensor *t) {
    Gradients *g = context;
    int number = ((const Parameter *)t)->bucket;
    check(is_open(g, t) && "gradients of weights are formed between begin and end of their part");
    check(!g->flows[number].started && "a piece has one backward pass");
    need_gradients(g, bucket_at(g->parameters, number));
}

// Outside of its part a parameter is complete where a pass finds that no gradient will come: the part's end sees it.
static void on_complete(void *context, Tensor *t) {
    Gradients *g = context;
    if (!g->reducing || !is_open(g, t)) return;
    const int *order = g->order + g->open->first;
    if (!g->open->agreed) notice(g, ((const Parameter *)t)->bucket);
    while (g->next < g->open->count && bucket_complete(bucket_at(g->parameters, order[g->next])))
        finish(g, order[g->next++]);
}

// ---- a model's parameters ----

// Trained buckets by parts; until they agree, in the order in which backward passes go.
static void list_parts(Gradients *g) {
    int buckets = buckets_count(g->parameters);
    for (int i = 0; i < buckets; i++)
        if (bucket_at(g->parameters, i)->chunk >= g->part_count) g->part_count = bucket_at(g->parameters, i)->chunk + 1;
    g->parts = calloc((size_t)g->part_count + 1, sizeof *g->parts);
    check(g->parts);
    for (int chunk = 0; chunk < g->part_count; chunk++) {
        Part *part = &g->parts[chunk];
        part->first = g->count;
        for (int i = buckets - 1; i >= 0; i--) {
            const Bucket *b = bucket_at(g->parameters, i);
            if (b->frozen || b->chunk != chunk) continue;
            g->flows[i].home = b->gradients;
            g->order[g->count++] = i;
        }
        part->count = g->count - part->first;
    }
}

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
    g->norm = gradient_norm_new(parameters);
    list_parts(g);
    if (tape) gradients_follow(g, tape);
    return g;
}

void gradients_follow(Gradients *g, Tape *tape) {
    tape_keep_sums_apart(tape, g->parallel->ordered);
    tape_set_hooks(
        tape,
        &(TapeHooks){
            .context = g, .backward = on_backward, .use = on_use, .gradient = on_gradient, .complete = on_complete});
}

void gradients_free(Gradients *g) {
    if (!g) return;
    if (g->tape) tape_set_hooks(g->tape, NULL);
    for (int i = 0; i < g->count; i++) {
        collect(g, g->order[i]);
        bucket_set_gradients(bucket_at(g->parameters, g->order[i]), g->flows[g->order[i]].home);
    }
    buffers_free(g->buffers);
    free(g->flows);
    free(g->order);
    free(g->noticed);
    gradient_norm_free(g->norm);
    free(g->parts);
    free(g);
}

// ---- a step ----

void gradients_begin_step(Gradients *g, int pieces) {
    check(pieces >= 1 && (!g->parallel->ordered || (pieces & (pieces - 1)) == 0));
    g->pieces = pieces;
    if (keeps_tree(g)) adopt(g);
    for (int i = 0; i < g->count; i++) {
        collect(g, g->order[i]); // of a step whose norm nobody wanted
        g->flows[g->order[i]].summed = false;
    }
    for (int i = 0; i < g->part_count; i++) g->parts[i].done = 0;
    parameters_begin_step(g->parameters);
}

static void begin(Gradients *g, int chunk, int piece) {
    Part *part = chunk < g->part_count ? &g->parts[chunk] : &g->empty;
    bool tree = keeps_tree(g), alone = tree || g->stage >= 2; // whether each piece's gradients stand alone
    check(!g->open && chunk >= 0 && piece >= 0 && piece < g->pieces);
    check((piece == part->done || !part->count) && "pieces of a part come in order");
    g->open = part;
    g->piece = piece;
    g->next = 0;
    g->reducing = piece == g->pieces - 1 || (g->stage >= 2 && !tree);
    for (int i = 0; i < part->count; i++) {
        int number = g->order[part->first + i];
        g->flows[number].started = false;
        if (alone) bucket_begin_backward(bucket_at(g->parameters, number));
    }
}

static void finish_rest(Gradients *g) {
    check(g->open);
    if (!g->reducing && !keeps_tree(g)) return;
    while (g->next < g->open->count) finish(g, g->order[g->open->first + g->next++]);
}

static void end(Gradients *g) {
    if (g->reducing && !g->open->agreed) agree(g);
    g->open->done++;
    g->open = NULL;
    g->reducing = false;
}

void gradients_begin_part(Gradients *g, int chunk, int piece) {
    check(g->stage < 3 && "data ranks meet at the end of whole pieces alone");
    begin(g, chunk, piece);
}

void gradients_end_part(Gradients *g) {
    finish_rest(g);
    end(g);
}

void gradients_begin_piece(Gradients *g, int piece) {
    check(g->part_count <= 1);
    begin(g, 0, piece);
    g->since = trace_now();
    g->draws = true;
    g->in_backward = false;
}

void gradients_end_piece(Gradients *g) {
    finish_rest(g);
    parameters_meet(g->parameters);
    if (g->piece == g->pieces - 1) parameters_give_back(g->parameters);
    end(g);
    trace_slice(g->trace, "compute", g->in_backward ? "backward" : "forward", g->since, trace_now());
    g->draws = false;
}

// ---- parameters with a copy: both get the sum ----

// Of a copy on another stage: sends it the own sums, and receives its. Which is added to which makes no difference.
static void start_exchange(Gradients *g, const Parameter *own) {
    Flow *f = &g->flows[own->bucket];
    const Bucket *b = bucket_at(g->parameters, own->bucket);
    int64_t bytes = (int64_t)bucket_bytes(b->owned, F32);
    Comm *pipeline = g->parallel->pipeline;
    f->part = buffers_take(g->buffers, (size_t)bytes);
    f->request = comm_device_start_exchange(g->backend, pipeline, f->part, b->sums, bytes, own->replica->stage,
                                            COPIES_TAG, "gradients of copies");
}

static void add_here(Gradients *g, const Parameter *original) {
    const Bucket *b = bucket_at(g->parameters, original->bucket),
                 *copy = bucket_at(g->parameters, original->replica->bucket);
    g->backend->add_in_place(g->backend, b->sums, copy->sums, elements(b->owned), F32, F32);
    g->backend->copy(g->backend, copy->sums, b->sums, bucket_bytes(b->owned, F32));
}

// In the order of declaration, which is the same on both stages.
static void add_copies(Gradients *g) {
    for (int i = 0; i < parameters_count(g->parameters); i++) {
        const Parameter *item = parameters_at(g->parameters, i);
        if (!item->replica || item->is_replica || item->frozen) continue;
        bool original = item->bucket >= 0, copy = item->replica->bucket >= 0;
        if (original && copy) add_here(g, item);
        if (original != copy) start_exchange(g, original ? item : item->replica);
    }
    for (int i = 0; i < g->count; i++) collect(g, g->order[i]);
}

// All sums are where the optimizer looks for them.
static void end_step(Gradients *g) {
    for (int i = 0; i < g->part_count; i++) check(g->parts[i].done == g->pieces || !g->parts[i].count);
    for (int i = 0; i < g->count; i++) {
        Bucket *b = bucket_at(g->parameters, g->order[i]);
        collect(g, g->order[i]);
        if (g->stage < 2) bucket_set_sums(g->parameters, b, b->gradients + elements(b->own));
    }
    add_copies(g);
}

double gradients_norm(Gradients *g) {
    double since = trace_now();
    end_step(g);
    double norm = gradient_norm(g->norm);
    trace_slice(g->trace, "compute", "gradient norm", since, trace_now());
    return norm;
}

const double *gradients_norm_parts(Gradients *g, const float *finite, int64_t n, int64_t *count) {
    end_step(g);
    return gradient_norm_parts(g->norm, g->parallel->ordered ? NORM_BY_PARAMETER : NORM_AS_HELD, finite, n, count);
}

ParameterMemory gradients_memory(const Gradients *g) {
    ParameterMemory memory = parameters_memory(g->parameters);
    memory.buckets += (double)buffers_bytes(g->buffers);
    return memory;
}
