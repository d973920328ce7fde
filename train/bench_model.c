/* See bench_model.h. Joint presets run what `bifocal train` runs (step.h); the others their own few lines over the same
 * layers. B rows of a piece. */
#include "train/bench_model.h"
#include "base/philox.h"
#include "train/gradients.h"
#include "train/step.h"
#include "train/synthetic.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_PIECES = 64,
    MOST_INPUTS = 8,
    MOST_UNDER_WAY = 2, // steps
    DRAWN = 1000003,    // numbers drawn before they come again: prime, no row's
};

typedef struct Shared { // of a joint model
    TrainConfig config;
    SourceConfig sources[2];
    Joint *joint;
    Batch batch;
} Shared;

typedef struct UnderWay { // a step
    StepUnderWay *joint;
    BackendRead *read; // of the gate
    double loss;       // where the host judged it
} UnderWay;

struct BenchModel {
    BenchPreset preset;
    int64_t rows; // B
    Recompute recompute;
    Dtype compute;
    Backend *backend;
    Arena *memory;
    Parameters *parameters;
    Tape *tape;
    Text text;
    Vit vision;
    Mae mae;
    Tensor *head, *see, *read, *log_scale;                      // classifier; projections and scale of a pair
    Tensor *ids, *targets, *positions, *ends, *labels, *pixels; // inputs, on the device
    int32_t *keep, *masked;                                     // of mae, on the host
    Tensor *inputs[MOST_INPUTS];                                // all of them, to be released
    int input_count;
    Gradients *gradients;
    StepGate *gate; // NULL: the host judges
    UnderWay steps[MOST_UNDER_WAY];
    int started, finished; // steps
    Shared *shared;        // NULL: not a joint one
};

// ---- inputs ----

static Tensor *input(BenchModel *m, Dtype dtype, int rank, const int64_t *shape, const void *host) {
    Tensor *x = arena_array(m->memory, Tensor, 1);
    *x = (Tensor){.rank = rank, .dtype = dtype, .borrowed = true, .name = "input"};
    for (int d = 0; d < rank; d++) x->shape[d] = shape[d];
    x->data = m->backend->allocate(m->backend, tensor_bytes(x));
    check(x->data && m->input_count < MOST_INPUTS);
    m->inputs[m->input_count++] = x;
    if (!m->backend->dry) m->backend->upload(m->backend, x->data, host, tensor_bytes(x));
    return x;
}

static int32_t *random_ids(BenchModel *m, int64_t count, int64_t below, uint64_t stream) {
    int32_t *ids = arena_array(m->memory, int32_t, count);
    Rng rng = rng_for(1, PURPOSE_TEST, stream);
    for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)rng_below(&rng, (uint64_t)below);
    return ids;
}

static void draw_text(BenchModel *m) {
    int64_t length = m->preset.text.context, words = m->preset.text.vocabulary, places = m->rows * length;
    int32_t *positions = arena_array(m->memory, int32_t, places), *ends = arena_array(m->memory, int32_t, m->rows);
    for (int64_t i = 0; i < places; i++) positions[i] = (int32_t)(i % length);
    for (int64_t i = 0; i < m->rows; i++) ends[i] = (int32_t)((i + 1) * length - 1);
    m->ids = input(m, I32, SHAPE(m->rows, length), random_ids(m, places, words, 1));
    m->targets = input(m, I32, SHAPE(places), random_ids(m, places, words, 2));
    m->positions = input(m, I32, SHAPE(places), positions);
    m->ends = input(m, I32, SHAPE(m->rows), ends);
}

// (B, 3, S, S) in the type of the activations, of mean 0 and deviation 1. Normalised pictures, not bytes: nor are the
// peers' inputs.
static void draw_pictures(BenchModel *m) {
    int64_t side = m->preset.vision.image_size, count = m->rows * 3 * side * side;
    char *pixels = m->backend->dry ? NULL : malloc((size_t)count * dtype_size(m->compute));
    Rng rng = rng_for(1, PURPOSE_TEST, 3);
    check(pixels || m->backend->dry);
    for (int64_t i = 0; pixels && i < count; i++) {
        size_t from = (size_t)(i - DRAWN) * dtype_size(m->compute), to = (size_t)i * dtype_size(m->compute);
        float x = i < DRAWN ? (float)rng_normal(&rng) : 0;
        uint16_t half = f32_to_bf16(x);
        memcpy(pixels + to,
               i >= DRAWN          ? pixels + from
               : m->compute == F32 ? (char *)&x
                                   : (char *)&half,
               dtype_size(m->compute));
    }
    m->pixels = input(m, m->compute, SHAPE(m->rows, 3, side, side), pixels);
    free(pixels);
}

