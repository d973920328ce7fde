/* The sigmoid contrastive loss of SigLIP (Zhai et al. 2023), in tiles: every pair is a binary question of its own, so
 * nothing is kept from forward and backward forms each tile of logits again.
 * B pairs, D feature width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A, B, LOG_SCALE, BIAS }; // inputs

static const char *siglip_loss_infer(Node *n) {
    Tensor *a = n->in[A], *b = n->in[B], *log_scale = n->in[LOG_SCALE], *bias = n->in[BIAS];
    if (a->dtype != F32 || b->dtype != F32 || a->rank != 2 || b->rank != 2 || a->shape[0] != b->shape[0] ||
        a->shape[1] != b->shape[1])
        return "siglip_loss: a and b must be F32, (B, D) both";
    if (log_scale->dtype != F32 || tensor_count(log_scale) != 1 || bias->dtype != F32 || tensor_count(bias) != 1)
        return "siglip_loss: log_scale and bias must be one F32 number each";
    tape_output(n, F32, SHAPE(1));
    return NULL;
}

static void siglip_loss_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Tensor *a = n->in[A];
    be->siglip_forward(be, n->out->data, a->data, n->in[B]->data, n->in[LOG_SCALE]->data, n->in[BIAS]->data,
                       a->shape[0], a->shape[1]);
}

static void siglip_loss_backward(Node *n, unsigned wanted) {
    Backend *be = tape_backend(n->tape);
    Tensor *a = n->in[A];
    Destination to[4] = {{0}};
    bool any = false;
    for (int i = 0; i < 4; i++)
        if (WANTS(wanted, i)) {
            to[i] = grad_of(n, i);
            any = true;
        }
    if (!any) return;
    be->siglip_backward(be, to[A].data, to[A].add, to[B].data, to[B].add, to[LOG_SCALE].data, to[LOG_SCALE].add,
                        to[BIAS].data, to[BIAS].add, n->out->grad, a->data, n->in[B]->data, n->in[LOG_SCALE]->data,
                        n->in[BIAS]->data, a->shape[0], a->shape[1]);
}

static Cost siglip_loss_cost(const Node *n) {
    double rows = (double)n->in[A]->shape[0], width = (double)n->in[A]->shape[1];
    return (Cost){.flop = 2 * rows * rows * width,
                  .bytes = 8 * rows * width,
                  .backward_flop = 6 * rows * rows * width,
                  .backward_bytes = 16 * rows * width};
}

static void siglip_loss_example(Example *e) {
    e->variants = 1;
    bool large = e->size == EXAMPLE_LARGE;
    int64_t rows = large ? 1024 : example_pick(e, 1, 40), width = large ? 512 : example_pick(e, 1, 33);
    Tensor *a = example_f32(e, A, false, 0, 0.5, SHAPE(rows, width));
    Tensor *b = example_f32(e, B, false, 0, 0.5, SHAPE(rows, width));
    Tensor *log_scale = example_f32(e, LOG_SCALE, true, 0.5, 0.1, SHAPE(1));
    Tensor *bias = example_f32(e, BIAS, true, -1.0, 0.1, SHAPE(1));
    e->out = siglip_loss(e->tape, a, b, log_scale, bias);
}

const Operator op_siglip_loss = {
    .name = "siglip_loss",
    .formula = "y = -sum_ij log sigmoid(z (exp(log_scale) a[i] . b[j] + bias)), z = 1 where i = j, else -1",
    .infer = siglip_loss_infer,
    .forward = siglip_loss_forward,
    .backward = siglip_loss_backward,
    .cost = siglip_loss_cost,
    .example = siglip_loss_example,
};

Tensor *siglip_loss(Tape *tape, Tensor *a, Tensor *b, Tensor *log_scale, Tensor *bias) {
    return tape_apply(tape, &op_siglip_loss, &(Attributes){0}, 4, (Tensor *[]){a, b, log_scale, bias});
}
