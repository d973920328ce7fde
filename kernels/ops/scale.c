/* A tensor times a number. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A_FACTOR }; // attribute f

static const char *scale_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "scale: x must be F32 or BF16";
    tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void scale_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    b->scale(b, n->out->data, n->in[0]->data, n->attributes.f[A_FACTOR], tensor_count(n->out), n->out->dtype, false);
}

static void scale_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Destination d = grad_of(n, 0);
    b->scale(b, d.data, n->out->grad, n->attributes.f[A_FACTOR], tensor_count(n->out), d.dtype, d.add);
}

static Cost scale_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){count, 2 * bytes, count, 2 * bytes};
}

static void scale_example(Example *e) {
    e->variants = 1;
    int64_t count = e->size != EXAMPLE_SMALL ? example_many(e, 4096 * 768) : example_pick(e, 1, 9000);
    e->out = scale(e->tape, example_tensor(e, 0, false, 1, SHAPE(count)), -0.37);
}

const Operator op_scale = {
    .name = "scale",
    .formula = "y = factor x",
    .infer = scale_infer,
    .forward = scale_forward,
    .backward = scale_backward,
    .cost = scale_cost,
    .reads = reads_nothing,
    .example = scale_example,
};

Tensor *scale(Tape *tape, Tensor *x, double factor) {
    Attributes a = {.f = {[A_FACTOR] = factor}};
    return tape_apply(tape, &op_scale, &a, 1, (Tensor *[]){x});
}
