/* See step_time.h. Volumes are those of ring algorithms (plan.c): of n bytes that D ranks share out or put together
 * each sends n (D - 1) / D. */
#include "train/step_time.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/dry.h"
#include "kernels/dry_gpu.h"
#include "kernels/nn/parameters.h"
#include "train/stages.h"
#include <math.h>
#include <string.h>

const Cluster h100_cluster = {.rates = {.flops = 600e12, .bandwidth = 2.6e12},
                              .peak = 989e12,
                              .memory = 80e9,
                              .taken = GPU_CONTEXT_BYTES + GPU_LIBRARIES_BYTES + WORK_PRODUCTS + WORK_LOGITS,
                              .inside = 360e9,
                              .outside = 40e9,
                              .host = 50e9,
                              .latency = 10e-6,
                              .node = 8};

// Read and written for each trained parameter of the update; the copy in bf16; what lies on the host goes there and
// back.
static const double ADAM_BYTES = 28, COPY_BYTES = 2, MOVED_BYTES = 8, MOVED_BYTES_BF16 = 12;

typedef struct StepWork {
    const TrainConfig *config;
    const Layout *layout;
    const Cluster *cluster;
    StepTime *out;
    Arena *arena;
    const UnitCosts *costs;
    Backend *backend; // of a model that is declared and never filled
    Joint *joint;
    int parts, pieces, first;                    // of the pipeline; microbatches of the first data rank, and its first
    double *forward, *input, *weight, *features; // (parts, pieces) seconds
    double *tensor, *told; // (parts) of a step: seconds in sums over tensor ranks, bytes sent there
} StepWork;

static Dtype compute_type(const TrainConfig *c) { return c->precision ? BF16 : F32; }

static double tensor_ranks(const StepWork *w) { return w->layout->size[MESH_TENSOR]; }

static bool is_block(UnitKind kind) {
    return kind == UNIT_VISION_BLOCK || kind == UNIT_MAE_BLOCK || kind == UNIT_TEXT_BLOCK;
}

// Bytes of the streams `which` in front of the unit, of a microbatch.
static double stream_bytes(const StepWork *w, int unit, int piece, unsigned which) {
    const Batch *batch = &w->costs->batches[w->costs->shape[piece]];
    JointPass pass = {.training = true};
    return joint_streams_bytes(w->joint, batch, &pass, unit, which);
}

// ---- what ranks tell one another ----

static double moved(double bytes, double ranks) { return bytes * (ranks - 1) / ranks; }

// Seconds for so many scatters and gathers of bytes over the tensor ranks, which are on one node.
static double tensor_seconds(const StepWork *w, double moves, double bytes) {
    double ranks = tensor_ranks(w);
    return ranks > 1 ? moves * (moved(bytes, ranks) / w->cluster->inside + w->cluster->latency) : 0;
}

typedef struct TensorMoves { // scatters and gathers of the unit's streams
    double forward, backward;
} TensorMoves;

// As plan.c counts them: attention and MLP sum once forward, once backward; shared rows are gathered once more.
static TensorMoves tensor_moves(const StepWork *w, int unit) {
    UnitKind kind = w->costs->list[unit].kind;
    if (kind == UNIT_TEXT_EMBED) return (TensorMoves){2, 0};
    if (kind == UNIT_TEXT_HEAD) return (TensorMoves){0, 2};
    if (!is_block(kind)) return (TensorMoves){0};
    double again = w->config->model.recompute == RECOMPUTE_FULL ? (w->config->parallel.sequence ? 1 : 2) : 0;
    return (TensorMoves){4, (w->config->parallel.sequence ? 6 : 4) + again};
}

// Whether ranks that are `apart` in the world, `count` of them in a row, are all on one node.
static double bandwidth(const StepWork *w, int apart, int count) {
    return apart * count <= w->cluster->node ? w->cluster->inside : w->cluster->outside;
}

