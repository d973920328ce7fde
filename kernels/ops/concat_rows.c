/* Rows of one sequence behind those of another. B batch, T1 and T2 rows, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { FIRST, SECOND }; // inputs a and c

typedef struct Sizes {
    int64_t batch, rows[2], width;
    bool repeats[2]; // of rank 2: the same for every batch element
} Sizes;

static Sizes sizes_of(const Node *n) {
    Sizes s = {.batch = 1, .width = tensor_width(n->in[FIRST])};
    for (int side = 0; side < 2; side++) {
        const Tensor *x = n->in[side];
        s.repeats[side] = x->rank == 2;
        s.rows[side] = x->shape[x->rank == 3 ? 1 : 0];
        if (x->rank == 3) s.batch = x->shape[0];
    }
    return s;
}

static const char *concat_rows_infer(Node *n) {
    Tensor *a = n->in[FIRST], *c = n->in[SECOND];
    if (a->rank < 2 || a->rank > 3 || c->rank < 2 || c->rank > 3)
        return "concat_rows: inputs must be (B, T, C), or (T, C) to repeat";
    if (a->dtype != c->dtype || (a->dtype != F32 && a->dtype != BF16))
        return "concat_rows: inputs must both be F32 or both be BF16";
    if (tensor_width(a) != tensor_width(c)) return "concat_rows: inputs must share C";
    if (a->rank == 3 && c->rank == 3 && a->shape[0] != c->shape[0]) return "concat_rows: inputs must share B";
    Sizes s = sizes_of(n);
    tape_output(n, a->dtype, SHAPE(s.batch, s.rows[0] + s.rows[1], s.width));
    return NULL;
}

static void concat_rows_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Sizes s = sizes_of(n);
    Dtype t = n->out->dtype;
    for (int side = 0; side < 2; side++) {
        int64_t stride = s.repeats[side] ? 0 : s.rows[side];
        b->copy_rows(b, n->out->data, t, s.rows[0] + s.rows[1], side ? s.rows[0] : 0, n->in[side]->data, t, stride, 0,
                     s.batch, s.rows[side], s.width, false);
    }
}

// What repeats sums over the batch: its rows lie B times in a scratch copy, then fold.
static void backward_side(Node *n, int side, const Sizes *s) {
    Backend *b = tape_backend(n->tape);
    Dtype t = n->out->dtype;
    Destination d = grad_of(n, side);
    int64_t all = s->rows[0] + s->rows[1], first = side ? s->rows[0] : 0, count = s->rows[side] * s->width;
    if (!s->repeats[side]) {
        b->copy_rows(b, d.data, d.dtype, s->rows[side], 0, n->out->grad, t, all, first, s->batch, s->rows[side],
                     s->width, d.add);
        return;
    }
    void *rows = tape_scratch(n, (size_t)(s->batch * count) * dtype_size(t));
    b->copy_rows(b, rows, t, s->rows[side], 0, n->out->grad, t, all, first, s->batch, s->rows[side], s->width, false);
    b->fold_add(b, d.data, d.dtype, rows, t, s->batch * count, count, d.add);
}

static void concat_rows_backward(Node *n, unsigned wanted) {
    Sizes s = sizes_of(n);
    if (WANTS(wanted, FIRST)) backward_side(n, FIRST, &s);
    if (WANTS(wanted, SECOND)) backward_side(n, SECOND, &s);
}

static Cost concat_rows_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out);
    return (Cost){.bytes = 2 * bytes, .backward_bytes = 2 * bytes};
}

static void concat_rows_example(Example *e) {
    e->variants = 3; // two batches; a class token, a parameter, in front; a token that repeats behind
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 32) : example_pick(e, 1, 4), width = large ? 768 : example_pick(e, 1, 90);
    int64_t first = large ? 1 : example_pick(e, 1, 9), second = large ? 196 : example_pick(e, 1, 30);
    Tensor *a = e->variant == 1 ? example_tensor(e, FIRST, true, 1, SHAPE(first, width))
                                : example_tensor(e, FIRST, false, 1, SHAPE(batch, first, width));
    Tensor *c = e->variant == 2 ? example_tensor(e, SECOND, false, 1, SHAPE(second, width))
                                : example_tensor(e, SECOND, false, 1, SHAPE(batch, second, width));
    e->out = concat_rows(e->tape, a, c);
}

const Operator op_concat_rows = {
    .name = "concat_rows",
    .formula = "y[b] = [a[b]; c[b]]",
    .infer = concat_rows_infer,
    .forward = concat_rows_forward,
    .backward = concat_rows_backward,
    .cost = concat_rows_cost,
    .reads = reads_nothing,
    .example = concat_rows_example,
};

Tensor *concat_rows(Tape *tape, Tensor *a, Tensor *c) {
    return tape_apply(tape, &op_concat_rows, NULL, 2, (Tensor *[]){a, c});
}
