/* The tape: see tape.h. What it keeps of each call, the tensors it makes and whose memory goes back at the reset.
 * Backward passes are in tape_backward.c. */
#include "base/error.h"
#include "kernels/tape_parts.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_HOST_CHUNK = 256 << 10 }; // bytes

Tape *tape_new_in(TapeMemory *memory, bool record) {
    Tape *t = calloc(1, sizeof *t);
    check(t);
    t->backend = tape_memory_backend(memory);
    t->record = record;
    t->memory = memory;
    t->host = arena_new(FIRST_HOST_CHUNK);
    return t;
}

Tape *tape_new(Backend *backend, bool record) {
    Tape *t = tape_new_in(tape_memory_new(backend), record);
    t->owns_memory = true;
    return t;
}

static void give_all_back(Tape *t) {
    for (Tensor *x = t->made; x; x = x->before) {
        tape_give_back(t, x);
        tape_give_gradient(t, x);
    }
    t->made = NULL;
}

void tape_free(Tape *t) {
    if (!t) return;
    if (t->owns_memory)
        tape_memory_free(t->memory);
    else
        give_all_back(t);
    arena_free(t->host);
    free(t->nodes);
    free(t->calls);
    free(t->owned);
    free(t);
}

static bool writes_parameter(const Node *n, int input) {
    return WANTS(n->pending, input) && n->in[input]->is_parameter;
}

void tape_count_writers(const Node *n, int by) {
    for (int i = 0; i < MAX_INPUTS; i++)
        if (writes_parameter(n, i)) n->in[i]->writers += by;
}

void tape_reset(Tape *t) {
    for (int64_t i = 0; i < t->count; i++) {
        if (t->nodes[i]->replay) recompute_forget(t->nodes[i]);
        tape_count_writers(t->nodes[i], -1);
    }
    give_all_back(t);
    arena_reset(t->host);
    t->count = 0;
    t->last = NULL;
    t->error = NULL;
    t->last_parameter = NULL;
    t->cost = t->replayed = (Cost){0};
}

bool tape_recording(const Tape *t) { return t->record; }
void tape_set_recording(Tape *t, bool record) { t->record = record; }
Backend *tape_backend(const Tape *t) { return t->backend; }
const char *tape_error(const Tape *t) { return t->error; }
size_t tape_peak(const Tape *t) { return tape_memory_peak(t->memory); }
Cost tape_cost(const Tape *t) { return t->cost; }
Cost tape_replayed(const Tape *t) { return t->replayed; }
int64_t tape_nodes(const Tape *t) { return t->count; }
Node *tape_last(const Tape *t) { return t->last; }
void tape_check_finite(Tape *t, bool on) {
    t->check_finite = on;
    t->not_finite[0] = 0;
}
const char *tape_not_finite(const Tape *t) { return t->not_finite[0] ? t->not_finite : NULL; }
void tape_keep_sums_apart(Tape *t, bool apart) { t->sums_apart = apart; }

bool tape_forms_sums(const Tape *t) { return !t->sums_apart; }

void tape_set_hooks(Tape *t, const TapeHooks *hooks) { t->hooks = hooks ? *hooks : (TapeHooks){0}; }
int64_t tape_system_allocations(const Tape *t) {
    return tape_memory_system_allocations(t->memory) + arena_system_allocations(t->host);
}

// ---- tensors ----

// Without memory.
static Tensor *describe(Tape *t, Dtype dtype, int rank, const int64_t *shape) {
    check(rank >= 0 && rank <= MAX_RANK);
    Tensor *x = arena_zeroed(t->host, sizeof *x);
    *x = (Tensor){.rank = rank, .dtype = dtype, .borrowed = true, .before = t->made};
    for (int i = 0; i < rank; i++) x->shape[i] = shape[i];
    return t->made = x;
}

static Tensor *make(Tape *t, Dtype dtype, int rank, const int64_t *shape) {
    Tensor *x = describe(t, dtype, rank, shape);
    x->borrowed = false;
    x->data = tape_memory_take(t->memory, t->lane, tensor_bytes(x));
    x->lane = (int8_t)t->lane;
    tape_touch(t, &x->touched);
    recompute_own(t, x);
    return x;
}