// Of gradients and values between data ranks, sent by each.
static double exchange_bytes(const StepWork *w, double trained) {
    double data = w->layout->size[MESH_DATA], values = (double)dtype_size(compute_type(w->config));
    double once = moved(sizeof(float) * trained, data);
    return w->config->parallel.zero > 0 ? once + moved(values * trained, data) : 2 * once;
}

static double exchange_seconds(const StepWork *w, double trained) {
    int data = w->layout->size[MESH_DATA], apart = w->layout->size[MESH_PIPELINE] * w->layout->size[MESH_TENSOR];
    if (data == 1) return 0;
    double calls = ceil(sizeof(float) * trained / (double)w->config->parallel.bucket);
    return exchange_bytes(w, trained) / bandwidth(w, apart, data) + 2 * calls * log2(data) * w->cluster->latency;
}

// ---- rows ----

static double *cell(const StepWork *w, double *of, int part, int piece) {
    return &of[(int64_t)part * w->pieces + piece];
}

// Bytes of the streams that tensor ranks sum in this unit.
static double summed_bytes(const StepWork *w, int unit, int piece) {
    const JointUnit *u = &w->costs->list[unit];
    if (tensor_ranks(w) == 1) return 0;
    if (is_block(u->kind)) return stream_bytes(w, unit, piece, u->reads & u->writes);
    if (u->kind == UNIT_TEXT_EMBED) return stream_bytes(w, unit + 1, piece, u->writes);
    return u->kind == UNIT_TEXT_HEAD ? stream_bytes(w, unit, piece, u->reads) : 0;
}

static void add_unit(StepWork *w, int part, int unit, int piece) {
    UnitTime time = unit_time(w->costs, unit, w->first + piece);
    TensorMoves moves = tensor_moves(w, unit);
    double bytes = summed_bytes(w, unit, w->first + piece), ranks = tensor_ranks(w);
    double ahead = tensor_seconds(w, moves.forward, bytes), back = tensor_seconds(w, moves.backward, bytes);
    double again = time.forward > 0 ? time.features / time.forward : 0;
    if (!(time.input + time.weight > 0)) back = moves.backward = 0; // frozen
    *cell(w, w->forward, part, piece) += time.forward + ahead;
    *cell(w, w->input, part, piece) += time.input + back;
    *cell(w, w->weight, part, piece) += time.weight;
    *cell(w, w->features, part, piece) += time.features + again * ahead;
    w->tensor[part] += ahead + back;
    w->told[part] += moved(bytes, ranks) * (moves.forward * (1 + again) + moves.backward);
}

static void add_costs(StepWork *w) {
    int64_t cells = (int64_t)w->parts * w->pieces;
    w->forward = arena_array(w->arena, double, cells), w->input = arena_array(w->arena, double, cells);
    w->weight = arena_array(w->arena, double, cells), w->features = arena_array(w->arena, double, cells);
    w->tensor = arena_array(w->arena, double, w->parts), w->told = arena_array(w->arena, double, w->parts);
    for (int part = 0; part < w->parts; part++)
        for (int unit = w->out->plan.first[part]; unit < w->out->plan.first[part + 1]; unit++)
            for (int piece = 0; piece < w->pieces; piece++) add_unit(w, part, unit, piece);
}

// Bytes that a rank sends to its own tensor place on the next stage: inside a stack rows may be shared out.
static double boundary_bytes(const StepWork *w, int unit, int piece) {
    unsigned alive = joint_boundary(w->costs->list, w->costs->units, unit), shared = 0;
    if (w->config->parallel.sequence) shared = alive & joint_shared_streams(w->costs->list[unit].kind);
    return stream_bytes(w, unit, piece, alive & ~shared) + stream_bytes(w, unit, piece, shared) / tensor_ranks(w);
}

static double largest_boundary(const StepWork *w) {
    double most = 0;
    for (int part = 1; part < w->parts; part++)
        for (int piece = 0; piece < w->pieces; piece++)
            most = fmax(most, boundary_bytes(w, w->out->plan.first[part], w->first + piece));
    return most;
}

