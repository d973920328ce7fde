/* Rows put in their places, over a base. R rows out, M rows put, C width. */
#include "base/error.h"
#include "kernels/example.h"
#include "kernels/ops.h"
#include <stdlib.h>

enum { BASE, X, ROWS }; // inputs
enum { A_COUNT };       // attribute: R

static const char *scatter_rows_infer(Node *n) {
    Tensor *base = n->in[BASE], *x = n->in[X], *rows = n->in[ROWS];
    int64_t count = n->attributes.i[A_COUNT], width = tensor_width(x);
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "scatter_rows: x must be F32 or BF16, (.., C)";
    if (rows->dtype != I32 || tensor_count(rows) != tensor_rows(x))
        return "scatter_rows: one I32 row number for each row of x";
    if (base && tensor_width(base) != width) return "scatter_rows: base and x must share C";
    if (base && base->rank > 1 && (tensor_rows(base) != count || base->dtype != x->dtype))
        return "scatter_rows: base must hold `count` rows of x's type, or be a vector";
    if (base && base->rank == 1 && base->dtype != x->dtype && base->dtype != F32)
        return "scatter_rows: a base vector must be of x's type or F32";
    tape_output(n, x->dtype, SHAPE(count, width));
    return NULL;
}

static void scatter_rows_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *base = n->in[BASE], *x = n->in[X];
    const void *from = base ? base->data : NULL;
    if (base && base->dtype != x->dtype) { // a vector parameter beside bf16 activations
        void *converted = tape_scratch(n, (size_t)tensor_count(base) * dtype_size(x->dtype));
        b->convert(b, converted, x->dtype, base->data, base->dtype, tensor_count(base));
        from = converted;
    }
    b->scatter_rows(b, n->out->data, from, base && base->rank == 1 ? 1 : n->attributes.i[A_COUNT], x->data,
                    n->in[ROWS]->data, tensor_rows(x), tensor_width(x), n->attributes.i[A_COUNT], x->dtype);
}

// dy with zeros in the rows that x covers: all of it for a whole base, the sum of its rows for a vector.
static void backward_base(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *base = n->in[BASE], *out = n->out;
    int64_t count = tensor_rows(out), width = tensor_width(out), put = tensor_count(n->in[ROWS]);
    Destination d = grad_of(n, BASE);
    bool direct = base->rank > 1 && !d.add && d.dtype == out->dtype;
    size_t zero_bytes = (size_t)(put * width) * dtype_size(out->dtype);
    void *zeros = tape_scratch(n, zero_bytes), *rest = direct ? d.data : tape_scratch(n, tensor_bytes(out));
    b->zero(b, zeros, zero_bytes);
    b->scatter_rows(b, rest, out->grad, count, zeros, n->in[ROWS]->data, put, width, count, out->dtype);
    if (direct) return;
    if (base->rank == 1 && d.dtype == F32)
        b->sum_columns(b, d.data, rest, count, width, out->dtype, d.add);
    else
        b->fold_add(b, d.data, d.dtype, rest, out->dtype, tensor_count(out), tensor_count(base), d.add);
}

static void scatter_rows_backward(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    if (WANTS(wanted, BASE)) backward_base(n);
    if (WANTS(wanted, X)) {
        Destination d = grad_of(n, X);
        b->gather_rows(b, d.data, n->out->grad, n->in[ROWS]->data, tensor_rows(n->in[X]), tensor_width(n->out),
                       tensor_rows(n->out), d.dtype, d.add);
    }
}

static unsigned scatter_rows_reads(const Node *n) {
    (void)n;
    return 1u << ROWS;
}

static Cost scatter_rows_cost(const Node *n) {
    double put = (double)tensor_bytes(n->in[X]), all = (double)tensor_bytes(n->out);
    return (Cost){.bytes = 2 * all, .backward_bytes = 2 * put + (n->in[BASE] ? 2 * all : 0)};
}

// Some rows in an order of their own; a negative one where `skip`.
static Tensor *distinct_rows(Example *e, int64_t count, int64_t put, bool skip) {
    int32_t *rows = malloc(sizeof(int32_t) * (size_t)count);
    check(rows);
    for (int64_t i = 0; i < count; i++) rows[i] = (int32_t)i;
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t other = (int64_t)rng_below(&e->rng, (uint64_t)(i + 1));
        int32_t kept = rows[i];
        rows[i] = rows[other];
        rows[other] = kept;
    }
    if (skip) rows[0] = -1;
    Tensor *result = example_constant(e, ROWS, I32, SHAPE(put), rows);
    free(rows);
    return result;
}

static void scatter_rows_example(Example *e) {
    e->variants = 4; // over zeros; a mask token, a parameter; a whole base; over zeros with a row left out
    bool large = e->size != EXAMPLE_SMALL;
    int64_t count = large ? example_many(e, 8192) : example_pick(e, 1, 50), width = large ? 512 : example_pick(e, 1, 150);
    int64_t put = large ? example_many(e, 2048) : example_pick(e, 1, count);
    Tensor *base = e->variant == 1   ? example_f32(e, BASE, true, 0, 1, SHAPE(width))
                   : e->variant == 2 ? example_tensor(e, BASE, false, 1, SHAPE(count, width))
                                     : NULL;
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(put, width));
    e->out = scatter_rows(e->tape, base, x, distinct_rows(e, count, put, e->variant == 3), count);
}

const Operator op_scatter_rows = {
    .name = "scatter_rows",
    .formula = "y = base, with y[rows[m]] = x[m]",
    .infer = scatter_rows_infer,
    .forward = scatter_rows_forward,
    .backward = scatter_rows_backward,
    .cost = scatter_rows_cost,
    .reads = scatter_rows_reads,
    .example = scatter_rows_example,
};

Tensor *scatter_rows(Tape *tape, Tensor *base, Tensor *x, Tensor *rows, int64_t count) {
    Attributes a = {.i = {[A_COUNT] = count}};
    return tape_apply(tape, &op_scatter_rows, &a, 3, (Tensor *[]){base, x, rows});
}
