/* The sigmoid contrastive loss of SigLIP (Zhai et al. 2023), in tiles: every pair is a binary question of its own, so
 * nothing is kept from forward and backward forms each tile of logits again.
 * B pairs, D feature width. */
#include "kernels/example.h"
#include "kernels/ops.h"
#include "kernels/pair_tiles.h"

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

typedef struct Walk { // over the tiles, forward or backward
    Node *node;
    double *loss, *d_scale, *d_bias; // (B)
} Walk;

static void sum_tile(void *context, const PairTile *t, int64_t row, int64_t column) {
    (void)column;
    Walk *w = context;
    Backend *be = tape_backend(w->node->tape);
    be->siglip_sums(be, w->loss + row, t, w->node->in[LOG_SCALE]->data, w->node->in[BIAS]->data);
}

static void siglip_loss_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    PairSquare square = pair_square_of(n, n->in[A], n->in[B]);
    Walk w = {.node = n, .loss = tape_scratch(n, (size_t)square.pairs * sizeof(double))};
    pair_square(&square, sum_tile, &w, (Destination){0}, (Destination){0});
    be->sum_rows(be, n->out->data, false, w.loss, square.pairs);
}

static void differentiate_tile(void *context, const PairTile *t, int64_t row, int64_t column) {
    (void)column;
    Walk *w = context;
    Backend *be = tape_backend(w->node->tape);
    be->siglip_gradient(be, w->d_scale + row, w->d_bias + row, t, w->node->in[LOG_SCALE]->data, w->node->in[BIAS]->data,
                        w->node->out->grad);
}

static void siglip_loss_backward(Node *n, unsigned wanted) {
    if (!wanted) return;
    Backend *be = tape_backend(n->tape);
    PairSquare square = pair_square_of(n, n->in[A], n->in[B]);
    size_t bytes = (size_t)square.pairs * sizeof(double);
    Walk w = {.node = n, .d_scale = tape_scratch(n, bytes), .d_bias = tape_scratch(n, bytes)};
    Destination to[4] = {{0}};
    for (int i = 0; i < 4; i++)
        if (WANTS(wanted, i)) to[i] = grad_of(n, i);
    pair_square(&square, differentiate_tile, &w, to[A], to[B]);
    if (to[LOG_SCALE].data) be->sum_rows(be, to[LOG_SCALE].data, to[LOG_SCALE].add, w.d_scale, square.pairs);
    if (to[BIAS].data) be->sum_rows(be, to[BIAS].data, to[BIAS].add, w.d_bias, square.pairs);
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
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 1024) : example_pick(e, 1, 40), width = large ? 512 : example_pick(e, 1, 33);
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
    .reads = reads_inputs,
    .example = siglip_loss_example,
};

Tensor *siglip_loss(Tape *tape, Tensor *a, Tensor *b, Tensor *log_scale, Tensor *bias) {
    return tape_apply(tape, &op_siglip_loss, &(Attributes){0}, 4, (Tensor *[]){a, b, log_scale, bias});
}
