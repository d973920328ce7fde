/* The sum of linear_cross_entropy over rows. All rows then have one factor in their gradient, so the gradients can be
 * formed before it is known, while the logits are at hand, and scaled later (Hsu et al. 2024): where the backend can do
 * that in one pass, the logits are formed once, not twice. What is held meanwhile: gradients the size of x, and of W in
 * f32. N rows, C width, V words. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, W, TARGETS, WEIGHT }; // inputs
enum { DX, DW };                // saved, where they will be wanted: (N, C), (V + spare rows, C) F32, for a factor of 1

static const char *cross_entropy_sum_infer(Node *n) {
    const Tensor *x = n->in[X], *w = n->in[W];
    const char *wrong = cross_entropy_wrong(n);
    if (wrong) return wrong;
    tape_output(n, F32, SHAPE(1));
    if (!tape_recording(n->tape)) return NULL;
    if (x->needs_grad) tape_keep(n, DX, x->dtype, x->rank, x->shape);
    if (w->needs_grad) tape_keep(n, DW, F32, SHAPE(w->shape[0] + w->spare_rows, w->shape[1]));
    return NULL;
}

typedef struct Rows { // scratch of forward, (N) each
    float *lse, *picked, *loss, *whole;
} Rows;

static Vocabulary whole_vocabulary(const Tensor *w) { return (Vocabulary){0, w->shape[0], w->shape[0], w->spare_rows}; }

// Gradients by the two calls, where the backend has no single one.
static void form_gradients(Node *n, Backend *be, const Rows *r, void *dx, float *dw) {
    Tensor *x = n->in[X], *w = n->in[W];
    int64_t rows = tensor_rows(x);
    const float one = 1;
    float *ones = tape_scratch(n, sizeof *ones * (size_t)(rows + 1));
    be->upload(be, ones, &one, sizeof one);
    be->fill(be, ones + 1, ones, 1, rows, F32, false);
    be->cross_entropy_backward(be, dx, false, dw, false, ones + 1, r->whole, x->data, w->data, n->in[TARGETS]->data,
                               n->in[WEIGHT] ? n->in[WEIGHT]->data : NULL, rows, tensor_width(x), whole_vocabulary(w),
                               x->dtype);
}

static void cross_entropy_sum_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Tensor *x = n->in[X], *w = n->in[W], *targets = n->in[TARGETS];
    int64_t rows = tensor_rows(x), width = tensor_width(x);
    const float *weight = n->in[WEIGHT] ? n->in[WEIGHT]->data : NULL;
    void *dx = n->saved[DX] ? n->saved[DX]->data : NULL;
    float *dw = n->saved[DW] ? n->saved[DW]->data : NULL, *memory = tape_scratch(n, sizeof(float) * 4 * (size_t)rows);
    Rows r = {memory, memory + rows, memory + 2 * rows, memory + 3 * rows};
    bool wanted = dx || dw, at_once = wanted && be->cross_entropy_both;
    if (at_once)
        be->cross_entropy_both(be, r.lse, r.picked, dx, dw, x->data, w->data, targets->data, weight, rows, width,
                               whole_vocabulary(w), x->dtype);
    else
        be->cross_entropy_forward(be, r.lse, r.picked, x->data, w->data, targets->data, rows, width,
                                  whole_vocabulary(w), x->dtype);
    be->cross_entropy_combine(be, r.loss, r.whole, r.lse, targets->data, weight, 1, rows);
    be->sum_into(be, n->out->data, r.loss, rows, 1, F32);
    if (wanted && !at_once) form_gradients(n, be, &r, dx, dw);
}

static void cross_entropy_sum_backward(Node *n, unsigned wanted) {
    Backend *be = tape_backend(n->tape);
    for (int i = X; i <= W; i++) {
        if (!WANTS(wanted, i)) continue;
        const Tensor *formed = n->saved[i == X ? DX : DW];
        Destination d = grad_of(n, i);
        be->scale_by(be, d.data, d.dtype, formed->data, formed->dtype, n->out->grad, tensor_count(n->in[i]), d.add);
    }
}

// As if every row had a target; gradients included, for they are formed here.
static Cost cross_entropy_sum_cost(const Node *n) {
    double rows = (double)tensor_rows(n->in[X]), width = (double)tensor_width(n->in[X]),
           vocab = (double)n->in[W]->shape[0];
    double size = (double)dtype_size(n->in[X]->dtype), product = 2 * rows * width * vocab;
    double formed = size * width * rows * (n->saved[DX] != NULL) + 4 * width * vocab * (n->saved[DW] != NULL);
    return (Cost){.flop = product * (1 + (n->saved[DX] != NULL) + (n->saved[DW] != NULL)),
                  .bytes = size * width * (rows + vocab) + formed,
                  .backward_flop = rows * width + vocab * width,
                  .backward_bytes = 2 * formed};
}

static void cross_entropy_sum_example(Example *e) {
    example_scored_words(e);
    e->out = tape_apply(e->tape, &op_cross_entropy_sum, NULL, 4, e->in);
}

const Operator op_cross_entropy_sum = {
    .name = "cross_entropy_sum",
    .formula = "y = sum of weight[n] (logsumexp_v(x[n] . W[v]) - x[n] . W[target[n]])",
    .infer = cross_entropy_sum_infer,
    .forward = cross_entropy_sum_forward,
    .backward = cross_entropy_sum_backward,
    .cost = cross_entropy_sum_cost,
    .reads = reads_nothing,
    .example = cross_entropy_sum_example,
};

Tensor *cross_entropy_sum(Tape *tape, Tensor *x, Tensor *w, Tensor *targets, Tensor *weight) {
    bool wanted = x && w && (x->needs_grad || w->needs_grad) && tape_recording(tape);
    if (!wanted || !tape_backend(tape)->cross_entropy_both) return linear_cross_entropy(tape, x, w, targets, weight);
    return tape_apply(tape, &op_cross_entropy_sum, NULL, 4, (Tensor *[]){x, w, targets, weight});
}
