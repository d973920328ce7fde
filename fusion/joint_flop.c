/* Model FLOP of a step, from shapes alone: every matrix product and attention, a multiply and an add counted as two; a
 * backward pass costs twice the forward pass. Attention counts the pairs that the batch's ranges let through. */
#include "fusion/joint_parts.h"

static double pairs_of(const Sequences *s) {
    double pairs = 0;
    for (int64_t i = 0; i < (int64_t)s->rows * s->length; i++) pairs += s->range[2 * i + 1] - s->range[2 * i];
    return pairs;
}

// The text transformer over all positions; the output projection over those that are scored.
static double sequences_flop(const TextConfig *c, const Sequences *s, bool scored) {
    if (!s->rows) return 0;
    double head = scored ? 2 * (double)s->target_count * (double)c->width * (double)c->vocabulary : 0;
    return text_flop(c, (double)s->rows * s->length, pairs_of(s)) + head;
}

static double connector_flop(const JointConfig *c, double images) {
    double from = (double)c->vision.width, to = (double)c->text.width, tokens = images * joint_image_tokens(c);
    return 2 * tokens * (from * to + (c->connector == CONNECTOR_MLP ? to * to : 0));
}

// Of `pairs` of the batch, which meet all pairs of the step.
static double contrastive_flop(const JointConfig *c, double pairs, double all) {
    double shared = (double)c->embedding;
    return 2 * pairs * shared * ((double)c->vision.width + (double)c->text.width + all);
}

double joint_flop(const JointConfig *c, const Batch *batch) {
    bool seen[OBJECTIVES];
    bool part = batch->parts > 1;
    double pairs = batch->contrastive.rows, all = part ? (double)batch->all_rows[OBJECTIVE_CONTRASTIVE] : pairs;
    double forward = 0, images = part ? (double)batch->seen : joint_holds(c, batch, NULL, NULL).seen;
    for (int i = 0; i < OBJECTIVES; i++) seen[i] = c->weight[i] > 0;
    if (seen[OBJECTIVE_LM]) forward += sequences_flop(&c->text, &batch->lm, true);
    if (seen[OBJECTIVE_CAPTION]) forward += sequences_flop(&c->text, &batch->caption, true) + connector_flop(c, images);
    if (seen[OBJECTIVE_CONTRASTIVE])
        forward += sequences_flop(&c->text, &batch->contrastive, false) + contrastive_flop(c, pairs, all);
    if (c->has_vision) forward += vit_flop(&c->vision, images, vit_tokens(&c->vision));
    if (seen[OBJECTIVE_MAE]) forward += mae_flop(&c->mae, &c->vision, batch->mae_images);
    return 3 * forward;
}
