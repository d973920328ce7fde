/* See device_memory.h. A step in pieces runs as step.c runs it. Pieces of one shape leave memory alike, so that one of
 * each shape is enough, but where sums over pieces are held beside them. */
#include "train/device_memory.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/device.h"
#include "kernels/dry.h"
#include "kernels/dry_gpu.h"
#include "train/gradients.h"
#include "train/kernel_costs.h"
#include "train/optimizer.h"
#include "train/rehearsal.h"
#include "train/step_gate.h"
#include "train/step_pairs.h"
#include "train/synthetic.h"
#include "train/unit_costs.h"
#include <math.h>
#include <string.h>

typedef struct Rehearsed { // a rank of the run
    const TrainConfig *config;
    const Layout *layout;
    const GpuKind *gpu;
    Backend *backend;
    Parallel parallel;
    Joint *joint;
    Optimizer *optimizer;
    Gradients *gradients;
    Tape *tape, *inference;
    Arena *memory;
    SyntheticShape *shapes; // (pieces)
    const float *features;  // stands for gradients of features of pairs
    int first, end;         // this rank's pieces
    StepGate *gate;         // of a GPU; likewise
    StepPairs *pairs;
    void *reads[3]; // device memory of losses on their way to the host
    bool whole;     // every piece runs, though others of its shape did
} Rehearsed;

DeviceLimit device_limit(double bytes) {
    return (DeviceLimit){.bytes = bytes, .context = GPU_CONTEXT_BYTES + GPU_LIBRARIES_BYTES};
}

double device_memory_total(const DeviceMemory *m) { return m->tensors + m->context; }

static double held(const Rehearsed *r) { return (double)dry_gpu_memory(r->backend).regions; }
static bool on_gpu(const Rehearsed *r) { return r->config->device != DEVICE_CPU; }

static DryRates processor_rates(const TrainConfig *c) {
    MachineRates r = machine_rates(c);
    return (DryRates){.bf16 = r.flops, .f32 = r.flops, .fp8 = r.flops, .bandwidth = r.bandwidth};
}

// ---- a rank ----

static bool open_rank(Rehearsed *r, size_t limit, Error *error) {
    const TrainConfig *c = r->config;
    const int *size = r->layout->size;
    r->backend = on_gpu(r) ? dry_gpu_new(limit) : dry_backend_new();
    DryRates rates = on_gpu(r) ? kernel_rates_expected(r->gpu) : processor_rates(c);
    dry_set_rates(r->backend, &rates);
    r->parallel = rehearsal_parallel(c);
    r->parallel.data = size[MESH_DATA] > 1 ? comm_dry_new(size[MESH_DATA]) : NULL;
    r->parallel.zero = (int)c->parallel.zero;
    r->parallel.bucket_bytes = c->parallel.bucket;
    r->parallel.ordered = c->reproducible == REPRODUCIBLE_LAYOUT;
    r->parallel.offload = c->offload == OFFLOAD_STATES;
    r->first = layout_first(r->layout, size[MESH_DATA] - 1);
    r->end = layout_first(r->layout, size[MESH_DATA]);
    r->joint = joint_new(r->backend, &c->model, &r->parallel, c->precision ? BF16 : F32, (uint64_t)c->seed, error);
    return r->joint != NULL;
}

static void close_rank(Rehearsed *r) {
    for (int i = 0; i < 3; i++) r->backend->release(r->backend, r->reads[i], WORK_BLOCK_FIRST);
    step_gate_free(r->gate);
    step_pairs_free(r->pairs);
    gradients_free(r->gradients);
    tape_free(r->tape);
    tape_free(r->inference);
    optimizer_free(r->optimizer);
    joint_free(r->joint);
    comm_free(r->parallel.data);
    rehearsal_parallel_free(&r->parallel);
    backend_free(r->backend);
    arena_free(r->memory);
}

