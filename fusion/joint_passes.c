/* The parts of a joint model as passes: pixels, image tokens, sequences with image slots, features, scores. Training
 * (joint_run.c) and inference run the same ones. */
#include "fusion/joint_parts.h"

// ---- images ----

Tensor *joint_pixels(Tape *t, Joint *j, const uint8_t *bytes, const uint8_t *mirrored, int images) {
    const JointConfig *c = &j->config;
    int64_t side = c->vision.image_size;
    check(c->has_vision);
    return pixels(t, tape_constant(t, U8, SHAPE(images, side, side, 3), bytes),
                  mirrored ? tape_constant(t, U8, SHAPE(images), mirrored) : NULL, j->compute, c->pixel_mean,
                  c->pixel_std);
}

Tensor *joint_connect(Tape *t, Joint *j, Tensor *tokens) {
    Tensor *x = linear_layer(t, &j->connector[0], vit_patch_tokens(t, &j->vision, tokens));
    if (j->config.connector == CONNECTOR_MLP) x = linear_layer(t, &j->connector[1], gelu(t, x, GELU_ERF));
    return x;
}

Tensor *joint_project_images(Tape *t, Joint *j, Tensor *pooled) {
    return l2_normalize(t, linear_layer(t, &j->image_projection, pooled));
}

Tensor *joint_image_tokens_forward(Tape *t, Joint *j, Tensor *images) {
    check(joint_has(j, OBJECTIVE_CAPTION));
    return joint_connect(t, j, vit_forward(t, &j->vision, images, NULL, 0, &(BlockContext){0}));
}

Tensor *joint_image_features(Tape *t, Joint *j, Tensor *images) {
    check(joint_has(j, OBJECTIVE_CONTRASTIVE));
    Tensor *tokens = vit_forward(t, &j->vision, images, NULL, 0, &(BlockContext){0});
    return joint_project_images(t, j, vit_pool(t, &j->vision, tokens));
}

// ---- sequences ----

// Puts image tokens (B, K, C) into their slots of x (R, T, C).
static Tensor *fill_slots(Tape *t, Joint *j, const Sequences *s, const int32_t *image_rows, Tensor *x,
                          Tensor *image_tokens) {
    int64_t positions = (int64_t)s->rows * s->length, slots = 0;
    if (!image_rows || !x) return x;
    ArenaMark mark = arena_mark(j->host);
    int32_t *from = arena_array(j->host, int32_t, positions), *to = arena_array(j->host, int32_t, positions);
    for (int64_t i = 0; i < positions; i++)
        if (image_rows[i] >= 0) {
            from[slots] = image_rows[i];
            to[slots++] = (int32_t)i;
        }
    if (slots) {
        Tensor *tokens = gather_rows(t, image_tokens, tape_constant(t, I32, SHAPE(slots), from));
        x = scatter_rows(t, x, tokens, tape_constant(t, I32, SHAPE(slots), to), positions);
        if (x) x = tape_reshape(t, x, SHAPE(s->rows, s->length, tensor_width(x)));
    }
    arena_rewind(j->host, mark);
    return x;
}

Tensor *joint_embed(Tape *t, Joint *j, const Sequences *s, const int32_t *image_rows, Tensor *image_tokens) {
    Tensor *ids = tape_constant(t, I32, SHAPE(s->rows, s->length), s->tokens);
    return fill_slots(t, j, s, image_rows, text_embed(t, &j->text, ids), image_tokens);
}

// Whether every position sees all up to itself: rows that are cut from one stream, full ones of one text.
static bool all_causal(const Sequences *s) {
    for (int64_t i = 0; i < (int64_t)s->rows * s->length; i++)
        if (s->range[2 * i] != 0 || s->range[2 * i + 1] != i % s->length + 1) return false;
    return true;
}

// A mask that needs no ranges is told as such: a backend may have faster kernels for it. (A cache has more keys.)
void joint_place_rows(Tape *t, const Sequences *s, BlockContext *context) {
    context->positions = tape_constant(t, I32, SHAPE((int64_t)s->rows * s->length), s->positions);
    context->causal = !context->cache && all_causal(s);
    if (!context->causal) context->range = tape_constant(t, I32, SHAPE(s->rows, s->length, 2), s->range);
}

Tensor *joint_hidden(Tape *t, Joint *j, const Sequences *s, Tensor *image_tokens, const BlockContext *given) {
    BlockContext context = given ? *given : (BlockContext){0};
    joint_place_rows(t, s, &context);
    return text_forward(t, &j->text, joint_embed(t, j, s, s->image_rows, image_tokens), &context);
}

Tensor *joint_project_text(Tape *t, Joint *j, const Sequences *s, Tensor *hidden) {
    ArenaMark mark = arena_mark(j->host);
    int32_t *last = arena_array(j->host, int32_t, s->rows);
    for (int r = 0; r < s->rows; r++) last[r] = r * s->length + s->ends[r];
    Tensor *pooled = gather_rows(t, hidden, tape_constant(t, I32, SHAPE(s->rows), last)); // (R, C)
    arena_rewind(j->host, mark);
    return l2_normalize(t, linear_layer(t, &j->text_projection, pooled));
}

Tensor *joint_text_features(Tape *t, Joint *j, const Sequences *s) {
    check(joint_has(j, OBJECTIVE_CONTRASTIVE));
    return joint_project_text(t, j, s, joint_hidden(t, j, s, NULL, NULL));
}

Tensor *joint_score(Tape *t, Joint *j, const Sequences *s, Tensor *hidden) {
    Tensor *targets = tape_constant(t, I32, SHAPE((int64_t)s->rows * s->length), s->targets);
    return text_score(t, &j->text, hidden, targets);
}

Tensor *joint_score_sum(Tape *t, Joint *j, const Sequences *s, Tensor *hidden) {
    Tensor *targets = tape_constant(t, I32, SHAPE((int64_t)s->rows * s->length), s->targets);
    return text_score_sum(t, &j->text, hidden, targets);
}

Tensor *joint_token_losses(Tape *t, Joint *j, const Sequences *s, Tensor *image_tokens) {
    return joint_score(t, j, s, joint_hidden(t, j, s, image_tokens, NULL));
}

Tensor *joint_logits(Tape *t, Joint *j, Tensor *hidden) { return text_logits(t, &j->text, hidden); }
