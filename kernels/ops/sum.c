/* The sum of all elements, times a number: f64 blocks of fixed order. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A_FACTOR }; // attribute f

static const char *sum_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "sum: x must be F32 or BF16";
    tape_output(n, F32, SHAPE(1));
    return NULL;
}

static void sum_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    b->sum_into(b, n->out->data, x->data, tensor_count(x), n->attributes.f[A_FACTOR], x->dtype);
}

static void sum_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Destination d = grad_of(n, 0);
    b->fill(b, d.data, n->out->grad, n->attributes.f[A_FACTOR], tensor_count(n->in[0]), d.dtype, d.add);
}

static Cost sum_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->in[0]), count = (double)tensor_count(n->in[0]);
    return (Cost){count, bytes, count, bytes};
}

static void sum_example(Example *e) {
    e->variants = 1;
    int64_t count = e->size != EXAMPLE_SMALL ? example_many(e, 4096 * 768) : example_pick(e, 1, 40000);
    e->out = sum(e->tape, example_tensor(e, 0, false, 1, SHAPE(count)), 0.01);
}

const Operator op_sum = {
    .name = "sum",
    .formula = "y = factor * sum of x",
    .infer = sum_infer,
    .forward = sum_forward,
    .backward = sum_backward,
    .cost = sum_cost,
    .reads = reads_nothing,
    .example = sum_example,
};

Tensor *sum(Tape *tape, Tensor *x, double factor) {
    Attributes a = {.f = {[A_FACTOR] = factor}};
    return tape_apply(tape, &op_sum, &a, 1, (Tensor *[]){x});
}