// The forward rows of the table alone, as the pass for features runs them.
static PipelineTable *forwards_of(const PipelineTable *t, Arena *arena) {
    PipelineTable *all = arena_array(arena, PipelineTable, 1);
    *all = (PipelineTable){t->shape, arena_array(arena, Slot *, t->shape.stages),
                           arena_array(arena, int, t->shape.stages)};
    for (int i = 0; i < t->shape.stages; i++) {
        all->rows[i] = arena_array(arena, Slot, t->counts[i]);
        for (int k = 0; k < t->counts[i]; k++)
            if (t->rows[i][k].work == WORK_FORWARD) all->rows[i][all->counts[i]++] = t->rows[i][k];
    }
    return all;
}

static void simulate(StepWork *w) {
    StepTime *out = w->out;
    const PipelineTable *t = &out->plan.table;
    int stages = t->shape.stages;
    double all = 0;
    out->message = largest_boundary(w);
    double send = stages > 1 ? out->message / bandwidth(w, (int)tensor_ranks(w), stages) + w->cluster->latency : 0;
    PipelineCosts costs = {w->forward, w->input, w->weight, .send = send, .each = true};
    out->line = timeline_simulate(t, &costs, w->arena);
    out->rows = timeline_measure(&out->line, out->waits);
    for (int64_t i = 0; i < (int64_t)w->parts * w->pieces; i++) all += w->features[i];
    if (!(all > 0)) return;
    costs.forward = w->features;
    Timeline features = timeline_simulate(forwards_of(t, w->arena), &costs, w->arena);
    out->features = timeline_measure(&features, NULL).total;
}

// ---- loads ----

static void count_trained(const StepWork *w, double *trained) { // (units) on a rank
    Parameters *p = joint_parameters(w->joint);
    for (int i = 0; i < parameters_count(p); i++) {
        const Parameter *item = parameters_at(p, i);
        int unit = joint_unit_of(w->costs->list, w->costs->units, item->tensor.name);
        double elements = 1 / tensor_ranks(w);
        for (int d = 0; d < item->tensor.rank; d++) elements *= (double)item->global_shape[d];
        if (unit >= 0 && !item->frozen) trained[unit] += elements;
    }
}

static int part_of(const StepWork *w, UnitKind kind) {
    for (int part = 0; part < w->parts; part++)
        for (int u = w->out->plan.first[part]; u < w->out->plan.first[part + 1]; u++)
            if (w->costs->list[u].kind == kind) return part;
    return -1;
}

// Where the output words are in another part than the embedded ones, the head trains a copy of them.
static void add_copy(const StepWork *w, double *trained) {
    const TextConfig *text = &w->config->model.text;
    int head = part_of(w, UNIT_TEXT_HEAD);
    if (!text->tied || head == part_of(w, UNIT_TEXT_EMBED)) return;
    for (int u = 0; u < w->costs->units; u++)
        if (w->costs->list[u].kind == UNIT_TEXT_HEAD && trained[u] > 0)
            trained[u] += (double)(text->vocabulary * text->width) / tensor_ranks(w);
}

// Seconds; with states on the host copies up, arithmetic and copies down run beside one another.
static double update_seconds(const StepWork *w, double own) {
    bool half = compute_type(w->config) == BF16;
    double here = (ADAM_BYTES + (half ? COPY_BYTES : 0)) * own / w->cluster->rates.bandwidth;
    if (w->config->offload != OFFLOAD_STATES || !(w->cluster->host > 0)) return here;
    return fmax(here, (half ? MOVED_BYTES_BF16 : MOVED_BYTES) * own / w->cluster->host);
}

