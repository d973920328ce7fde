/* See parameters.h. In the flat buffers stand the trained matrices first, then the other trained tensors, then the
 * frozen ones: gradients and optimizer state cover a prefix, and what is decayed is a prefix of that. */
#include "kernels/nn/parameters.h"
#include "base/buffer.h"
#include "kernels/nn/initial.h"
#include <stdlib.h>
#include <string.h>

enum {
    ALIGN = 16,     // elements: every parameter starts at a multiple of 64 bytes
    NAMED_MOST = 5, // names listed in an error of each kind
};

struct Parameters {
    Backend *backend;
    Parallel parallel;
    Arena *memory;
    Parameter **items;
    int count, capacity;
    bool finished;
    float *masters, *gradients; // device
    uint16_t *shadows;          // device; NULL in f32
    int64_t total, trained;     // elements of the buffers, padding included; `trained` of them have gradients
};

Parameters *parameters_new(Backend *backend, const Parallel *parallel) {
    Parameters *p = calloc(1, sizeof *p);
    check(p);
    p->backend = backend;
    if (parallel) p->parallel = *parallel;
    p->memory = arena_new(64 << 10);
    return p;
}

void parameters_free(Parameters *p) {
    if (!p) return;
    Backend *b = p->backend;
    if (p->masters) b->release(b, p->masters, (size_t)p->total * sizeof(float));
    if (p->gradients) b->release(b, p->gradients, (size_t)p->trained * sizeof(float));
    if (p->shadows) b->release(b, p->shadows, (size_t)p->total * sizeof(uint16_t));
    arena_free(p->memory);
    free(p->items);
    free(p);
}

static Parameter *add_item(Parameters *p, const char *name) {
    check(!p->finished && !parameters_find(p, name));
    if (p->count == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 64;
        p->items = realloc(p->items, (size_t)p->capacity * sizeof *p->items);
        check(p->items);
    }
    Parameter *item = arena_zeroed(p->memory, sizeof *item);
    item->tensor.name = arena_string(p->memory, name);
    return p->items[p->count++] = item;
}

Tensor *parameters_add_split(Parameters *p, const char *name, int rank, const int64_t *shape, Init init, bool decay,
                             Split split) {
    check(rank >= 1 && rank <= MAX_RANK && split.segments <= SPLIT_SEGMENTS && split.dimension < rank);
    Parameter *item = add_item(p, name);
    Tensor *t = &item->tensor;
    int64_t count = 1;
    t->rank = rank;
    t->is_parameter = t->needs_grad = true;
    for (int i = 0; i < rank; i++) count *= t->shape[i] = item->global_shape[i] = shape[i];
    if (split.segments) t->shape[split.dimension] = split_local(&split, p->parallel.tensor);
    item->split = split;
    item->init = init;
    item->decay = decay;
    if (init.kind == INIT_GIVEN) {
        size_t bytes = (size_t)count * sizeof(float);
        item->init.given = memcpy(arena_allocate(p->memory, bytes), init.given, bytes);
    }
    return t;
}

Tensor *parameters_add(Parameters *p, const char *name, int rank, const int64_t *shape, Init init, bool decay) {
    return parameters_add_split(p, name, rank, shape, init, decay, (Split){0});
}

void parameters_set_partial(Parameters *p, const Tensor *t) {
    for (int i = 0; i < p->count; i++)
        if (&p->items[i]->tensor == t) p->items[i]->partial = true;
}

int parameters_freeze(Parameters *p, const char *prefix) {
    check(!p->finished);
    size_t length = strlen(prefix);
    int frozen = 0;
    for (int i = 0; i < p->count; i++) {
        const char *name = p->items[i]->tensor.name;
        if (strncmp(name, prefix, length) || (name[length] && name[length] != '.')) continue;
        p->items[i]->frozen = true;
        p->items[i]->tensor.needs_grad = false;
        frozen++;
    }
    return frozen;
}

// ---- layout ----

static int group_of(const Parameter *item) { return item->frozen ? 2 : item->decay ? 0 : 1; }

static void lay_out(Parameters *p) {
    for (int group = 0; group < 3; group++) {
        if (group == 2) p->trained = p->total;
        for (int i = 0; i < p->count; i++) {
            Parameter *item = p->items[i];
            if (group_of(item) != group) continue;
            item->offset = p->total;
            p->total += (tensor_count(&item->tensor) + ALIGN - 1) / ALIGN * ALIGN;
        }
    }
}

