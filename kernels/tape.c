/* The tape: see tape.h. Memory of activations comes from an arena; gradients of activations, and activations nobody
 * reads any more, go through a pool of free blocks inside it (pool.h). */
#include "base/error.h"
#include "kernels/tape_parts.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_CHUNK = 4 << 20, // bytes
    KEPT_BELOW = 4096,     // bytes: smaller outputs (losses, counts) stay readable after the backward pass
};

Tape *tape_new(Backend *backend, bool record) {
    Tape *t = calloc(1, sizeof *t);
    check(t);
    ArenaSource source = {backend->allocate, backend->release, backend};
    t->backend = backend;
    t->record = record;
    t->memory = arena_new_from(source, FIRST_CHUNK);
    t->scratch = arena_new_from(source, FIRST_CHUNK);
    t->host = arena_new(FIRST_CHUNK / 16);
    t->pool = pool_new();
    return t;
}

void tape_free(Tape *t) {
    if (!t) return;
    arena_free(t->memory);
    arena_free(t->scratch);
    arena_free(t->host);
    pool_free(t->pool);
    free(t->nodes);
    free(t->calls);
    free(t->owned);
    free(t);
}

static bool writes_parameter(const Node *n, int input) { return WANTS(n->pending, input) && n->in[input]->is_parameter; }

void tape_count_writers(const Node *n, int by) {
    for (int i = 0; i < MAX_INPUTS; i++)
        if (writes_parameter(n, i)) n->in[i]->writers += by;
}

void tape_reset(Tape *t) {
    for (int64_t i = 0; i < t->count; i++) {
        if (t->nodes[i]->replay) recompute_forget(t->nodes[i]);
        tape_count_writers(t->nodes[i], -1);
    }
    arena_reset(t->memory);
    arena_reset(t->host);
    pool_clear(t->pool);
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
size_t tape_peak(const Tape *t) { return arena_peak(t->memory) + arena_peak(t->scratch); }
Cost tape_cost(const Tape *t) { return t->cost; }
Cost tape_replayed(const Tape *t) { return t->replayed; }
int64_t tape_nodes(const Tape *t) { return t->count; }
Node *tape_last(const Tape *t) { return t->last; }
void tape_check_finite(Tape *t, bool on) {
    t->check_finite = on;
    t->not_finite[0] = 0;
}
const char *tape_not_finite(const Tape *t) { return t->not_finite[0] ? t->not_finite : NULL; }
void tape_set_hooks(Tape *t, const TapeHooks *hooks) { t->hooks = hooks ? *hooks : (TapeHooks){0}; }
int64_t tape_system_allocations(const Tape *t) {
    return arena_system_allocations(t->memory) + arena_system_allocations(t->scratch) +
           arena_system_allocations(t->host);
}

// ---- tensors ----

static void *memory_take(Tape *t, size_t bytes) {
    void *block = pool_take(t->pool, bytes);
    return block ? block : arena_allocate(t->memory, pool_round(bytes));
}

// Without memory.
static Tensor *describe(Tape *t, Dtype dtype, int rank, const int64_t *shape) {
    check(rank >= 0 && rank <= MAX_RANK);
    Tensor *x = arena_zeroed(t->host, sizeof *x);
    *x = (Tensor){.rank = rank, .dtype = dtype, .borrowed = true};
    for (int i = 0; i < rank; i++) x->shape[i] = shape[i];
    return x;
}

Tensor *tape_tensor(Tape *t, Dtype dtype, int rank, const int64_t *shape) {
    Tensor *x = describe(t, dtype, rank, shape);
    x->borrowed = false;
    x->data = memory_take(t, tensor_bytes(x));
    recompute_own(t, x);
    return x;
}

Tensor *tape_constant(Tape *t, Dtype dtype, int rank, const int64_t *shape, const void *host) {
    Tensor *x = tape_tensor(t, dtype, rank, shape);
    x->name = "constant";
    t->backend->upload(t->backend, x->data, host, tensor_bytes(x));
    return x;
}

void tape_read(Tape *t, const Tensor *x, void *host) {
    t->backend->download(t->backend, host, x->data, tensor_bytes(x));
}

Tensor *tape_output(Node *n, Dtype dtype, int rank, const int64_t *shape) {
    n->out = n->tape->skipping ? describe(n->tape, dtype, rank, shape) : tape_tensor(n->tape, dtype, rank, shape);
    n->out->name = n->op->name;
    return n->out;
}

Tensor *tape_view(Node *n, int rank, const int64_t *shape) {
    const Tensor *x = n->in[0];
    Tensor *y = arena_zeroed(n->tape->host, sizeof *y);
    *y = (Tensor){.data = x->data, .rank = rank, .dtype = x->dtype, .borrowed = true, .name = n->op->name};
    for (int i = 0; i < rank; i++) y->shape[i] = shape[i];
    return n->out = y;
}

Tensor *tape_keep(Node *n, int slot, Dtype dtype, int rank, const int64_t *shape) {
    check(slot >= 0 && slot < MAX_SAVED);
    return n->saved[slot] = tape_tensor(n->tape, dtype, rank, shape);
}

void *tape_scratch(Node *n, size_t bytes) { return arena_allocate(n->tape->scratch, bytes); }
void tape_end_scratch(Tape *t) { arena_reset(t->scratch); }

// ---- forward ----

static unsigned wants_of(const Tape *t, const Node *n) {
    unsigned bits = 0;
    for (int i = 0; i < MAX_INPUTS && t->record; i++)
        if (n->in[i] && n->in[i]->needs_grad) bits |= 1u << i;
    return bits;
}

// Before n's functions read the data of parameters.
static void announce_use(const Tape *t, const Node *n) {
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
static const char *place(const Tape *t, const Node *n) {
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i] && n->in[i]->is_parameter && n->in[i]->name) return arena_printf(t->host, "of %s", n->in[i]->name);
    return t->last_parameter ? arena_printf(t->host, "after %s", t->last_parameter) : "before any parameter";
}

