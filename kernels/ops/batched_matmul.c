/* Products of two batches of matrices. B batch, M rows, K inner, N columns. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { LEFT, RIGHT }; // inputs a and b
enum { A_TRANSPOSE }; // attribute: b is (B, N, K)

static const char *batched_matmul_infer(Node *n) {
    Tensor *a = n->in[LEFT], *b = n->in[RIGHT];
    bool transposed = n->attributes.i[A_TRANSPOSE];
    if ((a->dtype != F32 && a->dtype != BF16) || b->dtype != a->dtype)
        return "batched_matmul: a and b must both be F32 or both be BF16";
    if (a->rank != 3 || b->rank != 3 || a->shape[0] != b->shape[0])
        return "batched_matmul: a and b must have three dimensions and the same batch";
    if (a->shape[2] != b->shape[transposed ? 2 : 1])
        return "batched_matmul: a (B, M, K) and b (B, K, N), or (B, N, K) where transposed, must share K";
    tape_output(n, a->dtype, SHAPE(a->shape[0], a->shape[1], b->shape[transposed ? 1 : 2]));
    return NULL;
}

typedef struct Factor { // a matrix of each batch element, as it enters a product
    const void *data;
    int64_t row, column, batch; // strides
} Factor;

// Row-major with `width` columns and `rows` rows.
static Factor factor(const void *data, int64_t rows, int64_t width) { return (Factor){data, width, 1, rows * width}; }
static Factor transposed(Factor f) { return (Factor){f.data, f.column, f.row, f.batch}; }

// C (+)= A B, C row-major (batch, m, n)
static void product(Node *n, Destination c, int64_t rows, int64_t columns, int64_t inner, Factor a, Factor b) {
    Backend *backend = tape_backend(n->tape);
    Matmul m = {.m = rows,
                .n = columns,
                .k = inner,
                .batch = n->out->shape[0],
                .a = a.data,
                .a_row = a.row,
                .a_column = a.column,
                .a_batch = a.batch,
                .b = b.data,
                .b_row = b.row,
                .b_column = b.column,
                .b_batch = b.batch,
                .c = c.data,
                .c_row = columns,
                .c_batch = rows * columns,
                .in = n->out->dtype,
                .out = c.dtype,
                .add = c.add};
    backend->matmul(backend, &m);
}

static Factor right_factor(const Node *n) { // b as (K, N)
    Tensor *b = n->in[RIGHT];
    Factor f = factor(b->data, b->shape[1], b->shape[2]);
    return n->attributes.i[A_TRANSPOSE] ? transposed(f) : f;
}

static void batched_matmul_forward(Node *n) {
    Tensor *a = n->in[LEFT];
    product(n, (Destination){n->out->data, n->out->dtype, false}, a->shape[1], n->out->shape[2], a->shape[2],
            factor(a->data, a->shape[1], a->shape[2]), right_factor(n));
}

static void batched_matmul_backward(Node *n, unsigned wanted) {
    int64_t rows = n->in[LEFT]->shape[1], inner = n->in[LEFT]->shape[2], columns = n->out->shape[2];
    Factor a = factor(n->in[LEFT]->data, rows, inner), dy = factor(n->out->grad, rows, columns);
    if (WANTS(wanted, LEFT)) // dy b^T
        product(n, grad_of(n, LEFT), rows, inner, columns, dy, transposed(right_factor(n)));
    if (!WANTS(wanted, RIGHT)) return;
    if (n->attributes.i[A_TRANSPOSE]) // dy^T a
        product(n, grad_of(n, RIGHT), columns, inner, rows, transposed(dy), a);
    else // a^T dy
        product(n, grad_of(n, RIGHT), inner, columns, rows, transposed(a), dy);
}

static unsigned batched_matmul_reads(const Node *n) {
    return (WANTS(n->pending, RIGHT) ? 1u << LEFT : 0) | (WANTS(n->pending, LEFT) ? 1u << RIGHT : 0);
}

static Cost batched_matmul_cost(const Node *n) {
    double size = (double)dtype_size(n->out->dtype), inner = (double)n->in[LEFT]->shape[2];
    double product_flop = 2 * (double)tensor_count(n->out) * inner;
    double bytes = size * (double)(tensor_count(n->in[LEFT]) + tensor_count(n->in[RIGHT]) + tensor_count(n->out));
    return (Cost){product_flop, bytes, 2 * product_flop, 2 * bytes};
}

static void batched_matmul_example(Example *e) {
    e->variants = 2; // plain, transposed
    bool large = e->size != EXAMPLE_SMALL, transpose = e->variant == 1;
    int64_t batch = large ? example_many(e, 12) : example_pick(e, 1, 4), rows = large ? example_many(e, 256) : example_pick(e, 1, 40);
    int64_t inner = large ? 256 : example_pick(e, 1, 40), columns = large ? 256 : example_pick(e, 1, 40);
    Tensor *a = example_tensor(e, LEFT, false, 1, SHAPE(batch, rows, inner));
    Tensor *b = transpose ? example_tensor(e, RIGHT, false, 1, SHAPE(batch, columns, inner))
                          : example_tensor(e, RIGHT, false, 1, SHAPE(batch, inner, columns));
    e->out = batched_matmul(e->tape, a, b, transpose);
}

const Operator op_batched_matmul = {
    .name = "batched_matmul",
    .formula = "y = a b (or a b^T)",
    .infer = batched_matmul_infer,
    .forward = batched_matmul_forward,
    .backward = batched_matmul_backward,
    .cost = batched_matmul_cost,
    .reads = batched_matmul_reads,
    .example = batched_matmul_example,
};

Tensor *batched_matmul(Tape *tape, Tensor *a, Tensor *b, bool transpose_b) {
    Attributes attributes = {.i = {[A_TRANSPOSE] = transpose_b}};
    return tape_apply(tape, &op_batched_matmul, &attributes, 2, (Tensor *[]){a, b});
}
