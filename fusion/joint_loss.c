/* The loss of a step: any of the four objectives that the batch holds. Pixels are normalised once; the trunk runs once
 * over every image that captions or pairs look at, and its tokens serve both; MAE runs the same trunk on the patches it
 * leaves visible. I images of the batch, U of them seen by the trunk. */
#include "base/philox.h"
#include "fusion/joint_parts.h"
#include <stdlib.h>

// One call of joint_loss.
typedef struct Step {
    Tape *tape;
    Joint *joint;
    const Batch *batch;
    const JointPass *pass;
    Tensor *images; // (I, 3, S, S)
    int seen;       // U
    int32_t *place; // (I) place of an image among those the trunk sees, or -1
    Tensor *tokens; // (U, N (+1), Cv), or NULL where nobody looks
    JointLoss loss;
} Step;

// ---- what a batch holds ----

static bool wanted(const JointConfig *c, Objective o, int count) { return c->weight[o] > 0 && count > 0; }

int joint_trunk_images(const JointConfig *c, const Batch *b, int32_t *list) {
    int slots = joint_image_tokens(c), count = 0;
    const Sequences *caption = &b->caption, *pairs = &b->contrastive;
    bool *used = calloc((size_t)b->images + 1, sizeof *used);
    check(used);
    if (wanted(c, OBJECTIVE_CAPTION, caption->rows) && caption->image_rows)
        for (int64_t i = 0; i < (int64_t)caption->rows * caption->length; i++)
            if (caption->image_rows[i] >= 0) used[caption->image_rows[i] / slots] = true;
    if (wanted(c, OBJECTIVE_CONTRASTIVE, pairs->rows))
        for (int i = 0; i < pairs->rows; i++) used[b->contrastive_image[i]] = true;
    for (int i = 0; i < b->images; i++) {
        if (used[i] && list) list[count] = i;
        count += used[i];
    }
    free(used);
    return count;
}

void joint_counts(const JointConfig *c, const Batch *b, int64_t count[OBJECTIVES]) {
    int64_t masked =
        wanted(c, OBJECTIVE_MAE, b->mae_images) ? vit_patches(&c->vision) - mae_kept(&c->mae, &c->vision) : 0;
    count[OBJECTIVE_LM] = wanted(c, OBJECTIVE_LM, b->lm.rows) ? b->lm.target_count : 0;
    count[OBJECTIVE_CAPTION] = wanted(c, OBJECTIVE_CAPTION, b->caption.rows) ? b->caption.target_count : 0;
    count[OBJECTIVE_CONTRASTIVE] = wanted(c, OBJECTIVE_CONTRASTIVE, b->contrastive.rows) ? b->contrastive.rows : 0;
    count[OBJECTIVE_MAE] = masked * b->mae_images;
}

// ---- the pieces of a step ----

// Dropout differs from step to step and from pass to pass (the objectives, and OBJECTIVES for the trunk).
static BlockContext context_of(const Step *s, int pass, uint64_t first_row) {
    uint64_t key[3] = {s->pass->seed, (uint64_t)s->batch->step, (uint64_t)pass};
    return (BlockContext){.training = s->pass->training,
                          .first_row = first_row,
                          .dropout_seed = hash_u64(key, sizeof key),
                          .recompute = s->joint->config.recompute};
}

// Images `list` of the batch: (count, 3, S, S); all of them in order without a copy.
static Tensor *pick_images(const Step *s, const int32_t *list, int count) {
    bool all = count == s->batch->images;
    for (int i = 0; i < count && all; i++) all = list[i] == i;
    if (all || !s->images) return s->images;
    int64_t side = s->images->shape[2];
    Tensor *flat = tape_reshape(s->tape, s->images, SHAPE(s->batch->images, 3 * side * side));
    Tensor *picked = gather_rows(s->tape, flat, tape_constant(s->tape, I32, SHAPE(count), list));
    return picked ? tape_reshape(s->tape, picked, SHAPE(count, 3, side, side)) : NULL;
}

static uint64_t number_of(const Batch *b, int32_t image) {
    return b->image_numbers ? b->image_numbers[image] : (uint64_t)image;
}

// Rows of b behind those of a: (B1, N, C) (B2, N, C) -> (B1 + B2, N, C). Either may be NULL, where a pass failed.
static Tensor *stack(Tape *t, Tensor *a, Tensor *b) {
    if (!a || !b) return NULL;
    int64_t first = a->shape[0], second = b->shape[0], tokens = a->shape[1], width = a->shape[2];
    Tensor *both = concat_rows(t, tape_reshape(t, a, SHAPE(1, first * tokens, width)),
                               tape_reshape(t, b, SHAPE(1, second * tokens, width)));
    return both ? tape_reshape(t, both, SHAPE(first + second, tokens, width)) : NULL;
}

