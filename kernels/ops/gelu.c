/* The Gaussian error linear unit (Hendrycks and Gimpel 2016), exact, with tanh, and CLIP's quick form. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { A_KIND }; // attribute: GeluKind

static const char *gelu_infer(Node *n) {
    Tensor *x = n->in[0];
    if (x->dtype != F32 && x->dtype != BF16) return "gelu: x must be F32 or BF16";
    tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void gelu_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    b->gelu_forward(b, n->out->data, x->data, tensor_count(x), (int)n->attributes.i[A_KIND], x->dtype);
}

static void gelu_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, 0)) return;
    Backend *b = tape_backend(n->tape);
    Tensor *x = n->in[0];
    Destination d = grad_of(n, 0);
    b->gelu_backward(b, d.data, n->out->grad, x->data, tensor_count(x), (int)n->attributes.i[A_KIND], x->dtype, d.add);
}

static Cost gelu_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){30 * count, 2 * bytes, 36 * count, 3 * bytes};
}

static void gelu_example(Example *e) {
    e->variants = 3; // the kinds
    int64_t count = e->size != EXAMPLE_SMALL ? example_many(e, 1024 * 3072) : example_pick(e, 1, 9000);
    e->out = gelu(e->tape, example_tensor(e, 0, false, 2, SHAPE(count)), (GeluKind)e->variant);
}

const Operator op_gelu = {
    .name = "gelu",
    .formula = "y = x Phi(x), or x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), or x sigmoid(1.702 x)",
    .infer = gelu_infer,
    .forward = gelu_forward,
    .backward = gelu_backward,
    .cost = gelu_cost,
    .reads = reads_inputs,
    .example = gelu_example,
};

Tensor *gelu(Tape *tape, Tensor *x, GeluKind kind) {
    Attributes a = {.i = {[A_KIND] = kind}};
    return tape_apply(tape, &op_gelu, &a, 1, (Tensor *[]){x});
}
