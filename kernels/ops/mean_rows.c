/* The mean of a sequence's rows, with or without a mask. B batch, T rows, C width. */
#include "base/error.h"
#include "kernels/example.h"
#include "kernels/ops.h"
#include <stdlib.h>

enum { X, MASK }; // inputs

static const char *mean_rows_infer(Node *n) {
    Tensor *x = n->in[X], *mask = n->in[MASK];
    if (x->rank != 3 || (x->dtype != F32 && x->dtype != BF16)) return "mean_rows: x must be F32 or BF16, (B, T, C)";
    if (mask && (mask->dtype != F32 || tensor_count(mask) != x->shape[0] * x->shape[1]))
        return "mean_rows: the mask must be F32, (B, T)";
    tape_output(n, x->dtype, SHAPE(x->shape[0], x->shape[2]));
    return NULL;
}

static const float *mask_of(const Node *n) { return n->in[MASK] ? n->in[MASK]->data : NULL; }

static void mean_rows_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    b->mean_rows_forward(b, n->out->data, x->data, mask_of(n), x->shape[0], x->shape[1], x->shape[2], x->dtype);
}

static void mean_rows_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, X)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    Destination d = grad_of(n, X);
    b->mean_rows_backward(b, d.data, n->out->grad, mask_of(n), x->shape[0], x->shape[1], x->shape[2], x->dtype, d.add);
}

static unsigned mean_rows_reads(const Node *n) {
    (void)n;
    return 1u << MASK;
}

static Cost mean_rows_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->in[X]), count = (double)tensor_count(n->in[X]);
    return (Cost){2 * count, bytes, count, bytes};
}

static void mean_rows_example(Example *e) {
    e->variants = 2; // all rows; a mask with an empty row
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 32) : example_pick(e, 1, 4), rows = large ? example_many(e, 196) : example_pick(e, 1, 40);
    int64_t width = large ? 768 : example_pick(e, 1, 150);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(batch, rows, width)), *mask = NULL;
    if (e->variant == 1) {
        float *values = malloc(sizeof(float) * (size_t)(batch * rows));
        check(values);
        for (int64_t i = 0; i < batch * rows; i++) values[i] = i / rows == 1 ? 0 : (float)rng_below(&e->rng, 2);
        mask = example_constant(e, MASK, F32, SHAPE(batch, rows), values);
        free(values);
    }
    e->out = mean_rows(e->tape, x, mask);
}

const Operator op_mean_rows = {
    .name = "mean_rows",
    .formula = "y[b] = sum over t of mask[b, t] x[b, t] / sum of mask[b]",
    .infer = mean_rows_infer,
    .forward = mean_rows_forward,
    .backward = mean_rows_backward,
    .cost = mean_rows_cost,
    .reads = mean_rows_reads,
    .example = mean_rows_example,
};

Tensor *mean_rows(Tape *tape, Tensor *x, Tensor *mask) {
    return tape_apply(tape, &op_mean_rows, NULL, 2, (Tensor *[]){x, mask});
}
