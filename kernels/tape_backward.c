/* Backward passes of a tape: see tape.h. Nodes run from the last to the first, so that all who read a node's output
 * have run when it is its turn: then its memory goes back, but for what a weight half that comes later will read. */
#include "base/error.h"
#include "kernels/tape_parts.h"
#include <stdio.h>
#include <string.h>

enum { HOLDS = 2 * READS_OUTPUT }; // in Node.held: what it saved, whatever else it reads

static void take_gradient(Tape *t, Tensor *x) {
    if (x->grad) return;
    x->grad = tape_memory_take(t->memory, t->lane, tensor_bytes(x));
    x->grad_lane = (int8_t)t->lane;
    x->grad_touched = (LaneMark){.lane = t->lane}; // by nobody
}

// ---- equal gradients that share their memory ----

void tape_move_gradient(Tensor *to, Tensor *from) {
    to->grad = from->grad;
    to->grad_shared = from->grad_shared;
    to->grad_lane = from->grad_lane;
    to->grad_touched = from->grad_touched;
    to->grad_sums = from->grad_sums;
    to->grad_written = true;
    from->grad = NULL;
    from->grad_shared = NULL;
    from->grad_sums = NULL;
}

static void share_gradient(Tape *t, Tensor *to, Tensor *from) {
    if (!from->grad_shared) {
        SharedGradient *shared = arena_array(t->host, SharedGradient, 1);
        *shared = (SharedGradient){1, from->grad_touched};
        from->grad_shared = shared;
    }
    to->grad = from->grad;
    to->grad_shared = from->grad_shared;
    to->grad_lane = from->grad_lane;
    to->grad_sums = from->grad_sums;
    to->grad_written = true;
    to->grad_shared->holders++;
}

static bool others_hold_gradient(const Tensor *x) { return x->grad_shared && x->grad_shared->holders > 1; }

// Before it is changed: x gets a copy of its own where others hold it too.
static void own_gradient(Tape *t, Tensor *x) {
    x->grad_sums = NULL;
    if (!others_hold_gradient(x)) return;
    const void *shared = x->grad;
    tape_touch(t, &x->grad_shared->touched);
    x->grad_shared->holders--;
    x->grad_shared = NULL;
    x->grad = NULL;
    take_gradient(t, x);
    t->backend->copy(t->backend, x->grad, shared, tensor_bytes(x));
}

// ---- where gradients go ----

// The place for the gradient of in[input] itself.
static Destination place_of(Node *n, int input) {
    Tensor *x = n->in[input];
    check(x && x->needs_grad);
    const TapeHooks *hooks = &n->tape->hooks;
    if (x->is_parameter && !x->grad_written && hooks->gradient) hooks->gradient(hooks->context, x);
    if (x->is_parameter)
        check(x->grad);
    else
        take_gradient(n->tape, x);
    if (x->grad_written) own_gradient(n->tape, x);
    tape_touch(n->tape, tape_gradient_mark(x));
    Destination d = {x->grad, x->is_parameter ? F32 : x->dtype, x->grad_written};
    x->grad_written = true;
    return d;
}

Destination grad_of_output(Node *n) {
    Tensor *x = n->out;
    take_gradient(n->tape, x);
    if (x->grad_written) own_gradient(n->tape, x);
    tape_touch(n->tape, tape_gradient_mark(x));
    Destination d = {x->grad, x->dtype, x->grad_written};
    x->grad_written = true;
    return d;
}

Destination grad_of(Node *n, int input) {
    if (n->early && n->early[input]) return (Destination){n->early[input]->data, F32, false};
    return place_of(n, input);
}

void grad_pass(Node *n, int input, bool last_use) {
    Tensor *x = n->in[input], *out = n->out;
    Backend *b = n->tape->backend;
    bool same = !x->is_parameter && x->dtype == out->dtype;
    check(tensor_count(x) == tensor_count(out));
    if (same && !x->grad_written && !x->grad) {
        if (last_use)
            tape_move_gradient(x, out);
        else
            share_gradient(n->tape, x, out);
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

// ---- sums over the rows of a gradient ----

void grad_sums_wanted(Node *n) { n->out->wants_sums = tape_forms_sums(n->tape); }

float *grad_sums_place(Node *n, int input) {
    const Tensor *x = n->in[input];
    Tensor *out = n->out;
    if (!x->wants_sums || x->grad || x->dtype != out->dtype || tensor_width(x) != tensor_width(out)) return NULL;
    return out->grad_sums = tape_tensor(n->tape, F32, SHAPE(tensor_width(out)))->data;
}

bool grad_sums_pass(Node *n, int input) {
    const float *sums = n->out->grad_sums;
    Backend *b = n->tape->backend;
    if (!sums) return false;
    Destination d = grad_of(n, input);
    if (d.add)
        b->add_in_place(b, d.data, sums, tensor_width(n->out), d.dtype, F32);
    else
        b->copy(b, d.data, sums, (size_t)tensor_width(n->out) * sizeof *sums);
    return true;
}

static unsigned half_of(const Node *n, Halves halves) {
    unsigned bits = 0;
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i] && (halves & (n->in[i]->is_parameter ? WEIGHT_GRADIENTS : INPUT_GRADIENTS))) bits |= 1u << i;
    return bits & n->pending;
}