static void complain_if_not_finite(Tape *t, const Node *n, const void *data, const Tensor *like, Dtype dtype,
                                   const char *what) {
    if (t->not_finite[0] || !data || (dtype != F32 && dtype != BF16)) return;
    int64_t at = t->backend->first_nonfinite(t->backend, data, tensor_count(like), dtype);
    if (at < 0) return;
    snprintf(t->not_finite, sizeof t->not_finite, "not a finite number: %s of %s (%s), element %lld of %lld", what,
             n->op->name, place(t, n), (long long)at, (long long)tensor_count(like));
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
    n->op->forward(n);
    t->last = n;
    arena_reset(t->scratch);
    if (t->check_finite) complain_if_not_finite(t, n, n->out->data, n->out, n->out->dtype, "the output");
}

Tensor *tape_apply(Tape *t, const Operator *op, const Attributes *attributes, int n_in, Tensor *const *in) {
    check(n_in <= MAX_INPUTS);
    if (t->error) return NULL;
    Node *n = arena_zeroed(t->host, sizeof *n);
    n->op = op;
    n->tape = t;
    if (attributes) n->attributes = *attributes;
    for (int i = 0; i < n_in; i++) n->in[i] = in[i];
    n->pending = wants_of(t, n);
    t->skipping = t->replay && recompute_skips(t, op);
    if (!t->skipping) announce_use(t, n);
    const char *wrong = op->infer(n);
    if (wrong) {
        t->error = arena_printf(t->host, "%s (%s)", wrong, place(t, n));
        return NULL;
    }
    for (int i = 0; i < n_in; i++)
        if (in[i] && in[i]->is_parameter && in[i]->name) t->last_parameter = in[i]->name;
    if (!t->skipping) run_forward(t, n);
    add_cost(t, n);
    t->skipping = false;
    n->out->needs_grad = n->pending != 0;
    if (t->transient)
        recompute_list(t, n);
    else if (n->pending)
        tape_remember(t, n);
    return n->out;
}

// ---- backward ----

static void take_gradient(Tape *t, Tensor *x) {
    if (!x->grad) x->grad = memory_take(t, tensor_bytes(x));
}

Destination grad_of(Node *n, int input) {
    Tensor *x = n->in[input];
    check(x && x->needs_grad);
    const TapeHooks *hooks = &n->tape->hooks;
    if (x->is_parameter && !x->grad_written && hooks->gradient) hooks->gradient(hooks->context, x);
    if (x->is_parameter)
        check(x->grad);
    else
        take_gradient(n->tape, x);
    Destination d = {x->grad, x->is_parameter ? F32 : x->dtype, x->grad_written};
    x->grad_written = true;
    return d;
}

