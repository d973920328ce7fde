/* The reconstruction loss of MAE (He et al. 2021): mean squared error of predicted patches against the pixels of the
 * picture, each target patch normalised by its own mean and variance where asked. Pictures get no gradient.
 * M patches, P patch side; a patch is flattened (y, x, c). */
#include "kernels/example.h"
#include "kernels/ops.h"

enum { X, IMAGES, PATCHES };   // inputs
enum { A_PATCH, A_NORMALIZE }; // attributes

static const char *masked_patch_mse_infer(Node *n) {
    Tensor *x = n->in[X], *images = n->in[IMAGES], *patches = n->in[PATCHES];
    int64_t patch = n->attributes.i[A_PATCH];
    if (images->rank != 4 || images->shape[1] != 3) return "masked_patch_mse: images must be (B, 3, H, W)";
    if (patch < 1 || images->shape[2] % patch || images->shape[3] % patch)
        return "masked_patch_mse: the patch side must divide the picture's sides";
    if ((x->dtype != F32 && x->dtype != BF16) || images->dtype != x->dtype)
        return "masked_patch_mse: x and images must both be F32 or both be BF16";
    if (tensor_width(x) != 3 * patch * patch) return "masked_patch_mse: x must be (M, 3 P P)";
    if (patches->dtype != I32 || tensor_count(patches) != tensor_rows(x))
        return "masked_patch_mse: one I32 patch index for each row of x";
    tape_output(n, F32, SHAPE(1));
    return NULL;
}

static void masked_patch_mse_forward(Node *n) {
    Backend *be = tape_backend(n->tape);
    Tensor *x = n->in[X], *images = n->in[IMAGES];
    be->masked_patch_mse_forward(be, n->out->data, x->data, images->data, n->in[PATCHES]->data, tensor_rows(x),
                                 images->shape[0], images->shape[2], images->shape[3], (int)n->attributes.i[A_PATCH],
                                 n->attributes.i[A_NORMALIZE] != 0, x->dtype);
}

static void masked_patch_mse_backward(Node *n, unsigned wanted) {
    Backend *be = tape_backend(n->tape);
    Tensor *x = n->in[X], *images = n->in[IMAGES];
    if (!WANTS(wanted, X)) return;
    Destination dx = grad_of(n, X);
    be->masked_patch_mse_backward(be, dx.data, n->out->grad, x->data, images->data, n->in[PATCHES]->data,
                                  tensor_rows(x), images->shape[0], images->shape[2], images->shape[3],
                                  (int)n->attributes.i[A_PATCH], n->attributes.i[A_NORMALIZE] != 0, x->dtype, dx.add);
}

static Cost masked_patch_mse_cost(const Node *n) {
    double count = (double)tensor_count(n->in[X]), size = (double)dtype_size(n->in[X]->dtype);
    return (Cost){
        .flop = 8 * count, .bytes = 2 * size * count, .backward_flop = 8 * count, .backward_bytes = 3 * size * count};
}

static void masked_patch_mse_example(Example *e) {
    e->variants = 2; // plain, normalised
    bool large = e->size != EXAMPLE_SMALL;
    int64_t patch = large ? 16 : example_pick(e, 2, 4), batch = large ? example_many(e, 16) : example_pick(e, 1, 3);
    int64_t down = large ? 14 : example_pick(e, 1, 4), across = large ? 14 : example_pick(e, 1, 4);
    int64_t rows = large ? batch * 147 : example_pick(e, 1, 20);
    Tensor *x = example_tensor(e, X, false, 1.0, SHAPE(rows, 3 * patch * patch));
    Tensor *images = example_tensor(e, IMAGES, false, 1.0, SHAPE(batch, 3, down * patch, across * patch));
    images->needs_grad = false;
    Tensor *patches = example_indices(e, PATCHES, 0, batch * down * across, SHAPE(rows));
    e->out = masked_patch_mse(e->tape, x, images, patches, (int)patch, e->variant == 1);
}

const Operator op_masked_patch_mse = {
    .name = "masked_patch_mse",
    .formula = "y = sum over m of mean over the patch of (x[m] - target[m])^2",
    .infer = masked_patch_mse_infer,
    .forward = masked_patch_mse_forward,
    .backward = masked_patch_mse_backward,
    .cost = masked_patch_mse_cost,
    .reads = reads_inputs,
    .example = masked_patch_mse_example,
};

Tensor *masked_patch_mse(Tape *tape, Tensor *x, Tensor *images, Tensor *patches, int patch, bool normalize) {
    Attributes a = {.i = {[A_PATCH] = patch, [A_NORMALIZE] = normalize}};
    return tape_apply(tape, &op_masked_patch_mse, &a, 3, (Tensor *[]){x, images, patches});
}
