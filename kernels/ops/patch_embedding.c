/* Patches of pictures through a linear map (Dosovitskiy et al. 2020): the kept patches are laid out as rows and one
 * matrix product does the rest. The rows are formed again in backward rather than kept.
 * B batch, H height, W width, P patch side, M kept patches of a picture, C width out. */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { IMAGES, WEIGHT, BIAS, KEEP }; // inputs
enum { A_PATCH };                    // attribute

typedef struct Sizes {
    int64_t batch, height, width, patch, kept, columns, out; // columns: 3 P P
} Sizes;

static Sizes sizes_of(const Node *n) {
    const Tensor *images = n->in[IMAGES], *keep = n->in[KEEP];
    int64_t patch = n->attributes.i[A_PATCH], all = images->shape[2] / patch * (images->shape[3] / patch);
    return (Sizes){images->shape[0],  images->shape[2],       images->shape[3], patch, keep ? keep->shape[1] : all,
                   3 * patch * patch, n->in[WEIGHT]->shape[0]};
}

static const char *patch_embedding_infer(Node *n) {
    Tensor *images = n->in[IMAGES], *w = n->in[WEIGHT], *bias = n->in[BIAS], *keep = n->in[KEEP];
    int64_t patch = n->attributes.i[A_PATCH];
    if (images->rank != 4 || images->shape[1] != 3) return "patch_embedding: the images must be (B, 3, H, W)";
    if (patch < 1 || images->shape[2] % patch || images->shape[3] % patch)
        return "patch_embedding: the patch side must divide height and width of the images";
    if ((images->dtype != F32 && images->dtype != BF16) || w->dtype != images->dtype)
        return "patch_embedding: images and weight must both be F32 or both be BF16";
    if (w->rank != 2 || w->shape[1] != 3 * patch * patch) return "patch_embedding: the weight must be (C, 3 P P)";
    if (bias && (bias->dtype != F32 || tensor_count(bias) != w->shape[0]))
        return "patch_embedding: the bias must be F32, (C)";
    if (keep && (keep->dtype != I32 || keep->rank != 2 || keep->shape[0] != images->shape[0]))
        return "patch_embedding: keep must be I32, (B, M)";
    Sizes s = sizes_of(n);
    tape_output(n, images->dtype, SHAPE(s.batch, s.kept, s.out));
    return NULL;
}

// The kept patches as rows (B M, 3 P P), in scratch memory.
static void *patch_rows(Node *n, const Sizes *s) {
    Backend *b = tape_backend(n->tape);
    Tensor *images = n->in[IMAGES];
    void *rows = tape_scratch(n, (size_t)(s->batch * s->kept * s->columns) * dtype_size(images->dtype));
    b->patches_forward(b, rows, images->data, n->in[KEEP] ? n->in[KEEP]->data : NULL, s->batch, s->height, s->width,
                       (int)s->patch, s->kept, images->dtype);
    return rows;
}

static void patch_embedding_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    Sizes s = sizes_of(n);
    Matmul m = {.m = s.batch * s.kept,
                .n = s.out,
                .k = s.columns,
                .batch = 1,
                .a = patch_rows(n, &s),
                .a_row = s.columns,
                .a_column = 1,
                .b = n->in[WEIGHT]->data,
                .b_row = 1,
                .b_column = s.columns,
                .c = n->out->data,
                .c_row = s.out,
                .bias = n->in[BIAS] ? n->in[BIAS]->data : NULL,
                .in = n->out->dtype,
                .out = n->out->dtype};
    b->matmul(b, &m);
}

static void backward_images(Node *n, Backend *b, const Sizes *s) {
    Destination d = grad_of(n, IMAGES);
    void *rows = tape_scratch(n, (size_t)(s->batch * s->kept * s->columns) * dtype_size(d.dtype));
    Matmul m = {.m = s->batch * s->kept,
                .n = s->columns,
                .k = s->out,
                .batch = 1,
                .a = n->out->grad,
                .a_row = s->out,
                .a_column = 1,
                .b = n->in[WEIGHT]->data,
                .b_row = s->columns,
                .b_column = 1,
                .c = rows,
                .c_row = s->columns,
                .in = n->out->dtype,
                .out = d.dtype};
    b->matmul(b, &m);
    b->patches_backward(b, d.data, rows, n->in[KEEP] ? n->in[KEEP]->data : NULL, s->batch, s->height, s->width,
                        (int)s->patch, s->kept, d.dtype, d.add);
}