// ---- gradients of vectors ----

/* Scales and shifts of norms are small, but what their gradients are formed from is large. Where nothing else of a node
 * waits for the weight half, the input half forms them too, beside, and the weight half adds them where they belong:
 * the same sums in the same order. */

// Inputs of n whose gradients this pass is to form early.
static unsigned early_of(const Node *n, Halves halves) {
    unsigned weights = half_of(n, WEIGHT_GRADIENTS);
    if (halves != INPUT_GRADIENTS || n->early) return 0;
    for (int i = 0; i < MAX_INPUTS; i++)
        if (WANTS(weights, i) && n->in[i]->rank > 1) return 0;
    return weights;
}

static void make_room(Tape *t, Node *n, unsigned early) {
    if (!early) return;
    n->early = arena_array(t->host, Tensor *, MAX_INPUTS);
    for (int i = 0; i < MAX_INPUTS; i++)
        if (WANTS(early, i)) n->early[i] = tape_tensor(t, F32, n->in[i]->rank, n->in[i]->shape);
}

// Brings those of `wanted` that are formed already to where they belong. Returns them.
static unsigned deliver(Tape *t, Node *n, unsigned wanted) {
    Backend *b = t->backend;
    unsigned done = 0;
    for (int i = 0; i < MAX_INPUTS && n->early; i++) {
        Tensor *x = n->early[i];
        if (!x || !WANTS(wanted, i)) continue;
        Destination d = place_of(n, i);
        tape_touch(t, &x->touched);
        if (d.add)
            b->add_in_place(b, d.data, x->data, tensor_count(x), d.dtype, F32);
        else
            b->copy(b, d.data, x->data, tensor_bytes(x));
        tape_give_back(t, x);
        done |= 1u << i;
    }
    return done;
}

// ---- whose memory goes back when ----

void tape_give_back(Tape *t, Tensor *x) {
    if (!x || x->borrowed) return;
    tape_leave(t, x->lane, x->touched);
    tape_memory_give(t->memory, x->lane, x->data, tensor_bytes(x));
    x->borrowed = true; // once
}

void tape_give_gradient(Tape *t, Tensor *x) {
    if (!x->grad || x->is_parameter) return;
    if (others_hold_gradient(x)) {
        x->grad_shared->holders--;
    } else {
        tape_leave(t, x->grad_lane, *tape_gradient_mark(x));
        tape_memory_give(t->memory, x->grad_lane, x->grad, tensor_bytes(x));
    }
    x->grad = NULL;
    x->grad_shared = NULL;
    x->grad_sums = NULL;
    x->grad_written = false;
}

static void give_back(Tape *t, Tensor *x) {
    if (x && !x->is_parameter && !x->readers && tensor_bytes(x) >= KEPT_BELOW) tape_give_back(t, x);
}

void tape_drop(Tape *t, Tensor *x) {
    if (x && !x->is_parameter && tensor_bytes(x) >= KEPT_BELOW) tape_give_back(t, x);
}

// Whose data x is or shows.
static Tensor *root(Tensor *x) {
    while (x->base) x = x->base;
    return x;
}

// What n's weight half will read stays until it has run: `by` 1 counts n among the readers, -1 no longer.
static void count_readers(Node *n, int by) {
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i] && WANTS(n->held, i)) root(n->in[i])->readers += by;
    if (n->held & READS_OUTPUT) root(n->out)->readers += by;
    for (int i = 0; i < MAX_SAVED; i++)
        if (n->saved[i]) n->saved[i]->readers += by;
}

static void hold(Node *n) {
    if (n->replay || n->held) return; // of a recomputed function the nodes inside do
    n->held = HOLDS | (n->op->reads ? n->op->reads(n) : ~0u);
    count_readers(n, 1);
}

static void let_go(Tape *t, Node *n) {
    if (!n->held) return;
    count_readers(n, -1);
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i]) give_back(t, root(n->in[i]));
    n->held = 0;
}

// n has run, as far as it does in this pass, and so has everybody who reads its output.
static void release(Tape *t, Node *n) {
    if (n->pending && !n->early) {
        hold(n);
    } else {
        let_go(t, n);
        tape_give_gradient(t, n->out);
        if (n->second) tape_give_gradient(t, n->second);
    }
    give_back(t, n->out);
    give_back(t, n->second);
    for (int i = 0; i < MAX_SAVED; i++)
        if (n->saved[i] && !n->saved[i]->readers) tape_give_back(t, n->saved[i]);
}