static void draw_masks(BenchModel *m) {
    const BenchPreset *p = &m->preset;
    int64_t patches = vit_patches(&p->vision), kept = mae_kept(&p->mae, &p->vision);
    m->keep = arena_array(m->memory, int32_t, m->rows * kept);
    m->masked = arena_array(m->memory, int32_t, m->rows * (patches - kept));
    for (int64_t i = 0; i < m->rows; i++)
        mae_mask(1, (uint64_t)i, patches, kept, m->keep + i * kept, m->masked + i * (patches - kept));
}

static void draw_inputs(BenchModel *m) {
    const BenchPreset *p = &m->preset;
    if (p->kind == BENCH_LANGUAGE || p->kind == BENCH_PAIRS) draw_text(m);
    if (p->kind != BENCH_LANGUAGE) draw_pictures(m);
    if (p->kind == BENCH_CLASSIFIER) m->labels = input(m, I32, SHAPE(m->rows), random_ids(m, m->rows, p->classes, 4));
    if (p->kind == BENCH_AUTOENCODER) draw_masks(m);
}

// ---- the models but the joint one ----

static bool declare(BenchModel *m, Error *error) {
    const BenchPreset *p = &m->preset;
    const Init normal = {.kind = INIT_NORMAL, .value = 0.02};
    if ((p->kind == BENCH_LANGUAGE || p->kind == BENCH_PAIRS) &&
        !text_declare(&m->text, m->parameters, m->memory, "text", &p->text, error))
        return false;
    if (p->kind != BENCH_LANGUAGE && !vit_declare(&m->vision, m->parameters, m->memory, "vision", &p->vision, error))
        return false;
    if (p->kind == BENCH_AUTOENCODER &&
        !mae_declare(&m->mae, m->parameters, m->memory, "mae", &p->mae, &p->vision, error))
        return false;
    if (p->kind == BENCH_CLASSIFIER)
        m->head = parameters_add(m->parameters, "head", SHAPE(p->classes, p->vision.width), normal, true);
    if (p->kind != BENCH_PAIRS) return true;
    m->see = parameters_add(m->parameters, "see", SHAPE(p->embedding, p->vision.width), normal, true);
    m->read = parameters_add(m->parameters, "read", SHAPE(p->embedding, p->text.width), normal, true);
    m->log_scale =
        parameters_add(m->parameters, "log_scale", SHAPE(1), (Init){.kind = INIT_CONSTANT, .value = 2.66}, false);
    return true;
}

static Tensor *text_states(BenchModel *m) { // (B T, C)
    BlockContext context = {.causal = true, .positions = m->positions, .training = true, .recompute = m->recompute};
    return text_forward(m->tape, &m->text, text_embed(m->tape, &m->text, m->ids), &context);
}

static Tensor *pooled_pictures(BenchModel *m) { // (B, C)
    BlockContext context = {.training = true, .recompute = m->recompute};
    return vit_pool(m->tape, &m->vision, vit_forward(m->tape, &m->vision, m->pixels, NULL, 0, &context));
}

static Tensor *pair_losses(BenchModel *m) { // summed
    Tensor *seen = linear(m->tape, pooled_pictures(m), m->see, NULL);
    Tensor *text = linear(m->tape, gather_rows(m->tape, text_states(m), m->ends), m->read, NULL);
    return clip_loss(m->tape, l2_normalize(m->tape, seen), l2_normalize(m->tape, text), m->log_scale);
}

// The mean of a piece, by the number of pieces.
static Tensor *loss_of_piece(BenchModel *m) {
    const BenchPreset *p = &m->preset;
    double rows = (double)p->batch, words = rows * (double)p->text.context;
    BlockContext context = {.training = true, .recompute = m->recompute};
    switch (p->kind) {
    case BENCH_LANGUAGE:
        return sum(m->tape, cross_entropy_sum(m->tape, text_states(m), m->text.head, m->targets, NULL), 1 / words);
    case BENCH_CLASSIFIER:
        return sum(m->tape, cross_entropy_sum(m->tape, pooled_pictures(m), m->head, m->labels, NULL), 1 / rows);
    case BENCH_AUTOENCODER:
        rows *= (double)(vit_patches(&p->vision) - mae_kept(&p->mae, &p->vision));
        return scale(m->tape, mae_loss(m->tape, &m->mae, &m->vision, m->pixels, m->keep, m->masked, &context),
                     1 / rows);
    case BENCH_PAIRS:
        return scale(m->tape, pair_losses(m), 1 / rows);
    case BENCH_JOINT:
        break;
    }
    check_failed("a preset of its own", __FILE__, __LINE__);
}