static void backward_weight(Node *n, Backend *b, const Sizes *s) {
    Destination d = grad_of(n, WEIGHT);
    Matmul m = {.m = s->out,
                .n = s->columns,
                .k = s->batch * s->kept,
                .batch = 1,
                .a = n->out->grad,
                .a_row = 1,
                .a_column = s->out,
                .b = patch_rows(n, s),
                .b_row = s->columns,
                .b_column = 1,
                .c = d.data,
                .c_row = s->columns,
                .in = n->out->dtype,
                .out = d.dtype,
                .add = d.add};
    b->matmul(b, &m);
}

static void patch_embedding_backward(Node *n, unsigned wanted) {
    Backend *b = tape_backend(n->tape);
    Sizes s = sizes_of(n);
    if (WANTS(wanted, IMAGES)) backward_images(n, b, &s);
    if (WANTS(wanted, WEIGHT)) backward_weight(n, b, &s);
    if (WANTS(wanted, BIAS)) {
        Destination d = grad_of(n, BIAS);
        b->sum_columns(b, d.data, n->out->grad, s.batch * s.kept, s.out, n->out->dtype, d.add);
    }
}

static unsigned patch_embedding_reads(const Node *n) {
    return (WANTS(n->pending, WEIGHT) ? 1u << IMAGES | 1u << KEEP : 0) |
           (WANTS(n->pending, IMAGES) ? 1u << WEIGHT | 1u << KEEP : 0);
}

static Cost patch_embedding_cost(const Node *n) {
    Sizes s = sizes_of(n);
    double rows = (double)(s.batch * s.kept), columns = (double)s.columns, out = (double)s.out;
    double product = 2 * rows * columns * out, size = (double)dtype_size(n->out->dtype);
    double bytes = size * (3 * rows * columns + columns * out + rows * out);
    double gradients = n->in[IMAGES]->needs_grad ? 2 : 1; // of the weight and, rarely, of the pictures
    return (Cost){product, bytes, gradients * product, gradients * bytes};
}

static void patch_embedding_example(Example *e) {
    e->variants = 3; // all patches; some, with gradients of the pictures; without bias
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 16) : example_pick(e, 1, 3), patch = large ? 16 : example_pick(e, 1, 7);
    int64_t down = large ? 14 : example_pick(e, 1, 5), across = large ? 14 : example_pick(e, 1, 5);
    int64_t out = large ? 768 : example_pick(e, 1, 40), kept = large ? 49 : example_pick(e, 1, down * across);
    Tensor *images = example_tensor(e, IMAGES, false, 1, SHAPE(batch, 3, down * patch, across * patch));
    if (e->variant != 1) images->needs_grad = false;
    Tensor *w = example_tensor(e, WEIGHT, true, 0.2, SHAPE(out, 3 * patch * patch));
    Tensor *bias = e->variant == 2 ? NULL : example_f32(e, BIAS, true, 0, 1, SHAPE(out));
    Tensor *keep = e->variant == 1 ? example_indices(e, KEEP, 0, down * across, SHAPE(batch, kept)) : NULL;
    e->out = patch_embedding(e->tape, images, w, bias, keep, (int)patch);
}

const Operator op_patch_embedding = {
    .name = "patch_embedding",
    .formula = "y[b, n] = W . patch n of image b + bias",
    .infer = patch_embedding_infer,
    .forward = patch_embedding_forward,
    .backward = patch_embedding_backward,
    .cost = patch_embedding_cost,
    .reads = patch_embedding_reads,
    .example = patch_embedding_example,
};

Tensor *patch_embedding(Tape *tape, Tensor *images, Tensor *weight, Tensor *bias, Tensor *keep, int patch) {
    Attributes a = {.i = {[A_PATCH] = patch}};
    return tape_apply(tape, &op_patch_embedding, &a, 4, (Tensor *[]){images, weight, bias, keep});
}
