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
    float *m, *v; // (elements) each, device
};

static float *moments_new(Backend *b, int64_t elements) {
    size_t bytes = (size_t)(elements ? elements : 1) * sizeof(float);
    float *moments = b->allocate(b, bytes);
    check(moments);
    b->zero(b, moments, bytes);
    return moments;
}

Optimizer *optimizer_new(Backend *backend, Parameters *parameters, const OptimizerConfig *config, int64_t total_steps) {
    Optimizer *o = calloc(1, sizeof *o);
    check(o);
    *o = (Optimizer){.backend = backend, .parameters = parameters, .config = *config, .total_steps = total_steps};
    o->elements = parameters_states(parameters);
    o->m = moments_new(backend, o->elements);
    o->v = moments_new(backend, o->elements);
    return o;
}

void optimizer_free(Optimizer *o) {
    if (!o) return;
    size_t bytes = (size_t)(o->elements ? o->elements : 1) * sizeof(float);
    o->backend->release(o->backend, o->m, bytes);
    o->backend->release(o->backend, o->v, bytes);
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
                   .gradient_scale = c->gradient_clip > 0 && norm > c->gradient_clip ? c->gradient_clip / norm : 1,
                   .correction1 = 1 - pow(c->beta1, (double)step),
                   .correction2 = 1 - pow(c->beta2, (double)step)};
}

static void update_range(const Optimizer *o, const OwnedRange *range, AdamW *update) {
    update->weight_decay = range->parameter->decay ? o->config.weight_decay : 0;
    o->backend->adamw(o->backend, range->master, range->shadow, o->m + range->state, o->v + range->state,
                      range->gradient, range->count, update);
}

void optimizer_step(Optimizer *o, int64_t step, double norm) {
    int count;
    const OwnedRange *ranges = parameters_owned(o->parameters, &count);
    AdamW update = update_of(o, step, norm);
    for (int i = 0; i < buckets_count(o->parameters); i++) {
        Bucket *b = bucket_at(o->parameters, i);
        if (b->frozen) continue;
        bucket_settle(b);
        for (int k = 0; k < b->ranges; k++) update_range(o, &ranges[b->first_range + k], &update);
        bucket_start_gather(o->parameters, b);
    }
    parameters_look_ahead(o->parameters);
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
