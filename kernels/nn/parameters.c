/* See parameters.h: declaring, drawing and looking up. Where everything lies is decided in buckets.c. */
#include "kernels/comm/comm_device.h"
#include "kernels/nn/initial.h"
#include "kernels/nn/parameters_state.h"
#include <stdlib.h>
#include <string.h>

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
    parameters_give_back(p);
    for (int i = 0; i < p->bucket_count; i++) bucket_settle(&p->buckets[i]);
    parameters_release(p);
    gather_free(p->gather);
    comm_device_close(p->sharing);
    comm_free(p->sharing);
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
    item->number = p->count;
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

static Parameter *item_of(Parameters *p, const Tensor *t) {
    for (int i = 0; i < p->count; i++)
        if (&p->items[i]->tensor == t) return p->items[i];
    check_failed("a parameter of this model", __FILE__, __LINE__);
}

Tensor *parameters_add_replica(Parameters *p, const char *name, const Tensor *of) {
    Parameter *original = item_of(p, of), *item = add_item(p, name);
    check(!original->replica);
    Parameter made = *original;
    made.tensor.name = item->tensor.name;
    made.number = item->number;
    made.replica = original;
    made.is_replica = true;
    *item = made;
    original->replica = item;
    return &item->tensor;
}

void parameters_set_words(Parameters *p, const Tensor *t) {
    check(!p->finished && t->rank == 2);
    item_of(p, t)->words = true;
}

void parameters_set_partial(Parameters *p, const Tensor *t) { item_of(p, t)->partial = true; }

void parameters_place(Parameters *p, int index, int chunk) {
    check(!p->finished && chunk >= -1);
    parameters_at(p, index)->chunk = chunk;
}

int parameters_freeze(Parameters *p, const char *prefix) {
    check(!p->finished);
    size_t length = strlen(prefix);
    int frozen = 0;
    for (int i = 0; i < p->count; i++) {
        Parameter *item = p->items[i];
        const char *name = item->tensor.name;
        if (item->is_replica || strncmp(name, prefix, length) || (name[length] && name[length] != '.')) continue;
        item->frozen = true;
        if (item->replica) item->replica->frozen = true;
        frozen++;
    }
    return frozen;
}

// ---- initial values ----

// Of what this rank owns alone.
static void draw(Parameters *p, uint64_t seed) {
    if (p->backend->dry) return;
    int64_t largest = 1;
    for (int i = 0; i < p->owned_count; i++)
        if (p->owned[i].count > largest) largest = p->owned[i].count;
    float *host = malloc((size_t)largest * sizeof *host);
    check(host);
    for (int i = 0; i < p->owned_count; i++) {
        const OwnedRange *range = &p->owned[i];
        parameter_initial(range->parameter, &p->parallel, seed, range->first, range->count, host);
        p->backend->upload(p->backend, range->master, host, (size_t)range->count * sizeof *host);
    }
    free(host);
}

// False on all data and pipeline ranks where one of them has no memory for its part: they would wait for it.
static bool all_have(const Parameters *p, bool ok, Error *error) {
    int32_t all = ok;
    bool pipeline = comm_size(p->parallel.pipeline) > 1;
    if (p->stage || pipeline)
        comm_all_reduce(p->parallel.data, &all, 1, COMM_I32, COMM_MIN, COMM_FAST, "memory of the model");
    if (pipeline) comm_all_reduce(p->parallel.pipeline, &all, 1, COMM_I32, COMM_MIN, COMM_FAST, "memory of the model");
    if (ok && !all) return error_set(error, ERROR_FAILED, "another rank has no memory for its part of the model");
    return ok;
}

// Each parameter is on one pipeline rank.
static void learn_stages(Parameters *p) {
    Comm *pipeline = p->parallel.pipeline;
    int32_t *held = calloc(2 * (size_t)p->count + 1, sizeof *held), *rank = held + p->count; // by how many; by which
    check(held);
    for (int i = 0; i < p->count; i++) {
        held[i] = p->items[i]->chunk >= 0;
        rank[i] = held[i] ? comm_rank(pipeline) : 0;
    }
    comm_all_reduce(pipeline, held, 2 * p->count, COMM_I32, COMM_SUM, COMM_FAST, "stages of parameters");
    for (int i = 0; i < p->count; i++) {
        check(held[i] == 1 && "each parameter is on one stage");
        p->items[i]->stage = rank[i];
    }
    free(held);
}

