/* Dropout. The mask is a function of (seed, site, element) and is drawn again in backward rather than kept. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, NUMBERS };     // inputs; numbers: of rows, or NULL
enum { A_FIRST, A_ROW }; // attributes i: number of x's first element; elements of a row
enum { A_PROBABILITY };  // attribute f
enum { A_SEED, A_SITE }; // attribute key

static const char *dropout_infer(Node *n) {
    const Tensor *x = n->in[X], *numbers = n->in[NUMBERS];
    double p = n->attributes.f[A_PROBABILITY];
    int64_t row = n->attributes.i[A_ROW], end = n->attributes.i[A_FIRST] + tensor_count(x);
    if (x->dtype != F32 && x->dtype != BF16) return "dropout: x must be F32 or BF16";
    if (!(p >= 0 && p < 1)) return "dropout: the probability must be in [0, 1)";
    if (numbers && numbers->dtype != I32) return "dropout: numbers of rows must be I32";
    if (numbers && (row < 1 || end > tensor_count(numbers) * row)) return "dropout: x has more rows than numbers";
    tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void run(Node *n, Destination y, const void *x) {
    Backend *b = tape_backend(n->tape);
    const Attributes *a = &n->attributes;
    DropoutDraws draws = {.p = a->f[A_PROBABILITY],
                          .seed = a->key[A_SEED],
                          .site = a->key[A_SITE],
                          .first = (uint64_t)a->i[A_FIRST],
                          .numbers = n->in[NUMBERS] ? n->in[NUMBERS]->data : NULL,
                          .row = a->i[A_ROW]};
    b->dropout(b, y.data, x, tensor_count(n->out), &draws, y.dtype, y.add);
}

static void dropout_forward(Node *n) { run(n, (Destination){n->out->data, n->out->dtype, false}, n->in[X]->data); }

static void dropout_backward(Node *n, unsigned wanted) {
    if (WANTS(wanted, X)) run(n, grad_of(n, X), n->out->grad);
}

static unsigned dropout_reads(const Node *n) { return n->in[NUMBERS] ? 1u << NUMBERS : 0; }

static Cost dropout_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){count, 2 * bytes, count, 2 * bytes};
}

// A part of a few rows, numbered in any order.
static void numbered_example(Example *e) {
    int64_t rows = example_pick(e, 1, 9), row = example_pick(e, 1, 900), first = example_pick(e, 0, rows * row - 1);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows * row - first));
    Tensor *numbers = example_indices(e, NUMBERS, 0, 1 << 30, SHAPE(rows));
    e->out = dropout_rows(e->tape, x, 0.3, 77, 5, numbers, row, first);
}

static void dropout_example(Example *e) {
    e->variants = 3; // from the first element; from within a counter block; rows with numbers
    if (e->variant == 2 && e->size == EXAMPLE_SMALL) {
        numbered_example(e);
        return;
    }
    int64_t count = e->size != EXAMPLE_SMALL ? example_many(e, 4096 * 768) : example_pick(e, 1, 9000);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(count));
    e->out = dropout(e->tape, x, 0.1 + 0.5 * (e->variant > 0), 77, 5, e->variant ? ((uint64_t)1 << 35) + 1001 : 0);
}

const Operator op_dropout = {
    .name = "dropout",
    .formula = "y = x keep / (1 - p)",
    .infer = dropout_infer,
    .forward = dropout_forward,
    .backward = dropout_backward,
    .cost = dropout_cost,
    .reads = dropout_reads,
    .example = dropout_example,
};

Tensor *dropout_by(Tape *tape, Tensor *x, const Draws *d) {
    if (d->p == 0) return x;
    Attributes a = {.i = {[A_FIRST] = (int64_t)d->first, [A_ROW] = d->row},
                    .f = {[A_PROBABILITY] = d->p},
                    .key = {[A_SEED] = d->seed, [A_SITE] = d->site}};
    return tape_apply(tape, &op_dropout, &a, 2, (Tensor *[]){x, d->numbers});
}

Tensor *dropout(Tape *tape, Tensor *x, double p, uint64_t seed, uint64_t site, uint64_t first_element) {
    return dropout_by(tape, x, &(Draws){.p = p, .seed = seed, .site = site, .first = first_element});
}

Tensor *dropout_rows(Tape *tape, Tensor *x, double p, uint64_t seed, uint64_t site, Tensor *numbers, int64_t row,
                     int64_t first) {
    return dropout_by(tape, x, &(Draws){p, seed, site, (uint64_t)first, numbers, row});
}
