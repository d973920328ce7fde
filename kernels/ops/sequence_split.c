/* From whole activations to this rank's share of their rows. N rows, C width. */
#include "kernels/collective.h"
#include "kernels/example.h"

static const char *sequence_split_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "sequence_split: x must be F32 or BF16";
    if (x->rank < 1) return "sequence_split: x must have rows, (.., C)";
    int64_t own[3] = {1, collective_own(n->attributes.comm, tensor_rows(x)), tensor_width(x)};
    if (collective_alone(n))
        tape_view(n, 3, own);
    else
        tape_output(n, x->dtype, 3, own);
    return NULL;
}

static void sequence_split_forward(Node *n) {
    Destination y = {n->out->data, n->out->dtype, false};
    if (!collective_alone(n)) collective_take(n, y, n->in[0]->data, tensor_rows(n->in[0]));
}

static void sequence_split_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    if (collective_alone(n))
        grad_pass(n, 0, true);
    else
        collective_gather(n, grad_of(n, 0), n->out->grad, tensor_rows(n->in[0]));
}

static Cost sequence_split_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->in[0]);
    return (Cost){.bytes = 2 * bytes / comm_size(n->attributes.comm),
                  .backward_bytes = collective_bytes(n->attributes.comm, bytes)};
}

static void sequence_split_example(Example *e) {
    e->variants = 1;
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 8) : example_pick(e, 1, 5), rows = large ? example_many(e, 128) : example_pick(e, 1, 30);
    int64_t width = large ? 768 : example_pick(e, 1, 70);
    e->out = sequence_split(e->tape, example_tensor(e, 0, false, 1, SHAPE(batch, rows, width)), NULL);
}

const Operator op_sequence_split = {
    .name = "sequence_split",
    .formula = "y = own rows of x; dx = all ranks' dy",
    .infer = sequence_split_infer,
    .forward = sequence_split_forward,
    .backward = sequence_split_backward,
    .cost = sequence_split_cost,
    .reads = reads_nothing,
    .example = sequence_split_example,
};

Tensor *sequence_split(Tape *tape, Tensor *x, Comm *comm) {
    return tape_apply(tape, &op_sequence_split, &(Attributes){.comm = comm}, 1, (Tensor *[]){x});
}