// Returns NULL for no bytes, and where there is no memory left (then *ok becomes false).
static void *reserve(Backend *b, size_t bytes, bool *ok) {
    if (!bytes || !*ok) return NULL;
    void *memory = b->allocate(b, bytes);
    if (memory) b->zero(b, memory, bytes);
    *ok = memory != NULL;
    return memory;
}

static bool allocate(Parameters *p, Dtype compute, Error *error) {
    bool ok = true;
    p->masters = reserve(p->backend, (size_t)p->total * sizeof(float), &ok);
    p->gradients = reserve(p->backend, (size_t)p->trained * sizeof(float), &ok);
    if (compute == BF16) p->shadows = reserve(p->backend, (size_t)p->total * sizeof(uint16_t), &ok);
    if (ok) return true;
    double gib = ((double)p->total * (compute == BF16 ? 6 : 4) + (double)p->trained * 4) / (double)(1 << 30);
    return error_set(error, ERROR_FAILED,
                     "no memory for the model: parameters and gradients need %.2f GiB; make the model smaller", gib);
}

static void place(Parameters *p, Parameter *item) {
    Tensor *t = &item->tensor;
    bool shadow = p->shadows && t->rank > 1;
    item->master = p->masters + item->offset;
    t->dtype = shadow ? BF16 : F32;
    t->data = shadow ? (void *)(p->shadows + item->offset) : (void *)item->master;
    t->grad = item->frozen ? NULL : p->gradients + item->offset;
}

// ---- initial values ----

static void fill(Parameters *p, uint64_t seed) {
    int64_t largest = 1;
    for (int i = 0; i < p->count; i++) {
        int64_t count = tensor_count(&p->items[i]->tensor);
        if (count > largest) largest = count;
    }
    float *host = malloc((size_t)largest * sizeof *host);
    check(host);
    for (int i = 0; i < p->count; i++) {
        Parameter *item = p->items[i];
        int64_t count = tensor_count(&item->tensor);
        parameter_initial(item, &p->parallel, seed, 0, count, host);
        p->backend->upload(p->backend, item->master, host, (size_t)count * sizeof *host);
    }
    free(host);
}

bool parameters_finish(Parameters *p, Dtype compute, uint64_t seed, Error *error) {
    check(!p->finished && (compute == F32 || compute == BF16));
    p->finished = true;
    lay_out(p);
    if (!allocate(p, compute, error)) return false;
    for (int i = 0; i < p->count; i++) place(p, p->items[i]);
    fill(p, seed);
    parameters_refresh(p);
    return true;
}

// ---- looking ----

const Parallel *parameters_parallel(const Parameters *p) { return &p->parallel; }

int parameters_count(const Parameters *p) { return p->count; }

Parameter *parameters_at(Parameters *p, int index) {
    check(index >= 0 && index < p->count);
    return p->items[index];
}

Parameter *parameters_find(Parameters *p, const char *name) {
    for (int i = 0; i < p->count; i++)
        if (!strcmp(p->items[i]->tensor.name, name)) return p->items[i];
    return NULL;
}

int64_t parameters_elements(const Parameters *p, bool trainable_only) {
    int64_t n = 0;
    for (int i = 0; i < p->count; i++)
        if (!trainable_only || !p->items[i]->frozen) n += tensor_count(&p->items[i]->tensor);
    return n;
}

void parameter_run(const Parameter *item, const Parallel *parallel, int64_t local, int64_t *global, int64_t *count) {
    const Tensor *t = &item->tensor;
    const Split *split = &item->split;
    check(local >= 0 && local < tensor_count(t));
    if (!split->segments || comm_size(parallel->tensor) == 1) {
        *global = local;
        *count = tensor_count(t) - local;
        return;
    }
    int64_t inner = 1, own = t->shape[split->dimension]; // elements of an index along the dimension
    for (int i = split->dimension + 1; i < t->rank; i++) inner *= t->shape[i];
    int64_t outer = local / (own * inner), index = local / inner % own, rest = local % inner, place, run;
    split_run(split, parallel->tensor, index, &place, &run);
    *global = (outer * item->global_shape[split->dimension] + place) * inner + rest;
    *count = run * inner - rest;
}

// ---- a step ----

