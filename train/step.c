/* See step.h. In several pieces a contrastive loss takes two passes over the pairs (step_pairs.h): features without a
 * tape, the loss over all of them, then each piece again with the gradients of its features played back. */
#include "train/step.h"
#include "train/microbatch.h"
#include <stdlib.h>
#include <string.h>

// What is known of a piece when it has run; gathered from all data ranks.
typedef struct PieceLoss {
    double mean[OBJECTIVES]; // its part of each mean
    double failed;           // 0 or 1
} PieceLoss;

typedef struct PieceReads {
    BackendRead *mean[OBJECTIVES]; // under way; NULL: no such loss, or the gate has it
} PieceReads;

typedef struct StepUnderWay {
    StepSetup setup;
    const Batch *batch; // the caller's, until step_start returns
    JointPass pass;
    PieceLoss *pieces;            // (setup.pieces)
    PieceReads *reads;            // (setup.pieces) of the own ones
    BackendRead *verdict;         // of the gate
    Arena *memory;                // host
    StepPairs *pairs, *own_pairs; // the loss over pairs of several pieces; where only this step has it
    bool paired;                  // it was formed on this rank
    StepLoss loss;
    Error error; // the first on this rank
} Step;

static Backend *backend_of(const Step *s) { return tape_backend(s->setup.tape); }

// Keeps the tape's message. A rank that failed still takes part in all that the others wait for.
static bool failed(Step *s) {
    if (s->error.kind) return true;
    const char *message = tape_error(s->setup.tape);
    return message && !error_set(&s->error, ERROR_FAILED, "%s", message);
}

static Batch piece_of(const Step *s, int piece) {
    const JointConfig *c = joint_config(s->setup.joint);
    Batch batch = *s->batch;
    if (!joint_sees_pictures(s->setup.joint)) batch.pixels = NULL; // a stage behind those that do
    return microbatch(&batch, piece, s->setup.pieces, c->has_vision ? joint_image_tokens(c) : 1, s->memory);
}

// The first of the piece's pairs, counted from this rank's first.
static int64_t first_pair(const Step *s, int piece) {
    int64_t all = s->batch->contrastive.rows, before = 0, pieces = s->setup.pieces;
    if (s->batch->parts > 1) {
        all = s->batch->all_rows[OBJECTIVE_CONTRASTIVE];
        before = batch_share(all, s->batch->part, s->batch->parts);
    }
    return batch_share(all, piece, pieces) - before;
}

// Forward, and backward where the tape records. Losses are read behind it: small outputs stay until the reset.
static void run_piece(Step *s, int piece, const Batch *batch, const JointPass *pass) {
    Tape *t = s->setup.tape;
    tape_reset(t);
    JointLoss loss = joint_loss(t, s->setup.joint, batch, pass);
    if (failed(s)) return;
    if (loss.total && tape_recording(t)) tape_backward(t, loss.total, ALL_GRADIENTS);
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!loss.mean[o]) continue;
        if (s->setup.gate)
            step_gate_loss(s->setup.gate, piece - s->setup.first, (Objective)o, loss.mean[o]);
        else
            s->reads[piece].mean[o] = backend_read_start(backend_of(s), loss.mean[o]->data, sizeof(float));
    }
    failed(s);
}

// The losses of own pieces, from where they were left.
static void read_losses(Step *s) {
    for (int i = s->setup.first; i < s->setup.end; i++)
        for (int o = 0; o < OBJECTIVES; o++) {
            float value = 0;
            BackendRead *read = s->reads[i].mean[o];
            if (read) backend_read_finish(backend_of(s), read, &value);
            if (read) s->pieces[i].mean[o] = (double)value;
        }
}

// Of a sum over a piece's pairs.
static double pair_mean(const Step *s, double sum) { return sum / (double)s->loss.count[OBJECTIVE_CONTRASTIVE]; }

