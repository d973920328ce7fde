/* Root mean square normalisation (Zhang and Sennrich 2019). Forward keeps each row's 1 / rms. N rows, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, SCALE };  // inputs
enum { A_EPSILON }; // attribute f
enum { RSTD };      // saved: (N) F32

static const char *rmsnorm_infer(Node *n) {
    Tensor *x = n->in[X], *scale = n->in[SCALE];
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "rmsnorm: x must be F32 or BF16, (.., C)";
    if (scale->dtype != F32 || tensor_count(scale) != tensor_width(x)) return "rmsnorm: scale must be F32, (C)";
    tape_output(n, x->dtype, x->rank, x->shape);
    tape_keep(n, RSTD, F32, SHAPE(tensor_rows(x)));
    return NULL;
}

static void rmsnorm_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    b->rmsnorm_forward(b, n->out->data, n->saved[RSTD]->data, x->data, n->in[SCALE]->data, tensor_rows(x),
                       tensor_width(x), n->attributes.f[A_EPSILON], x->dtype);
}

static void backward_together(Node *n, Backend *b) {
    const Tensor *x = n->in[X];
    Destination d = grad_of(n, X), scale = grad_of(n, SCALE);
    NormGradients out = {.dx = d.data, .dscale = scale.data, .add_x = d.add, .add_scale = scale.add};
    b->norm_backward(b, &out, n->out->grad, x->data, NULL, n->saved[RSTD]->data, n->in[SCALE]->data, tensor_rows(x),
                     tensor_width(x), x->dtype);
}

static void rmsnorm_backward(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    if (b->norm_backward && tape_forms_sums(n->tape) && WANTS(wanted, X) && WANTS(wanted, SCALE)) {
        backward_together(n, b);
        return;
    }
    if (WANTS(wanted, X)) {
        Destination d = grad_of(n, X);
        b->rmsnorm_backward_input(b, d.data, n->out->grad, x->data, n->saved[RSTD]->data, n->in[SCALE]->data,
                                  tensor_rows(x), tensor_width(x), x->dtype, d.add);
    }
    if (WANTS(wanted, SCALE)) {
        Destination d = grad_of(n, SCALE);
        b->rmsnorm_backward_weight(b, d.data, n->out->grad, x->data, n->saved[RSTD]->data, tensor_rows(x),
                                   tensor_width(x), x->dtype, d.add);
    }
}

static Cost rmsnorm_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){5 * count, 2 * bytes, 12 * count, 5 * bytes}; // backward: x and dy twice, dx
}

static void rmsnorm_example(Example *e) {
    e->variants = 2; // small and large epsilon
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 8192) : example_pick(e, 1, 150),
            width = large ? 768 : example_pick(e, 1, 300);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows, width));
    Tensor *scale = example_f32(e, SCALE, true, 1, 0.3, SHAPE(width));
    e->out = rmsnorm(e->tape, x, scale, e->variant ? 0.1 : 1e-5);
}

const Operator op_rmsnorm = {
    .name = "rmsnorm",
    .formula = "y = x / sqrt(mean(x^2) + eps) * scale",
    .infer = rmsnorm_infer,
    .forward = rmsnorm_forward,
    .backward = rmsnorm_backward,
    .cost = rmsnorm_cost,
    .reads = reads_inputs,
    .example = rmsnorm_example,
};

Tensor *rmsnorm(Tape *tape, Tensor *x, Tensor *scale, double eps) {
    Attributes a = {.f = {[A_EPSILON] = eps}};
    return tape_apply(tape, &op_rmsnorm, &a, 2, (Tensor *[]){x, scale});
}