void parameters_begin_step(Parameters *p) {
    for (int i = 0; i < p->count; i++) p->items[i]->tensor.grad_written = false;
}

void parameters_end_backward(Parameters *p) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = &p->items[i]->tensor;
        if (!t->grad || t->grad_written) continue;
        p->backend->zero(p->backend, t->grad, (size_t)tensor_count(t) * sizeof(float));
        t->grad_written = true;
    }
}

void parameters_refresh(Parameters *p) {
    if (p->shadows && p->total) p->backend->convert(p->backend, p->shadows, BF16, p->masters, F32, p->total);
}

// ---- files ----

int parameters_export(const Parameters *p, Arena *memory, SafeTensor **out) {
    *out = arena_array(memory, SafeTensor, p->count);
    for (int i = 0; i < p->count; i++) {
        const Parameter *item = p->items[i];
        int64_t bytes = tensor_count(&item->tensor) * (int64_t)sizeof(float);
        void *host = arena_allocate(memory, (size_t)bytes);
        p->backend->download(p->backend, host, item->master, (size_t)bytes);
        SafeTensor *entry = *out + i;
        *entry = (SafeTensor){item->tensor.name, "F32", item->tensor.rank, {0}, host, bytes};
        for (int d = 0; d < item->tensor.rank; d++) entry->shape[d] = item->tensor.shape[d];
    }
    return p->count;
}

// What an import finds wrong: a count and the first few names for each kind.
typedef struct Complaint {
    Buffer names;
    int count;
} Complaint;

static void complain(Complaint *c, const char *name) {
    if (c->count++ < NAMED_MOST) buffer_printf(&c->names, "%s%s", c->names.size ? ", " : "", name);
}

static void tell(Buffer *out, Complaint *c, const char *what) {
    if (c->count) {
        buffer_printf(out, "%s%d %s (%s%s)", out->size ? "; " : "", c->count, what, c->names.data,
                      c->count > NAMED_MOST ? ", ..." : "");
    }
    buffer_free(&c->names);
}

static bool fits(const Tensor *t, const SafeTensor *entry) {
    if (entry->rank != t->rank || (strcmp(entry->dtype, "F32") && strcmp(entry->dtype, "BF16"))) return false;
    for (int d = 0; d < t->rank; d++)
        if (entry->shape[d] != t->shape[d]) return false;
    return true;
}

static bool compare(Parameters *p, const SafeTensors *file, const char *path, Error *error) {
    Complaint missing = {0}, mismatched = {0}, unexpected = {0};
    for (int i = 0; i < p->count; i++) {
        const Tensor *t = &p->items[i]->tensor;
        const SafeTensor *entry = safetensors_find(file, t->name);
        if (!entry)
            complain(&missing, t->name);
        else if (!fits(t, entry))
            complain(&mismatched, t->name);
    }
    for (int i = 0; i < file->count; i++)
        if (!parameters_find(p, file->tensors[i].name)) complain(&unexpected, file->tensors[i].name);
    Buffer text = {0};
    tell(&text, &missing, "missing");
    tell(&text, &mismatched, "of another shape or type");
    tell(&text, &unexpected, "unexpected");
    bool ok = text.size == 0;
    if (!ok)
        error_set(error, ERROR_FAILED, "%s: its tensors are not those of this model: %s; use the model's own config",
                  path, text.data);
    buffer_free(&text);
    return ok;
}

static void take(Parameters *p, Parameter *item, const SafeTensor *entry) {
    int64_t count = tensor_count(&item->tensor);
    float *host = malloc((size_t)(count ? count : 1) * sizeof *host);
    check(host);
    if (!strcmp(entry->dtype, "F32"))
        memcpy(host, entry->data, (size_t)count * sizeof *host);
    else
        for (int64_t i = 0; i < count; i++) {
            uint16_t h; // the file's data is not aligned
            memcpy(&h, (const char *)entry->data + 2 * i, sizeof h);
            host[i] = bf16_to_f32(h);
        }
    p->backend->upload(p->backend, item->master, host, (size_t)count * sizeof *host);
    free(host);
}

bool parameters_import(Parameters *p, const SafeTensors *file, const char *path, Error *error) {
    check(p->finished);
    if (!compare(p, file, path, error)) return false;
    for (int i = 0; i < p->count; i++) take(p, p->items[i], safetensors_find(file, p->items[i]->tensor.name));
    parameters_refresh(p);
    return true;
}