// What no node made, or none that is recorded.
static void release_rest(Tape *t) {
    for (Tensor *x = t->made; x; x = x->before) give_back(t, x);
}

// ---- nodes ----

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
            tape_complain(t, n, n->in[i]->grad, n->in[i], n->in[i]->is_parameter ? F32 : n->in[i]->dtype,
                          "an input gradient");
}

static void run_operator_backward(Tape *t, Node *n, Halves halves) {
    unsigned wanted = half_of(n, halves), early = early_of(n, halves), ready = deliver(t, n, wanted);
    unsigned now = (wanted & ~ready) | early;
    make_room(t, n, early);
    if (now) {
        tape_announce_use(t, n);
        tape_enter_backward(t, n);
        n->op->backward(n, now);
        tape_look_for_faults(t, n, "backward");
    }
    tape_end_scratch(t);
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
    tape_lane(t, n->lane);
    bool reached = n->out->grad || (n->second && n->second->grad) || n->early || recompute_waits(n);
    if (!reached && !(halves & INPUT_GRADIENTS)) return;
    if (!reached)
        abandon(t, n);
    else if (n->replay)
        recompute_backward(t, n, halves);
    else
        run_operator_backward(t, n, halves);
    release(t, n);
}

// ---- passes ----

void *tape_seed_place(Tape *t, Tensor *out) {
    if (t->error || !out->needs_grad) return NULL;
    check(!out->grad_written && "an output is seeded once, before the backward pass");
    take_gradient(t, out);
    tape_touch(t, tape_gradient_mark(out));
    out->grad_written = true;
    return out->grad;
}

void tape_seed(Tape *t, Tensor *out, const void *gradient) {
    const float one = 1;
    void *place = tape_seed_place(t, out);
    if (!place) return;
    check(gradient || (tensor_count(out) == 1 && out->dtype == F32));
    t->backend->upload(t->backend, place, gradient ? gradient : &one, tensor_bytes(out));
}

typedef struct Layer { // whose nodes run; "" for none
    char name[96];
} Layer;

// The layer of a parameter: its name up to the layer's number, or without what stands behind the last dot.
static size_t layer_length(const char *name) {
    const char *last = strrchr(name, '.');
    for (const char *at = strchr(name, '.'); at; at = strchr(at + 1, '.'))
        if (at[1] >= '0' && at[1] <= '9') return (size_t)(at + 1 - name) + strspn(at + 1, "0123456789");
    return last ? (size_t)(last - name) : strlen(name);
}

// Nodes that read no parameter belong to the layer of those before them.
static void enter_layer(Tape *t, Layer *open, const Node *n) {
    const char *parameter = NULL;
    Layer next = {""};
    for (int i = 0; i < MAX_INPUTS && n && !parameter; i++)
        if (n->in[i] && n->in[i]->is_parameter) parameter = n->in[i]->name;
    if (n && !parameter) return;
    if (parameter) snprintf(next.name, sizeof next.name, "%.*s backward", (int)layer_length(parameter), parameter);
    if (!strcmp(next.name, open->name)) return;
    if (open->name[0]) backend_range_pop(t->backend);
    if (next.name[0]) backend_range_push(t->backend, next.name);
    *open = next;
}

void tape_backward_seeded(Tape *t, Halves halves) {
    Layer layer = {""};
    if (t->error) return;
    if (t->hooks.backward) t->hooks.backward(t->hooks.context);
    for (int64_t i = t->count - 1; i >= 0 && !t->error; i--) {
        if (t->backend->range_push) enter_layer(t, &layer, t->nodes[i]);
        tape_backward_node(t, t->nodes[i], halves);
    }
    if (layer.name[0]) enter_layer(t, &layer, NULL);
    tape_join(t);
    if (halves == INPUT_GRADIENTS) release_rest(t);
}

void tape_backward_from(Tape *t, Tensor *out, const void *gradient, Halves halves) {
    if (t->error || !out->needs_grad) return;
    if (halves & INPUT_GRADIENTS) tape_seed(t, out, gradient);
    tape_backward_seeded(t, halves);
}

void tape_backward(Tape *t, Tensor *loss, Halves halves) {
    if (t->error) return;
    check(loss && tensor_count(loss) == 1 && loss->dtype == F32);
    tape_backward_from(t, loss, NULL, halves);
}

bool tape_has_gradient(const Tensor *arrival) { return arrival->grad && arrival->grad_written; }

void tape_read_gradient(Tape *t, Tensor *arrival, void *host) {
    check(tape_has_gradient(arrival));
    if (host) t->backend->download(t->backend, host, arrival->grad, tensor_bytes(arrival));
    tape_give_gradient(t, arrival);
}
