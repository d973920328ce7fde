/* The joint model unit by unit: what each unit does with the streams of a microbatch. Pixels are normalised once; the
 * trunk runs once over every picture that captions or pairs look at, and its tokens serve both; MAE runs the same trunk
 * on the patches it leaves visible. What blocks need beside their stream (positions, ranges, draws) comes from the
 * batch, so that any range of units can run alone. Inside a unit streams go in the order trunk, mae, or lm, caption,
 * pairs: with it gradients add up in one order, wherever the model is cut. Streams have lanes (joint_lane), where they
 * run beside one another; at the end all meet. */
#include "base/philox.h"
#include "fusion/joint_parts.h"
#include "kernels/nn/tensor_parallel.h"

static Tensor **stream(JointRun *r, int which) { return &r->streams->of[which]; }

// What follows is the work of this stream.
static void turn_to(JointRun *r, int which) { tape_lane(r->tape, joint_lane(&r->joint->config, (JointStream)which)); }

static const Sequences *rows_of(const Batch *b, int which) {
    return which == STREAM_LM ? &b->lm : which == STREAM_CAPTION ? &b->caption : &b->contrastive;
}

// ---- pictures ----

// Pictures `list` of the batch: (count, 3, S, S); all of them in order without a copy.
static Tensor *pick_images(JointRun *r, const int32_t *list, int count) {
    const Batch *b = r->batch;
    if (!r->pixels) {
        check(b->side == r->joint->config.vision.image_size);
        r->pixels = joint_pixels(r->tape, r->joint, b->pixels, b->mirrored, b->images);
    }
    bool all = count == b->images;
    for (int i = 0; i < count && all; i++) all = list[i] == i;
    if (all || !r->pixels) return r->pixels;
    int64_t side = r->pixels->shape[2];
    Tensor *flat = tape_reshape(r->tape, r->pixels, SHAPE(b->images, 3 * side * side));
    Tensor *picked = gather_rows(r->tape, flat, tape_constant(r->tape, I32, SHAPE(count), list));
    return picked ? tape_reshape(r->tape, picked, SHAPE(count, 3, side, side)) : NULL;
}

static Tensor *repainted_images(JointRun *r) {
    if (!r->repainted) r->repainted = pick_images(r, r->batch->mae_image, r->batch->mae_images);
    return r->repainted;
}

static int64_t kept_of(const JointRun *r) { return mae_kept(&r->joint->config.mae, &r->joint->config.vision); }

// Draws what MAE shows of each picture and what it hides.
static void draw_masks(JointRun *r) {
    const Batch *b = r->batch;
    int64_t patches = vit_patches(&r->joint->config.vision), kept = kept_of(r), hidden = patches - kept;
    if (r->keep) return;
    r->keep = arena_array(r->joint->host, int32_t, b->mae_images * kept);
    r->masked = arena_array(r->joint->host, int32_t, b->mae_images * hidden);
    for (int i = 0; i < b->mae_images; i++)
        mae_mask(r->pass->seed, b->image_keys[b->mae_image[i]], patches, kept, r->keep + i * kept,
                 r->masked + i * hidden);
}

// ---- contexts ----

// Dropout of the trunk is drawn by a picture's number in the step: those of a piece need not follow each other.
static Tensor *image_numbers(JointRun *r) {
    const Batch *b = r->batch;
    int32_t *numbers = arena_array(r->joint->host, int32_t, r->holds.seen);
    for (int i = 0; i < r->holds.seen; i++) {
        uint64_t number = b->image_numbers ? b->image_numbers[r->list[i]] : (uint64_t)r->list[i];
        check(number <= INT32_MAX);
        numbers[i] = (int32_t)number;
    }
    return tape_constant(r->tape, I32, SHAPE(r->holds.seen), numbers);
}

// Draws differ from step to step and from pass to pass: those of the objectives, and OBJECTIVES for the trunk.
static int draws_of(int which) {
    switch (which) {
    case STREAM_LM:
        return OBJECTIVE_LM;
    case STREAM_CAPTION:
        return OBJECTIVE_CAPTION;
    case STREAM_PAIRS:
        return OBJECTIVE_CONTRASTIVE;
    case STREAM_MAE:
    case DECODER:
        return OBJECTIVE_MAE;
    default:
        return OBJECTIVES;
    }
}