static void open_step(Rehearsed *r) {
    Parameters *parameters = joint_parameters(r->joint);
    int pieces = r->layout->pieces, pairs = 0;
    r->optimizer = optimizer_new(r->backend, parameters, &r->config->optimizer, r->config->steps);
    r->tape = tape_new(r->backend, true);
    r->inference = tape_new(r->backend, false);
    parameters_follow(parameters, r->inference);
    r->gradients = gradients_new(parameters, r->tape, NULL);
    r->shapes = arena_array(r->memory, SyntheticShape, pieces);
    synthetic_shapes(r->config, pieces, r->shapes);
    for (int i = r->first; i < r->end; i++)
        if (r->shapes[i].rows[OBJECTIVE_CONTRASTIVE] > pairs) pairs = r->shapes[i].rows[OBJECTIVE_CONTRASTIVE];
    r->features = arena_array(r->memory, float, (int64_t)pairs * r->config->model.embedding + 1);
}

// ---- its step ----

static bool seen_before(const Rehearsed *r, int piece) {
    for (int i = r->first; i < piece; i++)
        if (!memcmp(&r->shapes[i], &r->shapes[piece], sizeof *r->shapes)) return true;
    return false;
}

// The loss over the pairs of several pieces is formed elsewhere (step_pairs.h).
static bool pairs_elsewhere(const Rehearsed *r, const Batch *piece) {
    return r->layout->pieces > 1 && piece->contrastive.rows > 0;
}

static void run_features(const Rehearsed *r, Tape *t, const Batch *piece) {
    JointPass pass = {.seed = 1, .training = t == r->tape};
    Tensor *images, *texts;
    if (!pairs_elsewhere(r, piece)) return;
    backend_sequence_begin(r->backend, "features of pairs");
    tape_set_recording(t, false);
    tape_reset(t);
    joint_pair_features(t, r->joint, piece, &pass, &images, &texts);
    tape_set_recording(t, t == r->tape);
    backend_sequence_end(r->backend);
}

static void run_piece(const Rehearsed *r, Tape *t, const Batch *given) {
    Batch batch = *given, *piece = &batch;
    bool training = t == r->tape, elsewhere = pairs_elsewhere(r, piece);
    JointPass pass = {.seed = 1,
                      .training = training,
                      .image_gradient = elsewhere && training ? r->features : NULL,
                      .text_gradient = elsewhere && training ? r->features : NULL,
                      .scale_gradient = r->features,
                      .bias_gradient = r->features};
    if (elsewhere && !training) piece->contrastive.rows = 0;
    tape_reset(t);
    backend_sequence_begin(r->backend, training ? "training step" : "losses");
    JointLoss loss = joint_loss(t, r->joint, piece, &pass);
    if (loss.total && training) tape_backward(t, loss.total, ALL_GRADIENTS);
    backend_sequence_end(r->backend);
}

typedef void PieceRun(const Rehearsed *, Tape *, const Batch *);

static void with_batch(const Rehearsed *r, Tape *t, int piece, PieceRun *run) {
    ArenaMark mark = arena_mark(r->memory);
    Batch batch = synthetic_batch_dry(r->config, piece, r->layout->pieces, r->memory);
    run(r, t, &batch);
    arena_rewind(r->memory, mark);
}

static void features_of_pieces(const Rehearsed *r, Tape *t) {
    for (int i = r->first; i < r->end; i++)
        if (!seen_before(r, i)) with_batch(r, t, i, run_features);
}

// The block in which steps are judged, and what the CUDA backend holds for reads of it (cuda_read.c): a place, and one
// for each of the two steps whose numbers the host does not have yet.
static void open_gate(Rehearsed *r) {
    r->gate = step_gate_new(r->backend, r->end - r->first, r->parallel.data, NULL);
    for (int i = 0; i < 3; i++) r->reads[i] = r->backend->allocate(r->backend, WORK_BLOCK_FIRST);
}

static void open_pairs(Rehearsed *r) {
    int64_t any = 0, *rows = arena_array(r->memory, int64_t, r->layout->pieces);
    for (int i = 0; i < r->layout->pieces; i++) any |= rows[i] = r->shapes[i].rows[OBJECTIVE_CONTRASTIVE];
    if (!any || r->layout->pieces == 1) return;
    r->pairs = step_pairs_new(r->backend);
    step_pairs_begin(r->pairs, r->parallel.data, rows, r->layout->pieces, r->config->model.embedding);
}

