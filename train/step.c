/* See step.h. In several pieces a contrastive loss takes two passes over the pairs (Gao et al. 2021, "Scaling deep
 * contrastive learning batch size under memory limited setup"): features without a tape, the loss over all of them,
 * then each piece again with the gradients of its features played back. */
#include "train/step.h"
#include "train/microbatch.h"
#include <stdlib.h>

// A step under way.
typedef struct Pieces {
    Tape        *tape;
    Joint       *joint;
    const Batch *whole;
    int          parts;
    JointPass    pass;
    float       *images, *texts; // (pairs, E) features of all pairs, later their gradients
    StepLoss    *loss;
} Pieces;

static float read_scalar(Tape *t, const Tensor *x) {
    float value = 0;
    tape_read(t, x, &value);
    return value;
}

static bool failed(const Tape *t, Error *error) {
    if (!tape_error(t)) return false;
    error_set(error, ERROR_FAILED, "%s", tape_error(t));
    return true;
}

// Forward, and backward where the tape records.
static bool run_piece(Pieces *p, const Batch *piece, const JointPass *pass, Error *error) {
    const JointConfig *c = joint_config(p->joint);
    tape_reset(p->tape);
    JointLoss loss = joint_loss(p->tape, p->joint, piece, pass);
    if (failed(p->tape, error)) return false;
    for (int o = 0; o < OBJECTIVES; o++) {
        double mean = loss.mean[o] ? read_scalar(p->tape, loss.mean[o]) : 0;
        p->loss->mean[o] += mean;
        p->loss->total += c->weight[o] * mean;
    }
    if (loss.total && tape_recording(p->tape)) tape_backward(p->tape, loss.total, ALL_GRADIENTS);
    return !failed(p->tape, error);
}

static int first_pair(const Pieces *p, int part) { return (int)((int64_t)p->whole->contrastive.rows * part / p->parts); }

static Batch piece_of(const Pieces *p, int part, Arena *memory) {
    const JointConfig *c = joint_config(p->joint);
    return microbatch(p->whole, part, p->parts, c->has_vision ? joint_image_tokens(c) : 1, memory);
}

// Features of all pairs, piece by piece, into host memory.
static bool cache_features(Pieces *p, Arena *memory, Error *error) {
    int64_t width = joint_config(p->joint)->embedding;
    size_t  bytes = (size_t)(p->whole->contrastive.rows * width) * sizeof(float);
    p->images = arena_allocate(memory, bytes);
    p->texts = arena_allocate(memory, bytes);
    tape_set_recording(p->tape, false);
    for (int i = 0; i < p->parts; i++) {
        ArenaMark mark = arena_mark(memory);
        Batch     piece = piece_of(p, i, memory);
        Tensor   *image_features, *text_features;
        tape_reset(p->tape);
        if (piece.contrastive.rows) {
            joint_pair_features(p->tape, p->joint, &piece, &p->pass, &image_features, &text_features);
            if (failed(p->tape, error)) break;
            tape_read(p->tape, image_features, p->images + first_pair(p, i) * width);
            tape_read(p->tape, text_features, p->texts + first_pair(p, i) * width);
        }
        arena_rewind(memory, mark);
    }
    tape_set_recording(p->tape, true);
    return !tape_error(p->tape);
}

// The loss over all pairs; features become their gradients.
static bool pair_gradients(Pieces *p, Error *error) {
    const JointConfig *c = joint_config(p->joint);
    int64_t            rows = p->whole->contrastive.rows;
    tape_reset(p->tape);
    Tensor *a = tape_constant(p->tape, F32, SHAPE(rows, c->embedding), p->images);
    Tensor *b = tape_constant(p->tape, F32, SHAPE(rows, c->embedding), p->texts);
    a->needs_grad = b->needs_grad = true;
    Tensor *mean = sum(p->tape, joint_pair_loss(p->tape, p->joint, a, b), 1.0 / (double)rows);
    Tensor *weighted = scale(p->tape, mean, c->weight[OBJECTIVE_CONTRASTIVE]);
    if (failed(p->tape, error)) return false;
    p->loss->mean[OBJECTIVE_CONTRASTIVE] = read_scalar(p->tape, mean);
    p->loss->total += c->weight[OBJECTIVE_CONTRASTIVE] * p->loss->mean[OBJECTIVE_CONTRASTIVE];
    tape_backward(p->tape, weighted, ALL_GRADIENTS);
    if (failed(p->tape, error)) return false;
    Backend *backend = tape_backend(p->tape);
    backend->download(backend, p->images, a->grad, tensor_bytes(a));
    backend->download(backend, p->texts, b->grad, tensor_bytes(b));
    return true;
}

static bool run_pieces(Pieces *p, Error *error) {
    int64_t width = joint_config(p->joint)->embedding;
    bool    pairs = p->loss->count[OBJECTIVE_CONTRASTIVE] > 0, ok = true;
    Arena  *memory = arena_new(1 << 20);
    if (pairs) ok = cache_features(p, memory, error) && pair_gradients(p, error);
    for (int i = 0; i < p->parts && ok; i++) {
        ArenaMark mark = arena_mark(memory);
        Batch     piece = piece_of(p, i, memory);
        JointPass pass = p->pass;
        pass.image_gradient = pairs ? p->images + first_pair(p, i) * width : NULL;
        pass.text_gradient = pairs ? p->texts + first_pair(p, i) * width : NULL;
        ok = run_piece(p, &piece, &pass, error);
        arena_rewind(memory, mark);
    }
    arena_free(memory);
    return ok;
}

bool step_run(Tape *tape, Joint *joint, const Batch *batch, int parts, uint64_t seed, StepLoss *loss, Error *error) {
    bool record = tape_recording(tape);
    check(parts == 1 || (parts > 1 && record));
    *loss = (StepLoss){0};
    joint_counts(joint_config(joint), batch, loss->count);
    Pieces p = {tape, joint, batch, parts, {.seed = seed, .training = record, .global_count = loss->count}, NULL, NULL, loss};
    if (record) parameters_begin_step(joint_parameters(joint));
    bool ok = parts == 1 ? run_piece(&p, batch, &p.pass, error) : run_pieces(&p, error);
    if (record) parameters_end_backward(joint_parameters(joint));
    return ok;
}
