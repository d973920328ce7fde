/* Sums of two tensors; the second may repeat (positions over a batch). */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { LEFT, RIGHT }; // inputs a and b

static const char *add_infer(Node *n) {
    Tensor *a = n->in[LEFT], *b = n->in[RIGHT];
    if (a->dtype != F32 && a->dtype != BF16) return "add: a must be F32 or BF16";
    if (b->dtype != a->dtype && b->dtype != F32) return "add: b must be of a's type or F32";
    if (tensor_count(b) ? tensor_count(a) % tensor_count(b) : tensor_count(a))
        return "add: a's number of elements must be a multiple of b's";
    tape_output(n, a->dtype, a->rank, a->shape);
    if (WANTS(n->pending, RIGHT) && b->is_parameter && tensor_count(b) == tensor_width(a)) grad_sums_wanted(n);
    return NULL;
}

static void add_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Tensor *a = n->in[LEFT], *b = n->in[RIGHT];
    const void *right = b->data;
    if (b->dtype != a->dtype) { // a vector parameter beside bf16 activations
        void *converted = tape_scratch(n, (size_t)tensor_count(b) * dtype_size(a->dtype));
        be->convert(be, converted, a->dtype, b->data, b->dtype, tensor_count(b));
        right = converted;
    }
    be->add(be, n->out->data, a->data, right, tensor_count(a), tensor_count(b), a->dtype);
}

// Another half may still need the gradient: only the last to read it may take it over.
static void add_backward(Node *n, unsigned wanted) {
    Backend *be = tape_backend(n->tape);
    Tensor *b = n->in[RIGHT];
    if (WANTS(wanted, RIGHT)) {
        if (tensor_count(b) == tensor_count(n->out)) {
            grad_pass(n, RIGHT, n->pending == 1u << RIGHT);
        } else if (!grad_sums_pass(n, RIGHT)) {
            Destination d = grad_of(n, RIGHT);
            be->fold_add(be, d.data, d.dtype, n->out->grad, n->out->dtype, tensor_count(n->out), tensor_count(b),
                         d.add);
        }
    }
    if (WANTS(wanted, LEFT)) grad_pass(n, LEFT, !(n->pending & ~wanted));
}

static Cost add_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){count, 2 * bytes + (double)tensor_bytes(n->in[RIGHT]), count, 2 * bytes};
}

static void add_example(Example *e) {
    e->variants = 3; // same shape, b repeats, b is a repeating parameter
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 8) : example_pick(e, 1, 5),
            rows = large ? example_many(e, 512) : example_pick(e, 1, 30);
    int64_t width = large ? 768 : example_pick(e, 1, 90);
    Tensor *a = example_tensor(e, LEFT, false, 1, SHAPE(batch, rows, width));
    Tensor *b = e->variant == 0 ? example_tensor(e, RIGHT, false, 1, SHAPE(batch, rows, width))
                                : example_tensor(e, RIGHT, e->variant == 2, 1, SHAPE(rows, width));
    e->out = add(e->tape, a, b);
}

const Operator op_add = {
    .name = "add",
    .formula = "y = a + b; b repeats",
    .infer = add_infer,
    .forward = add_forward,
    .backward = add_backward,
    .cost = add_cost,
    .reads = reads_nothing,
    .example = add_example,
};

Tensor *add(Tape *tape, Tensor *a, Tensor *b) { return tape_apply(tape, &op_add, NULL, 2, (Tensor *[]){a, b}); }