Tensor *tape_tensor(Tape *t, Dtype dtype, int rank, const int64_t *shape) {
    Tensor *x = make(t, dtype, rank, shape);
    x->readers = 1; // the caller
    return x;
}

Tensor *tape_constant_from(Tape *t, Dtype dtype, int rank, const int64_t *shape, const void *device) {
    Tensor *x = make(t, dtype, rank, shape);
    x->name = "constant";
    t->backend->copy(t->backend, x->data, device, tensor_bytes(x));
    return x;
}

Tensor *tape_constant(Tape *t, Dtype dtype, int rank, const int64_t *shape, const void *host) {
    Tensor *x = make(t, dtype, rank, shape);
    x->name = "constant";
    t->backend->upload(t->backend, x->data, host, tensor_bytes(x));
    return x;
}

Tensor *tape_arrival(Tape *t, Dtype dtype, int rank, const int64_t *shape, const void *host, bool wanted) {
    Tensor *x = make(t, dtype, rank, shape);
    if (host) t->backend->upload(t->backend, x->data, host, tensor_bytes(x));
    x->name = "arrival";
    x->needs_grad = wanted && t->record;
    return x;
}

void tape_read(Tape *t, const Tensor *x, void *host) {
    t->backend->download(t->backend, host, x->data, tensor_bytes(x));
}

// A call that is left out in a second run has outputs without memory.
static Tensor *new_output(Node *n, Dtype dtype, int rank, const int64_t *shape) {
    Tensor *x = n->tape->skipping ? describe(n->tape, dtype, rank, shape) : make(n->tape, dtype, rank, shape);
    x->name = n->op->name;
    return x;
}

Tensor *tape_output(Node *n, Dtype dtype, int rank, const int64_t *shape) {
    return n->out = new_output(n, dtype, rank, shape);
}

Tensor *tape_second_output(Node *n, Dtype dtype, int rank, const int64_t *shape) {
    return n->second = new_output(n, dtype, rank, shape);
}

Tensor *tape_view(Node *n, int rank, const int64_t *shape) {
    Tensor *x = n->in[0], *y = describe(n->tape, x->dtype, rank, shape);
    y->data = x->data;
    y->base = x;
    y->name = n->op->name;
    return n->out = y;
}

Tensor *tape_keep(Node *n, int slot, Dtype dtype, int rank, const int64_t *shape) {
    check(slot >= 0 && slot < MAX_SAVED);
    return n->saved[slot] = make(n->tape, dtype, rank, shape);
}

void *tape_scratch(Node *n, size_t bytes) { return tape_memory_scratch(n->tape->memory, n->tape->lane, bytes); }
void tape_end_scratch(Tape *t) { tape_memory_end_scratch(t->memory, t->lane); }

// ---- forward ----

static unsigned wants_of(const Tape *t, const Node *n) {
    unsigned bits = 0;
    for (int i = 0; i < MAX_INPUTS && t->record; i++)
        if (n->in[i] && n->in[i]->needs_grad) bits |= 1u << i;
    return bits;
}

// Before n's functions read the data of parameters.
void tape_announce_use(const Tape *t, const Node *n) {
    for (int i = 0; t->hooks.use && i < MAX_INPUTS; i++) {
        if (!n->in[i] || !n->in[i]->is_parameter) continue;
        t->hooks.use(t->hooks.context, n);
        return;
    }
}

void tape_remember(Tape *t, Node *n) {
    tape_count_writers(n, 1);
    if (t->count == t->capacity) {
        t->capacity = t->capacity ? 2 * t->capacity : 256;
        t->nodes = realloc(t->nodes, (size_t)t->capacity * sizeof *t->nodes);
        check(t->nodes);
    }
    t->nodes[t->count++] = n;
}

// Where in the model a node stands: its own parameter, else the one used last.
const char *tape_place(const Tape *t, const Node *n) {
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i] && n->in[i]->is_parameter && n->in[i]->name) return arena_printf(t->host, "of %s", n->in[i]->name);
    return t->last_parameter ? arena_printf(t->host, "after %s", t->last_parameter) : "before any parameter";
}

