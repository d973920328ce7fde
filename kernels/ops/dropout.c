/* Dropout. The mask is a function of (seed, site, element) and is drawn again in backward rather than kept. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A_FIRST };        // attribute i: global number of x's first element
enum { A_PROBABILITY };  // attribute f
enum { A_SEED, A_SITE }; // attribute key

static const char *dropout_infer(Node *n) {
    Tensor *x = n->in[0];
    double p = n->attributes.f[A_PROBABILITY];
    if (x->dtype != F32 && x->dtype != BF16) return "dropout: x must be F32 or BF16";
    if (!(p >= 0 && p < 1)) return "dropout: the probability must be in [0, 1)";
    tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void run(Node *n, Destination y, const void *x) {
    Backend *b = tape_backend(n->tape);
    const Attributes *a = &n->attributes;
    b->dropout(b, y.data, x, tensor_count(n->out), a->f[A_PROBABILITY], a->key[A_SEED], a->key[A_SITE],
               (uint64_t)a->i[A_FIRST], y.dtype, y.add);
}

static void dropout_forward(Node *n) { run(n, (Destination){n->out->data, n->out->dtype, false}, n->in[0]->data); }

static void dropout_backward(Node *n, unsigned wanted) {
    if (WANTS(wanted, 0)) run(n, grad_of(n, 0), n->out->grad);
}

static Cost dropout_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){count, 2 * bytes, count, 2 * bytes};
}

static void dropout_example(Example *e) {
    e->variants = 2; // from the first element; from within a counter block
    int64_t count = e->size == EXAMPLE_LARGE ? 4096 * 768 : example_pick(e, 1, 9000);
    Tensor *x = example_tensor(e, 0, false, 1, SHAPE(count));
    e->out = dropout(e->tape, x, 0.1 + 0.5 * e->variant, 77, 5, e->variant ? ((uint64_t)1 << 35) + 1001 : 0);
}

const Operator op_dropout = {
    .name = "dropout",
    .formula = "y = x keep / (1 - p)",
    .infer = dropout_infer,
    .forward = dropout_forward,
    .backward = dropout_backward,
    .cost = dropout_cost,
    .reads = reads_nothing,
    .example = dropout_example,
};

Tensor *dropout(Tape *tape, Tensor *x, double p, uint64_t seed, uint64_t site, uint64_t first_element) {
    if (p == 0) return x;
    Attributes a = {.i = {[A_FIRST] = (int64_t)first_element},
                    .f = {[A_PROBABILITY] = p},
                    .key = {[A_SEED] = seed, [A_SITE] = site}};
    return tape_apply(tape, &op_dropout, &a, 1, (Tensor *[]){x});
}
