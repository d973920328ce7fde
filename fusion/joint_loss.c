/* The losses of a step: what the batch holds of each objective, its mean and its part of the total; and the loss over
 * pairs, formed here or, where it is over more pairs than are at hand, played back. The model itself runs unit by unit
 * (joint_run.c); joint_loss runs all of them. */
#include "fusion/joint_parts.h"
#include <stdlib.h>

// ---- what a batch holds ----

static bool wanted(const JointConfig *c, Objective o, int count) { return c->weight[o] > 0 && count > 0; }

void joint_counts(const JointConfig *c, const Batch *b, int64_t count[OBJECTIVES]) {
    int64_t masked =
        wanted(c, OBJECTIVE_MAE, b->mae_images) ? vit_patches(&c->vision) - mae_kept(&c->mae, &c->vision) : 0;
    count[OBJECTIVE_LM] = wanted(c, OBJECTIVE_LM, b->lm.rows) ? b->lm.target_count : 0;
    count[OBJECTIVE_CAPTION] = wanted(c, OBJECTIVE_CAPTION, b->caption.rows) ? b->caption.target_count : 0;
    count[OBJECTIVE_CONTRASTIVE] = wanted(c, OBJECTIVE_CONTRASTIVE, b->contrastive.rows) ? b->contrastive.rows : 0;
    count[OBJECTIVE_MAE] = masked * b->mae_images;
}

JointHolds joint_holds(const JointConfig *c, const Batch *b, const JointPass *pass, int32_t *list) {
    JointHolds h = {.features_only = pass && pass->features_only};
    int slots = joint_image_tokens(c);
    const Sequences *caption = &b->caption;
    bool *used = calloc((size_t)b->images + 1, sizeof *used);
    check(used);
    joint_counts(c, b, h.count);
    for (int o = 0; h.features_only && o < OBJECTIVES; o++)
        if (o != OBJECTIVE_CONTRASTIVE) h.count[o] = 0;
    if (h.count[OBJECTIVE_CAPTION] && caption->image_rows)
        for (int64_t i = 0; i < (int64_t)caption->rows * caption->length; i++)
            if (caption->image_rows[i] >= 0) used[caption->image_rows[i] / slots] = h.slots = true;
    for (int i = 0; i < h.count[OBJECTIVE_CONTRASTIVE]; i++) used[b->contrastive_image[i]] = true;
    for (int i = 0; i < b->images; i++) {
        if (used[i] && list) list[h.seen] = i;
        h.seen += used[i];
    }
    free(used);
    return h;
}

// ---- losses ----

static void add_to_total(JointRun *r, Tensor *part) {
    r->loss->total = r->loss->total ? add(r->tape, r->loss->total, part) : part;
}

void joint_add_loss(JointRun *r, Objective o, Tensor *summed) {
    const int64_t *global = r->pass->global_count;
    int64_t divisor = global ? global[o] : r->holds.count[o];
    r->loss->mean[o] = sum(r->tape, summed, 1.0 / (double)(divisor > 0 ? divisor : 1));
    add_to_total(r, scale(r->tape, r->loss->mean[o], r->joint->config.weight[o]));
}

// x . gradient, which has that gradient.
static Tensor *times_gradient(JointRun *r, Tensor *x, const float *gradient) {
    Tensor *g = tape_constant_from(r->tape, F32, x->rank, x->shape, gradient);
    return sum(r->tape, mul(r->tape, x, g), 1);
}

// Where the loss of all pairs was formed elsewhere: features, scale and bias, each times its gradient.
static Tensor *played_back(JointRun *r, Tensor *a, Tensor *b) {
    Tape *t = r->tape;
    const Joint *j = r->joint;
    const JointPass *p = r->pass;
    if (!a || !b) return NULL;
    Tensor *features = add(t, times_gradient(r, a, p->image_gradient), times_gradient(r, b, p->text_gradient));
    Tensor *whole = add(t, features, times_gradient(r, j->log_scale, p->scale_gradient));
    return j->bias ? add(t, whole, times_gradient(r, j->bias, p->bias_gradient)) : whole;
}

void joint_add_pairs(JointRun *r, Tensor *a, Tensor *b) {
    const Joint *j = r->joint;
    if (r->pass->image_gradient)
        add_to_total(r, played_back(r, a, b));
    else
        joint_add_loss(r, OBJECTIVE_CONTRASTIVE,
                       j->bias ? siglip_loss(r->tape, a, b, j->log_scale, j->bias)
                               : clip_loss(r->tape, a, b, j->log_scale));
}

// Where a parameter's value lies once an operator has read it: it may have to be fetched first.
static const float *value_of(Tape *t, Tensor *parameter) {
    const Tensor *copy = parameter ? scale(t, parameter, 1) : NULL;
    return copy ? copy->data : NULL;
}

void joint_pair_ring(Tape *t, Joint *j, PairRing *ring) {
    check(!tape_recording(t));
    ring->backend = j->backend;
    ring->sigmoid = j->bias != NULL;
    ring->width = j->config.embedding;
    ring->weight = j->config.weight[OBJECTIVE_CONTRASTIVE];
    ring->log_scale = value_of(t, j->log_scale);
    ring->bias = value_of(t, j->bias);
}

// ---- all units ----

JointLoss joint_loss(Tape *tape, Joint *j, const Batch *batch, const JointPass *pass) {
    JointStreams streams = {0};
    JointLoss loss = {0};
    joint_run(tape, j, batch, pass, 0, j->unit_count, &streams, &loss);
    return loss;
}

void joint_pair_features(Tape *tape, Joint *j, const Batch *batch, const JointPass *pass, Tensor **image_features,
                         Tensor **text_features) {
    JointPass features = *pass;
    JointStreams streams = {0};
    JointLoss none = {0};
    features.features_only = true;
    joint_run(tape, j, batch, &features, 0, j->unit_count, &streams, &none);
    *image_features = streams.of[STREAM_IMAGE_FEATURES];
    *text_features = streams.of[STREAM_TEXT_FEATURES];
}
