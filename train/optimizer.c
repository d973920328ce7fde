/* See optimizer.h. */
#include "train/optimizer.h"
#include "kernels/nn/buckets.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct Optimizer {
    Backend *backend;
    Parameters *parameters;
    OptimizerConfig config;
    int64_t total_steps, elements;
    float *m, *v;     // (elements) each, device
    AdamWPart *parts; // (of all ranges owned) work space of a step
    void *window;     // device: what moments on the host go through; NULL: they are where the arithmetic is
    size_t window_bytes;
};

enum { WINDOW = 96 << 20 }; // bytes at most

static bool offloads(const Optimizer *o) { return parameters_parallel(o->parameters)->offload; }
static size_t moment_bytes(const Optimizer *o) { return (size_t)(o->elements ? o->elements : 1) * sizeof(float); }

static float *moments_new(const Optimizer *o) {
    Backend *b = o->backend;
    size_t bytes = moment_bytes(o);
    float *moments = offloads(o) ? backend_allocate_host(b, bytes) : b->allocate(b, bytes);
    check(moments && "memory for moments");
    if (!offloads(o)) b->zero(b, moments, bytes);
    return moments;
}

static void moments_free(const Optimizer *o, float *moments) {
    if (offloads(o))
        backend_release_host(o->backend, moments, moment_bytes(o));
    else
        o->backend->release(o->backend, moments, moment_bytes(o));
}

// Twice the three arrays of what is updated at once; less where there is less.
static void window_new(Optimizer *o) {
    size_t all = 6 * moment_bytes(o) + 4096;
    if (!offloads(o) || !o->backend->allocate_host) return;
    o->window_bytes = all < WINDOW ? all : WINDOW;
    o->window = o->backend->allocate(o->backend, o->window_bytes);
    check(o->window && "memory for states on their way");
}

Optimizer *optimizer_new(Backend *backend, Parameters *parameters, const OptimizerConfig *config, int64_t total_steps) {
    Optimizer *o = calloc(1, sizeof *o);
    check(o);
    *o = (Optimizer){.backend = backend, .parameters = parameters, .config = *config, .total_steps = total_steps};
    o->elements = parameters_states(parameters);
    o->m = moments_new(o);
    o->v = moments_new(o);
    window_new(o);
    int owned;
    parameters_owned(parameters, &owned);
    o->parts = calloc((size_t)owned + 1, sizeof *o->parts);
    check(o->parts);
    return o;
}

void optimizer_free(Optimizer *o) {
    if (!o) return;
    moments_free(o, o->m);
    moments_free(o, o->v);
    if (o->window) o->backend->release(o->backend, o->window, o->window_bytes);
    free(o->parts);
    free(o);
}

double learning_rate_at(const OptimizerConfig *c, int64_t step, int64_t total_steps) {
    if (step <= c->warmup_steps) return c->learning_rate * (double)step / (double)c->warmup_steps;
    if (c->schedule == SCHEDULE_CONSTANT) return c->learning_rate;
    double span = (double)(total_steps - c->warmup_steps),
           done = (double)(step - c->warmup_steps) / (span > 0 ? span : 1);
    if (done > 1) done = 1;
    double share = c->schedule == SCHEDULE_LINEAR ? 1 - done : 0.5 * (1 + cos(acos(-1.0) * done));
    return c->learning_rate * (c->final_ratio + (1 - c->final_ratio) * share);
}

static AdamW update_of(const Optimizer *o, int64_t step, double norm) {
    const OptimizerConfig *c = &o->config;
    return (AdamW){.learning_rate = learning_rate_at(c, step, o->total_steps),
                   .beta1 = c->beta1,
                   .beta2 = c->beta2,
                   .epsilon = c->epsilon,
                   .weight_decay = c->weight_decay,
                   .gradient_scale = c->gradient_clip > 0 && norm > c->gradient_clip ? c->gradient_clip / norm : 1,
                   .correction1 = 1 - pow(c->beta1, (double)step),
                   .correction2 = 1 - pow(c->beta2, (double)step)};
}

// Appends what this rank owns of a bucket to `parts`; returns how many there are then.
static int add_parts(const Optimizer *o, const Bucket *b, int count) {
    int owned;
    const OwnedRange *ranges = parameters_owned(o->parameters, &owned);
    for (int i = b->first_range; i < b->first_range + b->ranges; i++) {
        const OwnedRange *r = &ranges[i];
        o->parts[count++] = (AdamWPart){.parameter = r->master,
                                        .m = o->m + r->state,
                                        .v = o->v + r->state,
                                        .shadow = r->shadow,
                                        .gradient = r->gradient,
                                        .n = r->count,
                                        .decays = r->parameter->decay};
    }
    return count;
}

static void update_parts(Optimizer *o, int count, const AdamW *rule, const Gate *gate) {
    Backend *be = o->backend;
    if (o->window && be->adamw_streamed)
        be->adamw_streamed(be, o->parts, count, rule, gate, o->window, o->window_bytes);
    else
        be->adamw_parts(be, o->parts, count, rule, gate);
}

// Buckets go one by one where the others wait for their values, else all at once.
static void update(Optimizer *o, const AdamW *rule, const Gate *gate) {
    bool gathers = parameters_stage(o->parameters) == 1 || parameters_stage(o->parameters) == 2;
    int count = 0;
    for (int i = 0; i < buckets_count(o->parameters); i++) {
        Bucket *b = bucket_at(o->parameters, i);
        if (b->frozen) continue;
        bucket_settle(b);
        count = add_parts(o, b, count);
        if (!gathers) continue;
        update_parts(o, count, rule, gate);
        bucket_start_gather(o->parameters, b);
        count = 0;
    }
    if (count) update_parts(o, count, rule, gate);
    parameters_advance_scaling(o->parameters);
    parameters_look_ahead(o->parameters);
}

void optimizer_step(Optimizer *o, int64_t step, double norm) {
    AdamW rule = update_of(o, step, norm);
    update(o, &rule, NULL);
}

void optimizer_step_gated(Optimizer *o, int64_t step, const Gate *gate) {
    AdamW rule = update_of(o, step, 0);
    update(o, &rule, gate);
}

int optimizer_ranges(const Optimizer *o, Arena *memory, StateRange **out) {
    int count = 0, owned;
    const OwnedRange *ranges = parameters_owned(o->parameters, &owned);
    StateRange *all = arena_array(memory, StateRange, STATE_KINDS * owned + 1);
    bool everywhere = parameters_stage(o->parameters) == 0;
    for (int i = 0; i < owned; i++) {
        const OwnedRange *r = &ranges[i];
        int number = r->parameter->number;
        all[count++] = (StateRange){STATE_MASTER, number, r->first, r->count, r->master, everywhere};
        if (r->parameter->frozen) continue;
        all[count++] = (StateRange){STATE_M, number, r->first, r->count, o->m + r->state, everywhere};
        all[count++] = (StateRange){STATE_V, number, r->first, r->count, o->v + r->state, everywhere};
    }
    *out = all;
    return count;
}
