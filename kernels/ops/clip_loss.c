/* The softmax contrastive loss of CLIP (symmetric InfoNCE; Radford et al. 2021), in tiles: the B x B logits are never
 * stored, forward keeps their logsumexp both ways and backward forms each tile again.
 * B pairs, D feature width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A, B, LOG_SCALE }; // inputs
enum { ROWS, COLUMNS };   // saved: (B) F32 each

static const char *clip_loss_infer(Node *n) {
    Tensor *a = n->in[A], *b = n->in[B], *log_scale = n->in[LOG_SCALE];
    if (a->dtype != F32 || b->dtype != F32 || a->rank != 2 || b->rank != 2 || a->shape[0] != b->shape[0] ||
        a->shape[1] != b->shape[1])
        return "clip_loss: a and b must be F32, (B, D) both";
    if (log_scale->dtype != F32 || tensor_count(log_scale) != 1) return "clip_loss: log_scale must be one F32 number";
    tape_output(n, F32, SHAPE(1));
    tape_keep(n, ROWS, F32, SHAPE(a->shape[0]));
    tape_keep(n, COLUMNS, F32, SHAPE(a->shape[0]));
    return NULL;
}

static void clip_loss_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Tensor *a = n->in[A];
    be->clip_forward(be, n->out->data, n->saved[ROWS]->data, n->saved[COLUMNS]->data, a->data, n->in[B]->data,
                     n->in[LOG_SCALE]->data, a->shape[0], a->shape[1]);
}

static void clip_loss_backward(Node *n, unsigned wanted) {
    Backend *be = tape_backend(n->tape);
    Tensor *a = n->in[A];
    Destination da = WANTS(wanted, A) ? grad_of(n, A) : (Destination){0};
    Destination db = WANTS(wanted, B) ? grad_of(n, B) : (Destination){0};
    Destination ds = WANTS(wanted, LOG_SCALE) ? grad_of(n, LOG_SCALE) : (Destination){0};
    if (!da.data && !db.data && !ds.data) return;
    be->clip_backward(be, da.data, da.add, db.data, db.add, ds.data, ds.add, n->out->grad, n->saved[ROWS]->data,
                      n->saved[COLUMNS]->data, a->data, n->in[B]->data, n->in[LOG_SCALE]->data, a->shape[0],
                      a->shape[1]);
}

static Cost clip_loss_cost(const Node *n) {
    double rows = (double)n->in[A]->shape[0], width = (double)n->in[A]->shape[1];
    return (Cost){.flop = 2 * rows * rows * width,
                  .bytes = 8 * rows * width,
                  .backward_flop = 6 * rows * rows * width,
                  .backward_bytes = 16 * rows * width};
}

static void clip_loss_example(Example *e) {
    e->variants = 2; // a free scale, and one beyond the clamp
    bool large = e->size == EXAMPLE_LARGE;
    int64_t rows = large ? 1024 : example_pick(e, 1, 40), width = large ? 512 : example_pick(e, 1, 33);
    double std = e->variant == 1 ? 0.05 : 0.5;
    Tensor *a = example_f32(e, A, false, 0, std, SHAPE(rows, width));
    Tensor *b = example_f32(e, B, false, 0, std, SHAPE(rows, width));
    Tensor *log_scale = example_f32(e, LOG_SCALE, true, e->variant == 1 ? 6.0 : 0.5, 0.1, SHAPE(1));
    e->out = clip_loss(e->tape, a, b, log_scale);
}

const Operator op_clip_loss = {
    .name = "clip_loss",
    .formula =
        "y = 1/2 sum_i [logsumexp(s[i, :]) + logsumexp(s[:, i]) - 2 s[i, i]], s = exp(min(log_scale, ln 100)) a b^T",
    .infer = clip_loss_infer,
    .forward = clip_loss_forward,
    .backward = clip_loss_backward,
    .cost = clip_loss_cost,
    .example = clip_loss_example,
};

Tensor *clip_loss(Tape *tape, Tensor *a, Tensor *b, Tensor *log_scale) {
    return tape_apply(tape, &op_clip_loss, &(Attributes){0}, 3, (Tensor *[]){a, b, log_scale});
}
