/* A residual sum and the norm that reads it (layer norm, RMS norm), with the dropout of what is added: one pass over
 * memory where dropout, add and norm would be three. The sum is rounded to its type before the norm reads it, and so is
 * what dropout leaves: the bits are those of the operators one after the other. Two outputs: the sum, which goes on as
 * the residual stream, and the norm. N rows, C width. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, F, SCALE, SHIFT, NUMBERS }; // inputs; SHIFT NULL: rmsnorm; NUMBERS as those of dropout
enum { A_FIRST, A_ROW };              // attributes i, as those of dropout
enum { A_EPSILON, A_PROBABILITY };    // attributes f
enum { A_SEED, A_SITE };              // attributes key
enum { MEAN, RSTD };                  // saved: (N) F32; no MEAN: rmsnorm

static bool is_vector(const Tensor *v, int64_t width) { return v->dtype == F32 && tensor_count(v) == width; }

static const char *add_norm_infer(Node *n) {
    Tensor *x = n->in[X], *f = n->in[F], *shift = n->in[SHIFT], *numbers = n->in[NUMBERS];
    double p = n->attributes.f[A_PROBABILITY];
    int64_t row = n->attributes.i[A_ROW], end = n->attributes.i[A_FIRST] + tensor_count(x);
    if (x->rank < 1 || (x->dtype != F32 && x->dtype != BF16)) return "add_norm: x must be F32 or BF16, (.., C)";
    if (f->dtype != x->dtype || tensor_count(f) != tensor_count(x)) return "add_norm: f must be of x's type and shape";
    if (!is_vector(n->in[SCALE], tensor_width(x)) || (shift && !is_vector(shift, tensor_width(x))))
        return "add_norm: scale and shift must be F32, (C)";
    if (!(p >= 0 && p < 1)) return "add_norm: the probability must be in [0, 1)";
    if (numbers && numbers->dtype != I32) return "add_norm: numbers of rows must be I32";
    if (numbers && (row < 1 || end > tensor_count(numbers) * row)) return "add_norm: f has more rows than numbers";
    tape_output(n, x->dtype, x->rank, x->shape);
    tape_second_output(n, x->dtype, x->rank, x->shape);
    if (shift) tape_keep(n, MEAN, F32, SHAPE(tensor_rows(x)));
    tape_keep(n, RSTD, F32, SHAPE(tensor_rows(x)));
    return NULL;
}

static void *data_of(const Tensor *x) { return x ? x->data : NULL; }

static DropoutDraws draws_of(const Node *n) {
    const Attributes *a = &n->attributes;
    return (DropoutDraws){.p = a->f[A_PROBABILITY],
                          .seed = a->key[A_SEED],
                          .site = a->key[A_SITE],
                          .first = (uint64_t)a->i[A_FIRST],
                          .numbers = data_of(n->in[NUMBERS]),
                          .row = a->i[A_ROW]};
}

static void add_norm_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Tensor *sum = n->out;
    DropoutDraws draws = draws_of(n);
    b->add_norm_forward(b, sum->data, n->second->data, data_of(n->saved[MEAN]), n->saved[RSTD]->data, n->in[X]->data,
                        n->in[F]->data, n->in[SCALE]->data, data_of(n->in[SHIFT]), tensor_rows(sum), tensor_width(sum),
                        n->attributes.f[A_EPSILON], &draws, sum->dtype);
}

// The norm's share is added to the gradient that the sum has from others, where it lies. df: beside, or no data.
static void add_share_of_norm(Node *n, Destination df) {
    Backend *b = tape_backend(n->tape);
    Tensor *sum = n->out;
    Destination d = grad_of_output(n);
    const void *dy = n->second->grad, *scale = n->in[SCALE]->data;
    const float *mean = data_of(n->saved[MEAN]), *rstd = n->saved[RSTD]->data;
    int64_t rows = tensor_rows(sum), width = tensor_width(sum);
    DropoutDraws draws = draws_of(n);
    if (df.data)
        b->add_norm_backward(b, d.data, df.data, dy, sum->data, mean, rstd, scale, rows, width, &draws, d.dtype, d.add,
                             df.add);
    else if (mean)
        b->layernorm_backward_input(b, d.data, dy, sum->data, mean, rstd, scale, rows, width, d.dtype, d.add);
    else
        b->rmsnorm_backward_input(b, d.data, dy, sum->data, rstd, scale, rows, width, d.dtype, d.add);
}

static void backward_inputs(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    bool drops = WANTS(wanted, F) && n->attributes.f[A_PROBABILITY] > 0;
    Destination df = drops ? grad_of(n, F) : (Destination){0};
    DropoutDraws draws = draws_of(n);
    if (n->second->grad)
        add_share_of_norm(n, df);
    else if (drops)
        b->dropout(b, df.data, n->out->grad, tensor_count(n->out), &draws, df.dtype, df.add);
    if (WANTS(wanted, F) && !drops) grad_pass(n, F, !WANTS(wanted, X));
    if (WANTS(wanted, X)) grad_pass(n, X, true);
}

static void backward_weights(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    Tensor *sum = n->out;
    const void *dy = n->second->grad;
    const float *rstd = n->saved[RSTD]->data;
    int64_t rows = tensor_rows(sum), width = tensor_width(sum);
    Destination scale = WANTS(wanted, SCALE) ? grad_of(n, SCALE) : (Destination){0};
    Destination shift = WANTS(wanted, SHIFT) ? grad_of(n, SHIFT) : (Destination){0};
    if (n->in[SHIFT])
        b->layernorm_backward_weight(b, scale.data, shift.data, dy, sum->data, n->saved[MEAN]->data, rstd, rows, width,
                                     sum->dtype, scale.add, shift.add);
    else
        b->rmsnorm_backward_weight(b, scale.data, dy, sum->data, rstd, rows, width, sum->dtype, scale.add);
}

// The same of all of them, with what the bias that F ends in wants, in one pass.
static void backward_together(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    Tensor *sum = n->out;
    Destination d = grad_of_output(n), scale = grad_of(n, SCALE);
    Destination shift = n->in[SHIFT] ? grad_of(n, SHIFT) : (Destination){0};
    float *sums = WANTS(wanted, F) ? grad_sums_place(n, F) : NULL;
    NormGradients out = {d.data, scale.data, shift.data, sums, d.add, scale.add, shift.add};
    b->norm_backward(b, &out, n->second->grad, sum->data, data_of(n->saved[MEAN]), n->saved[RSTD]->data,
                     n->in[SCALE]->data, tensor_rows(sum), tensor_width(sum), sum->dtype);
    if (WANTS(wanted, F)) grad_pass(n, F, !WANTS(wanted, X));
    if (WANTS(wanted, X)) grad_pass(n, X, true);
}

// Where nothing is dropped.
static bool goes_together(const Node *n, unsigned wanted) {
    bool weights = WANTS(wanted, SCALE) && (!n->in[SHIFT] || WANTS(wanted, SHIFT));
    bool inputs = WANTS(wanted, X) || WANTS(wanted, F), drops = n->attributes.f[A_PROBABILITY] > 0;
    return tape_backend(n->tape)->norm_backward && tape_forms_sums(n->tape) && inputs && weights && n->second->grad &&
           !drops;
}

static void add_norm_backward(Node *n, unsigned wanted) {
    if (goes_together(n, wanted)) {
        backward_together(n, wanted);
        return;
    }
    if (WANTS(wanted, X) || WANTS(wanted, F)) backward_inputs(n, wanted);
    if ((WANTS(wanted, SCALE) || WANTS(wanted, SHIFT)) && n->second->grad) backward_weights(n, wanted);
}

static unsigned add_norm_reads(const Node *n) {
    (void)n;
    return 1u << SCALE | 1u << NUMBERS | READS_OUTPUT;
}

static Cost add_norm_cost(const Node *n) {
    double bytes = (double)tensor_bytes(n->out), count = (double)tensor_count(n->out);
    double others = n->attributes.f[A_PROBABILITY] > 0 ? 2 : 1; // the sum, dropout
    double norm = n->in[SHIFT] ? 8 : 5, norm_backward = n->in[SHIFT] ? 16 : 12;
    // backward: sum and dy twice, dsum, dx; and df, which without dropout is dx
    return (Cost){(norm + others) * count, 4 * bytes, (norm_backward + others) * count, (5 + others) * bytes};
}

static void add_norm_example(Example *e) {
    e->variants = 4; // layernorm, rmsnorm, each with dropout too
    bool large = e->size != EXAMPLE_SMALL, drops = e->variant > 1;
    int64_t rows = large ? example_many(e, 8192) : example_pick(e, 1, 90),
            width = large ? 768 : example_pick(e, 2, 300);
    Tensor *x = example_tensor(e, X, false, 1, SHAPE(rows, width));
    Tensor *f = example_tensor(e, F, false, 1, SHAPE(rows, width));
    Tensor *scale = example_f32(e, SCALE, true, 1, 0.3, SHAPE(width));
    Tensor *shift = e->variant % 2 ? NULL : example_f32(e, SHIFT, true, 0, 0.3, SHAPE(width));
    Draws draws = {.p = drops ? 0.2 : 0, .seed = 77, .site = 5, .first = large ? 0 : 1001};
    if (e->variant == 3 && !large) { // numbered rows, of which the first begins before x
        draws.row = 3 * width, draws.first = (uint64_t)width;
        draws.numbers = example_indices(e, NUMBERS, 0, 1 << 30, SHAPE((rows + 3) / 3));
    }
    e->out = add_norm(e->tape, x, f, scale, shift, 1e-5, &draws).sum;
}

const Operator op_add_norm = {
    .name = "add_norm",
    .formula = "sum = x + dropout(f); y = layernorm(sum) or rmsnorm(sum)",
    .infer = add_norm_infer,
    .forward = add_norm_forward,
    .backward = add_norm_backward,
    .cost = add_norm_cost,
    .reads = add_norm_reads,
    .example = add_norm_example,
};

NormedSum add_norm(Tape *tape, Tensor *x, Tensor *f, Tensor *scale, Tensor *shift, double eps, const Draws *d) {
    Attributes a = {.i = {[A_FIRST] = (int64_t)d->first, [A_ROW] = d->row},
                    .f = {[A_EPSILON] = eps, [A_PROBABILITY] = d->p},
                    .key = {[A_SEED] = d->seed, [A_SITE] = d->site}};
    const Node *n = tape_call(tape, &op_add_norm, &a, 5, (Tensor *[]){x, f, scale, shift, d->numbers});
    return n ? (NormedSum){n->out, n->second} : (NormedSum){0};
}