// Forward and backward over all pieces; what the host wants of their losses is read behind it.
static void run_pieces(BenchModel *m, BackendRead **reads) {
    int pieces = (int)m->preset.pieces;
    gradients_begin_step(m->gradients, pieces);
    for (int i = 0; i < pieces; i++) {
        gradients_begin_piece(m->gradients, i);
        tape_reset(m->tape);
        Tensor *mean = loss_of_piece(m);
        if (mean && m->gate) step_gate_loss(m->gate, i, OBJECTIVE_LM, mean);
        if (mean && !m->gate) reads[i] = backend_read_start(m->backend, mean->data, sizeof(float));
        if (mean) tape_backward(m->tape, mean, ALL_GRADIENTS);
        gradients_end_piece(m->gradients);
        if (tape_error(m->tape)) return;
    }
}

static double sum_of(BenchModel *m, BackendRead **reads) {
    double loss = 0;
    for (int64_t i = 0; i < m->preset.pieces; i++) {
        float part = NAN;
        if (reads[i]) backend_read_finish(m->backend, reads[i], &part);
        loss += (double)part;
    }
    return loss;
}

static bool start_own(BenchModel *m, UnderWay *w, Optimizer *optimizer, int64_t number, double clip, Error *error) {
    BackendRead *reads[MOST_PIECES] = {0};
    backend_sequence_begin(m->backend, "step");
    if (m->gate) step_gate_begin(m->gate);
    run_pieces(m, reads);
    bool ok = !tape_error(m->tape) || error_set(error, ERROR_FAILED, "%s", tape_error(m->tape));
    if (ok && m->gate) {
        const Gate *verdict = step_gate_close(m->gate, m->gradients, clip);
        if (optimizer) optimizer_step_gated(optimizer, number, verdict);
        w->read = step_gate_read(m->gate);
    } else if (ok) {
        double norm = gradients_norm(m->gradients);
        if (optimizer) optimizer_step(optimizer, number, norm);
    }
    backend_sequence_end(m->backend);
    if (!m->gate) w->loss = sum_of(m, reads);
    return ok;
}

static bool open_own(BenchModel *m, Error *error) {
    m->parameters = parameters_new(m->backend, NULL);
    if (!declare(m, error) || !parameters_finish(m->parameters, m->compute, 1, error)) return false;
    m->tape = tape_new(m->backend, true);
    m->gradients = gradients_new(m->parameters, m->tape, NULL);
    draw_inputs(m);
    return true;
}

// ---- the joint model ----

static void joint_batch(BenchModel *m) {
    const BenchPreset *p = &m->preset;
    Shared *s = m->shared;
    unsigned pictures = 0;
    for (int o = 0; o < OBJECTIVES; o++)
        if (o != OBJECTIVE_LM && p->weight[o] > 0) pictures |= 1u << o;
    bool text = p->weight[OBJECTIVE_LM] > 0;
    s->sources[0] = (SourceConfig){.objectives = 1u << OBJECTIVE_LM, .batch = p->lm_rows, .one_per = ""};
    s->sources[text] = (SourceConfig){.objectives = pictures, .batch = p->batch, .one_per = ""};
    s->config.data.items = s->sources;
    s->config.data.count = text + (pictures != 0);
    s->config.microbatches = p->pieces;
    s->config.lm_length = p->text.context;
    s->config.caption_length = p->caption_length;
    s->config.contrastive_length = p->text.context < 77 ? p->text.context : 77;
    s->batch = synthetic_batch(&s->config, 0, 1, m->memory);
}

static bool open_joint(BenchModel *m, Error *error) {
    const BenchPreset *p = &m->preset;
    m->shared = calloc(1, sizeof *m->shared);
    check(m->shared);
    JointConfig *c = &m->shared->config.model;
    *c = (JointConfig){.vision = p->vision,
                       .text = p->text,
                       .mae = p->mae,
                       .connector = CONNECTOR_MLP,
                       .embedding = p->embedding,
                       .recompute = m->recompute};
    for (int i = 0; i < 3; i++) c->pixel_mean[i] = c->pixel_std[i] = 0.5;
    for (int o = 0; o < OBJECTIVES; o++) {
        c->weight[o] = p->weight[o];
        c->has_vision |= o != OBJECTIVE_LM && p->weight[o] > 0;
    }
    m->shared->joint = joint_new(m->backend, c, NULL, m->compute, 1, error);
    if (!m->shared->joint) return false;
    m->parameters = joint_parameters(m->shared->joint);
    m->tape = tape_new(m->backend, true);
    m->gradients = gradients_new(m->parameters, m->tape, NULL);
    joint_batch(m);
    return true;
}