// The trunk's tokens of images `list`. Dropout is drawn by an image's number in the step; a pass draws for consecutive
// numbers, so images that do not stand together (a piece of a step with several sources) take a pass for each run.
static Tensor *trunk(Step *s, const int32_t *list, int count) {
    const Batch *b = s->batch;
    const VitConfig *config = &s->joint->config.vision;
    bool drawn = s->pass->training && config->dropout > 0;
    Tensor *all = NULL;
    for (int first = 0, end; first < count; first = end) {
        uint64_t number = number_of(b, list[first]);
        for (end = first + 1; end < count; end++)
            if (drawn && number_of(b, list[end]) != number + (uint64_t)(end - first)) break;
        BlockContext context = context_of(s, OBJECTIVES, number);
        Tensor *images = pick_images(s, list + first, end - first);
        Tensor *tokens = vit_forward(s->tape, &s->joint->vision, images, NULL, 0, &context);
        all = first ? stack(s->tape, all, tokens) : tokens;
    }
    return all;
}

static void look(Step *s) {
    const Batch *b = s->batch;
    Joint *j = s->joint;
    double begin = trace_now();
    check(b->side == j->config.vision.image_size);
    s->images = joint_pixels(s->tape, j, b->pixels, b->images);
    int32_t *list = arena_array(j->host, int32_t, b->images);
    s->seen = joint_trunk_images(&j->config, b, list);
    s->place = arena_array(j->host, int32_t, b->images);
    for (int i = 0; i < b->images; i++) s->place[i] = -1;
    for (int i = 0; i < s->seen; i++) s->place[list[i]] = i;
    s->tokens = trunk(s, list, s->seen);
    trace_slice(s->pass->trace, "compute", "vision trunk", begin, trace_now());
}

static void add_to_total(Step *s, Tensor *part) {
    s->loss.total = s->loss.total ? add(s->tape, s->loss.total, part) : part;
}

// Mean over the objective's own count, and its part of the total.
static void account(Step *s, Objective o, int64_t divisor, Tensor *total) {
    s->loss.mean[o] = sum(s->tape, total, 1.0 / (double)(divisor > 0 ? divisor : 1));
    add_to_total(s, scale(s->tape, s->loss.mean[o], s->joint->config.weight[o]));
}

// ---- objectives: each gives what is to be summed ----

static Tensor *lm_loss(Step *s) {
    const Sequences *rows = &s->batch->lm;
    BlockContext context = context_of(s, OBJECTIVE_LM, s->batch->first_row[OBJECTIVE_LM]);
    return joint_score(s->tape, s->joint, rows, joint_hidden(s->tape, s->joint, rows, NULL, &context));
}

static Tensor *caption_loss(Step *s) {
    Sequences rows = s->batch->caption; // with slots that count among the images the trunk saw
    int slots = joint_image_tokens(&s->joint->config);
    int64_t positions = (int64_t)rows.rows * rows.length;
    int32_t *image_rows = arena_array(s->joint->host, int32_t, positions);
    for (int64_t i = 0; i < positions; i++) {
        int32_t row = rows.image_rows ? rows.image_rows[i] : -1;
        image_rows[i] = row < 0 ? -1 : s->place[row / slots] * slots + row % slots;
    }
    rows.image_rows = image_rows;
    BlockContext context = context_of(s, OBJECTIVE_CAPTION, s->batch->first_row[OBJECTIVE_CAPTION]);
    Tensor *images = s->tokens ? joint_connect(s->tape, s->joint, s->tokens) : NULL; // (U, K, C)
    return joint_score(s->tape, s->joint, &rows, joint_hidden(s->tape, s->joint, &rows, images, &context));
}

// Features of the pairs, (R, E) each, normalised.
static void pair_features(Step *s, Tensor **image_features, Tensor **text_features) {
    Tape *t = s->tape;
    Joint *j = s->joint;
    const Sequences *rows = &s->batch->contrastive;
    int32_t *image = arena_array(j->host, int32_t, rows->rows);
    for (int i = 0; i < rows->rows; i++) image[i] = s->place[s->batch->contrastive_image[i]];
    Tensor *pooled = vit_pool(t, &j->vision, s->tokens);                              // (U, Cv)
    pooled = gather_rows(t, pooled, tape_constant(t, I32, SHAPE(rows->rows), image)); // (R, Cv)
    *image_features = joint_project_images(t, j, pooled);
    BlockContext context = context_of(s, OBJECTIVE_CONTRASTIVE, s->batch->first_row[OBJECTIVE_CONTRASTIVE]);
    *text_features = joint_project_text(t, j, rows, joint_hidden(t, j, rows, NULL, &context));
}

