/* Rows by number. R rows, M picked, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, ROWS }; // inputs

static const char *gather_rows_infer(Node *n) {
    Tensor *x = n->in[X], *rows = n->in[ROWS];
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "gather_rows: x must be F32 or BF16, (.., C)";
    if (rows->dtype != I32) return "gather_rows: rows must be I32";
    tape_output(n, x->dtype, SHAPE(tensor_count(rows), tensor_width(x)));
    return NULL;
}

static void gather_rows_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    b->gather_rows(b, n->out->data, n->in[X]->data, n->in[ROWS]->data, tensor_count(n->in[ROWS]), tensor_width(n->out),
                   tensor_rows(n->in[X]), n->out->dtype, false);
}

static void gather_rows_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, X)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    Destination d = grad_of(n, X);
    if (!d.add) b->zero(b, d.data, (size_t)tensor_count(x) * dtype_size(d.dtype));
    b->scatter_add_rows(b, d.data, d.dtype, n->out->grad, n->out->dtype, n->in[ROWS]->data, tensor_count(n->in[ROWS]),
                        tensor_width(x), tensor_rows(x));
}

static unsigned gather_rows_reads(const Node *n) {
    (void)n;
    return 1u << ROWS;
}

static Cost gather_rows_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){.bytes = 2 * bytes, .backward_flop = count, .backward_bytes = 3 * bytes};
}

static void gather_rows_example(Example *e) {
    e->variants = 2; // rows that repeat; some negative
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 8192) : example_pick(e, 1, 40), width = large ? 768 : example_pick(e, 1, 150);
    int64_t picked = large ? example_many(e, 2048) : example_pick(e, 1, 60);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows, width));
    e->out = gather_rows(e->tape, x, example_indices(e, ROWS, e->variant && !large ? -3 : 0, rows, SHAPE(picked)));
}

const Operator op_gather_rows = {
    .name = "gather_rows",
    .formula = "y[m] = x[rows[m]]",
    .infer = gather_rows_infer,
    .forward = gather_rows_forward,
    .backward = gather_rows_backward,
    .cost = gather_rows_cost,
    .reads = gather_rows_reads,
    .example = gather_rows_example,
};

Tensor *gather_rows(Tape *tape, Tensor *x, Tensor *rows) {
    return tape_apply(tape, &op_gather_rows, NULL, 2, (Tensor *[]){x, rows});
}