// The losses of all pieces, of all ranks, and what became of the step.
static void read_verdict(Step *s) {
    GateLoss *losses = arena_array(s->memory, GateLoss, s->setup.pieces);
    bool apart = s->setup.pieces > 1 && s->loss.count[OBJECTIVE_CONTRASTIVE];
    Gate gate;
    step_gate_finish(s->setup.gate, s->verdict, &gate, losses);
    s->loss.norm = gate.norm;
    for (int i = 0; i < s->setup.pieces; i++) {
        memcpy(s->pieces[i].mean, losses[i].mean, sizeof losses[i].mean);
        if (apart) s->pieces[i].mean[OBJECTIVE_CONTRASTIVE] = pair_mean(s, losses[i].pairs);
    }
}

// ---- the loss over pairs of several pieces ----

// Of a piece's pairs, into their place from row `row` on.
static void keep_features(Step *s, const Batch *piece, int64_t row) {
    Tape *t = s->setup.tape;
    Backend *b = backend_of(s);
    Tensor *images, *texts;
    backend_sequence_begin(b, "features of pairs");
    joint_pair_features(t, s->setup.joint, piece, &s->pass, &images, &texts);
    if (!failed(s)) {
        b->copy(b, step_pairs_images(s->pairs, row), images->data, tensor_bytes(images));
        b->copy(b, step_pairs_texts(s->pairs, row), texts->data, tensor_bytes(texts));
    }
    backend_sequence_end(b);
}

// Features of this rank's pairs, piece by piece.
static void cache_features(Step *s) {
    Tape *t = s->setup.tape;
    bool recording = tape_recording(t);
    tape_set_recording(t, false);
    for (int i = s->setup.first; i < s->setup.end && !failed(s); i++) {
        ArenaMark mark = arena_mark(s->memory);
        Batch piece = piece_of(s, i);
        tape_reset(t);
        if (piece.contrastive.rows) keep_features(s, &piece, first_pair(s, i));
        arena_rewind(s->memory, mark);
    }
    tape_set_recording(t, recording);
}

static void begin_pairs(Step *s) {
    const StepSetup *setup = &s->setup;
    int64_t all = s->loss.count[OBJECTIVE_CONTRASTIVE], *rows = arena_array(s->memory, int64_t, setup->pieces);
    for (int i = 0; i < setup->pieces; i++)
        rows[i] = batch_share(all, i + 1, setup->pieces) - batch_share(all, i, setup->pieces);
    s->pairs = setup->pairs ? setup->pairs : (s->own_pairs = step_pairs_new(backend_of(s)));
    step_pairs_begin(s->pairs, setup->data, rows, setup->pieces, joint_config(setup->joint)->embedding);
}

// The loss over the pairs of all ranks; features of the own pairs become their gradients.
static void pair_gradients(Step *s) {
    const StepSetup *setup = &s->setup;
    Tape *t = setup->tape;
    bool recording = tape_recording(t);
    int own = setup->end - setup->first;
    tape_reset(t);
    tape_set_recording(t, false);
    if (setup->pipeline) parameters_meet(joint_parameters(setup->joint)); // nobody follows this tape
    backend_sequence_begin(backend_of(s), "loss of all pairs");
    step_pairs_loss(s->pairs, t, setup->joint, recording);
    backend_sequence_end(backend_of(s));
    tape_set_recording(t, recording);
    s->paired = true;
    if (setup->gate) return;
    double *sums = arena_array(s->memory, double, own);
    backend_of(s)->download(backend_of(s), sums, step_pairs_sums(s->pairs), (size_t)own * sizeof *sums);
    for (int i = 0; i < own; i++) s->pieces[setup->first + i].mean[OBJECTIVE_CONTRASTIVE] = pair_mean(s, sums[i]);
}

// ---- a rank that has the whole model ----

static void begin_gate(const Step *s) {
    step_gate_begin(s->setup.gate);
    if (s->paired) step_gate_pairs(s->setup.gate, step_pairs_sums(s->pairs));
}

