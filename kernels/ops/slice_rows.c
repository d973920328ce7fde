/* A run of rows of each batch element. B batch, T rows, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A_FIRST, A_COUNT }; // attributes

static const char *slice_rows_infer(Node *n) {
    Tensor *x = n->in[0];
    int64_t first = n->attributes.i[A_FIRST], count = n->attributes.i[A_COUNT];
    if (x->rank != 3 || (x->dtype != F32 && x->dtype != BF16)) return "slice_rows: x must be F32 or BF16, (B, T, C)";
    if (first < 0 || count < 0 || first + count > x->shape[1]) return "slice_rows: the rows must lie within x";
    tape_output(n, x->dtype, SHAPE(x->shape[0], count, x->shape[2]));
    return NULL;
}

static void slice_rows_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    int64_t first = n->attributes.i[A_FIRST], count = n->attributes.i[A_COUNT];
    b->copy_rows(b, n->out->data, x->dtype, count, 0, x->data, x->dtype, x->shape[1], first, x->shape[0], count,
                 x->shape[2], false);
}

static void slice_rows_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    int64_t first = n->attributes.i[A_FIRST], count = n->attributes.i[A_COUNT];
    Destination d = grad_of(n, 0);
    if (!d.add) b->zero(b, d.data, (size_t)tensor_count(x) * dtype_size(d.dtype));
    b->copy_rows(b, d.data, d.dtype, x->shape[1], first, n->out->grad, n->out->dtype, count, 0, x->shape[0], count,
                 x->shape[2], d.add);
}

static Cost slice_rows_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out);
    return (Cost){.bytes = 2 * bytes, .backward_bytes = bytes + (double)tensor_bytes(n->in[0])};
}

static void slice_rows_example(Example *e) {
    e->variants = 2; // from the first row; from the middle
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 32) : example_pick(e, 1, 4), rows = large ? example_many(e, 197) : example_pick(e, 2, 30);
    int64_t width = large ? 768 : example_pick(e, 1, 90),
            first = e->variant ? (large ? 1 : example_pick(e, 1, rows - 1)) : 0;
    Tensor *x = example_tensor(e, 0, false, 1, SHAPE(batch, rows, width));
    e->out = slice_rows(e->tape, x, first, large ? rows - first : example_pick(e, 1, rows - first));
}

const Operator op_slice_rows = {
    .name = "slice_rows",
    .formula = "y[b, i] = x[b, first + i]",
    .infer = slice_rows_infer,
    .forward = slice_rows_forward,
    .backward = slice_rows_backward,
    .cost = slice_rows_cost,
    .reads = reads_nothing,
    .example = slice_rows_example,
};

Tensor *slice_rows(Tape *tape, Tensor *x, int64_t first, int64_t count) {
    Attributes a = {.i = {[A_FIRST] = first, [A_COUNT] = count}};
    return tape_apply(tape, &op_slice_rows, &a, 1, (Tensor *[]){x});
}
