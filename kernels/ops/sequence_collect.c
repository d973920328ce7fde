/* From shares of rows to whole activations for what every rank computes alike. B batch, T length, C width. */
#include "kernels/collective.h"
#include "kernels/example.h"

enum { A_BATCH, A_LENGTH }; // attributes i

static const char *sequence_collect_infer(Node *n) {
    Tensor *x = n->in[0];
    const Attributes *a = &n->attributes;
    int64_t shape[3] = {a->i[A_BATCH], a->i[A_LENGTH], x->rank ? tensor_width(x) : 0};
    if (x->dtype != F32 && x->dtype != BF16) return "sequence_collect: x must be F32 or BF16";
    if (x->rank < 1 || tensor_rows(x) != collective_own(a->comm, shape[0] * shape[1]))
        return "sequence_collect: x must be this rank's rows of (B, T, C)";
    if (collective_alone(n))
        tape_view(n, 3, shape);
    else
        tape_output(n, x->dtype, 3, shape);
    return NULL;
}

static void sequence_collect_forward(Node *n) {
    Destination y = {n->out->data, n->out->dtype, false};
    if (!collective_alone(n)) collective_gather(n, y, n->in[0]->data, tensor_rows(n->out));
}

static void sequence_collect_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    if (collective_alone(n))
        grad_pass(n, 0, true);
    else
        collective_take(n, grad_of(n, 0), n->out->grad, tensor_rows(n->out));
}

static Cost sequence_collect_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out);
    return (Cost){.bytes = collective_bytes(n->attributes.comm, bytes),
                  .backward_bytes = 2 * bytes / comm_size(n->attributes.comm)};
}

static void sequence_collect_example(Example *e) {
    e->variants = 1;
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 8) : example_pick(e, 1, 5), length = large ? 128 : example_pick(e, 1, 30);
    int64_t width = large ? 768 : example_pick(e, 1, 70);
    Tensor *x = example_tensor(e, 0, false, 1, SHAPE(1, batch * length, width));
    e->out = sequence_collect(e->tape, x, batch, length, NULL);
}

const Operator op_sequence_collect = {
    .name = "sequence_collect",
    .formula = "y = all ranks' x; dx = own rows of dy",
    .infer = sequence_collect_infer,
    .forward = sequence_collect_forward,
    .backward = sequence_collect_backward,
    .cost = sequence_collect_cost,
    .reads = reads_nothing,
    .example = sequence_collect_example,
};

Tensor *sequence_collect(Tape *tape, Tensor *x, int64_t batch, int64_t length, Comm *comm) {
    Attributes a = {.i = {[A_BATCH] = batch, [A_LENGTH] = length}, .comm = comm};
    return tape_apply(tape, &op_sequence_collect, &a, 1, (Tensor *[]){x});
}
