/* What training takes in memory at the least, from shapes alone: nothing is declared or allocated for it. Vectors,
 * gradients of activations and work space are left out, so that what is refused by it would not have run. */
#include "fusion/joint_parts.h"
#include <string.h>

enum { FROZEN = 4, TRAINED = 16 }; // bytes of a weight: f32; with gradient and the two moments of AdamW

// Bytes of a part's weights. A part of which anything is frozen counts as frozen.
static double part_bytes(const JointConfig *c, const char *part, double weights, Dtype compute) {
    double each = TRAINED;
    for (int i = 0; i < c->freeze.count; i++)
        if (!strncmp(c->freeze.items[i], part, strlen(part))) each = FROZEN;
    return weights * (each + (compute == BF16 ? 2 : 0));
}

static double model_bytes(const JointConfig *c, Dtype compute) {
    double bytes = 0;
    if (c->has_vision) bytes += part_bytes(c, "vision", vit_weights(&c->vision), compute);
    if (joint_needs_text(c)) bytes += part_bytes(c, "text", text_weights(&c->text), compute);
    if (c->weight[OBJECTIVE_MAE] > 0) bytes += part_bytes(c, "mae", mae_weights(&c->mae, &c->vision), compute);
    return bytes;
}

double joint_weights(const JointConfig *c) {
    JointConfig trained = *c;
    trained.freeze.count = 0;
    return model_bytes(&trained, F32) / TRAINED;
}

JointMemory joint_memory(const JointConfig *c, const JointSizes *sizes, Dtype compute) {
    double elements = 0;
    if (c->has_vision) elements += vit_activations(&c->vision, sizes->images, vit_tokens(&c->vision), c->recompute);
    if (joint_needs_text(c)) elements += text_activations(&c->text, sizes->tokens, c->recompute);
    if (c->weight[OBJECTIVE_MAE] > 0) elements += mae_activations(&c->mae, &c->vision, sizes->mae_images, c->recompute);
    return (JointMemory){model_bytes(c, compute), elements * (double)dtype_size(compute)};
}
