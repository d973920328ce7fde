/* See step.h. In several pieces a contrastive loss takes two passes over the pairs (Gao et al. 2021, "Scaling deep
 * contrastive learning batch size under memory limited setup"): features without a tape, the loss over all of them,
 * then each piece again with the gradients of its features played back. */
#include "train/step.h"
#include "train/microbatch.h"
#include <stdlib.h>
#include <string.h>

// What is known of a piece when it has run; gathered from all data ranks.
typedef struct PieceLoss {
    double mean[OBJECTIVES]; // its part of each mean
    double failed;           // 0 or 1
} PieceLoss;

// A step under way.
typedef struct Step {
    const StepSetup *setup;
    const Batch *batch;
    JointPass pass;
    PieceLoss *pieces;     // (setup->pieces)
    Arena *memory;         // host
    float *images, *texts; // (own pairs, E) features of the own pairs, later their gradients
    StepLoss *loss;
    Error *error; // the first on this rank
} Step;

static float read_scalar(Tape *t, const Tensor *x) {
    float value = 0;
    tape_read(t, x, &value);
    return value;
}

// Keeps the tape's message. A rank that failed still takes part in all that the others wait for.
static bool failed(Step *s) {
    if (s->error->kind) return true;
    const char *message = tape_error(s->setup->tape);
    return message && !error_set(s->error, ERROR_FAILED, "%s", message);
}

static Batch piece_of(const Step *s, int piece) {
    const JointConfig *c = joint_config(s->setup->joint);
    return microbatch(s->batch, piece, s->setup->pieces, c->has_vision ? joint_image_tokens(c) : 1, s->memory);
}

// The first of the piece's pairs, counted from this rank's first.
static int64_t first_pair(const Step *s, int piece) {
    int64_t all = s->batch->contrastive.rows, before = 0, pieces = s->setup->pieces;
    if (s->batch->parts > 1) {
        all = s->batch->all_rows[OBJECTIVE_CONTRASTIVE];
        before = batch_share(all, s->batch->part, s->batch->parts);
    }
    return batch_share(all, piece, pieces) - before;
}

// Forward, and backward where the tape records.
static void run_piece(Step *s, int piece, const Batch *batch, const JointPass *pass) {
    Tape *t = s->setup->tape;
    PieceLoss *out = &s->pieces[piece];
    tape_reset(t);
    JointLoss loss = joint_loss(t, s->setup->joint, batch, pass);
    if (failed(s)) return;
    for (int o = 0; o < OBJECTIVES; o++)
        if (loss.mean[o]) out->mean[o] = read_scalar(t, loss.mean[o]);
    if (loss.total && tape_recording(t)) tape_backward(t, loss.total, ALL_GRADIENTS);
    failed(s);
}

// Features of this rank's pairs, piece by piece, into host memory.
static void cache_features(Step *s) {
    Tape *t = s->setup->tape;
    bool recording = tape_recording(t);
    int64_t width = joint_config(s->setup->joint)->embedding;
    size_t bytes = (size_t)(s->batch->contrastive.rows * width) * sizeof(float);
    s->images = arena_allocate(s->memory, bytes + 1);
    s->texts = arena_allocate(s->memory, bytes + 1);
    tape_set_recording(t, false);
    for (int i = s->setup->first; i < s->setup->end && !failed(s); i++) {
        ArenaMark mark = arena_mark(s->memory);
        Batch piece = piece_of(s, i);
        Tensor *image_features, *text_features;
        tape_reset(t);
        if (piece.contrastive.rows) {
            joint_pair_features(t, s->setup->joint, &piece, &s->pass, &image_features, &text_features);
            if (failed(s)) break;
            tape_read(t, image_features, s->images + first_pair(s, i) * width);
            tape_read(t, text_features, s->texts + first_pair(s, i) * width);
        }
        arena_rewind(s->memory, mark);
    }
    tape_set_recording(t, recording);
}

