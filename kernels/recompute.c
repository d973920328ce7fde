/* See recompute.h. Which calls need not run again is worked out once, from the last call to the first: one runs where
 * it keeps something for its backward pass, or where a backward pass or a call that runs reads its output. */
#include "base/error.h"
#include "kernels/tape_parts.h"
#include <stdlib.h>
#include <string.h>

// One more place in an array of pointers.
static void *grow(void *items, int64_t count, int64_t *capacity) {
    if (count < *capacity) return items;
    *capacity = *capacity ? 2 * *capacity : 64;
    items = realloc(items, (size_t)*capacity * sizeof(void *));
    check(items);
    return items;
}

void recompute_own(Tape *t, Tensor *x) {
    if (!t->transient && !t->replay) return;
    t->owned = grow(t->owned, t->owned_count, &t->owned_capacity);
    t->owned[t->owned_count++] = x;
}

void recompute_list(Tape *t, Node *n) {
    t->calls = grow(t->calls, t->call_count, &t->call_capacity);
    t->calls[t->call_count++] = n;
}

static void *copy(Tape *t, const void *from, size_t bytes) {
    void *to = arena_allocate(t->host, bytes ? bytes : 1);
    return bytes ? memcpy(to, from, bytes) : to;
}

// ---- the first run ----

static unsigned reads_of(const Node *n) {
    if (!n->pending) return 0;
    return n->op->reads ? n->op->reads(n) : ~0u;
}

static bool keeps(const Node *n) {
    for (int i = 0; i < MAX_SAVED; i++)
        if (n->saved[i]) return n->pending != 0;
    return false;
}

// The call that gave x is needed, where it is one of the function's own.
static void need(Replay *r, const Tensor *x) {
    for (int64_t i = 0; i < r->count; i++)
        if (r->calls[i]->out == x || r->calls[i]->second == x) r->again[i] = true;
}

static void find_needed(Replay *r) {
    for (int64_t i = r->count - 1; i >= 0; i--) {
        const Node *n = r->calls[i];
        unsigned reads = reads_of(n);
        if (keeps(n) || (reads & READS_OUTPUT)) r->again[i] = true;
        for (int input = 0; input < MAX_INPUTS; input++)
            if (n->in[input] && (r->again[i] || WANTS(reads, input))) need(r, n->in[input]);
    }
}

static bool is_own(const Tape *t, const Tensor *x) {
    for (int64_t i = 0; i < t->call_count; i++)
        if (t->calls[i]->out == x || t->calls[i]->second == x) return true;
    return false;
}

// Everything but `out`. Where that is a view, it takes over the memory of what it looks at, which is never one that was
// dropped before: then its block has another owner by now.
static void give_back_but(Tape *t, Tensor *out) {
    for (int64_t i = 0; i < t->owned_count; i++) {
        Tensor *x = t->owned[i];
        if (x == out) continue;
        if (out->borrowed && !x->borrowed && x->data == out->data) {
            x->borrowed = true, x->base = out;
            out->borrowed = false, out->base = NULL;
            out->lane = x->lane, out->touched = x->touched;
        } else {
            tape_give_back(t, x);
        }
    }
    t->owned_count = 0;
}

static const Operator op_recompute = {.name = "recompute", .formula = "y = function(x)"}; // run by the tape itself

// What is to write parameters' gradients: the calls of the first run until there are nodes of the second.
static void count_writers(Node *const *nodes, int64_t count, int by) {
    for (int64_t i = 0; i < count; i++) tape_count_writers(nodes[i], by);
}

static void record(Tape *t, RecomputeFunction function, const void *closure, size_t bytes, Tensor *x, Tensor *out) {
    Node *n = arena_zeroed(t->host, sizeof *n);
    Replay *r = arena_zeroed(t->host, sizeof *r);
    *r = (Replay){.function = function, .closure = copy(t, closure, bytes), .x = x, .count = t->call_count};
    r->calls = copy(t, t->calls, (size_t)r->count * sizeof(Node *));
    r->again = arena_array(t->host, bool, r->count);
    find_needed(r);
    *n = (Node){.op = &op_recompute, .tape = t, .in[0] = x, .out = out, .lane = t->lane, .pending = 1, .replay = r};
    tape_remember(t, n);
    count_writers(r->calls, r->count, 1);
}

Tensor *tape_recompute(Tape *t, RecomputeFunction function, const void *closure, size_t bytes, Tensor *x) {
    if (t->error || !x) return NULL;
    if (t->transient || t->replay) return function(t, closure, x);
    check(!x->is_parameter && "a parameter that a recomputed function uses belongs into its closure");
    t->transient = true;
    t->call_count = t->owned_count = 0;
    Tensor *out = function(t, closure, x);
    t->transient = false;
    if (!out || t->error) return NULL; // of a residual whose branch failed x is left
    check(is_own(t, out) && "a recomputed function returns what it computed");
    give_back_but(t, out);
    if (t->record && out->needs_grad) record(t, function, closure, bytes, x, out);
    return out;
}

// ---- the second run ----

bool recompute_skips(Tape *t, const Operator *op) {
    Replay *r = t->replay;
    check(r->at < r->count && r->calls[r->at]->op == op && "a recomputed function does the same again");
    return !r->again[r->at++];
}

bool recompute_waits(const Node *n) { return n->replay && n->replay->nodes; }

// The function again, recorded behind the tape's nodes and taken from there; its output takes over the gradient.
static void replay(Tape *t, Node *n) {
    Replay *r = n->replay;
    int64_t first = t->count;
    bool recording = t->record;
    t->record = true;
    t->replay = r;
    t->owned_count = 0;
    Tensor *out = r->function(t, r->closure, r->x);
    t->replay = NULL;
    t->record = recording;
    r->node_count = t->count - first;
    r->nodes = copy(t, t->nodes + first, (size_t)r->node_count * sizeof(Node *));
    t->count = first;
    count_writers(r->calls, r->count, -1);
    r->owned_count = t->owned_count;
    r->owned = copy(t, t->owned, (size_t)r->owned_count * sizeof(Tensor *));
    if (!out) return;
    check(r->at == r->count);
    tape_move_gradient(out, n->out);
}

void recompute_backward(Tape *t, Node *n, Halves halves) {
    Replay *r = n->replay;
    unsigned left = 0;
    if (!r->nodes) replay(t, n);
    for (int64_t i = r->node_count - 1; i >= 0 && !t->error; i--) tape_backward_node(t, r->nodes[i], halves);
    for (int64_t i = 0; i < r->node_count; i++) left |= r->nodes[i]->pending;
    for (int64_t i = 0; i < r->owned_count; i++)
        if (!left || !r->owned[i]->readers) tape_give_back(t, r->owned[i]);
    if (!left) n->pending = 0;
}

void recompute_abandon(Tape *t, Node *n) {
    for (int64_t i = 0; i < n->replay->count; i++) tape_settle(t, n->replay->calls[i], ~0u);
}

void recompute_forget(const Node *n) {
    const Replay *r = n->replay;
    if (r->nodes)
        count_writers(r->nodes, r->node_count, -1);
    else
        count_writers(r->calls, r->count, -1);
}