// Messages go out of a part in both directions, forward but from the last, back but from the first; and ahead of them
// with the features.
static double load_stage(const StepWork *w, int stage, const double *trained) {
    const PipelineShape *s = &w->out->plan.table.shape;
    StageLoad *load = &w->out->loads[stage];
    double sent = 0;
    for (int chunk = 0; chunk < s->chunks; chunk++) {
        int part = pipeline_part(s, stage, chunk);
        for (int u = w->out->plan.first[part]; u < w->out->plan.first[part + 1]; u++) load->trained += trained[u];
        load->tensor += w->tensor[part];
        int ways = (part + 1 < w->parts) * (w->out->features > 0 ? 2 : 1) + (part > 0);
        sent += w->told[part] + ways * w->pieces * w->out->message;
    }
    double own = load->trained / (w->config->parallel.zero > 0 ? w->layout->size[MESH_DATA] : 1);
    load->rows = w->out->waits[stage].busy;
    load->gradients = exchange_seconds(w, load->trained);
    load->update = update_seconds(w, own);
    return sent + exchange_bytes(w, load->trained);
}

static void load_stages(const StepWork *w) {
    StepTime *out = w->out;
    double *trained = arena_array(w->arena, double, w->costs->units);
    count_trained(w, trained);
    add_copy(w, trained);
    for (int i = 0; i < w->layout->size[MESH_PIPELINE]; i++) {
        out->sent = fmax(out->sent, load_stage(w, i, trained));
        out->exchange = fmax(out->exchange, out->loads[i].gradients + out->loads[i].update);
        out->memory = fmax(out->memory, out->plan.stages[i].parameters + out->plan.stages[i].tapes);
    }
}

static void count_step(const StepWork *w) {
    for (int i = 0; i < w->costs->pieces; i++) {
        const Batch *b = &w->costs->batches[w->costs->shape[i]];
        w->out->flop += joint_flop(&w->config->model, b);
        w->out->tokens += (double)b->lm.rows * b->lm.length + (double)b->caption.rows * b->caption.length +
                          (double)b->contrastive.rows * b->contrastive.length;
    }
    w->out->images = (double)w->costs->batches[0].all_images; // one that two pieces look at is read by both
}

// ---- all of it ----

bool step_time(const TrainConfig *c, const Layout *l, const Cluster *cluster, Arena *arena, StepTime *out,
               Error *error) {
    int stages = l->size[MESH_PIPELINE];
    double memory =
        c->parallel.stage_memory ? (double)c->parallel.stage_memory : fmax(cluster->memory - cluster->taken, 1);
    TrainConfig asked = *c; // nothing is at hand to be measured, and one stage is no split
    Stages cut;
    if (stages == 1 || !strcmp(c->parallel.split, "measured")) asked.parallel.split = "cost";
    StepWork w = {.config = c, .layout = l, .cluster = cluster, .out = out, .arena = arena};
    *out = (StepTime){.waits = arena_array(arena, StageTime, stages),
                      .peaks = arena_array(arena, StagePeak, stages),
                      .loads = arena_array(arena, StageLoad, stages)};
    if (!stages_plan(&asked, l, cluster->rates, memory, arena, &cut, &out->plan, error)) return false;
    if (!pipeline_check(&out->plan.table, out->peaks, error)) return false;
    w.costs = &out->plan.costs;
    w.parts = l->pipeline.stages * l->pipeline.chunks;
    w.pieces = l->pipeline.microbatches;
    w.first = layout_first(l, 0);
    w.backend = dry_backend_new();
    w.joint = joint_new(w.backend, &c->model, NULL, compute_type(c), 1, error);
    if (w.joint) {
        add_costs(&w);
        simulate(&w);
        load_stages(&w);
        count_step(&w);
    }
    joint_free(w.joint);
    backend_free(w.backend);
    out->total = out->features + out->rows.total + out->exchange;
    return w.joint != NULL;
}

double step_utilisation(const StepTime *t, const Layout *l, const Cluster *c) {
    return t->flop / (t->total * c->peak * l->ranks);
}
