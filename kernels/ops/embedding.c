/* Rows of a table by number. The table may hold a part of a vocabulary, the rest being elsewhere: those words give
 * zeros here. N ids, V vocabulary, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { IDS, TABLE };            // inputs
enum { A_FIRST, A_VOCABULARY }; // attributes i: the first word held, words in all

static const char *embedding_infer(Node *n) {
    Tensor *ids = n->in[IDS], *table = n->in[TABLE];
    if (ids->dtype != I32 || ids->rank >= MAX_RANK) return "embedding: ids must be I32, of at most three dimensions";
    if (table->rank != 2 || (table->dtype != F32 && table->dtype != BF16))
        return "embedding: the table must be F32 or BF16, (V, C)";
    if (table->needs_grad && !table->is_parameter && table->dtype != F32)
        return "embedding: a table in BF16 must be a parameter (its gradient is F32)";
    const int64_t *a = n->attributes.i;
    if (a[A_FIRST] < 0 || a[A_FIRST] + table->shape[0] > a[A_VOCABULARY])
        return "embedding: the words held must lie within the vocabulary";
    int64_t shape[MAX_RANK];
    for (int i = 0; i < ids->rank; i++) shape[i] = ids->shape[i];
    shape[ids->rank] = table->shape[1];
    tape_output(n, table->dtype, ids->rank + 1, shape);
    return NULL;
}

// Numbers of rows of the table.
static const int32_t *local_ids(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *ids = n->in[IDS];
    const int64_t *a = n->attributes.i;
    Vocabulary v = {a[A_FIRST], n->in[TABLE]->shape[0], a[A_VOCABULARY], 0};
    if (v.held == v.all) return ids->data;
    int32_t *local = tape_scratch(n, tensor_bytes(ids));
    b->local_ids(b, local, ids->data, tensor_count(ids), v);
    return local;
}

static void embedding_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *ids = n->in[IDS], *table = n->in[TABLE];
    b->embedding_forward(b, n->out->data, local_ids(n), table->data, tensor_count(ids), table->shape[1],
                         table->shape[0], table->dtype);
}

static void embedding_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, TABLE)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *ids = n->in[IDS], *table = n->in[TABLE];
    Destination d = grad_of(n, TABLE);
    b->embedding_backward(b, d.data, n->out->grad, local_ids(n), tensor_count(ids), table->shape[1], table->shape[0],
                          n->out->dtype, d.add);
}

static unsigned embedding_reads(const Node *n) {
    (void)n;
    return 1u << IDS;
}

static Cost embedding_cost(const Node *n) {
    double moved = (double)tensor_bytes(n->out), added = 8 * (double)tensor_count(n->out);
    return (Cost){.bytes = 2 * moved, .backward_flop = (double)tensor_count(n->out), .backward_bytes = moved + added};
}

static void embedding_example(Example *e) {
    e->variants = 3; // all ids valid; some negative; a table of some words of a vocabulary
    bool large = e->size != EXAMPLE_SMALL;
    int64_t vocab = large ? 8192 : example_pick(e, 1, 30), width = large ? 768 : example_pick(e, 1, 150);
    int64_t least = e->variant && !large ? -2 : 0, first = e->variant == 2 ? vocab / 3 : 0;
    int64_t held = e->variant == 2 ? vocab - vocab / 2 : vocab;
    Tensor *ids = large ? example_indices(e, IDS, least, vocab, SHAPE(example_many(e, 8), 256))
                        : example_indices(e, IDS, least, vocab, SHAPE(example_pick(e, 1, 60)));
    Tensor *table = example_tensor(e, TABLE, true, 1, SHAPE(held, width));
    e->out = split_embedding(e->tape, ids, table, first, vocab);
}

const Operator op_embedding = {
    .name = "embedding",
    .formula = "y[n] = table[ids[n]]",
    .infer = embedding_infer,
    .forward = embedding_forward,
    .backward = embedding_backward,
    .cost = embedding_cost,
    .reads = embedding_reads,
    .example = embedding_example,
};

Tensor *embedding(Tape *tape, Tensor *ids, Tensor *table) {
    return split_embedding(tape, ids, table, 0, table ? table->shape[0] : 0);
}

Tensor *split_embedding(Tape *tape, Tensor *ids, Tensor *table, int64_t first, int64_t vocabulary) {
    Attributes a = {.i = {[A_FIRST] = first, [A_VOCABULARY] = vocabulary}};
    return tape_apply(tape, &op_embedding, &a, 2, (Tensor *[]){ids, table});
}
