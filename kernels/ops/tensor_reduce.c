/* Sums what each tensor rank computed a part of; all hold the sum alike, and alike its gradient. */
#include "kernels/collective.h"
#include "kernels/example.h"

static const char *tensor_reduce_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "tensor_reduce: x must be F32 or BF16";
    if (collective_alone(n))
        tape_view(n, x->rank, x->shape);
    else
        tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void tensor_reduce_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    if (collective_alone(n)) return;
    b->copy(b, n->out->data, n->in[0]->data, tensor_bytes(n->out));
    collective_sum(n, n->out->data, tensor_count(n->out));
}

static void tensor_reduce_backward(Node *n, unsigned wanted) {
    if (WANTS(wanted, 0)) grad_pass(n, 0, true);
}

static Cost tensor_reduce_cost(const Node *n) {
    return (Cost){.bytes = 2 * collective_bytes(n->attributes.comm, (double)tensor_bytes(n->out))};
}

static void tensor_reduce_example(Example *e) {
    e->variants = 1;
    int64_t rows = e->size != EXAMPLE_SMALL ? example_many(e, 1024) : example_pick(e, 1, 40);
    int64_t width = e->size != EXAMPLE_SMALL ? 768 : example_pick(e, 1, 70);
    e->out = tensor_reduce(e->tape, example_tensor(e, 0, false, 1, SHAPE(rows, width)), NULL);
}

const Operator op_tensor_reduce = {
    .name = "tensor_reduce",
    .formula = "y = sum over ranks of x; dx = dy",
    .infer = tensor_reduce_infer,
    .forward = tensor_reduce_forward,
    .backward = tensor_reduce_backward,
    .cost = tensor_reduce_cost,
    .reads = reads_nothing,
    .example = tensor_reduce_example,
};

Tensor *tensor_reduce(Tape *tape, Tensor *x, Comm *comm) {
    return tape_apply(tape, &op_tensor_reduce, &(Attributes){.comm = comm}, 1, (Tensor *[]){x});
}