static int pieces_like(const Rehearsed *r, int piece) {
    int count = 0;
    for (int i = r->first; i < r->end; i++) count += !memcmp(&r->shapes[i], &r->shapes[piece], sizeof *r->shapes);
    return count;
}

// Sums that wait for other pieces, or other ranks, are held while the next pieces run. The seconds that it would take.
static double run_step(const Rehearsed *r) {
    bool every = r->whole || r->parallel.ordered || (r->parallel.data && r->parallel.zero >= 2);
    double skipped = 0;
    features_of_pieces(r, r->tape);
    gradients_begin_step(r->gradients, r->end - r->first);
    for (int i = r->first; i < r->end; i++) {
        double begin = dry_seconds(r->backend);
        gradients_begin_piece(r->gradients, i - r->first);
        if (every || !seen_before(r, i)) with_batch(r, r->tape, i, run_piece);
        gradients_end_piece(r->gradients);
        if (!every && !seen_before(r, i)) skipped += (pieces_like(r, i) - 1) * (dry_seconds(r->backend) - begin);
    }
    parameters_meet(joint_parameters(r->joint));
    if (r->gate)
        optimizer_step_gated(r->optimizer, 1, step_gate_close(r->gate, r->gradients, 1));
    else
        optimizer_step(r->optimizer, 1, gradients_norm(r->gradients));
    return dry_seconds(r->backend) + skipped;
}

static bool validates(const TrainConfig *c) {
    bool any = false;
    for (int i = 0; i < c->data.count; i++) any |= *((const SourceConfig *)c->data.items + i)->validation != 0;
    return any && c->validation_every > 0;
}

static void run_validation(const Rehearsed *r) {
    features_of_pieces(r, r->inference);
    for (int i = r->first; i < r->end; i++)
        if (!seen_before(r, i)) with_batch(r, r->inference, i, run_piece);
}

// ---- what it came to hold ----

static void measure_host(Rehearsed *r, DeviceMemory *m) {
    open_step(r);
    m->seconds = run_step(r);
    if (validates(r->config)) run_validation(r);
    ParameterMemory model = gradients_memory(r->gradients);
    m->values = model.parameters, m->gradients = model.gradients, m->buckets = model.buckets;
    m->moments = 2 * sizeof(float) * (double)parameters_states(joint_parameters(r->joint));
    m->activations = (double)tape_peak(r->tape), m->validation = (double)tape_peak(r->inference);
    m->tensors = m->values + m->gradients + m->moments + m->buckets + m->activations + m->validation;
}

static void measure_gpu(Rehearsed *r, DeviceMemory *m) {
    ParameterMemory model = parameters_memory(joint_parameters(r->joint));
    double declared = held(r);
    open_step(r);
    double opened = held(r);
    open_gate(r);
    double reads = held(r) - opened;
    open_pairs(r);
    double pairs = held(r) - opened - reads;
    m->seconds = run_step(r);
    m->buckets = gradients_memory(r->gradients).buckets;
    double stepped = held(r), first = (double)WORK_SCRATCH_FIRST;
    if (validates(r->config)) run_validation(r);
    DryGpuMemory end = dry_gpu_memory(r->backend);
    m->gradients = model.gradients;
    m->values = declared - first - model.gradients;
    m->moments = opened - declared;
    m->scratch = (double)end.scratch + pairs;
    m->validation = (double)end.regions - stepped; // which sends no more along than a step
    m->sent = (double)end.sent + reads;
    m->activations = stepped - opened - m->buckets - m->sent - (m->scratch - first);
    m->products = (double)end.products;
    m->host = (double)end.host;
    m->tensors = (double)(end.regions + end.products);
    m->fits = !end.beyond;
}

// Within the limit where it is passed nowhere; near it memory grows by less than it otherwise would.
static bool plan_within(const TrainConfig *c, const Layout *l, size_t limit, const DeviceLimit *device, DeviceMemory *m,
                        Error *error) {
    Rehearsed r = {.config = c, .layout = l, .memory = arena_new(1 << 20)};
    r.gpu = device->gpu ? device->gpu : gpu_kind("h100");
    *m = (DeviceMemory){.fits = true, .measured = device->measured};
    if (c->device != DEVICE_CPU) m->context = device->context;
    bool ok = open_rank(&r, limit, error);
    if (ok) (on_gpu(&r) ? measure_gpu : measure_host)(&r, m);
    const char *wrong = ok ? tape_error(r.tape) : NULL;
    if (wrong) ok = error_set(error, ERROR_USAGE, "%s", wrong);
    close_rank(&r);
    return ok;
}

