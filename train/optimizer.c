/* See optimizer.h. */
#include "train/optimizer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct Optimizer {
    Backend *backend;
    Parameters *parameters;
    OptimizerConfig config;
    int64_t total_steps, elements;
    float *m, *v; // (elements) each, device; trainable parameters one behind the other
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
    o->elements = parameters_elements(parameters, true);
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

double optimizer_gradient_norm(const Optimizer *o) {
    double sum = 0;
    for (int i = 0; i < parameters_count(o->parameters); i++) {
        const Parameter *p = parameters_at(o->parameters, i);
        if (!p->frozen) sum += o->backend->sum_squares(o->backend, p->tensor.grad, tensor_count(&p->tensor), F32);
    }
    return sqrt(sum);
}

void optimizer_step(Optimizer *o, int64_t step, double norm) {
    const OptimizerConfig *c = &o->config;
    AdamW update = {.learning_rate = learning_rate_at(c, step, o->total_steps),
                    .beta1 = c->beta1,
                    .beta2 = c->beta2,
                    .epsilon = c->epsilon,
                    .gradient_scale = c->gradient_clip > 0 && norm > c->gradient_clip ? c->gradient_clip / norm : 1,
                    .correction1 = 1 - pow(c->beta1, (double)step),
                    .correction2 = 1 - pow(c->beta2, (double)step)};
    int64_t at = 0;
    for (int i = 0; i < parameters_count(o->parameters); i++) {
        Parameter *p = parameters_at(o->parameters, i);
        if (p->frozen) continue;
        int64_t n = tensor_count(&p->tensor);
        update.weight_decay = p->decay ? c->weight_decay : 0;
        o->backend->adamw(o->backend, p->master, p->tensor.dtype == BF16 ? p->tensor.data : NULL, o->m + at, o->v + at,
                          p->tensor.grad, n, &update);
        at += n;
    }
}

int optimizer_ranges(const Optimizer *o, Arena *memory, StateRange **out) {
    int parameters = parameters_count(o->parameters), count = 0;
    int64_t at = 0;
    StateRange *ranges = arena_array(memory, StateRange, STATE_KINDS * parameters + 1);
    for (int i = 0; i < parameters; i++) {
        const Parameter *p = parameters_at(o->parameters, i);
        int64_t n = tensor_count(&p->tensor);
        ranges[count++] = (StateRange){STATE_MASTER, i, 0, n, p->master, true};
        if (p->frozen) continue;
        ranges[count++] = (StateRange){STATE_M, i, 0, n, o->m + at, true};
        ranges[count++] = (StateRange){STATE_V, i, 0, n, o->v + at, true};
        at += n;
    }
    *out = ranges;
    return count;
}