static Tensor *contrastive_loss(Step *s) {
    Tensor *a, *b;
    Joint *j = s->joint;
    pair_features(s, &a, &b);
    return j->bias ? siglip_loss(s->tape, a, b, j->log_scale, j->bias) : clip_loss(s->tape, a, b, j->log_scale);
}

// Where the loss of all pairs was formed elsewhere: features . their gradients, which has those gradients; the scale
// and the bias likewise.
static Tensor *replayed_pairs(Step *s) {
    Tape *t = s->tape;
    Joint *j = s->joint;
    Tensor *a, *b;
    pair_features(s, &a, &b);
    if (!a || !b) return NULL;
    Tensor *da = tape_constant(t, F32, a->rank, a->shape, s->pass->image_gradient);
    Tensor *db = tape_constant(t, F32, b->rank, b->shape, s->pass->text_gradient);
    Tensor *features = add(t, sum(t, mul(t, a, da), 1), sum(t, mul(t, b, db), 1));
    Tensor *whole = add(t, features, sum(t, j->log_scale, s->pass->scale_gradient));
    return j->bias ? add(t, whole, sum(t, j->bias, s->pass->bias_gradient)) : whole;
}

// A parameter's value, read by an operator: it may have to be fetched first.
static float value_of(Tape *t, Tensor *parameter) {
    float value = 0;
    Tensor *copy = parameter ? scale(t, parameter, 1) : NULL;
    if (copy) tape_read(t, copy, &value);
    return value;
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

static Tensor *masked_loss(Step *s) {
    const Batch *b = s->batch;
    Joint *j = s->joint;
    int64_t patches = vit_patches(&j->config.vision), kept = mae_kept(&j->config.mae, &j->config.vision);
    int32_t *keep = arena_array(j->host, int32_t, b->mae_images * kept);
    int32_t *masked = arena_array(j->host, int32_t, b->mae_images * (patches - kept));
    for (int i = 0; i < b->mae_images; i++)
        mae_mask(s->pass->seed, b->image_keys[b->mae_image[i]], patches, kept, keep + i * kept,
                 masked + i * (patches - kept));
    BlockContext context = context_of(s, OBJECTIVE_MAE, b->first_row[OBJECTIVE_MAE]);
    Tensor *images = pick_images(s, b->mae_image, b->mae_images);
    return mae_loss(s->tape, &j->mae, &j->vision, images, keep, masked, &context);
}

// ---- the step ----

static void run_objective(Step *s, Objective o) {
    static Tensor *(*const objective[OBJECTIVES])(Step *) = {
        [OBJECTIVE_LM] = lm_loss,
        [OBJECTIVE_CAPTION] = caption_loss,
        [OBJECTIVE_CONTRASTIVE] = contrastive_loss,
        [OBJECTIVE_MAE] = masked_loss,
    };
    const JointPass *pass = s->pass;
    double begin = trace_now();
    if (o == OBJECTIVE_CONTRASTIVE && pass->image_gradient)
        add_to_total(s, replayed_pairs(s));
    else
        account(s, o, pass->global_count ? pass->global_count[o] : s->loss.count[o], objective[o](s));
    trace_slice(pass->trace, "compute", objective_names[o], begin, trace_now());
}

JointLoss joint_loss(Tape *tape, Joint *j, const Batch *batch, const JointPass *pass) {
    Step s = {.tape = tape, .joint = j, .batch = batch, .pass = pass};
    ArenaMark mark = arena_mark(j->host);
    joint_counts(&j->config, batch, s.loss.count);
    if (j->config.has_vision && batch->images) look(&s);
    for (int o = 0; o < OBJECTIVES; o++)
        if (s.loss.count[o] > 0) run_objective(&s, (Objective)o);
    arena_rewind(j->host, mark);
    return s.loss;
}

void joint_pair_features(Tape *tape, Joint *j, const Batch *batch, const JointPass *pass, Tensor **image_features,
                         Tensor **text_features) {
    Step s = {.tape = tape, .joint = j, .batch = batch, .pass = pass};
    ArenaMark mark = arena_mark(j->host);
    look(&s);
    pair_features(&s, image_features, text_features);
    arena_rewind(j->host, mark);
}