void grad_pass(Node *n, int input, bool last_use) {
    Tensor *x = n->in[input], *out = n->out;
    Backend *b = n->tape->backend;
    bool same = !x->is_parameter && x->dtype == out->dtype;
    check(tensor_count(x) == tensor_count(out));
    if (last_use && same && !x->grad_written && !x->grad) {
        x->grad = out->grad;
        x->grad_written = true;
        out->grad = NULL;
        return;
    }
    Destination d = grad_of(n, input);
    if (d.add)
        b->add_in_place(b, d.data, out->grad, tensor_count(x), d.dtype, out->dtype);
    else if (d.dtype == out->dtype)
        b->copy(b, d.data, out->grad, tensor_bytes(out));
    else
        b->convert(b, d.data, d.dtype, out->grad, out->dtype, tensor_count(x));
}

static unsigned half_of(const Node *n, Halves halves) {
    unsigned bits = 0;
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i] && (halves & (n->in[i]->is_parameter ? WEIGHT_GRADIENTS : INPUT_GRADIENTS))) bits |= 1u << i;
    return bits & n->pending;
}

void tape_give_back(Tape *t, Tensor *x) {
    if (!x || x->borrowed) return;
    pool_give(t->pool, x->data, tensor_bytes(x));
    x->borrowed = true; // once
}

static void give_back(Tape *t, Tensor *x) {
    if (x && tensor_bytes(x) >= KEPT_BELOW) tape_give_back(t, x);
}

void tape_drop(Tape *t, Tensor *x) {
    if (x && !x->is_parameter) give_back(t, x);
}

// The node is done: its gradient has been consumed and, in a whole pass, everybody who reads its output has run.
static void release(Tape *t, Node *n, Halves halves) {
    if (n->out->grad) pool_give(t->pool, n->out->grad, tensor_bytes(n->out));
    n->out->grad = NULL;
    if (halves != ALL_GRADIENTS) return;
    give_back(t, n->out);
    for (int i = 0; i < MAX_SAVED; i++) give_back(t, n->saved[i]);
}

void tape_settle(Tape *t, Node *n, unsigned done) {
    unsigned before = n->pending;
    for (int i = 0; i < MAX_INPUTS; i++) {
        if (!WANTS(before & done, i)) continue;
        n->pending &= ~(1u << i);
        Tensor *x = n->in[i];
        if (x->is_parameter && --x->writers == 0 && t->hooks.complete) t->hooks.complete(t->hooks.context, x);
    }
}

static void check_gradients(Tape *t, const Node *n, unsigned wanted) {
    for (int i = 0; i < MAX_INPUTS; i++)
        if (WANTS(wanted, i))
            complain_if_not_finite(t, n, n->in[i]->grad, n->in[i], n->in[i]->is_parameter ? F32 : n->in[i]->dtype,
                                   "an input gradient");
}

static void run_operator_backward(Tape *t, Node *n, Halves halves) {
    unsigned wanted = half_of(n, halves);
    if (wanted) {
        announce_use(t, n);
        n->op->backward(n, wanted);
    }
    arena_reset(t->scratch);
    if (t->check_finite) check_gradients(t, n, wanted);
    tape_settle(t, n, wanted);
}

// Nothing will come to it: the loss does not depend on it.
static void abandon(Tape *t, Node *n) {
    if (n->replay) recompute_abandon(t, n);
    tape_settle(t, n, n->pending);
}

void tape_backward_node(Tape *t, Node *n, Halves halves) {
    if (!n->pending) return;
    if (!n->out->grad && !recompute_waits(n)) {
        if (halves & INPUT_GRADIENTS) abandon(t, n);
        return;
    }
    if (n->replay)
        recompute_backward(t, n, halves);
    else
        run_operator_backward(t, n, halves);
    if (!n->pending) release(t, n, halves);
}

static void run_backward(Tape *t, Halves halves) {
    for (int64_t i = t->count - 1; i >= 0 && !t->error; i--) tape_backward_node(t, t->nodes[i], halves);
}

void tape_backward(Tape *t, Tensor *loss, Halves halves) {
    if (t->error) return;
    check(loss && tensor_count(loss) == 1 && loss->dtype == F32);
    float one = 1;
    tape_backward_from(t, loss, &one, halves);
}

void tape_backward_from(Tape *t, Tensor *out, const void *gradient, Halves halves) {
    if (t->error || !out->needs_grad) return;
    if (t->hooks.backward) t->hooks.backward(t->hooks.context);
    if (halves & INPUT_GRADIENTS) {
        take_gradient(t, out);
        t->backend->upload(t->backend, out->grad, gradient, tensor_bytes(out));
        out->grad_written = true;
    }
    run_backward(t, halves);
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
