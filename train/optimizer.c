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

// One entry: `name` with a prefix, a host copy of `count` moments.
static SafeTensor entry(const Optimizer *o, Arena *memory, const char *prefix, const Parameter *p,
                        const float *moments) {
    SafeTensor t = {
        .name = arena_printf(memory, "%s/%s", prefix, p->tensor.name), .dtype = "F32", .rank = p->tensor.rank};
    for (int i = 0; i < t.rank; i++) t.shape[i] = p->tensor.shape[i];
    t.bytes = tensor_count(&p->tensor) * (int64_t)sizeof(float);
    void *copy = arena_allocate(memory, (size_t)t.bytes);
    o->backend->download(o->backend, copy, moments, (size_t)t.bytes);
    t.data = copy;
    return t;
}

int optimizer_export(const Optimizer *o, Arena *memory, SafeTensor **out) {
    int count = 0;
    int64_t at = 0;
    SafeTensor *entries = arena_array(memory, SafeTensor, 2 * parameters_count(o->parameters) + 1);
    for (int i = 0; i < parameters_count(o->parameters); i++) {
        const Parameter *p = parameters_at(o->parameters, i);
        if (p->frozen) continue;
        entries[count++] = entry(o, memory, "m", p, o->m + at);
        entries[count++] = entry(o, memory, "v", p, o->v + at);
        at += tensor_count(&p->tensor);
    }
    *out = entries;
    return count;
}

static bool take(Optimizer *o, const SafeTensors *file, const char *path, const char *prefix, const Parameter *p,
                 float *moments, Error *error) {
    char name[512];
    int64_t bytes = tensor_count(&p->tensor) * (int64_t)sizeof(float);
    snprintf(name, sizeof name, "%s/%s", prefix, p->tensor.name);
    const SafeTensor *t = safetensors_find(file, name);
    if (!t)
        return error_set(error, ERROR_FAILED,
                         "%s: no tensor %s; the run was saved with another model or other frozen parts", path, name);
    if (strcmp(t->dtype, "F32") != 0 || t->bytes != bytes)
        return error_set(error, ERROR_FAILED, "%s: %s has %lld bytes of %s, the model wants %lld of F32", path, name,
                         (long long)t->bytes, t->dtype, (long long)bytes);
    o->backend->upload(o->backend, moments, t->data, (size_t)bytes);
    return true;
}

bool optimizer_import(Optimizer *o, const SafeTensors *file, const char *path, Error *error) {
    int64_t at = 0;
    for (int i = 0; i < parameters_count(o->parameters); i++) {
        const Parameter *p = parameters_at(o->parameters, i);
        if (p->frozen) continue;
        if (!take(o, file, path, "m", p, o->m + at, error) || !take(o, file, path, "v", p, o->v + at, error))
            return false;
        at += tensor_count(&p->tensor);
    }
    return true;
}
