/* Sums what each tensor rank computed a part of, and leaves each its share of the rows. N rows, C width. */
#include "kernels/collective.h"
#include "kernels/example.h"

static const char *sequence_scatter_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "sequence_scatter: x must be F32 or BF16";
    if (x->rank < 1) return "sequence_scatter: x must have rows, (.., C)";
    int64_t own[3] = {1, collective_own(n->attributes.comm, tensor_rows(x)), tensor_width(x)};
    if (collective_alone(n))
        tape_view(n, 3, own);
    else
        tape_output(n, x->dtype, 3, own);
    return NULL;
}

static void sequence_scatter_forward(Node *n) {
    Destination y = {n->out->data, n->out->dtype, false};
    if (!collective_alone(n)) collective_scatter(n, y, n->in[0]->data, tensor_rows(n->in[0]));
}

static void sequence_scatter_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    if (collective_alone(n))
        grad_pass(n, 0, true);
    else
        collective_gather(n, grad_of(n, 0), n->out->grad, tensor_rows(n->in[0]));
}

static Cost sequence_scatter_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->in[0]);
    return (Cost){.bytes = collective_bytes(n->attributes.comm, bytes),
                  .backward_bytes = collective_bytes(n->attributes.comm, bytes)};
}

static void sequence_scatter_example(Example *e) {
    e->variants = 1;
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 8) : example_pick(e, 1, 5), rows = large ? example_many(e, 128) : example_pick(e, 1, 30);
    int64_t width = large ? 768 : example_pick(e, 1, 70);
    e->out = sequence_scatter(e->tape, example_tensor(e, 0, false, 1, SHAPE(batch, rows, width)), NULL);
}

const Operator op_sequence_scatter = {
    .name = "sequence_scatter",
    .formula = "y = own rows of the sum over ranks of x; dx = all ranks' dy",
    .infer = sequence_scatter_infer,
    .forward = sequence_scatter_forward,
    .backward = sequence_scatter_backward,
    .cost = sequence_scatter_cost,
    .reads = reads_nothing,
    .example = sequence_scatter_example,
};

Tensor *sequence_scatter(Tape *tape, Tensor *x, Comm *comm) {
    return tape_apply(tape, &op_sequence_scatter, &(Attributes){.comm = comm}, 1, (Tensor *[]){x});
}
