/* Two linear maps around a GELU as one operator, for backends that form the activation and its slope as part of the
 * products (Backend.matmul_wins), or the slope and its sums in one pass (gelu_backward_sums). It holds what the three
 * operators would hold and calls what they would call where the backend refuses, so its results are theirs. N rows, C
 * width, F hidden, O out. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, UP, UP_BIAS, DOWN, DOWN_BIAS }; // inputs
enum { Z, ACTIVE };                       // saved: (N, F) up's result, later its gradient; its activation
enum { A_KIND, A_DIFFERENTIATED };        // attributes: GeluKind; whether Z holds its gradient by now

static const char *mlp_infer(Node *n) {
    Tensor *x = n->in[X], *up = n->in[UP], *down = n->in[DOWN], *b1 = n->in[UP_BIAS], *b2 = n->in[DOWN_BIAS];
    if ((x->dtype != F32 && x->dtype != BF16) || up->dtype != x->dtype || down->dtype != x->dtype)
        return "mlp: x and weights must all be F32 or all be BF16";
    if (x->rank < 1 || up->rank != 2 || down->rank != 2 || tensor_width(x) != up->shape[1] ||
        up->shape[0] != down->shape[1])
        return "mlp: x (.., C), up (F, C) and down (O, F) must go together";
    if ((b1 && (b1->dtype != F32 || tensor_count(b1) != up->shape[0])) ||
        (b2 && (b2->dtype != F32 || tensor_count(b2) != down->shape[0])))
        return "mlp: biases must be F32, (F) and (O)";
    int64_t shape[MAX_RANK], rows = tensor_rows(x);
    for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
    shape[x->rank - 1] = down->shape[0];
    tape_output(n, x->dtype, x->rank, shape);
    tape_keep(n, Z, x->dtype, SHAPE(rows, up->shape[0]));
    tape_keep(n, ACTIVE, x->dtype, SHAPE(rows, up->shape[0]));
    if (WANTS(n->pending, DOWN_BIAS)) grad_sums_wanted(n);
    return NULL;
}

// y = x W^T + b of N rows
static Matmul forward_product(const Tensor *w, const Tensor *bias, void *y, const void *x, int64_t rows) {
    return (Matmul){.m = rows,
                    .n = w->shape[0],
                    .k = w->shape[1],
                    .batch = 1,
                    .a = x,
                    .a_row = w->shape[1],
                    .a_column = 1,
                    .b = w->data,
                    .b_row = 1,
                    .b_column = w->shape[1],
                    .c = y,
                    .c_row = w->shape[0],
                    .bias = bias ? bias->data : NULL,
                    .in = w->dtype,
                    .out = w->dtype};
}

static bool wins(Backend *b, const Matmul *m, const Node *n) {
    return n->attributes.i[A_KIND] == GELU_TANH && b->matmul_wins && b->matmul_wins(b, m);
}

static void mlp_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X], *z = n->saved[Z], *active = n->saved[ACTIVE];
    int64_t rows = tensor_rows(x);
    Matmul up = forward_product(n->in[UP], n->in[UP_BIAS], active->data, x->data, rows);
    up.epilogue = EPILOGUE_GELU, up.aux = z->data;
    if (!wins(b, &up, n)) {
        up.epilogue = EPILOGUE_NONE, up.aux = NULL, up.c = z->data;
        b->matmul(b, &up);
        b->gelu_forward(b, active->data, z->data, tensor_count(z), (int)n->attributes.i[A_KIND], x->dtype);
    } else {
        b->matmul(b, &up);
    }
    Matmul down = forward_product(n->in[DOWN], n->in[DOWN_BIAS], n->out->data, active->data, rows);
    b->matmul(b, &down);
}

// dx (+)= dy W
static Matmul input_product(const Tensor *w, void *dx, const void *dy, int64_t rows) {
    return (Matmul){.m = rows,
                    .n = w->shape[1],
                    .k = w->shape[0],
                    .batch = 1,
                    .a = dy,
                    .a_row = w->shape[0],
                    .a_column = 1,
                    .b = w->data,
                    .b_row = w->shape[1],
                    .b_column = 1,
                    .c = dx,
                    .c_row = w->shape[1],
                    .in = w->dtype,
                    .out = w->dtype};
}

// dz = (dy W2) gelu'(z), (N, F); returns whether its sums, the gradient of up's bias, were formed beside where that is
// wanted.
static bool form_slope(Node *n, Backend *b, void *dz, unsigned wanted) {
    Tensor *z = n->saved[Z];
    Matmul m = input_product(n->in[DOWN], dz, n->out->grad, tensor_rows(z));
    m.epilogue = EPILOGUE_GELU_BACKWARD, m.aux = z->data;
    if (wins(b, &m, n)) {
        b->matmul(b, &m);
        return false;
    }
    m.epilogue = EPILOGUE_NONE, m.aux = NULL, m.c = tape_scratch(n, tensor_bytes(z));
    b->matmul(b, &m);
    int kind = (int)n->attributes.i[A_KIND];
    if (!WANTS(wanted, UP_BIAS) || !b->gelu_backward_sums || !tape_forms_sums(n->tape)) {
        b->gelu_backward(b, dz, m.c, z->data, tensor_count(z), kind, z->dtype, false);
        return false;
    }
    Destination d = grad_of(n, UP_BIAS);
    b->gelu_backward_sums(b, dz, d.data, m.c, z->data, tensor_rows(z), tensor_width(z), kind, z->dtype, d.add);
    return true;
}

// dW (+)= dy^T x, db (+)= the sums over dy's rows; those that are wanted
static void weight_gradients(Node *n, Backend *b, unsigned wanted, int weight, int bias, const void *dy,
                             const void *x) {
    Tensor *w = n->in[weight];
    int64_t rows = tensor_rows(n->in[X]), out = w->shape[0], in = w->shape[1];
    Destination db = WANTS(wanted, bias) ? grad_of(n, bias) : (Destination){0};
    bool together = false;
    if (WANTS(wanted, weight)) {
        Destination dw = grad_of(n, weight);
        Matmul m = {.m = out,
                    .n = in,
                    .k = rows,
                    .batch = 1,
                    .a = dy,
                    .a_row = 1,
                    .a_column = out,
                    .b = x,
                    .b_row = in,
                    .b_column = 1,
                    .c = dw.data,
                    .c_row = in,
                    .in = w->dtype,
                    .out = dw.dtype,
                    .add = dw.add,
                    .sums = db.data,
                    .add_sums = db.add};
        together = db.data && b->matmul_wins && b->matmul_wins(b, &m);
        if (!together) m.sums = NULL;
        b->matmul(b, &m);
    }
    if (db.data && !together) b->sum_columns(b, db.data, dy, rows, out, w->dtype, db.add);
}

enum { HIDDEN = 1 << X | 1 << UP | 1 << UP_BIAS }; // whose gradients are formed from dz

// dz, in memory that lasts as long as this call, or, where the weight half comes later, in Z's place. What of `wanted`
// is then done is taken away.
static const void *slope_of(Node *n, Backend *b, unsigned *wanted) {
    Tensor *z = n->saved[Z];
    unsigned asked = *wanted;
    if (n->attributes.i[A_DIFFERENTIATED]) return z->data;
    void *dz = tape_scratch(n, tensor_bytes(z));
    if (form_slope(n, b, dz, asked)) *wanted &= ~(1u << UP_BIAS);
    if (n->pending & ~asked & HIDDEN) {
        b->copy(b, z->data, dz, tensor_bytes(z));
        n->attributes.i[A_DIFFERENTIATED] = 1;
    }
    return dz;
}

static void mlp_backward(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    if (WANTS(wanted, DOWN_BIAS) && grad_sums_pass(n, DOWN_BIAS)) wanted &= ~(1u << DOWN_BIAS);
    weight_gradients(n, b, wanted, DOWN, DOWN_BIAS, n->out->grad, n->saved[ACTIVE]->data);
    if (!(wanted & HIDDEN)) return;
    const void *dz = slope_of(n, b, &wanted);
    weight_gradients(n, b, wanted, UP, UP_BIAS, dz, n->in[X]->data);
    if (!WANTS(wanted, X)) return;
    Destination dx = grad_of(n, X);
    Matmul m = input_product(n->in[UP], dx.data, dz, tensor_rows(n->in[X]));
    m.out = dx.dtype, m.add = dx.add;
    b->matmul(b, &m);
}

static unsigned mlp_reads(const Node *n) {
    unsigned down = n->pending & HIDDEN && !n->attributes.i[A_DIFFERENTIATED] ? 1u << DOWN : 0;
    return (WANTS(n->pending, UP) ? 1u << X : 0) | (WANTS(n->pending, X) ? 1u << UP : 0) | down;
}

static Cost mlp_cost(const Node *n) {
    double rows = (double)tensor_rows(n->in[X]), size = (double)dtype_size(n->in[X]->dtype);
    double in = (double)n->in[UP]->shape[1], hidden = (double)n->in[UP]->shape[0], out = (double)n->in[DOWN]->shape[0];
    double product = 2 * rows * hidden * (in + out), weights = hidden * (in + out);
    double bytes = size * (rows * (in + out + 4 * hidden) + weights);
    return (Cost){product + 30 * rows * hidden, bytes, 2 * product + 36 * rows * hidden, 2 * bytes};
}

static void mlp_example(Example *e) {
    e->variants = 4; // the kinds; with tanh and no biases
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 1024) : example_pick(e, 1, 40), in = large ? 768 : example_pick(e, 1, 40);
    int64_t hidden = large ? 3072 : example_pick(e, 1, 70), out = large ? 768 : example_pick(e, 1, 40);
    bool bias = e->variant != 3;
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows, in));
    Tensor *up = example_tensor(e, UP, true, 0.3, SHAPE(hidden, in));
    Tensor *b1 = bias ? example_f32(e, UP_BIAS, true, 0, 1, SHAPE(hidden)) : NULL;
    Tensor *down = example_tensor(e, DOWN, true, 0.3, SHAPE(out, hidden));
    Tensor *b2 = bias ? example_f32(e, DOWN_BIAS, true, 0, 1, SHAPE(out)) : NULL;
    Attributes a = {.i = {[A_KIND] = bias ? e->variant : GELU_TANH}};
    e->out = tape_apply(e->tape, &op_mlp, &a, 5, (Tensor *[]){x, up, b1, down, b2});
}

const Operator op_mlp = {
    .name = "mlp",
    .formula = "y = gelu(x W1^T + b1) W2^T + b2",
    .infer = mlp_infer,
    .forward = mlp_forward,
    .backward = mlp_backward,
    .cost = mlp_cost,
    .reads = mlp_reads,
    .example = mlp_example,
};

Tensor *mlp(Tape *tape, Tensor *x, Tensor *up, Tensor *up_bias, Tensor *down, Tensor *down_bias, GeluKind kind) {
    const Backend *b = tape_backend(tape);
    bool helps = b->gelu_backward_sums || (b->matmul_wins && x && x->dtype == BF16 && kind == GELU_TANH);
    if (!x || up->scaling || down->scaling || !tape_recording(tape) || !helps)
        return linear(tape, gelu(tape, linear(tape, x, up, up_bias), kind), down, down_bias);
    Attributes a = {.i = {[A_KIND] = kind}};
    return tape_apply(tape, &op_mlp, &a, 5, (Tensor *[]){x, up, up_bias, down, down_bias});
}