static void run_pieces(Step *s) {
    const StepSetup *setup = &s->setup;
    bool pairs = s->loss.count[OBJECTIVE_CONTRASTIVE] > 0 && setup->pieces > 1;
    if (pairs) {
        double begin = trace_now();
        begin_pairs(s);
        cache_features(s);
        double cached = trace_now();
        pair_gradients(s);
        trace_slice(setup->trace, "compute", "features of all pairs", begin, cached);
        trace_slice(setup->trace, "compute", "loss of all pairs", cached, trace_now());
    }
    bool recording = tape_recording(setup->tape);
    if (recording) gradients_begin_step(setup->gradients, setup->end - setup->first);
    for (int i = setup->first; i < setup->end; i++) {
        ArenaMark mark = arena_mark(s->memory);
        Batch piece = piece_of(s, i);
        JointPass pass = s->pass;
        backend_sequence_begin(backend_of(s), recording ? "training step" : "losses");
        if (setup->gate && i == setup->first) begin_gate(s);
        if (pairs && recording)
            step_pairs_play(s->pairs, i - setup->first, first_pair(s, i), &pass);
        else if (pairs)
            piece.contrastive.rows = 0; // without gradients there is nothing to play back
        if (recording) gradients_begin_piece(setup->gradients, i - setup->first);
        if (!failed(s)) run_piece(s, i, &piece, &pass);
        if (recording) gradients_end_piece(setup->gradients);
        if (!setup->gate || i + 1 < setup->end) backend_sequence_end(backend_of(s)); // else step_send does
        arena_rewind(s->memory, mark);
    }
}

// ---- the same on a stage of a pipeline ----

static void run_rows(Step *s, PipelineMode mode, const PipelineMicrobatch *microbatches, PipelineResult *results,
                     const int64_t *first_pairs) {
    Error error;
    float *images = s->pairs ? step_pairs_images(s->pairs, 0) : NULL;
    float *texts = s->pairs ? step_pairs_texts(s->pairs, 0) : NULL;
    if (!pipeline_run(s->setup.pipeline, mode, microbatches, results, first_pairs, images, texts, &error) &&
        !s->error.kind)
        s->error = error;
}

// What is formed on the stage of the last part: features of all microbatches, then their loss and gradients, which the
// microbatches get.
static void run_pairs(Step *s, PipelineMicrobatch *microbatches, PipelineResult *results) {
    const StepSetup *setup = &s->setup;
    int count = setup->end - setup->first;
    bool last = pipeline_has_last(setup->pipeline);
    int64_t *at = arena_array(s->memory, int64_t, count);
    double begin = trace_now();
    if (last) begin_pairs(s);
    for (int i = 0; i < count; i++) at[i] = first_pair(s, setup->first + i);
    run_rows(s, PIPELINE_FEATURES, microbatches, results, at);
    double cached = trace_now();
    trace_slice(setup->trace, "compute", "features of all pairs", begin, cached);
    if (last) {
        pair_gradients(s);
        trace_slice(setup->trace, "compute", "loss of all pairs", cached, trace_now());
    }
    for (int i = 0; i < count; i++) {
        JointPass *pass = &microbatches[i].pass;
        if (!tape_recording(setup->tape)) microbatches[i].batch.contrastive.rows = 0; // nothing to be played back
        if (!last || !tape_recording(setup->tape)) continue;
        step_pairs_play(s->pairs, i, at[i], pass);
    }
}

static void leave_loss(void *gate, int microbatch, Objective o, const Tensor *mean) {
    step_gate_loss(gate, microbatch, o, mean);
}

static void run_stage(Step *s) {
    const StepSetup *setup = &s->setup;
    int count = setup->end - setup->first;
    bool recording = tape_recording(setup->tape);
    PipelineMicrobatch *microbatches = arena_array(s->memory, PipelineMicrobatch, count);
    PipelineResult *results = arena_array(s->memory, PipelineResult, count);
    for (int i = 0; i < count; i++)
        microbatches[i] = (PipelineMicrobatch){.batch = piece_of(s, setup->first + i), .pass = s->pass};
    if (s->loss.count[OBJECTIVE_CONTRASTIVE] > 0 && setup->pieces > 1) run_pairs(s, microbatches, results);
    if (recording) gradients_begin_step(setup->gradients, count);
    pipeline_leave_losses(setup->pipeline, setup->gate ? leave_loss : NULL, setup->gate);
    if (setup->gate) begin_gate(s);
    run_rows(s, recording ? PIPELINE_TRAIN : PIPELINE_LOSSES, microbatches, results, NULL);
    if (setup->gate) backend_sequence_begin(backend_of(s), "end of a step"); // step_send ends it
    for (int i = 0; i < count; i++)
        for (int o = 0; o < OBJECTIVES; o++) s->pieces[setup->first + i].mean[o] += results[i].mean[o];
}

