/* The softmax contrastive loss of CLIP (symmetric InfoNCE; Radford et al. 2021), in tiles: the B x B logits are never
 * stored, forward keeps their logsumexp both ways and backward forms each tile again.
 * B pairs, D feature width. */
#include "kernels/example.h"
#include "kernels/ops.h"
#include "kernels/pair_tiles.h"

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

typedef struct Walk { // over the tiles, forward or backward
    Node *node;
    PairSums rows, columns;      // (B)
    float *own;                  // (B)
    float *row_lse, *column_lse; // (B)
    double *d_scale;             // (B)
} Walk;

static void sum_tile(void *context, const PairTile *t, int64_t row, int64_t column) {
    Walk *w = context;
    Backend *be = tape_backend(w->node->tape);
    be->clip_sums(be, (PairSums){w->rows.most + row, w->rows.sum + row},
                  (PairSums){w->columns.most + column, w->columns.sum + column}, w->own + row, t,
                  w->node->in[LOG_SCALE]->data);
}

static void clip_loss_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    PairSquare square = pair_square_of(n, n->in[A], n->in[B]);
    size_t bytes = (size_t)square.pairs * sizeof(float);
    Walk w = {.node = n, .own = tape_scratch(n, bytes)};
    w.rows = (PairSums){tape_scratch(n, bytes), tape_scratch(n, bytes)};
    w.columns = (PairSums){tape_scratch(n, bytes), tape_scratch(n, bytes)};
    pair_square(&square, sum_tile, &w, (Destination){0}, (Destination){0});
    double *loss = tape_scratch(n, 2 * bytes);
    be->clip_logsumexp(be, n->saved[ROWS]->data, w.rows, square.pairs);
    be->clip_logsumexp(be, n->saved[COLUMNS]->data, w.columns, square.pairs);
    be->clip_losses(be, loss, n->saved[ROWS]->data, n->saved[COLUMNS]->data, w.own, square.pairs);
    be->sum_rows(be, n->out->data, false, loss, square.pairs);
}

static void differentiate_tile(void *context, const PairTile *t, int64_t row, int64_t column) {
    Walk *w = context;
    Backend *be = tape_backend(w->node->tape);
    be->clip_gradient(be, w->d_scale + row, t, w->row_lse + row, w->column_lse + column, w->node->in[LOG_SCALE]->data,
                      w->node->out->grad);
}

static void clip_loss_backward(Node *n, unsigned wanted) {
    if (!wanted) return;
    Backend *be = tape_backend(n->tape);
    PairSquare square = pair_square_of(n, n->in[A], n->in[B]);
    Walk w = {.node = n, .row_lse = n->saved[ROWS]->data, .column_lse = n->saved[COLUMNS]->data};
    w.d_scale = tape_scratch(n, (size_t)square.pairs * sizeof *w.d_scale);
    Destination da = WANTS(wanted, A) ? grad_of(n, A) : (Destination){0};
    Destination db = WANTS(wanted, B) ? grad_of(n, B) : (Destination){0};
    pair_square(&square, differentiate_tile, &w, da, db);
    if (!WANTS(wanted, LOG_SCALE)) return;
    Destination ds = grad_of(n, LOG_SCALE);
    be->sum_rows(be, ds.data, ds.add, w.d_scale, square.pairs);
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
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 1024) : example_pick(e, 1, 40), width = large ? 512 : example_pick(e, 1, 33);
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
    .reads = reads_inputs,
    .example = clip_loss_example,
};

Tensor *clip_loss(Tape *tape, Tensor *a, Tensor *b, Tensor *log_scale) {
    return tape_apply(tape, &op_clip_loss, &(Attributes){0}, 3, (Tensor *[]){a, b, log_scale});
}
