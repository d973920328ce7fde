/* Rows of length 1. The result is f32, for a contrastive loss. N rows, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { NORM }; // saved: (N) F32, max(|x|, eps)

static const char *l2_normalize_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "l2_normalize: x must be F32 or BF16, (.., C)";
    tape_output(n, F32, x->rank, x->shape);
    tape_keep(n, NORM, F32, SHAPE(tensor_rows(x)));
    return NULL;
}

static void l2_normalize_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    b->l2_normalize_forward(b, n->out->data, n->saved[NORM]->data, x->data, tensor_rows(x), tensor_width(x), x->dtype);
}

static void l2_normalize_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    Destination d = grad_of(n, 0);
    b->l2_normalize_backward(b, d.data, n->out->grad, n->out->data, n->saved[NORM]->data, tensor_rows(x),
                             tensor_width(x), x->dtype, d.add);
}

static unsigned l2_normalize_reads(const Node *n) {
    (void)n;
    return READS_OUTPUT;
}

static Cost l2_normalize_cost(const Node *n) {
    double in = (double)tensor_bytes(n->in[0]), out = (double)tensor_bytes(n->out),
           count = (double)tensor_count(n->out);
    return (Cost){3 * count, in + out, 5 * count, in + 2 * out};
}

static void l2_normalize_example(Example *e) {
    e->variants = 1;
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 4096) : example_pick(e, 1, 60), width = large ? 512 : example_pick(e, 1, 150);
    e->out = l2_normalize(e->tape, example_tensor(e, 0, false, 1, SHAPE(rows, width)));
}

const Operator op_l2_normalize = {
    .name = "l2_normalize",
    .formula = "y = x / max(|x|, eps)",
    .infer = l2_normalize_infer,
    .forward = l2_normalize_forward,
    .backward = l2_normalize_backward,
    .cost = l2_normalize_cost,
    .reads = l2_normalize_reads,
    .example = l2_normalize_example,
};

Tensor *l2_normalize(Tape *tape, Tensor *x) { return tape_apply(tape, &op_l2_normalize, NULL, 1, (Tensor *[]){x}); }
