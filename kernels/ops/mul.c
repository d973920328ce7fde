/* Products of elements. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { LEFT, RIGHT }; // inputs a and b

static const char *mul_infer(Node *n) {
    Tensor *a = n->in[LEFT], *b = n->in[RIGHT];
    if ((a->dtype != F32 && a->dtype != BF16) || b->dtype != a->dtype)
        return "mul: a and b must both be F32 or both be BF16";
    if (tensor_count(a) != tensor_count(b)) return "mul: a and b must have the same shape";
    tape_output(n, a->dtype, a->rank, a->shape);
    return NULL;
}

static void mul_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    b->mul(b, n->out->data, n->in[LEFT]->data, n->in[RIGHT]->data, tensor_count(n->out), n->out->dtype, false);
}

static void backward_side(Node *n, int side) {
    Backend *b = tape_backend(n->tape);
    Destination d = grad_of(n, side);
    int64_t count = tensor_count(n->out);
    const void *other = n->in[side == LEFT ? RIGHT : LEFT]->data;
    if (d.dtype == n->out->dtype) {
        b->mul(b, d.data, n->out->grad, other, count, d.dtype, d.add);
        return;
    }
    void *product = tape_scratch(n, tensor_bytes(n->out)); // a bf16 parameter has an f32 gradient
    b->mul(b, product, n->out->grad, other, count, n->out->dtype, false);
    if (d.add)
        b->add_in_place(b, d.data, product, count, d.dtype, n->out->dtype);
    else
        b->convert(b, d.data, d.dtype, product, n->out->dtype, count);
}

static void mul_backward(Node *n, unsigned wanted) {
    if (WANTS(wanted, LEFT)) backward_side(n, LEFT);
    if (WANTS(wanted, RIGHT)) backward_side(n, RIGHT);
}

static unsigned mul_reads(const Node *n) {
    return (WANTS(n->pending, RIGHT) ? 1u << LEFT : 0) | (WANTS(n->pending, LEFT) ? 1u << RIGHT : 0);
}

static Cost mul_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){count, 3 * bytes, 2 * count, 6 * bytes};
}

static void mul_example(Example *e) {
    e->variants = 2; // two activations; the second a parameter
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 4096) : example_pick(e, 1, 60), width = large ? 768 : example_pick(e, 1, 90);
    Tensor *a = example_tensor(e, LEFT, false, 1, SHAPE(rows, width));
    Tensor *b = example_tensor(e, RIGHT, e->variant == 1, 1, SHAPE(rows, width));
    e->out = mul(e->tape, a, b);
}

const Operator op_mul = {
    .name = "mul",
    .formula = "y = a * b",
    .infer = mul_infer,
    .forward = mul_forward,
    .backward = mul_backward,
    .cost = mul_cost,
    .reads = mul_reads,
    .example = mul_example,
};

Tensor *mul(Tape *tape, Tensor *a, Tensor *b) { return tape_apply(tape, &op_mul, NULL, 2, (Tensor *[]){a, b}); }
