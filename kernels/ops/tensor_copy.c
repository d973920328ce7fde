/* Where what all tensor ranks hold alike goes into what each computes a part of: the gradients add up over them. */
#include "kernels/collective.h"
#include "kernels/example.h"

static const char *tensor_copy_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "tensor_copy: x must be F32 or BF16";
    tape_view(n, x->rank, x->shape);
    return NULL;
}

static void tensor_copy_forward(Node *n) { (void)n; }

static void tensor_copy_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    collective_sum(n, grad_of_output(n).data, tensor_count(n->out));
    grad_pass(n, 0, true);
}

static Cost tensor_copy_cost(const Node *n) {
    double sent = 2 * collective_bytes(n->attributes.comm, (double)tensor_bytes(n->out));
    return (Cost){.backward_bytes = sent};
}

static void tensor_copy_example(Example *e) {
    e->variants = 1;
    int64_t rows = e->size != EXAMPLE_SMALL ? example_many(e, 1024) : example_pick(e, 1, 40);
    int64_t width = e->size != EXAMPLE_SMALL ? 768 : example_pick(e, 1, 70);
    e->out = tensor_copy(e->tape, example_tensor(e, 0, false, 1, SHAPE(rows, width)), NULL);
}

const Operator op_tensor_copy = {
    .name = "tensor_copy",
    .formula = "y = x; dx = sum over ranks of dy",
    .infer = tensor_copy_infer,
    .forward = tensor_copy_forward,
    .backward = tensor_copy_backward,
    .cost = tensor_copy_cost,
    .reads = reads_nothing,
    .example = tensor_copy_example,
};

Tensor *tensor_copy(Tape *tape, Tensor *x, Comm *comm) {
    return tape_apply(tape, &op_tensor_copy, &(Attributes){.comm = comm}, 1, (Tensor *[]){x});
}
