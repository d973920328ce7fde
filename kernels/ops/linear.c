/* The linear map. N rows, C width in, F width out. Where the weight has a scaling its products are in fp8: e4m3 of x
 * and W, e5m2 of y's gradient; those whose sizes are no multiples of 16 stay in bf16. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, WEIGHT, BIAS }; // inputs

static const char *linear_infer(Node *n) {
    Tensor *x = n->in[X], *w = n->in[WEIGHT], *bias = n->in[BIAS];
    if ((x->dtype != F32 && x->dtype != BF16) || w->dtype != x->dtype)
        return "linear: x and weight must both be F32 or both be BF16";
    if (x->rank < 1 || w->rank != 2 || tensor_width(x) != w->shape[1])
        return "linear: x (.., C) and weight (F, C) must share C";
    if (bias && (bias->dtype != F32 || tensor_count(bias) != w->shape[0])) return "linear: bias must be F32, (F)";
    int64_t shape[MAX_RANK];
    for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
    shape[x->rank - 1] = w->shape[0];
    tape_output(n, x->dtype, x->rank, shape);
    if (WANTS(n->pending, BIAS)) grad_sums_wanted(n);
    return NULL;
}

enum { FP8_UNIT = 16 }; // what sizes are multiples of

static bool in_fp8(const Node *n) {
    const Tensor *x = n->in[X], *w = n->in[WEIGHT];
    return w->scaling && x->dtype == BF16 && tensor_rows(x) % FP8_UNIT == 0 && w->shape[0] % FP8_UNIT == 0 &&
           w->shape[1] % FP8_UNIT == 0;
}

enum { SIDE_X, SIDE_WEIGHT, SIDE_GRADIENT }; // of FP8_SIDES

// Numbers count where the step will end in an update.
static Fp8Side side_of(const Node *n, int side) {
    const Tensor *w = n->in[WEIGHT];
    return (Fp8Side){.scaling = &w->scaling[side],
                     .most = tape_recording(n->tape) ? &w->most[side] : NULL,
                     .kind = side == SIDE_GRADIENT ? FP8_E5M2 : FP8_E4M3};
}

// a, b: the sides that A and B are
static void multiply(const Node *n, Backend *be, const Matmul *m, int a, int b) {
    if (in_fp8(n))
        be->matmul_fp8(be, m, side_of(n, a), side_of(n, b));
    else
        be->matmul(be, m);
}

static void linear_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X], *w = n->in[WEIGHT];
    int64_t in = w->shape[1], out = w->shape[0];
    Matmul m = {.m = tensor_rows(x),
                .n = out,
                .k = in,
                .batch = 1,
                .a = x->data,
                .a_row = in,
                .a_column = 1,
                .b = w->data,
                .b_row = 1,
                .b_column = in,
                .c = n->out->data,
                .c_row = out,
                .bias = n->in[BIAS] ? n->in[BIAS]->data : NULL,
                .in = x->dtype,
                .out = x->dtype};
    multiply(n, b, &m, SIDE_X, SIDE_WEIGHT);
}

// dx = dy W
static void backward_input(Node *n, Backend *b) {
    Tensor *x = n->in[X], *w = n->in[WEIGHT];
    int64_t in = w->shape[1], out = w->shape[0];
    Destination dx = grad_of(n, X);
    Matmul m = {.m = tensor_rows(x),
                .n = in,
                .k = out,
                .batch = 1,
                .a = n->out->grad,
                .a_row = out,
                .a_column = 1,
                .b = w->data,
                .b_row = in,
                .b_column = 1,
                .c = dx.data,
                .c_row = in,
                .in = x->dtype,
                .out = dx.dtype,
                .add = dx.add};
    multiply(n, b, &m, SIDE_GRADIENT, SIDE_WEIGHT);
}

// dW = dy^T x, and where both are wanted the bias's gradient, the sums over dy's rows, in the same product where the
// backend is faster at that.
static void backward_weight(Node *n, Backend *b, bool with_bias) {
    Tensor *x = n->in[X], *w = n->in[WEIGHT];
    int64_t in = w->shape[1], out = w->shape[0];
    Destination dw = grad_of(n, WEIGHT), db = with_bias ? grad_of(n, BIAS) : (Destination){0};
    Matmul m = {.m = out,
                .n = in,
                .k = tensor_rows(x),
                .batch = 1,
                .a = n->out->grad,
                .a_row = 1,
                .a_column = out,
                .b = x->data,
                .b_row = in,
                .b_column = 1,
                .c = dw.data,
                .c_row = in,
                .in = x->dtype,
                .out = dw.dtype,
                .add = dw.add,
                .sums = db.data,
                .add_sums = db.add};
    bool together = with_bias && !in_fp8(n) && b->matmul_wins && b->matmul_wins(b, &m);
    if (!together) m.sums = NULL;
    multiply(n, b, &m, SIDE_GRADIENT, SIDE_X);
    if (with_bias && !together)
        b->sum_columns(b, db.data, n->out->grad, tensor_rows(n->out), out, n->out->dtype, db.add);
}

static void linear_backward(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    bool bias = WANTS(wanted, BIAS) && !grad_sums_pass(n, BIAS);
    if (WANTS(wanted, X)) backward_input(n, b);
    if (WANTS(wanted, WEIGHT)) {
        backward_weight(n, b, bias);
    } else if (bias) {
        Destination d = grad_of(n, BIAS);
        b->sum_columns(b, d.data, n->out->grad, tensor_rows(n->out), tensor_width(n->out), n->out->dtype, d.add);
    }
}

static unsigned linear_reads(const Node *n) {
    return (WANTS(n->pending, WEIGHT) ? 1u << X : 0) | (WANTS(n->pending, X) ? 1u << WEIGHT : 0);
}

static Cost linear_cost(const Node *n) {
    double rows = (double)tensor_rows(n->in[X]), in = (double)n->in[WEIGHT]->shape[1],
           out = (double)n->in[WEIGHT]->shape[0], size = (double)dtype_size(n->in[X]->dtype);
    double product = 2 * rows * in * out, bytes = size * (rows * in + in * out + rows * out);
    return (Cost){product, bytes, 2 * product, 2 * bytes};
}

static void linear_example(Example *e) {
    e->variants = 3; // with bias, without, three dimensions
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 1024) : example_pick(e, 1, 40), in = large ? 768 : example_pick(e, 1, 70);
    int64_t out = large ? 3072 : example_pick(e, 1, 70), batch = e->variant == 2 ? 2 : 1;
    Tensor *x = e->variant == 2 ? example_tensor(e, X, false, 1, SHAPE(batch, rows, in))
                                : example_tensor(e, X, false, 1, SHAPE(rows, in));
    Tensor *w = example_tensor(e, WEIGHT, true, 0.3, SHAPE(out, in));
    Tensor *bias = e->variant == 1 ? NULL : example_f32(e, BIAS, true, 0, 1, SHAPE(out));
    e->out = linear(e->tape, x, w, bias);
}

const Operator op_linear = {
    .name = "linear",
    .formula = "y = x W^T + b",
    .infer = linear_infer,
    .forward = linear_forward,
    .backward = linear_backward,
    .cost = linear_cost,
    .reads = linear_reads,
    .example = linear_example,
};

Tensor *linear(Tape *tape, Tensor *x, Tensor *weight, Tensor *bias) {
    return tape_apply(tape, &op_linear, NULL, 3, (Tensor *[]){x, weight, bias});
}