bool device_memory_plan(const TrainConfig *c, const Layout *l, DeviceLimit limit, DeviceMemory *m, Error *error) {
    if (!plan_within(c, l, 0, &limit, m, error)) return false;
    double left = limit.bytes - m->context - m->products;
    if (limit.bytes <= 0 || device_memory_total(m) <= limit.bytes) return true;
    m->fits = false;
    if (c->device == DEVICE_CPU || left < WORK_SCRATCH_FIRST) return true;
    DeviceMemory tight;
    if (!plan_within(c, l, (size_t)left, &limit, &tight, error)) return false;
    if (tight.fits) *m = tight;
    return true;
}

// ---- what it does ----

static void count_step(const Rehearsed *r, RehearsedStep *out) {
    *out = (RehearsedStep){0};
    for (int i = r->first; i < r->end; i++) {
        ArenaMark mark = arena_mark(r->memory);
        Batch b = synthetic_batch_dry(r->config, i, r->layout->pieces, r->memory);
        out->flop += joint_flop(&r->config->model, &b) / r->layout->size[MESH_TENSOR];
        out->tokens += (double)b.lm.rows * b.lm.length + (double)b.caption.rows * b.caption.length +
                       (double)b.contrastive.rows * b.contrastive.length;
        out->images += b.parts > 1 ? fmax((double)b.seen, b.mae_images) : b.images;
        arena_rewind(r->memory, mark);
    }
}

bool device_step_rehearse(const TrainConfig *c, const Layout *l, const DryRates *rates, RehearsedStep *out,
                          void (*seen)(void *context, const Backend *), void *context, Error *error) {
    TrainConfig on_a_gpu = *c;
    Rehearsed r = {
        .config = &on_a_gpu, .layout = l, .gpu = gpu_kind("h100"), .memory = arena_new(1 << 20), .whole = true};
    on_a_gpu.device = DEVICE_CUDA;
    bool ok = open_rank(&r, 0, error);
    if (ok) {
        dry_gpu_fuse(r.backend);
        open_step(&r);
        open_gate(&r);
        open_pairs(&r);
        dry_set_rates(r.backend, rates);
        (void)run_step(&r);
        count_step(&r, out);
        seen(context, r.backend);
    }
    const char *wrong = ok ? tape_error(r.tape) : NULL;
    if (wrong) ok = error_set(error, ERROR_USAGE, "%s", wrong);
    close_rank(&r);
    return ok;
}

// ---- in words ----

static void write_part(Buffer *out, const char *what, double bytes) {
    bool large = bytes >= 0x1p30;
    if (bytes > 0)
        buffer_printf(out, "  %-34s %9.2f %s\n", what, bytes / (large ? 0x1p30 : 0x1p20), large ? "GiB" : "MiB");
}

void device_memory_write(const DeviceMemory *m, const char *device, double limit, Buffer *out) {
    buffer_printf(out, "memory on %s\n", device);
    write_part(out, "parameters", m->values);
    write_part(out, "gradients", m->gradients);
    write_part(out, m->host > 0 ? "window for states on the host" : "moments", m->moments);
    write_part(out, "buckets between ranks", m->buckets);
    write_part(out, "activations of a piece, at most", m->activations);
    write_part(out, "the same of validation", m->validation);
    write_part(out, "pictures, text, losses on their way", m->sent);
    write_part(out, "logits and other work space", m->scratch);
    write_part(out, "work space of products", m->products);
    write_part(out, m->measured ? "CUDA and others, measured" : "CUDA and its libraries, about", m->context);
    write_part(out, "together", device_memory_total(m));
    write_part(out, "beside it, on the host: states", m->host);
    if (limit > 0)
        buffer_printf(out, "  it has %.2f GiB: the run %s\n", limit / 0x1p30, m->fits ? "fits" : "does not fit");
}