// The loss over the pairs of all ranks; features of the own pairs become their gradients.
static void pair_gradients(Step *s) {
    Tape *t = s->setup->tape;
    Joint *j = s->setup->joint;
    Comm *data = s->setup->data;
    const JointConfig *c = joint_config(j);
    int64_t rows = s->loss->count[OBJECTIVE_CONTRASTIVE], own = s->batch->contrastive.rows,
            row = (int64_t)sizeof(float);
    float *images = arena_allocate(s->memory, (size_t)(rows * c->embedding * row));
    float *texts = arena_allocate(s->memory, (size_t)(rows * c->embedding * row));
    comm_all_gather(data, images, s->images, rows, c->embedding * row, "image features");
    comm_all_gather(data, texts, s->texts, rows, c->embedding * row, "text features");
    tape_reset(t);
    Tensor *a = tape_constant(t, F32, SHAPE(rows, c->embedding), images);
    Tensor *b = tape_constant(t, F32, SHAPE(rows, c->embedding), texts);
    a->needs_grad = b->needs_grad = true;
    Tensor *mean = sum(t, joint_pair_loss(t, j, a, b), 1.0 / (double)rows);
    Tensor *weighted = scale(t, mean, c->weight[OBJECTIVE_CONTRASTIVE]);
    if (failed(s)) return;
    s->pieces[s->setup->first].mean[OBJECTIVE_CONTRASTIVE] = s->setup->first ? 0 : read_scalar(t, mean);
    if (!tape_recording(t)) return;
    tape_backward(t, weighted, ALL_GRADIENTS);
    if (s->setup->first) parameters_begin_step(joint_parameters(j));
    int64_t skip = comm_share(rows, comm_rank(data), comm_size(data)) * c->embedding;
    memcpy(s->images, (float *)a->grad + skip, (size_t)(own * c->embedding * row));
    memcpy(s->texts, (float *)b->grad + skip, (size_t)(own * c->embedding * row));
}

static void run_pieces(Step *s) {
    const StepSetup *setup = s->setup;
    int64_t width = joint_config(setup->joint)->embedding;
    bool pairs = s->loss->count[OBJECTIVE_CONTRASTIVE] > 0 && setup->pieces > 1;
    if (pairs) {
        cache_features(s);
        pair_gradients(s);
    }
    for (int i = setup->first; i < setup->end; i++) {
        ArenaMark mark = arena_mark(s->memory);
        Batch piece = piece_of(s, i);
        JointPass pass = s->pass;
        if (pairs && tape_recording(setup->tape)) {
            pass.image_gradient = s->images + first_pair(s, i) * width;
            pass.text_gradient = s->texts + first_pair(s, i) * width;
        } else if (pairs)
            piece.contrastive.rows = 0; // without gradients there is nothing to play back
        if (!failed(s)) run_piece(s, i, &piece, &pass);
        arena_rewind(s->memory, mark);
    }
}

// Every rank adds up the losses of all pieces, in their order.
static bool add_losses(Step *s) {
    const StepSetup *setup = s->setup;
    const JointConfig *c = joint_config(setup->joint);
    bool ok = true;
    if (s->error->kind && setup->first < setup->end) s->pieces[setup->first].failed = 1;
    comm_all_gather(setup->data, s->pieces, s->pieces + setup->first, setup->pieces, sizeof *s->pieces, "losses");
    for (int i = 0; i < setup->pieces; i++) {
        for (int o = 0; o < OBJECTIVES; o++) s->loss->mean[o] += s->pieces[i].mean[o];
        ok &= s->pieces[i].failed == 0;
    }
    for (int o = 0; o < OBJECTIVES; o++)
        if (s->loss->count[o]) s->loss->total += c->weight[o] * s->loss->mean[o];
    if (!ok && !s->error->kind) error_set(s->error, ERROR_FAILED, "another rank could not do its part of the step");
    return ok;
}

// Until all ranks' parts are added up bucket by bucket: one parameter after the other.
static void add_gradients(const StepSetup *setup) {
    Parameters *parameters = joint_parameters(setup->joint);
    parameters_end_backward(parameters);
    for (int i = 0; i < parameters_count(parameters); i++) {
        Parameter *p = parameters_at(parameters, i);
        if (!p->frozen)
            comm_all_reduce(setup->data, p->tensor.grad, tensor_count(&p->tensor), COMM_F32, COMM_SUM, COMM_ORDERED,
                            "gradients");
    }
}

bool step_run(const StepSetup *setup, const Batch *batch, StepLoss *loss, Error *error) {
    bool recording = tape_recording(setup->tape);
    *loss = (StepLoss){0};
    *error = (Error){0};
    joint_counts(joint_config(setup->joint), batch, loss->count);
    comm_all_reduce(setup->data, loss->count, OBJECTIVES, COMM_I64, COMM_SUM, COMM_FAST, "counts");
    Step s = {.setup = setup,
              .batch = batch,
              .pass = {.seed = setup->seed, .training = recording, .global_count = loss->count},
              .memory = arena_new(1 << 20),
              .loss = loss,
              .error = error};
    s.pieces = arena_array(s.memory, PieceLoss, setup->pieces);
    if (recording) parameters_begin_step(joint_parameters(setup->joint));
    run_pieces(&s);
    bool ok = add_losses(&s);
    if (recording) add_gradients(setup);
    arena_free(s.memory);
    return ok;
}
