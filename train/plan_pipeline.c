/* See plan_pipeline.h. */
#include "train/plan_pipeline.h"
#include "kernels/dry.h"
#include "train/rehearsal.h"
#include <math.h>
#include <string.h>

typedef struct Counting {
    const Layout *layout;
    const Stages *stages;
    const UnitCosts *costs;
    Joint *joint;  // its parameters have no memory
    bool sequence; // tensor ranks share out rows
} Counting;

static int stage_of(const Counting *k, int part) {
    int stage, chunk;
    pipeline_place(&k->stages->table.shape, part, &stage, &chunk);
    return stage;
}

// Of a rank, in front of the unit; the model itself knows of no tensor ranks.
static double rank_bytes(const Counting *k, const Batch *batch, const JointPass *pass, int unit, unsigned which) {
    unsigned shared = k->sequence ? which & joint_shared_streams(k->costs->list[unit].kind) : 0;
    return joint_streams_bytes(k->joint, batch, pass, unit, which & ~shared) +
           joint_streams_bytes(k->joint, batch, pass, unit, shared) / k->layout->size[MESH_TENSOR];
}

typedef struct Crossing { // bytes of a step over the boundary in front of a part
    double forward, back;
} Crossing;

// Of the microbatches of the first data rank. Where there are several pieces, what features of pairs need goes ahead of
// everything.
static Crossing crossing(const Counting *k, int part) {
    static const JointPass training = {.training = true}, features = {.features_only = true};
    const UnitCosts *c = k->costs;
    int unit = k->stages->first[part];
    unsigned alive = joint_boundary(c->list, c->units, unit);
    Crossing sum = {0, 0};
    for (int piece = layout_first(k->layout, 0); piece < layout_first(k->layout, 1); piece++) {
        const Batch *batch = &c->batches[c->shape[piece]];
        unsigned wanted = c->wanted[(int64_t)unit * c->shapes + c->shape[piece]];
        sum.forward += rank_bytes(k, batch, &training, unit, alive);
        if (k->layout->pieces > 1) sum.forward += rank_bytes(k, batch, &features, unit, alive);
        sum.back += rank_bytes(k, batch, &training, unit, wanted & alive);
    }
    return sum;
}

static void count_sent(const Counting *k, Arena *memory, PipelinePlan *p) {
    int stages = k->stages->table.shape.stages;
    Crossing *sent = arena_array(memory, Crossing, stages);
    for (int part = 1; part < k->stages->parts; part++) {
        int before = stage_of(k, part - 1), behind = stage_of(k, part);
        if (before == behind) continue;
        Crossing over = crossing(k, part);
        sent[before].forward += over.forward;
        sent[behind].back += over.back;
    }
    for (int i = 0; i < stages; i++) {
        p->forward = fmax(p->forward, sent[i].forward);
        p->back = fmax(p->back, sent[i].back);
    }
}

static int stage_with(const Counting *k, UnitKind kind) {
    int part = 0;
    for (int u = 0; u < k->stages->count; u++)
        if (k->stages->units[u].kind == kind)
            while (k->stages->first[part + 1] <= u) part++;
    return stage_of(k, part);
}

// Each rank sends what it owns of them.
static void count_words(const Counting *k, const TrainConfig *c, PipelinePlan *p) {
    const TextConfig *text = &c->model.text;
    const Parameter *words = parameters_find(joint_parameters(k->joint), "text.tokens");
    bool apart = stage_with(k, UNIT_TEXT_EMBED) != stage_with(k, UNIT_TEXT_HEAD);
    if (!text->tied || !apart || !words || words->frozen) return;
    int owners = k->layout->size[MESH_TENSOR] * (c->parallel.zero > 0 ? k->layout->size[MESH_DATA] : 1);
    p->words = (double)sizeof(float) * (double)(text->vocabulary * text->width) / owners;
}

static void find_fullest(const SplitPlan *split, PipelinePlan *p) {
    double most = 0, all = 0;
    for (int i = 0; i < split->table.shape.stages; i++) {
        const StagePlan *s = &split->stages[i], *now = &split->stages[p->fullest];
        if (s->parameters + s->tapes > now->parameters + now->tapes) p->fullest = i;
        most = fmax(most, s->parameters);
        all += s->parameters;
    }
    p->parameters = split->stages[p->fullest].parameters;
    p->tapes = split->stages[p->fullest].tapes;
    p->part_of_model = all > 0 ? most / all : 1;
    p->bubble = split->bubble;
}

bool pipeline_plan(const TrainConfig *given, const Layout *l, Arena *memory, PipelinePlan *p, Error *error) {
    TrainConfig c = *given;
    SplitPlan split;
    *p = (PipelinePlan){0};
    if (!strcmp(c.parallel.split, "measured")) c.parallel.split = "cost";
    double limit = c.parallel.stage_memory ? (double)c.parallel.stage_memory : INFINITY;
    if (!stages_plan(&c, l, machine_rates(&c), limit, memory, &p->stages, &split, error)) return false;
    find_fullest(&split, p);
    Backend *dry = dry_backend_new();
    Counting k = {l, &p->stages, &split.costs, rehearsal_model(dry, &c.model, NULL, c.precision ? BF16 : F32, error),
                  c.parallel.sequence};
    if (k.joint) {
        count_sent(&k, memory, p);
        count_words(&k, &c, p);
    }
    joint_free(k.joint);
    backend_free(dry);
    return k.joint != NULL;
}
