/* The gated unit of LLaMA's MLP (Shazeer 2020). F width out. */
#include "kernels/example.h"
#include "kernels/ops.h"

static const char *swiglu_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "swiglu: x must be F32 or BF16";
    if (x->rank < 1 || tensor_width(x) % 2) return "swiglu: x must be (.., 2 F)";
    int64_t shape[MAX_RANK];
    for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
    shape[x->rank - 1] /= 2;
    tape_output(n, x->dtype, x->rank, shape);
    return NULL;
}

static void swiglu_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    b->swiglu_forward(b, n->out->data, n->in[0]->data, tensor_rows(n->out), tensor_width(n->out), n->out->dtype);
}

static void swiglu_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Destination d = grad_of(n, 0);
    b->swiglu_backward(b, d.data, n->out->grad, n->in[0]->data, tensor_rows(n->out), tensor_width(n->out),
                       n->out->dtype, d.add);
}

static Cost swiglu_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){21 * count, 3 * bytes, 28 * count, 5 * bytes};
}

static void swiglu_example(Example *e) {
    e->variants = 1;
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 1024) : example_pick(e, 1, 60), width = large ? 2048 : example_pick(e, 1, 150);
    e->out = swiglu(e->tape, example_tensor(e, 0, false, 2, SHAPE(rows, 2 * width)));
}

const Operator op_swiglu = {
    .name = "swiglu",
    .formula = "y = silu(gate) * up, x = [gate | up]",
    .infer = swiglu_infer,
    .forward = swiglu_forward,
    .backward = swiglu_backward,
    .cost = swiglu_cost,
    .reads = reads_inputs,
    .example = swiglu_example,
};

Tensor *swiglu(Tape *tape, Tensor *x) { return tape_apply(tape, &op_swiglu, NULL, 1, (Tensor *[]){x}); }
