/* Layer normalisation (Ba et al. 2016). Forward keeps each row's mean and 1 / deviation. N rows, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, SCALE, SHIFT }; // inputs
enum { A_EPSILON };       // attribute f
enum { MEAN, RSTD };      // saved: (N) F32

static const char *layernorm_infer(Node *n) {
    Tensor *x = n->in[X], *scale = n->in[SCALE], *shift = n->in[SHIFT];
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "layernorm: x must be F32 or BF16, (.., C)";
    if (scale->dtype != F32 || shift->dtype != F32 || tensor_count(scale) != tensor_width(x) ||
        tensor_count(shift) != tensor_width(x))
        return "layernorm: scale and shift must be F32, (C)";
    tape_output(n, x->dtype, x->rank, x->shape);
    tape_keep(n, MEAN, F32, SHAPE(tensor_rows(x)));
    tape_keep(n, RSTD, F32, SHAPE(tensor_rows(x)));
    return NULL;
}

static void layernorm_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    b->layernorm_forward(b, n->out->data, n->saved[MEAN]->data, n->saved[RSTD]->data, x->data, n->in[SCALE]->data,
                         n->in[SHIFT]->data, tensor_rows(x), tensor_width(x), n->attributes.f[A_EPSILON], x->dtype);
}

static void backward_together(Node *n, Backend *b) {
    const Tensor *x = n->in[X];
    Destination d = grad_of(n, X), scale = grad_of(n, SCALE), shift = grad_of(n, SHIFT);
    NormGradients out = {d.data, scale.data, shift.data, NULL, d.add, scale.add, shift.add};
    b->norm_backward(b, &out, n->out->grad, x->data, n->saved[MEAN]->data, n->saved[RSTD]->data, n->in[SCALE]->data,
                     tensor_rows(x), tensor_width(x), x->dtype);
}

static void layernorm_backward(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[X];
    if (b->norm_backward && tape_forms_sums(n->tape) && WANTS(wanted, X) && WANTS(wanted, SCALE) &&
        WANTS(wanted, SHIFT)) {
        backward_together(n, b);
        return;
    }
    if (WANTS(wanted, X)) {
        Destination d = grad_of(n, X);
        b->layernorm_backward_input(b, d.data, n->out->grad, x->data, n->saved[MEAN]->data, n->saved[RSTD]->data,
                                    n->in[SCALE]->data, tensor_rows(x), tensor_width(x), x->dtype, d.add);
    }
    Destination scale = WANTS(wanted, SCALE) ? grad_of(n, SCALE) : (Destination){0};
    Destination shift = WANTS(wanted, SHIFT) ? grad_of(n, SHIFT) : (Destination){0};
    if (scale.data || shift.data)
        b->layernorm_backward_weight(b, scale.data, shift.data, n->out->grad, x->data, n->saved[MEAN]->data,
                                     n->saved[RSTD]->data, tensor_rows(x), tensor_width(x), x->dtype, scale.add,
                                     shift.add);
}

static Cost layernorm_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){8 * count, 2 * bytes, 16 * count, 5 * bytes}; // backward: x and dy twice, dx
}

static void layernorm_example(Example *e) {
    e->variants = 2; // small and large epsilon
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 8192) : example_pick(e, 1, 150),
            width = large ? 768 : example_pick(e, 2, 300);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows, width));
    Tensor *scale = example_f32(e, SCALE, true, 1, 0.3, SHAPE(width));
    Tensor *shift = example_f32(e, SHIFT, true, 0, 0.3, SHAPE(width));
    e->out = layernorm(e->tape, x, scale, shift, e->variant ? 0.1 : 1e-5);
}

const Operator op_layernorm = {
    .name = "layernorm",
    .formula = "y = (x - mean) / sqrt(var + eps) * scale + shift",
    .infer = layernorm_infer,
    .forward = layernorm_forward,
    .backward = layernorm_backward,
    .cost = layernorm_cost,
    .reads = reads_inputs,
    .example = layernorm_example,
};

Tensor *layernorm(Tape *tape, Tensor *x, Tensor *scale, Tensor *shift, double eps) {
    Attributes a = {.f = {[A_EPSILON] = eps}};
    return tape_apply(tape, &op_layernorm, &a, 3, (Tensor *[]){x, scale, shift});
}
