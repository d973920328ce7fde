/* The sigmoid linear unit. */
#include "kernels/example.h"
#include "kernels/ops.h"

static const char *silu_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "silu: x must be F32 or BF16";
    tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void silu_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    b->silu_forward(b, n->out->data, n->in[0]->data, tensor_count(n->out), n->out->dtype);
}

static void silu_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Destination d = grad_of(n, 0);
    b->silu_backward(b, d.data, n->out->grad, n->in[0]->data, tensor_count(n->out), n->out->dtype, d.add);
}

static Cost silu_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){20 * count, 2 * bytes, 25 * count, 3 * bytes};
}

static void silu_example(Example *e) {
    e->variants = 1;
    int64_t count = e->size != EXAMPLE_SMALL ? example_many(e, 1024 * 3072) : example_pick(e, 1, 9000);
    e->out = silu(e->tape, example_tensor(e, 0, false, 2, SHAPE(count)));
}

const Operator op_silu = {
    .name = "silu",
    .formula = "y = x sigmoid(x)",
    .infer = silu_infer,
    .forward = silu_forward,
    .backward = silu_backward,
    .cost = silu_cost,
    .reads = reads_inputs,
    .example = silu_example,
};

Tensor *silu(Tape *tape, Tensor *x) { return tape_apply(tape, &op_silu, NULL, 1, (Tensor *[]){x}); }
