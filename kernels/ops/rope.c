/* Rotary positions (Su et al. 2021), halves layout. The gradient turns back. N rows, W width, D head size. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, POSITIONS };         // inputs
enum { A_HEADS, A_HEAD_SIZE, A_IN_PLACE }; // attributes i; in place: y takes over x's memory
enum { A_BASE };               // attribute f

static const char *rope_infer(Node *n) {
    Tensor *x = n->in[X], *positions = n->in[POSITIONS];
    int64_t heads = n->attributes.i[A_HEADS], size = n->attributes.i[A_HEAD_SIZE];
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "rope: x must be F32 or BF16, (.., W)";
    if (heads < 1 || size < 2 || size % 2 || heads * size > tensor_width(x))
        return "rope: the heads, of even size, must fit into x's width";
    if (positions->dtype != I32 || tensor_count(positions) != tensor_rows(x))
        return "rope: one I32 position for each row of x";
    if (n->attributes.i[A_IN_PLACE])
        tape_view(n, x->rank, x->shape);
    else
        tape_output(n, x->dtype, x->rank, x->shape);
    return NULL;
}

static void run(Node *n, Destination y, const void *x, bool inverse) {
    Backend *b = tape_backend(n->tape);
    b->rope(b, y.data, x, n->in[POSITIONS]->data, tensor_rows(n->out), tensor_width(n->out),
            (int)n->attributes.i[A_HEADS], (int)n->attributes.i[A_HEAD_SIZE], n->attributes.f[A_BASE], inverse, y.dtype,
            y.add);
}

static void rope_forward(Node *n) { run(n, (Destination){n->out->data, n->out->dtype, false}, n->in[X]->data, false); }

// Turns back where dy lies, which dx takes over; only where x has a gradient already it is added to that.
static void rope_backward(Node *n, unsigned wanted) {
    if (!WANTS(wanted, X)) return;
    if (n->in[X]->is_parameter || n->in[X]->grad_written) {
        run(n, grad_of(n, X), n->out->grad, true);
        return;
    }
    void *d = grad_of_output(n).data;
    run(n, (Destination){d, n->out->dtype, false}, d, true);
    grad_pass(n, X, true);
}

static unsigned rope_reads(const Node *n) {
    (void)n;
    return 1u << POSITIONS;
}

static Cost rope_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    return (Cost){3 * count, 2 * bytes, 3 * count, 2 * bytes};
}

static void rope_example(Example *e) {
    e->variants = 2; // all heads turn; some of a packed row
    bool large = e->size != EXAMPLE_SMALL;
    int64_t rows = large ? example_many(e, 2048) : example_pick(e, 1, 40), heads = large ? 12 : example_pick(e, 1, 4);
    int64_t size = large ? 64 : 2 * example_pick(e, 1, 24),
            rest = e->variant ? (large ? 12 : example_pick(e, 1, 3)) : 0;
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows, (heads + rest) * size));
    Tensor *positions = example_indices(e, POSITIONS, 0, e->variant ? 100000 : 512, SHAPE(rows));
    e->out = rope(e->tape, x, positions, (int)heads, (int)size, 10000);
}

const Operator op_rope = {
    .name = "rope",
    .formula = "pairs (x[d], x[d + D/2]) turn by position * base^(-2 d / D)",
    .infer = rope_infer,
    .forward = rope_forward,
    .backward = rope_backward,
    .cost = rope_cost,
    .reads = rope_reads,
    .example = rope_example,
};

static Tensor *apply(Tape *tape, Tensor *x, Tensor *positions, int heads, int head_size, double base, bool in_place) {
    Attributes a = {.i = {[A_HEADS] = heads, [A_HEAD_SIZE] = head_size, [A_IN_PLACE] = in_place},
                    .f = {[A_BASE] = base}};
    return tape_apply(tape, &op_rope, &a, 2, (Tensor *[]){x, positions});
}

Tensor *rope(Tape *tape, Tensor *x, Tensor *positions, int heads, int head_size, double base) {
    return apply(tape, x, positions, heads, head_size, base, false);
}

Tensor *rope_in_place(Tape *tape, Tensor *x, Tensor *positions, int heads, int head_size, double base) {
    return apply(tape, x, positions, heads, head_size, base, true);
}
