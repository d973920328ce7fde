/* Cross-entropy with the output projection folded in: the logits exist only a tile at a time, and backward computes
 * each tile again from the logsumexp that forward kept. Rows without a target cost nothing. Where the vocabulary is
 * shared out over ranks, two numbers a row travel: each rank's logsumexp and the target's logit, 0 where it is
 * another's. N rows, C width, V vocabulary, of which this rank holds its share. */
#include "kernels/collective.h"
#include "kernels/comm/comm_device.h"
#include "kernels/example.h"

enum { X, W, TARGETS, WEIGHT }; // inputs
enum { LSE };                   // saved: (N) F32
enum { A_VOCABULARY };          // attribute i: V

const char *cross_entropy_wrong(const Node *n) {
    const Tensor *x = n->in[X], *w = n->in[W], *targets = n->in[TARGETS], *weight = n->in[WEIGHT];
    if ((x->dtype != F32 && x->dtype != BF16) || w->dtype != x->dtype)
        return "cross-entropy: x and w must both be F32 or both be BF16";
    if (x->rank < 1 || w->rank != 2 || tensor_width(x) != w->shape[1])
        return "cross-entropy: x (.., C) and w (V, C) must share C";
    int64_t rows = tensor_rows(x);
    if (targets->dtype != I32 || tensor_count(targets) != rows) return "cross-entropy: one I32 target for each row";
    if (weight && (weight->dtype != F32 || tensor_count(weight) != rows))
        return "cross-entropy: weight must be F32, one for each row";
    return NULL;
}

static const char *linear_cross_entropy_infer(Node *n) {
    const Tensor *x = n->in[X], *w = n->in[W];
    const char *wrong = cross_entropy_wrong(n);
    int64_t rows = tensor_rows(x);
    if (wrong) return wrong;
    if (w->shape[0] != collective_own(n->attributes.comm, n->attributes.i[A_VOCABULARY]))
        return "linear_cross_entropy: w must hold this rank's share of the vocabulary";
    if (w->needs_grad && !w->is_parameter && w->dtype != F32)
        return "linear_cross_entropy: w in BF16 must be a parameter (its gradient is F32)";
    tape_output(n, F32, SHAPE(rows));
    tape_keep(n, LSE, F32, SHAPE(rows));
    return NULL;
}

static const float *weight_of(const Node *n) { return n->in[WEIGHT] ? n->in[WEIGHT]->data : NULL; }

static Vocabulary vocabulary_of(const Node *n) {
    int64_t all = n->attributes.i[A_VOCABULARY];
    return (Vocabulary){collective_first(n->attributes.comm, all), n->in[W]->shape[0], all, n->in[W]->spare_rows};
}

static void linear_cross_entropy_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Tensor *x = n->in[X], *w = n->in[W], *targets = n->in[TARGETS];
    Comm *comm = n->attributes.comm;
    int64_t rows = tensor_rows(x);
    float *parts = tape_scratch(n, (size_t)(2 * comm_size(comm) * rows) * sizeof *parts); // (ranks, 2, N)
    float *own = parts + 2 * comm_rank(comm) * rows;
    be->cross_entropy_forward(be, own, own + rows, x->data, w->data, targets->data, rows, tensor_width(x),
                              vocabulary_of(n), x->dtype);
    comm_device_all_gather(be, comm, parts, own, 2 * comm_size(comm) * rows, sizeof *parts, n->op->name);
    be->cross_entropy_combine(be, n->out->data, n->saved[LSE]->data, parts, targets->data, weight_of(n),
                              comm_size(comm), rows);
}

static void linear_cross_entropy_backward(Node *n, unsigned wanted) {
    Backend *be = tape_backend(n->tape);
    Tensor *x = n->in[X], *w = n->in[W];
    Destination dx = WANTS(wanted, X) ? grad_of(n, X) : (Destination){0};
    Destination dw = WANTS(wanted, W) ? grad_of(n, W) : (Destination){0};
    if (!dx.data && !dw.data) return;
    be->cross_entropy_backward(be, dx.data, dx.add, dw.data, dw.add, n->out->grad, n->saved[LSE]->data, x->data,
                               w->data, n->in[TARGETS]->data, weight_of(n), tensor_rows(x), tensor_width(x),
                               vocabulary_of(n), x->dtype);
}

// As if every row had a target.
static Cost linear_cross_entropy_cost(const Node *n) {
    double rows = (double)tensor_rows(n->in[X]), width = (double)tensor_width(n->in[X]),
           vocab = (double)n->in[W]->shape[0];
    double size = (double)dtype_size(n->in[X]->dtype), product = 2 * rows * width * vocab;
    return (Cost){.flop = product,
                  .bytes = size * width * (rows + vocab),
                  .backward_flop = 3 * product, // the logits again, dx, dw
                  .backward_bytes = size * width * (2 * rows + vocab) + 4 * width * vocab};
}

static void linear_cross_entropy_example(Example *e) {
    example_scored_words(e);
    e->out = linear_cross_entropy(e->tape, e->in[X], e->in[W], e->in[TARGETS], e->in[WEIGHT]);
}

const Operator op_linear_cross_entropy = {
    .name = "linear_cross_entropy",
    .formula = "loss[n] = weight[n] (logsumexp_v(x[n] . W[v]) - x[n] . W[target[n]])",
    .infer = linear_cross_entropy_infer,
    .forward = linear_cross_entropy_forward,
    .backward = linear_cross_entropy_backward,
    .cost = linear_cross_entropy_cost,
    .reads = reads_inputs,
    .example = linear_cross_entropy_example,
};

Tensor *linear_cross_entropy(Tape *tape, Tensor *x, Tensor *w, Tensor *targets, Tensor *weight) {
    return split_cross_entropy(tape, x, w, targets, weight, w ? w->shape[0] : 0, NULL);
}

Tensor *split_cross_entropy(Tape *tape, Tensor *x, Tensor *w, Tensor *targets, Tensor *weight, int64_t vocabulary,
                            Comm *comm) {
    Attributes a = {.i = {[A_VOCABULARY] = vocabulary}, .comm = comm};
    return tape_apply(tape, &op_linear_cross_entropy, &a, 4, (Tensor *[]){x, w, targets, weight});
}
