/* What training takes in memory at the least, from shapes alone: nothing is declared or allocated for it. Vectors,
 * gradients of activations and work space are left out, so that what is refused by it would not have run. */
#include "fusion/joint_parts.h"
#include <string.h>

// Bytes of a part's weights, gradients and moments. A part of which anything is frozen counts as frozen.
static double part_bytes(const JointConfig *c, const char *part, double weights, Dtype compute,
                         const ParallelSizes *spread) {
    double trained = weights;
    for (int i = 0; i < c->freeze.count; i++)
        if (!strncmp(c->freeze.items[i], part, strlen(part))) trained = 0;
    ParameterMemory m =
        parameters_formula(weights, trained, compute, spread ? spread->zero : 0, spread ? spread->data : 1);
    return m.parameters + m.gradients + m.states;
}

static double model_bytes(const JointConfig *c, Dtype compute, const ParallelSizes *spread) {
    double bytes = 0;
    if (c->has_vision) bytes += part_bytes(c, "vision", vit_weights(&c->vision, spread), compute, spread);
    if (joint_needs_text(c)) bytes += part_bytes(c, "text", text_weights(&c->text, spread), compute, spread);
    if (c->weight[OBJECTIVE_MAE] > 0)
        bytes += part_bytes(c, "mae", mae_weights(&c->mae, &c->vision, spread), compute, spread);
    return bytes;
}

double joint_weights(const JointConfig *c) {
    double weights = 0;
    if (c->has_vision) weights += vit_weights(&c->vision, NULL);
    if (joint_needs_text(c)) weights += text_weights(&c->text, NULL);
    if (c->weight[OBJECTIVE_MAE] > 0) weights += mae_weights(&c->mae, &c->vision, NULL);
    return weights;
}

JointMemory joint_memory(const JointConfig *c, const JointSizes *sizes, Dtype compute, const ParallelSizes *spread) {
    double elements = 0;
    Recompute again = c->recompute;
    if (c->has_vision) elements += vit_activations(&c->vision, sizes->images, vit_tokens(&c->vision), again, spread);
    if (joint_needs_text(c)) elements += text_activations(&c->text, sizes->tokens, again, spread);
    if (c->weight[OBJECTIVE_MAE] > 0)
        elements += mae_activations(&c->mae, &c->vision, sizes->mae_images, again, spread);
    return (JointMemory){model_bytes(c, compute, spread), elements * (double)dtype_size(compute)};
}
