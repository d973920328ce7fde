/* Lanes of a tape: see tape.h. Each tensor, and each gradient, knows by whom it was touched last. Who touches it in
 * another lane waits for that, so that all who touch one memory do so in the order of the calls; since each of them
 * waited for the one before, the last mark stands for all. Calls that only read wait for each other too: what two lanes
 * read is little (parameters, which many read, nobody changes during a pass). */
#include "base/error.h"
#include "kernels/tape_parts.h"

static LaneMark here(const Tape *t) { return t->backend->here ? *t->backend->here : (LaneMark){0}; }

void tape_lane(Tape *t, int lane) {
    check(lane >= 0 && lane < BACKEND_LANES);
    if (lane == t->lane || !t->backend->lane) return;
    t->backend->lane(t->backend, lane);
    t->lane = lane;
    t->lanes |= 1u << lane;
}

void tape_join(Tape *t) {
    tape_lane(t, 0);
    if (t->lanes >> 1) backend_lanes_meet(t->backend);
    t->lanes = 0;
}

void tape_touch(Tape *t, LaneMark *mark) {
    if (mark->lane != t->lane) t->backend->lane_wait(t->backend, t->lane, *mark);
    *mark = here(t);
}

LaneMark *tape_gradient_mark(Tensor *x) { return x->grad_shared ? &x->grad_shared->touched : &x->grad_touched; }

static void touch_data(Tape *t, Tensor *x) {
    if (!x || x->is_parameter) return;
    while (x->base) x = x->base;
    tape_touch(t, &x->touched);
}

static void touch_gradient(Tape *t, Tensor *x) {
    if (x && x->grad) tape_touch(t, tape_gradient_mark(x));
}

void tape_enter(Tape *t, const Node *n) {
    for (int i = 0; i < MAX_INPUTS; i++) touch_data(t, n->in[i]);
}

void tape_enter_backward(Tape *t, const Node *n) {
    tape_enter(t, n);
    touch_data(t, n->out);
    touch_data(t, n->second);
    for (int i = 0; i < MAX_SAVED; i++) touch_data(t, n->saved[i]);
    touch_gradient(t, n->out);
    touch_gradient(t, n->second);
}

void tape_leave(Tape *t, int owner, LaneMark mark) {
    if (mark.lane != owner) t->backend->lane_wait(t->backend, owner, mark);
}