static BlockContext new_context(JointRun *r, int which) {
    const Joint *j = r->joint;
    const Batch *b = r->batch;
    const VitConfig *vit = &j->config.vision;
    const Parallel *parallel = parameters_parallel(j->parameters);
    int draws = draws_of(which);
    uint64_t key[3] = {r->pass->seed, (uint64_t)b->step, (uint64_t)draws};
    BlockContext c = {.training = r->pass->training,
                      .first_row = draws < OBJECTIVES ? b->first_row[draws] : 0,
                      .dropout_seed = hash_u64(key, sizeof key)};
    if (which == STREAM_TRUNK) {
        if (c.training && vit->dropout > 0) c.row_numbers = image_numbers(r);
        stack_share(parallel, r->holds.seen, vit_tokens(vit), &c);
    } else if (which == STREAM_MAE) {
        stack_share(parallel, b->mae_images, kept_of(r) + vit->class_token, &c);
    } else if (which == DECODER) {
        stack_share(parallel, b->mae_images, vit_tokens(vit), &c);
    } else {
        const Sequences *rows = rows_of(b, which);
        joint_place_rows(r->tape, rows, &c);
        stack_share(parallel, rows->rows, rows->length, &c);
    }
    return c;
}

static BlockContext *context_of(JointRun *r, int which) {
    if (!r->has_context[which]) r->context[which] = new_context(r, which);
    r->has_context[which] = true;
    return &r->context[which];
}

// What the blocks before left of a stream, whose sum is formed by whoever takes it.
static Residual take_residual(JointRun *r, int which) {
    Residual taken = r->residual[which].branch ? r->residual[which] : residual_of(*stream(r, which));
    r->residual[which] = (Residual){0};
    return taken;
}

static void run_block(JointRun *r, int which, int context, const Block *block) {
    Tensor **x = stream(r, which);
    if (!*x) return;
    turn_to(r, which);
    BlockContext own = *context_of(r, context);
    own.recompute = r->recompute;
    r->residual[which] = block_forward(r->tape, block, take_residual(r, which), &own);
    *x = r->residual[which].x;
}

// ---- units ----

static void run_patches(JointRun *r, int layer) {
    const Vit *vit = &r->joint->vision;
    (void)layer;
    turn_to(r, STREAM_TRUNK);
    if (r->holds.seen)
        *stream(r, STREAM_TRUNK) =
            vit_enter(r->tape, vit, pick_images(r, r->list, r->holds.seen), NULL, 0, context_of(r, STREAM_TRUNK));
    if (!r->holds.count[OBJECTIVE_MAE]) return;
    turn_to(r, STREAM_MAE);
    draw_masks(r);
    *stream(r, STREAM_MAE) =
        vit_enter(r->tape, vit, repainted_images(r), r->keep, kept_of(r), context_of(r, STREAM_MAE));
}

static void run_vision_block(JointRun *r, int layer) {
    run_block(r, STREAM_TRUNK, STREAM_TRUNK, &r->joint->vision.blocks[layer]);
    run_block(r, STREAM_MAE, STREAM_MAE, &r->joint->vision.blocks[layer]);
}

static void run_vision_norm(JointRun *r, int layer) {
    (void)layer;
    for (int s = STREAM_TRUNK; s <= STREAM_MAE; s++) {
        if (!*stream(r, s)) continue;
        turn_to(r, s);
        *stream(r, s) = vit_leave(r->tape, &r->joint->vision, take_residual(r, s), context_of(r, s));
    }
}

static void run_pooling(JointRun *r, int layer) {
    Joint *j = r->joint;
    int pairs = r->batch->contrastive.rows;
    (void)layer;
    if (!r->holds.count[OBJECTIVE_CONTRASTIVE]) return;
    turn_to(r, STREAM_IMAGE_FEATURES);
    int32_t *image = arena_array(j->host, int32_t, pairs);
    for (int i = 0; i < pairs; i++) image[i] = r->place[r->batch->contrastive_image[i]];
    Tensor *pooled = vit_pool(r->tape, &j->vision, *stream(r, STREAM_TRUNK));                // (U, Cv)
    pooled = gather_rows(r->tape, pooled, tape_constant(r->tape, I32, SHAPE(pairs), image)); // (R, Cv)
    *stream(r, STREAM_IMAGE_FEATURES) = joint_project_images(r->tape, j, pooled);
}