static bool start_joint(BenchModel *m, UnderWay *w, Optimizer *optimizer, int64_t number, double clip, Error *error) {
    Shared *s = m->shared;
    StepLoss out;
    StepSetup setup = {.tape = m->tape,
                       .joint = s->joint,
                       .gradients = m->gradients,
                       .pieces = (int)m->preset.pieces,
                       .end = (int)m->preset.pieces,
                       .gate = m->gate,
                       .seed = 1};
    if (m->gate) {
        w->joint = step_start(&setup, &s->batch);
        const Gate *verdict = step_failed(w->joint) ? NULL : step_gate_close(m->gate, m->gradients, clip);
        if (verdict && optimizer) optimizer_step_gated(optimizer, number, verdict);
        step_send(w->joint);
        return true;
    }
    backend_sequence_begin(m->backend, "step");
    bool ok = step_run(&setup, &s->batch, &out, error);
    if (ok) {
        double norm = gradients_norm(m->gradients);
        if (optimizer) optimizer_step(optimizer, number, norm);
    }
    backend_sequence_end(m->backend);
    w->loss = out.total;
    return ok;
}

// ---- both ----

BenchModel *bench_model_new(Backend *backend, const BenchPreset *p, Dtype compute, Recompute recompute, Error *error) {
    BenchModel *m = calloc(1, sizeof *m);
    check(m && p->pieces > 0 && p->pieces <= MOST_PIECES && p->batch % p->pieces == 0);
    *m = (BenchModel){.preset = *p, .rows = p->batch / p->pieces, .recompute = recompute, .compute = compute};
    m->backend = backend;
    m->memory = arena_new(1 << 20);
    bool beside = strcmp(backend->name, "cpu") != 0;
    m->gate = beside ? step_gate_new(backend, (int)p->pieces, NULL, NULL) : NULL;
    if (p->kind == BENCH_JOINT ? open_joint(m, error) : open_own(m, error)) return m;
    bench_model_free(m);
    return NULL;
}

void bench_model_free(BenchModel *m) {
    if (!m) return;
    double ignored;
    Error error;
    while (m->finished < m->started) bench_model_finish(m, &ignored, &error);
    step_gate_free(m->gate);
    gradients_free(m->gradients);
    tape_free(m->tape);
    for (int i = 0; i < m->input_count; i++)
        m->backend->release(m->backend, m->inputs[i]->data, tensor_bytes(m->inputs[i]));
    if (m->shared)
        joint_free(m->shared->joint);
    else
        parameters_free(m->parameters);
    free(m->shared);
    arena_free(m->memory);
    free(m);
}

Parameters *bench_model_parameters(const BenchModel *m) { return m->parameters; }
Tape *bench_model_tape(const BenchModel *m) { return m->tape; }

double bench_model_inputs(const BenchModel *m) {
    double bytes = 0;
    for (int i = 0; i < m->input_count; i++) bytes += (double)tensor_bytes(m->inputs[i]);
    return bytes;
}

double bench_model_flop(const BenchModel *m) {
    return m->shared ? joint_flop(&m->shared->config.model, &m->shared->batch) : bench_preset_flop(&m->preset);
}

bool bench_model_start(BenchModel *m, Optimizer *optimizer, int64_t number, double clip, Error *error) {
    check(m->started - m->finished < MOST_UNDER_WAY);
    UnderWay *w = &m->steps[m->started % MOST_UNDER_WAY];
    *w = (UnderWay){0};
    bool ok =
        m->shared ? start_joint(m, w, optimizer, number, clip, error) : start_own(m, w, optimizer, number, clip, error);
    if (ok || w->joint || w->read) m->started++;
    return ok;
}

bool bench_model_finish(BenchModel *m, double *loss, Error *error) {
    check(m->finished < m->started);
    UnderWay *w = &m->steps[m->finished++ % MOST_UNDER_WAY];
    StepLoss of_joint;
    Gate verdict;
    GateLoss losses[MOST_PIECES];
    *loss = w->loss;
    if (w->joint) {
        if (!step_finish(w->joint, &of_joint, error)) return false;
        *loss = of_joint.total;
    } else if (w->read) {
        step_gate_finish(m->gate, w->read, &verdict, losses);
        for (int64_t i = 0; i < m->preset.pieces; i++) *loss += losses[i].mean[OBJECTIVE_LM];
    }
    return true;
}