void tape_complain(Tape *t, const Node *n, const void *data, const Tensor *like, Dtype dtype, const char *what) {
    if (t->not_finite[0] || !data || (dtype != F32 && dtype != BF16)) return;
    int64_t at = t->backend->first_nonfinite(t->backend, data, tensor_count(like), dtype);
    if (at < 0) return;
    snprintf(t->not_finite, sizeof t->not_finite, "not a finite number: %s of %s (%s), element %lld of %lld", what,
             n->op->name, tape_place(t, n), (long long)at, (long long)tensor_count(like));
}

static void add_forward_cost(Cost *sum, Cost c) {
    sum->flop += c.flop;
    sum->bytes += c.bytes;
}

// A recomputed function's gradients count where they are computed: in its second run.
static void add_cost(Tape *t, const Node *n) {
    if (!n->op->cost) return;
    Cost c = n->op->cost(n);
    if (!t->skipping) add_forward_cost(&t->cost, c);
    if (!t->skipping && t->replay) add_forward_cost(&t->replayed, c);
    if (!n->pending || t->transient) return;
    t->cost.backward_flop += c.backward_flop;
    t->cost.backward_bytes += c.backward_bytes;
}

static void run_forward(Tape *t, Node *n) {
    tape_enter(t, n);
    n->op->forward(n);
    tape_look_for_faults(t, n, "forward");
    t->last = n;
    tape_end_scratch(t);
    if (t->check_finite) tape_complain(t, n, n->out->data, n->out, n->out->dtype, "the output");
    if (t->check_finite && n->second)
        tape_complain(t, n, n->second->data, n->second, n->second->dtype, "the second output");
}

const Node *tape_call(Tape *t, const Operator *op, const Attributes *attributes, int n_in, Tensor *const *in) {
    check(n_in <= MAX_INPUTS);
    if (t->error) return NULL;
    Node *n = arena_zeroed(t->host, sizeof *n);
    n->op = op;
    n->tape = t;
    n->lane = t->lane;
    if (attributes) n->attributes = *attributes;
    for (int i = 0; i < n_in; i++) n->in[i] = in[i];
    n->pending = wants_of(t, n);
    t->skipping = t->replay && recompute_skips(t, op);
    if (!t->skipping) tape_announce_use(t, n);
    const char *wrong = op->infer(n);
    if (wrong) {
        t->error = arena_printf(t->host, "%s (%s)", wrong, tape_place(t, n));
        return NULL;
    }
    for (int i = 0; i < n_in; i++)
        if (in[i] && in[i]->is_parameter && in[i]->name) t->last_parameter = in[i]->name;
    if (!t->skipping) run_forward(t, n);
    add_cost(t, n);
    t->skipping = false;
    n->out->needs_grad = n->pending != 0;
    if (n->second) n->second->needs_grad = n->pending != 0;
    if (t->transient)
        recompute_list(t, n);
    else if (n->pending)
        tape_remember(t, n);
    return n;
}

Tensor *tape_apply(Tape *t, const Operator *op, const Attributes *attributes, int n_in, Tensor *const *in) {
    const Node *n = tape_call(t, op, attributes, n_in, in);
    return n ? n->out : NULL;
}

// ---- a view: an operator without work ----

static const char *reshape_infer(Node *n) {
    Tensor *y = tape_view(n, (int)n->attributes.i[4], n->attributes.i);
    return tensor_count(y) == tensor_count(n->in[0]) ? NULL : "reshape: the new shape has another number of elements";
}
static void reshape_forward(Node *n) { (void)n; }
static void reshape_backward(Node *n, unsigned wanted) {
    if (WANTS(wanted, 0)) grad_pass(n, 0, true);
}
static const Operator op_reshape = {.name = "reshape",
                                    .formula = "y = x",
                                    .infer = reshape_infer,
                                    .forward = reshape_forward,
                                    .backward = reshape_backward,
                                    .reads = reads_nothing};

Tensor *tape_reshape(Tape *t, Tensor *x, int rank, const int64_t *shape) {
    if (t->error) return NULL;
    check(rank >= 0 && rank <= MAX_RANK);
    Attributes a = {.i[4] = rank};
    for (int i = 0; i < rank; i++) a.i[i] = shape[i];
    return tape_apply(t, &op_reshape, &a, 1, (Tensor *[]){x});
}