static void run_connector(JointRun *r, int layer) {
    (void)layer;
    if (!r->holds.slots) return;
    turn_to(r, STREAM_IMAGE_TOKENS);
    *stream(r, STREAM_IMAGE_TOKENS) = joint_connect(r->tape, r->joint, *stream(r, STREAM_TRUNK));
}

static void run_mae_embed(JointRun *r, int layer) {
    Tensor **x = stream(r, STREAM_MAE);
    (void)layer;
    if (!*x) return;
    turn_to(r, STREAM_MAE);
    draw_masks(r);
    *x = mae_enter(r->tape, &r->joint->mae, &r->joint->vision, *x, r->keep, context_of(r, DECODER));
}

static void run_mae_block(JointRun *r, int layer) { run_block(r, STREAM_MAE, DECODER, &r->joint->mae.blocks[layer]); }

static void run_mae_head(JointRun *r, int layer) {
    const Mae *mae = &r->joint->mae;
    const Vit *vit = &r->joint->vision;
    (void)layer;
    if (!*stream(r, STREAM_MAE)) return;
    turn_to(r, STREAM_MAE);
    draw_masks(r);
    Residual x = take_residual(r, STREAM_MAE);
    Tensor *painted = mae_leave(r->tape, mae, vit, x, r->masked, context_of(r, DECODER));
    joint_add_loss(r, OBJECTIVE_MAE, mae_error(r->tape, mae, vit, painted, repainted_images(r), r->masked));
}

// (R, T) rows of the image tokens, which are those of the pictures seen; the batch's name its pictures.
static int32_t *rows_of_image_tokens(JointRun *r, const Sequences *rows) {
    int64_t positions = (int64_t)rows->rows * rows->length;
    int slots = joint_image_tokens(&r->joint->config);
    int32_t *image_rows = arena_array(r->joint->host, int32_t, positions);
    for (int64_t i = 0; i < positions; i++) {
        int32_t row = rows->image_rows[i];
        image_rows[i] = row < 0 ? -1 : r->place[row / slots] * slots + row % slots;
    }
    return image_rows;
}

static void run_text_embed(JointRun *r, int layer) {
    (void)layer;
    for (int s = STREAM_LM; s <= STREAM_PAIRS; s++) {
        const Sequences *rows = rows_of(r->batch, s);
        if (!r->holds.count[draws_of(s)]) continue;
        turn_to(r, s);
        bool filled = s == STREAM_CAPTION && r->holds.slots;
        Tensor *x = joint_embed(r->tape, r->joint, rows, filled ? rows_of_image_tokens(r, rows) : NULL,
                                *stream(r, STREAM_IMAGE_TOKENS));
        *stream(r, s) = text_enter(r->tape, &r->joint->text, x, context_of(r, s));
    }
}

static void run_text_block(JointRun *r, int layer) {
    for (int s = STREAM_LM; s <= STREAM_PAIRS; s++) run_block(r, s, s, &r->joint->text.blocks[layer]);
}

static void run_text_head(JointRun *r, int layer) {
    Joint *j = r->joint;
    (void)layer;
    for (int s = STREAM_LM; s <= STREAM_PAIRS; s++) {
        if (!*stream(r, s)) continue;
        const Sequences *rows = rows_of(r->batch, s);
        turn_to(r, s);
        Tensor *hidden = text_leave(r->tape, &j->text, take_residual(r, s), context_of(r, s)); // (R, T, Ct)
        if (s != STREAM_PAIRS)
            joint_add_loss(r, (Objective)draws_of(s), joint_score_sum(r->tape, j, rows, hidden));
        else
            *stream(r, STREAM_TEXT_FEATURES) = joint_project_text(r->tape, j, rows, hidden);
    }
    if (!*stream(r, STREAM_TEXT_FEATURES) || r->pass->features_only) return;
    turn_to(r, STREAM_TEXT_FEATURES);
    joint_add_pairs(r, *stream(r, STREAM_IMAGE_FEATURES), *stream(r, STREAM_TEXT_FEATURES));
}

