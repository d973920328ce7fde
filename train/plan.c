/* See plan.h. Volumes are those of ring algorithms: of n bytes that D ranks share out or put together each sends
 * n (D - 1) / D. */
#include "train/plan.h"
#include "train/memory.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static double moved(double bytes, int ranks) { return bytes * (ranks - 1) / ranks; }

static void count_rows(const TrainConfig *c, int64_t rows[OBJECTIVES]) {
    for (int i = 0; i < c->data.count; i++) {
        const SourceConfig *s = (const SourceConfig *)c->data.items + i;
        for (int o = 0; o < OBJECTIVES; o++) rows[o] += s->objectives >> o & 1 ? s->batch : 0;
    }
}

// ---- what a rank sends ----

// Trained weights that a rank of the tensor axis holds.
static double trained_weights(const TrainConfig *c, const Layout *l) {
    ParallelSizes spread = {.tensor = l->size[MESH_TENSOR], .data = 1};
    JointConfig all = c->model;
    JointSizes none = {0};
    double with_frozen = joint_memory(&c->model, &none, F32, &spread).model;
    all.freeze.count = 0;
    double weights = joint_memory(&all, &none, F32, &spread).model / 16; // parameter, gradient, two moments
    return (with_frozen - 4 * weights) / 12;
}

// Gradients once a step, or (stages 2 and 3, not in the order of a tree) with every piece; what operators read goes
// back once, at stage 3 for every forward and backward pass.
static void add_parameters(const TrainConfig *c, Plan *p) {
    int data = p->layout.size[MESH_DATA], own = p->layout.pieces / data;
    int stage = data > 1 ? (int)c->parallel.zero : 0;
    bool each_piece = stage >= 2 && c->reproducible != REPRODUCIBLE_LAYOUT;
    double weights = trained_weights(c, &p->layout), once = moved(4 * weights, data);
    double passes = p->rows[OBJECTIVE_CONTRASTIVE] && p->layout.pieces > 1 ? 3 : 2;
    p->gradients = (stage ? 1 : 2) * once * (each_piece ? own : 1);
    if (stage) p->parameters = moved((c->precision ? 2 : 4) * weights, data) * (stage == 3 ? passes * own : 1);
}

// Tokens x width of a data rank in a step: through blocks, each counted; and through the shared vocabulary.
static void count_elements(const TrainConfig *c, const Plan *p, double *blocks, double *words) {
    const JointConfig *m = &c->model;
    const int64_t *rows = p->rows;
    int64_t images =
        rows[OBJECTIVE_CAPTION] > rows[OBJECTIVE_CONTRASTIVE] ? rows[OBJECTIVE_CAPTION] : rows[OBJECTIVE_CONTRASTIVE];
    double share = 1.0 / p->layout.size[MESH_DATA];
    double tokens = (double)(rows[OBJECTIVE_LM] * c->lm_length + rows[OBJECTIVE_CAPTION] * c->caption_length +
                             rows[OBJECTIVE_CONTRASTIVE] * c->contrastive_length);
    *words = share * tokens * (double)m->text.width;
    *blocks = *words * (double)m->text.layers;
    if (!m->has_vision) return;
    double patches = (double)vit_tokens(&m->vision), repainted = (double)rows[OBJECTIVE_MAE];
    double seen = (double)images * patches + repainted * patches * (1 - m->mae.mask_ratio);
    *blocks += share * seen * (double)(m->vision.layers * m->vision.width);
    *blocks += share * repainted * patches * (double)(m->mae.decoder_layers * m->mae.decoder_width);
}

// Attention and MLP of each block sum once forward and once backward: a scatter and a gather each. Where rows are
// shared out, the two gathers of the forward pass are made again; full recomputation makes its first sum again. Words
// are summed forward where they come in, backward where they leave.
static void add_tensor(const TrainConfig *c, Plan *p) {
    bool full = c->model.recompute == RECOMPUTE_FULL;
    double moves = c->parallel.sequence ? (full ? 11 : 10) : (full ? 10 : 8), blocks, words;
    count_elements(c, p, &blocks, &words);
    p->tensor = moved((c->precision ? 2 : 4) * (moves * blocks + 4 * words), p->layout.size[MESH_TENSOR]);
}

static void add_pairs(const TrainConfig *c, Plan *p) {
    int data = p->layout.size[MESH_DATA];
    int64_t all = p->rows[OBJECTIVE_CONTRASTIVE], own = (all + data - 1) / data, width = c->model.embedding;
    if (!all || p->layout.pieces == 1) return;
    p->pairs = (double)pair_ring_bytes(own, all, p->layout.pieces, width) + 8.0 * (double)(own * width);
    p->features = 3 * moved(4 * (double)(all * width), data); // texts twice, their gradients once
}