// ---- what all ranks get ----

// Every rank gets the losses of all pieces, and whether all could do their part.
static bool exchange_losses(Step *s) {
    const StepSetup *setup = &s->setup;
    bool ok = true;
    PieceLoss *own = s->pieces + setup->first;
    if (s->error.kind && setup->first < setup->end) own->failed = 1;
    if (setup->pipeline) // each number is formed on one stage, and 0 on the others
        comm_all_reduce(setup->stages, own, (setup->end - setup->first) * (int64_t)(sizeof *own / sizeof(double)),
                        COMM_F64, COMM_SUM, COMM_ORDERED, "losses of stages");
    comm_all_gather(setup->data, s->pieces, own, setup->pieces, sizeof *s->pieces, "losses");
    for (int i = 0; i < setup->pieces; i++) ok &= s->pieces[i].failed == 0;
    if (!ok && !s->error.kind) error_set(&s->error, ERROR_FAILED, "another rank could not do its part of the step");
    return ok;
}

// Of all pieces, in their order.
static void add_losses(Step *s) {
    const JointConfig *c = joint_config(s->setup.joint);
    for (int i = 0; i < s->setup.pieces; i++)
        for (int o = 0; o < OBJECTIVES; o++) s->loss.mean[o] += s->pieces[i].mean[o];
    for (int o = 0; o < OBJECTIVES; o++)
        if (s->loss.count[o]) s->loss.total += c->weight[o] * s->loss.mean[o];
}

StepUnderWay *step_start(const StepSetup *setup, const Batch *batch) {
    Arena *memory = arena_new(1 << 20);
    Step *s = arena_zeroed(memory, sizeof *s);
    *s = (Step){.setup = *setup, .batch = batch, .memory = memory};
    joint_counts(joint_config(setup->joint), batch, s->loss.count);
    comm_all_reduce(setup->data, s->loss.count, OBJECTIVES, COMM_I64, COMM_SUM, COMM_FAST, "counts");
    s->pass = (JointPass){.seed = setup->seed,
                          .training = tape_recording(setup->tape),
                          .global_count = s->loss.count,
                          .trace = setup->trace};
    s->pieces = arena_array(memory, PieceLoss, setup->pieces);
    s->reads = arena_array(memory, PieceReads, setup->pieces);
    if (setup->pipeline)
        run_stage(s);
    else
        run_pieces(s);
    parameters_meet(joint_parameters(setup->joint));
    return s;
}

const Error *step_failed(const StepUnderWay *s) { return s->error.kind ? &s->error : NULL; }

void step_send(StepUnderWay *s) {
    s->verdict = step_gate_read(s->setup.gate);
    backend_sequence_end(backend_of(s));
}

static void forget(Step *s) {
    for (int i = 0; i < s->setup.pieces; i++)
        for (int o = 0; o < OBJECTIVES; o++) backend_read_finish(backend_of(s), s->reads[i].mean[o], NULL);
    if (s->verdict) step_gate_finish(s->setup.gate, s->verdict, NULL, NULL);
}

bool step_finish(StepUnderWay *s, StepLoss *loss, Error *error) {
    bool ok = true;
    if (loss) {
        if (s->setup.gate)
            read_verdict(s);
        else
            read_losses(s);
        ok = s->setup.gate ? !s->error.kind : exchange_losses(s);
        add_losses(s);
        *loss = s->loss;
        *error = s->error;
    } else {
        forget(s);
    }
    step_pairs_free(s->own_pairs);
    arena_free(s->memory);
    return ok;
}

bool step_run(const StepSetup *setup, const Batch *batch, StepLoss *loss, Error *error) {
    check(!setup->gate && "the host judges");
    return step_finish(step_start(setup, batch), loss, error);
}

void step_check_finite(const StepSetup *setup, bool on) {
    if (setup->pipeline)
        pipeline_check_finite(setup->pipeline, on);
    else
        tape_check_finite(setup->tape, on);
}

const char *step_not_finite(const StepSetup *setup) {
    return setup->pipeline ? pipeline_not_finite(setup->pipeline) : tape_not_finite(setup->tape);
}