static void (*const run_unit[UNIT_KINDS])(JointRun *, int layer) = {
    [UNIT_PATCHES] = run_patches,       [UNIT_VISION_BLOCK] = run_vision_block, [UNIT_VISION_NORM] = run_vision_norm,
    [UNIT_POOLING] = run_pooling,       [UNIT_CONNECTOR] = run_connector,       [UNIT_MAE_EMBED] = run_mae_embed,
    [UNIT_MAE_BLOCK] = run_mae_block,   [UNIT_MAE_HEAD] = run_mae_head,         [UNIT_TEXT_EMBED] = run_text_embed,
    [UNIT_TEXT_BLOCK] = run_text_block, [UNIT_TEXT_HEAD] = run_text_head,
};

// What units are called in a timeline: those of one name that follow each other are one slice.
static const char *const slice_names[UNIT_KINDS] = {
    [UNIT_PATCHES] = "vision trunk",  [UNIT_VISION_BLOCK] = "vision trunk", [UNIT_VISION_NORM] = "vision trunk",
    [UNIT_POOLING] = "pooling",       [UNIT_CONNECTOR] = "connector",       [UNIT_MAE_EMBED] = "mae decoder",
    [UNIT_MAE_BLOCK] = "mae decoder", [UNIT_MAE_HEAD] = "mae decoder",      [UNIT_TEXT_EMBED] = "text",
    [UNIT_TEXT_BLOCK] = "text",       [UNIT_TEXT_HEAD] = "text head",
};

// ---- the run ----

static void look_at_batch(JointRun *r) {
    Arena *host = r->joint->host;
    const Batch *b = r->batch;
    r->list = arena_array(host, int32_t, b->images + 1);
    r->place = arena_array(host, int32_t, b->images + 1);
    r->holds = joint_holds(&r->joint->config, b, r->pass, r->list);
    for (int i = 0; i < b->images; i++) r->place[i] = -1;
    for (int i = 0; i < r->holds.seen; i++) r->place[r->list[i]] = i;
    for (int o = 0; o < OBJECTIVES; o++) r->loss->count[o] = r->holds.count[o];
}

// Only what belongs between unit - 1 and unit stays. False where something of it is not there: whoever was to make it
// has failed.
static bool keep_streams(JointRun *r, int unit) {
    unsigned present = joint_present(r->joint, &r->holds, unit);
    bool whole = true;
    for (int s = 0; s < JOINT_STREAMS; s++) {
        if (!(present >> s & 1)) *stream(r, s) = NULL;
        whole &= *stream(r, s) || !(present >> s & 1);
    }
    return whole;
}

static void run_units(JointRun *r, int first, int end) {
    const JointUnit *units = r->joint->units;
    double begin = trace_now();
    for (int u = first; u < end && !tape_error(r->tape); u++) {
        const char *name = slice_names[units[u].kind];
        r->recompute = r->joint->recompute[u];
        backend_range_push(r->joint->backend, units[u].name);
        run_unit[units[u].kind](r, units[u].layer);
        backend_range_pop(r->joint->backend);
        if (u + 1 < end && slice_names[units[u + 1].kind] == name) continue;
        trace_slice(r->pass->trace, "compute", name, begin, trace_now());
        begin = trace_now();
    }
}

// What ends between blocks goes out as one tensor.
static void form_sums(JointRun *r) {
    for (int s = 0; s < JOINT_STREAMS; s++) {
        if (!r->residual[s].branch) continue;
        turn_to(r, s);
        Residual x = take_residual(r, s);
        *stream(r, s) = residual_sum(r->tape, &x);
    }
}

void joint_run(Tape *tape, Joint *j, const Batch *batch, const JointPass *pass, int first, int end,
               JointStreams *streams, JointLoss *loss) {
    check(first >= 0 && first <= end && end <= j->unit_count);
    JointRun r = {.tape = tape, .joint = j, .batch = batch, .pass = pass, .streams = streams, .loss = loss};
    ArenaMark mark = arena_mark(j->host);
    look_at_batch(&r);
    if (keep_streams(&r, first)) run_units(&r, first, end);
    form_sums(&r);
    tape_join(tape);
    keep_streams(&r, end);
    arena_rewind(j->host, mark);
}