// Of what was counted for the whole model, the part of a stage.
static bool add_pipeline(const TrainConfig *c, Arena *memory, Plan *p, Error *error) {
    int stages = p->layout.size[MESH_PIPELINE];
    if (stages == 1) return true;
    if (!pipeline_plan(c, &p->layout, memory, &p->pipeline, error)) return false;
    p->model = p->pipeline.parameters;
    p->activations = p->pipeline.tapes;
    p->gradients *= p->pipeline.part_of_model;
    p->parameters *= p->pipeline.part_of_model;
    p->tensor /= stages;
    return true;
}

bool plan_make(const TrainConfig *c, int ranks, Arena *arena, Plan *p, Error *error) {
    *p = (Plan){0};
    const int64_t *size = c->parallel.size;
    int64_t least = (size[MESH_DATA] ? size[MESH_DATA] : 1) * size[MESH_PIPELINE] * size[MESH_TENSOR];
    if (!layout_resolve(c, ranks ? ranks : (int)least, &p->layout, error)) return false;
    JointMemory memory = memory_estimate(c, &p->layout);
    p->model = memory.model;
    p->activations = memory.activations;
    count_rows(c, p->rows);
    add_parameters(c, p);
    add_tensor(c, p);
    add_pairs(c, p);
    return add_pipeline(c, arena, p, error);
}

// ---- in words ----

static void write_bytes(Buffer *out, const char *what, double bytes, const char *detail) {
    bool large = bytes >= 0x1p30;
    buffer_printf(out, "  %-34s %9.2f %s%s%s\n", what, bytes / (large ? 0x1p30 : 0x1p20), large ? "GiB" : "MiB",
                  *detail ? "  " : "", detail);
}

static void write_memory(const TrainConfig *c, const Plan *p, Buffer *out) {
    char detail[128];
    snprintf(detail, sizeof detail, "ZeRO %d over %d, of %.2f M weights in all", (int)c->parallel.zero,
             p->layout.size[MESH_DATA], joint_weights(&c->model) / 1e6);
    if (p->layout.size[MESH_PIPELINE] > 1) {
        buffer_printf(out, "memory of a rank of stage %d, the fullest\n", p->pipeline.fullest);
        write_bytes(out, "weights, gradients, moments", p->model, detail);
        write_bytes(out, "activations, the most at once", p->activations, "");
    } else {
        buffer_text(out, "memory of a rank, at least\n");
        write_bytes(out, "weights, gradients, moments", p->model, detail);
        write_bytes(out, "activations of a piece", p->activations, "");
    }
    if (p->pairs > 0) write_bytes(out, "contrastive loss over all pairs", p->pairs, "features and work space");
    write_bytes(out, "together", p->model + p->activations + p->pairs, "");
    buffer_printf(out, "  this machine has %.1f GiB free\n", memory_available(1) / 0x1p30);
}

// Rows of a piece lie between these two.
static void write_rows(const Plan *p, Buffer *out) {
    buffer_text(out, "rows of a step            all  of a data rank   of a piece\n");
    for (int o = 0; o < OBJECTIVES; o++) {
        int64_t rows = p->rows[o], data = p->layout.size[MESH_DATA], pieces = p->layout.pieces;
        if (!rows) continue;
        buffer_printf(out, "  %-18s %9" PRId64 " %8" PRId64 " to %-4" PRId64 " %6" PRId64 " to %" PRId64 "\n",
                      objective_names[o], rows, rows / data, (rows + data - 1) / data, rows / pieces,
                      (rows + pieces - 1) / pieces);
    }
}

static void write_pipeline(const TrainConfig *c, const Plan *p, Buffer *out) {
    if (p->layout.size[MESH_PIPELINE] == 1) return;
    stages_describe(&p->pipeline.stages, out);
    buffer_printf(out, "\n  stages wait %.1f %% of a step, by modelled costs%s\n", 100 * p->pipeline.bubble,
                  strcmp(c->parallel.split, "measured") ? "" : "; a run measures them and may split elsewhere");
}

static void write_communication(const Plan *p, Buffer *out) {
    const struct {
        const char *what;
        double bytes;
    } parts[] = {{"gradients, over data", p->gradients},
                 {"parameters, over data", p->parameters},
                 {"activations, over tensor", p->tensor},
                 {"activations, to the next stage", p->pipeline.forward},
                 {"gradients, to the stage before", p->pipeline.back},
                 {"gradients of words, to their copy", p->pipeline.words},
                 {"features of pairs, over data", p->features}};
    if (p->layout.ranks == 1) return;
    buffer_text(out, "sent by a rank in a step, about\n");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].bytes > 0) write_bytes(out, parts[i].what, parts[i].bytes, "");
}

void plan_write(const TrainConfig *c, const Plan *p, Buffer *out) {
    layout_describe(c, &p->layout, out);
    buffer_text(out, "\n");
    mesh_describe(p->layout.size, NULL, out);
    buffer_text(out, "\n");
    write_pipeline(c, p, out);
    write_memory(c, p, out);
    write_rows(p, out);
    write_communication(p, out);
    int idle = layout_idle(c, &p->layout);
    if (idle) buffer_printf(out, "%d data ranks get no sample of any step: raise data.*.batch\n", idle);
}
