/* Rows of a table by number. N ids, V vocabulary, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { IDS, TABLE }; // inputs

static const char *embedding_infer(Node *n) {
    Tensor *ids = n->in[IDS], *table = n->in[TABLE];
    if (ids->dtype != I32 || ids->rank >= MAX_RANK) return "embedding: ids must be I32, of at most three dimensions";
    if (table->rank != 2 || (table->dtype != F32 && table->dtype != BF16))
        return "embedding: the table must be F32 or BF16, (V, C)";
    if (table->needs_grad && !table->is_parameter && table->dtype != F32)
        return "embedding: a table in BF16 must be a parameter (its gradient is F32)";
    int64_t shape[MAX_RANK];
    for (int i = 0; i < ids->rank; i++) shape[i] = ids->shape[i];
    shape[ids->rank] = table->shape[1];
    tape_output(n, table->dtype, ids->rank + 1, shape);
    return NULL;
}

static void embedding_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *ids = n->in[IDS], *table = n->in[TABLE];
    b->embedding_forward(b, n->out->data, ids->data, table->data, tensor_count(ids), table->shape[1], table->shape[0],
                         table->dtype);
}

static void embedding_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, TABLE)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *ids = n->in[IDS], *table = n->in[TABLE];
    Destination d = grad_of(n, TABLE);
    b->embedding_backward(b, d.data, n->out->grad, ids->data, tensor_count(ids), table->shape[1], table->shape[0],
                          n->out->dtype, d.add);
}

static Cost embedding_cost(const Node *n) {
    double moved = (double)tensor_bytes(n->out), added = 8 * (double)tensor_count(n->out);
    return (Cost){.bytes = 2 * moved, .backward_flop = (double)tensor_count(n->out), .backward_bytes = moved + added};
}

static void embedding_example(Example *e) {
    e->variants = 2; // all ids valid; some negative
    bool large = e->size == EXAMPLE_LARGE;
    int64_t vocab = large ? 8192 : example_pick(e, 1, 30), width = large ? 768 : example_pick(e, 1, 150);
    int64_t least = e->variant == 1 && !large ? -2 : 0;
    Tensor *ids = large ? example_indices(e, IDS, least, vocab, SHAPE(8, 256))
                        : example_indices(e, IDS, least, vocab, SHAPE(example_pick(e, 1, 60)));
    Tensor *table = example_tensor(e, TABLE, true, 1, SHAPE(vocab, width));
    e->out = embedding(e->tape, ids, table);
}

const Operator op_embedding = {
    .name = "embedding",
    .formula = "y[n] = table[ids[n]]",
    .infer = embedding_infer,
    .forward = embedding_forward,
    .backward = embedding_backward,
    .cost = embedding_cost,
    .example = embedding_example,
};

Tensor *embedding(Tape *tape, Tensor *ids, Tensor *table) {
    return tape_apply(tape, &op_embedding, NULL, 2, (Tensor *[]){ids, table});
}