bool parameters_finish(Parameters *p, Dtype compute, uint64_t seed, Error *error) {
    check(!p->finished && (compute == F32 || compute == BF16));
    p->finished = true;
    parameters_lay_out(p, compute);
    if (!all_have(p, parameters_allocate(p, error), error)) return false;
    if (comm_size(p->parallel.pipeline) > 1) learn_stages(p);
    if (p->stage) p->sharing = comm_split(p->parallel.data, 0, comm_rank(p->parallel.data), "parameters");
    if (!comm_device_open(p->sharing, p->backend, error)) return false;
    if (p->stage == 3) p->gather = gather_new(p->backend, p->sharing, p->bucket_count);
    draw(p, seed);
    parameters_refresh(p);
    parameters_open_scaling(p);
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
        if (p->items[i]->chunk >= 0 && !p->items[i]->scaling && (!trainable_only || !p->items[i]->frozen))
            n += tensor_count(&p->items[i]->tensor);
    return n;
}

static int64_t whole_count(const Parameter *item) {
    int64_t n = 1;
    for (int i = 0; i < item->tensor.rank; i++) n *= item->global_shape[i];
    return n;
}

int64_t parameters_whole_elements(const Parameters *p, bool trainable_only) {
    int64_t n = 0;
    for (int i = 0; i < p->count; i++)
        if (!p->items[i]->is_replica && !p->items[i]->scaling && (!trainable_only || !p->items[i]->frozen)) n += whole_count(p->items[i]);
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

// What operators read of a bucket, from its masters; through a window where these are on the host.
static void round_masters(const Parameters *p, const Bucket *b) {
    enum { WINDOW = 1 << 22 }; // elements
    Backend *be = p->backend;
    int64_t all = b->owned * PARAMETER_BLOCK, most = all < WINDOW ? all : WINDOW;
    if (!p->parallel.offload || !be->allocate_host || !all) {
        be->convert(be, b->own_values, BF16, b->masters, F32, all);
        return;
    }
    float *window = be->allocate(be, (size_t)most * sizeof *window);
    check(window && "memory for masters on their way");
    for (int64_t done = 0; done < all; done += most) {
        int64_t n = all - done < most ? all - done : most;
        be->copy(be, window, b->masters + done, (size_t)n * sizeof *window);
        be->convert(be, (uint16_t *)b->own_values + done, BF16, window, F32, n);
    }
    be->release(be, window, (size_t)most * sizeof *window);
}

void parameters_refresh(Parameters *p) {
    parameters_give_back(p);
    for (int i = 0; i < p->bucket_count; i++) {
        Bucket *b = &p->buckets[i];
        if (b->dtype == BF16) round_masters(p, b);
        bucket_start_gather(p, b);
    }
    for (int i = 0; i < p->bucket_count; i++) bucket_settle(&p->buckets[i]);
}

// ---- what this rank owns ----

const OwnedRange *parameters_owned(const Parameters *p, int *count) {
    *count = p->owned_count;
    return p->owned;
}

int64_t parameters_states(const Parameters *p) { return p->states; }

// ---- memory ----

ParameterMemory parameters_memory(const Parameters *p) {
    return (ParameterMemory){.parameters = (double)(p->values.bytes + p->masters.bytes),
                             .gradients = (double)(p->gradients.bytes + p->sums.bytes),
                             .buckets = (double)gather_bytes(p->gather)};
}

ParameterMemory parameters_formula(double elements, double trained, Dtype compute, int stage, int ranks) {
    double values = stage >= 3 ? 1.0 / ranks : 1, gradients = stage >= 2 ? 1.0 / ranks : 1;
    double states = stage >= 1 ? 1.0 / ranks : 1;
    return (ParameterMemory){.parameters = elements * (compute == BF16 ? 2 * values + 4 * states : 4 * values),
                             .gradients = trained * 4 * gradients,
                             .states = trained * 8 * states};
}
