/* Bytes of pictures to normalised planes, some of them mirrored. No gradient. B batch, H height, W width. */
#include "kernels/example.h"
#include "kernels/ops.h"
#include <string.h>

// Attributes: i[0] the type of the output; f the mean; key and i[1] hold the bits of std.
enum { A_DTYPE, A_STD }; // A_STD: three places, f64 bits

static const char *pixels_infer(Node *n) {
    const Tensor *x = n->in[0], *mirrored = n->in[1];
    Dtype to = (Dtype)n->attributes.i[A_DTYPE];
    if (x->dtype != U8 || x->rank != 4 || x->shape[3] != 3) return "pixels: the pictures must be U8, (B, H, W, 3)";
    if (mirrored && (mirrored->dtype != U8 || mirrored->rank != 1 || mirrored->shape[0] != x->shape[0]))
        return "pixels: which pictures are mirrored must be U8, (B)";
    if (to != F32 && to != BF16) return "pixels: the result must be F32 or BF16";
    tape_output(n, to, SHAPE(x->shape[0], 3, x->shape[1], x->shape[2]));
    return NULL;
}

static void pixels_forward(Node *n) {
    Backend *b = tape_backend(n->tape);
    const Tensor *x = n->in[0], *mirrored = n->in[1];
    double std[3];
    memcpy(std, n->attributes.i + A_STD, sizeof std);
    b->pixels(b, n->out->data, x->data, mirrored ? mirrored->data : NULL, x->shape[0], x->shape[1], x->shape[2],
              n->attributes.f, std, n->out->dtype);
}

static void pixels_backward(Node *n, unsigned wanted) { (void)n, (void)wanted; }

static Cost pixels_cost(const Node *n) {
    return (Cost){.flop = 2 * (double)tensor_count(n->out),
                  .bytes = (double)(tensor_bytes(n->in[0]) + tensor_bytes(n->out))};
}

static void pixels_example(Example *e) {
    e->variants = 2;
    bool large = e->size != EXAMPLE_SMALL;
    int64_t batch = large ? example_many(e, 32) : example_pick(e, 1, 3), height = large ? 224 : example_pick(e, 1, 40);
    int64_t width = large ? 224 : example_pick(e, 1, 40);
    const double mean[3] = {0.485, 0.456, 0.406}, std[3] = {0.229, 0.224, 0.225};
    Tensor *x = example_bytes(e, 0, SHAPE(batch, height, width, 3));
    uint8_t which[32];
    for (int64_t i = 0; i < batch && i < 32; i++) which[i] = i % 3 != 1;
    Tensor *mirrored = e->variant && batch <= 32 ? tape_constant(e->tape, U8, SHAPE(batch), which) : NULL;
    e->out = pixels(e->tape, x, mirrored, e->dtype, mean, std);
}

const Operator op_pixels = {
    .name = "pixels",
    .formula = "y[c] = (x[c] / 255 - mean[c]) / std[c], x mirrored where it is to be",
    .infer = pixels_infer,
    .forward = pixels_forward,
    .backward = pixels_backward,
    .cost = pixels_cost,
    .reads = reads_nothing,
    .example = pixels_example,
};

Tensor *pixels(Tape *tape, Tensor *bytes, Tensor *mirrored, Dtype dtype, const double mean[3], const double std[3]) {
    Attributes a = {.i = {[A_DTYPE] = dtype}};
    memcpy(a.f, mean, sizeof a.f);
    memcpy(a.i + A_STD, std, 3 * sizeof *std);
    return tape_apply(tape, &op_pixels, &a, 2, (Tensor *[]){bytes, mirrored});
}
