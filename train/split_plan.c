/* See split_plan.h. What stages hold is known exactly only of a given split, by running it dry; the splitter goes by
 * sums over units. So where memory is limited these sums are first set right by what a split without a limit holds, and
 * what is found is run dry again. */
#include "train/split_plan.h"
#include "train/stage_replay.h"
#include <math.h>
#include <string.h>

static const double GIB = 0x1p30;

typedef struct Planner {
    const TrainConfig *config;
    const Layout *layout;
    SplitPlan *plan;
    Arena *arena;
    int first_piece; // of the costliest data rank
} Planner;

static int part_count(const PipelineTable *t) { return t->shape.stages * t->shape.chunks; }

// ---- time ----

// Of the data rank that has most to do.
static int costliest_rank(const Planner *p) {
    const UnitCosts *c = &p->plan->costs;
    int own = p->plan->table.shape.microbatches, best = 0;
    double most = -1;
    for (int first = 0; first + own <= c->pieces; first += own) {
        double sum = 0;
        for (int i = first; i < first + own; i++)
            for (int u = 0; u < c->units; u++) {
                UnitTime t = unit_time(c, u, i);
                sum += t.forward + t.input + t.weight + t.features;
            }
        if (sum <= most) continue;
        most = sum;
        best = first;
    }
    p->plan->alone = most;
    return best;
}

// Of each part and microbatch: (parts, microbatches) each.
typedef struct PartTimes {
    double *forward, *input, *weight, *features, *nothing;
} PartTimes;

static PartTimes part_times(const Planner *p) {
    const UnitCosts *c = &p->plan->costs;
    int parts = part_count(&p->plan->table), own = p->plan->table.shape.microbatches;
    int64_t cells = (int64_t)parts * own;
    PartTimes t = {arena_array(p->arena, double, cells), arena_array(p->arena, double, cells),
                   arena_array(p->arena, double, cells), arena_array(p->arena, double, cells),
                   arena_array(p->arena, double, cells)};
    for (int part = 0; part < parts; part++)
        for (int m = 0; m < own; m++)
            for (int u = p->plan->first[part]; u < p->plan->first[part + 1]; u++) {
                UnitTime unit = unit_time(c, u, p->first_piece + m);
                t.forward[part * own + m] += unit.forward;
                t.input[part * own + m] += unit.input;
                t.weight[part * own + m] += unit.weight;
                t.features[part * own + m] += unit.features;
            }
    return t;
}

// The rows of the table that a pass for features runs.
static PipelineTable forward_rows(const PipelineTable *all, Arena *arena) {
    PipelineTable t = {all->shape, arena_array(arena, Slot *, all->shape.stages),
                       arena_array(arena, int, all->shape.stages)};
    for (int i = 0; i < all->shape.stages; i++) {
        t.rows[i] = arena_array(arena, Slot, all->counts[i]);
        for (int k = 0; k < all->counts[i]; k++)
            if (all->rows[i][k].work == WORK_FORWARD) t.rows[i][t.counts[i]++] = all->rows[i][k];
    }
    return t;
}

static void simulate(Planner *p) {
    SplitPlan *plan = p->plan;
    int stages = plan->table.shape.stages;
    PartTimes t = part_times(p);
    StageTime *rows = arena_array(p->arena, StageTime, stages), *features = arena_array(p->arena, StageTime, stages);
    PipelineCosts costs = {
        .forward = t.forward, .input = t.input, .weight = t.weight, .send = plan->send, .each = true};
    PipelineCosts first = {
        .forward = t.features, .input = t.nothing, .weight = t.nothing, .send = plan->send, .each = true};
    PipelineTable forward = forward_rows(&plan->table, p->arena);
    Timeline before = timeline_simulate(&forward, &first, p->arena);
    plan->line = timeline_simulate(&plan->table, &costs, p->arena);
    plan->features = timeline_measure(&before, features).total;
    plan->total = plan->features + timeline_measure(&plan->line, rows).total;
    double busy = 0;
    for (int i = 0; i < stages; i++) {
        StagePlan *s = &plan->stages[i];
        s->time = rows[i].busy + features[i].busy;
        s->bubble = plan->total > 0 ? 1 - s->time / plan->total : 0;
        busy += s->time;
    }
    plan->bubble = plan->total > 0 ? 1 - busy / (stages * plan->total) : 0;
}

// ---- memory ----

static int unit_of_kind(const UnitCosts *c, UnitKind kind) {
    for (int u = 0; u < c->units; u++)
        if (c->list[u].kind == kind) return u;
    return -1;
}

static int part_with(const SplitPlan *plan, int unit) {
    int part = 0;
    while (unit >= 0 && plan->first[part + 1] <= unit) part++;
    return part;
}

static void count_parameters(Planner *p) {
    SplitPlan *plan = p->plan;
    const UnitCosts *c = &plan->costs;
    int head = part_with(plan, unit_of_kind(c, UNIT_TEXT_HEAD));
    bool copied =
        p->config->reproducible == REPRODUCIBLE_LAYOUT || head != part_with(plan, unit_of_kind(c, UNIT_TEXT_EMBED));
    for (int i = 0; i < plan->table.shape.stages; i++) plan->stages[i].parameters = 0;
    for (int part = 0; part < part_count(&plan->table); part++) {
        int stage, chunk;
        pipeline_place(&plan->table.shape, part, &stage, &chunk);
        for (int u = plan->first[part]; u < plan->first[part + 1]; u++)
            plan->stages[stage].parameters += c->mean[u].parameters;
        if (part == head && !copied) plan->stages[stage].parameters -= c->copy;
    }
}

// ---- the split ----

// Whether a data rank before has microbatches of the same shapes.
static bool like_another(const Planner *p, int first) {
    const int *shape = p->plan->costs.shape;
    int own = p->plan->table.shape.microbatches;
    for (int before = 0; before < first; before += own)
        if (!memcmp(&shape[before], &shape[first], sizeof *shape * (size_t)own)) return true;
    return false;
}

static void hold_at_least(Planner *p, int first, double *tapes) {
    SplitPlan *plan = p->plan;
    stage_replay(p->config, &plan->costs, &plan->table, plan->first, first, tapes);
    for (int i = 0; i < plan->table.shape.stages; i++) plan->stages[i].tapes = fmax(plan->stages[i].tapes, tapes[i]);
}

// A stage is as full as on the data rank where it holds most, which need not be the costliest; that one and the first
// few that differ stand for all.
static void find_tapes(Planner *p) {
    enum { MOST_REPLAYS = 8 };
    const SplitPlan *plan = p->plan;
    int own = plan->table.shape.microbatches, replays = 1;
    double *tapes = arena_array(p->arena, double, plan->table.shape.stages);
    hold_at_least(p, p->first_piece, tapes);
    for (int first = 0; first + own <= plan->costs.pieces && replays < MOST_REPLAYS; first += own) {
        if (first == p->first_piece || like_another(p, first)) continue;
        hold_at_least(p, first, tapes);
        replays++;
    }
}

static void fill_in(Planner *p) {
    SplitPlan *plan = p->plan;
    plan->stages = arena_array(p->arena, StagePlan, plan->table.shape.stages);
    p->first_piece = costliest_rank(p);
    simulate(p);
    count_parameters(p);
    find_tapes(p);
}

// (stages, chunks) microbatches between forward and weight gradient, the most at once.
static int *count_live(const PipelineTable *t, Arena *arena) {
    int chunks = t->shape.chunks, *live = arena_array(arena, int, t->shape.stages *chunks);
    int *now = arena_array(arena, int, t->shape.stages *chunks);
    for (int i = 0; i < t->shape.stages; i++)
        for (int k = 0; k < t->counts[i]; k++) {
            const Slot *row = &t->rows[i][k];
            int at = i * chunks + row->chunk;
            now[at] += row->work == WORK_FORWARD;
            now[at] -= row->work == WORK_WEIGHT_GRADIENT || row->work == WORK_BOTH_GRADIENTS;
            if (now[at] > live[at]) live[at] = now[at];
        }
    return live;
}

static double fullest(const SplitPlan *plan) {
    double most = 0;
    for (int i = 0; i < plan->table.shape.stages; i++)
        most = fmax(most, plan->stages[i].parameters + plan->stages[i].tapes);
    return most;
}

// What the tapes of stages really hold, of what the splitter's sums say; the most of any stage.
static double share_held(const SplitPlan *plan, const int *live) {
    const PipelineShape *s = &plan->table.shape;
    double most = 0;
    for (int i = 0; i < s->stages; i++) {
        double sum = 0, work = 0;
        for (int c = 0; c < s->chunks; c++) {
            int part = pipeline_part(s, i, c);
            for (int u = plan->first[part]; u < plan->first[part + 1]; u++) {
                sum += live[i * s->chunks + c] * plan->costs.mean[u].activations;
                work = fmax(work, plan->costs.mean[u].work);
            }
        }
        most = fmax(most, plan->stages[i].tapes / (sum + work));
    }
    return most;
}

static UnitCost *scaled(const UnitCosts *c, double share, Arena *arena) {
    UnitCost *costs = arena_array(arena, UnitCost, c->units);
    for (int u = 0; u < c->units; u++) {
        costs[u] = c->mean[u];
        costs[u].activations *= share;
        costs[u].work *= share;
    }
    return costs;
}

// Time of the costliest part.
static double costliest_part(const SplitPlan *plan) {
    double most = 0;
    for (int part = 0; part < part_count(&plan->table); part++) {
        double sum = 0;
        for (int u = plan->first[part]; u < plan->first[part + 1]; u++) {
            const UnitCost *m = &plan->costs.mean[u];
            sum += m->forward + m->input + m->weight;
        }
        most = fmax(most, sum);
    }
    return most;
}

// The least that the costliest part can take.
static bool least_part(Planner *p, const SplitProblem *problem, double *least, Error *error) {
    SplitProblem each = *problem;
    each.shape = (PipelineShape){PIPELINE_GPIPE, part_count(&p->plan->table), each.shape.microbatches, 1};
    each.live = NULL;
    each.memory = 0;
    if (!split_units(&each, p->plan->first, error)) return false;
    *least = costliest_part(p->plan);
    return true;
}

// The step of plan->first, in seconds.
static double simulated(Planner *p) {
    ArenaMark mark = arena_mark(p->arena);
    p->plan->stages = arena_array(p->arena, StagePlan, p->plan->table.shape.stages);
    p->first_piece = costliest_rank(p);
    simulate(p);
    arena_rewind(p->arena, mark);
    return p->plan->total;
}

// Several parts on a stage take turns: where they are unequal, the stages wait for one another even if each has as much
// to do. So the busiest stage is made shortest under several limits for the costliest part, and what the simulator
// finds fastest is taken.
static bool split_in_turns(Planner *p, SplitProblem *problem, Error *error) {
    enum { LIMITS = 8 };
    SplitPlan *plan = p->plan;
    int parts = part_count(&plan->table), *best = arena_array(p->arena, int, parts + 1);
    double fastest = INFINITY, least, most;
    Error none;
    if (!least_part(p, problem, &least, error) || !split_units(problem, plan->first, error)) return false;
    most = costliest_part(plan);
    for (int i = LIMITS; i >= 0; i--) {
        problem->part = i < LIMITS ? least * pow(most / least, (double)i / LIMITS) * (1 + 1e-6) : 0;
        if (i < LIMITS && (most <= 0 || !split_units(problem, plan->first, &none))) continue;
        double total = simulated(p);
        if (total >= fastest) continue;
        fastest = total;
        memcpy(best, plan->first, sizeof(int) * (size_t)(parts + 1));
    }
    problem->part = 0;
    memcpy(plan->first, best, sizeof(int) * (size_t)(parts + 1));
    return true;
}

static bool find_split(Planner *p, SplitProblem *problem, Error *error) {
    bool ok =
        problem->shape.chunks > 1 ? split_in_turns(p, problem, error) : split_units(problem, p->plan->first, error);
    if (ok) fill_in(p);
    return ok;
}

static bool split_within(Planner *p, SplitProblem *problem, double memory, Error *error) {
    enum { TRIES = 4 };
    SplitPlan *plan = p->plan;
    double margin = 1;
    for (int i = 0; i < TRIES && fullest(plan) > memory; i++, margin *= 1.05) {
        problem->memory = memory;
        problem->costs = scaled(&plan->costs, margin * share_held(plan, problem->live), p->arena);
        if (!find_split(p, problem, error)) return false;
    }
    if (fullest(plan) <= memory) return true;
    return error_set(
        error, ERROR_USAGE,
        "no split into %d stages was found that fits into %.3g GiB each: the fullest stage of the last one "
        "tried holds %.3g GiB",
        problem->shape.stages, memory / GIB, fullest(plan) / GIB);
}

// Table and costs, without a split.
static bool open_plan(Planner *p, const SplitOptions *o, Error *error) {
    SplitPlan *plan = p->plan;
    *plan = (SplitPlan){.send = o->send};
    if (!pipeline_make(&o->shape, p->arena, &plan->table, error)) return false;
    plan->first = arena_array(p->arena, int, part_count(&plan->table) + 1);
    return o->measured ? unit_costs_measure(p->config, p->layout, o->threads, p->arena, &plan->costs, error)
                       : unit_costs_model(p->config, p->layout, o->rates, p->arena, &plan->costs, error);
}

bool split_plan_find(const TrainConfig *config, const Layout *layout, const SplitOptions *o, Arena *arena,
                     SplitPlan *plan, Error *error) {
    Planner p = {config, layout, plan, arena, 0};
    if (!open_plan(&p, o, error)) return false;
    SplitProblem problem = {.shape = o->shape,
                            .units = plan->costs.units,
                            .costs = plan->costs.mean,
                            .live = count_live(&plan->table, arena)};
    if (!find_split(&p, &problem, error)) return false;
    return o->memory <= 0 || split_within(&p, &problem, o->memory, error);
}

bool split_plan_given(const TrainConfig *config, const Layout *layout, const SplitOptions *o, const int *first,
                      Arena *arena, SplitPlan *plan, Error *error) {
    Planner p = {config, layout, plan, arena, 0};
    if (!open_plan(&p, o, error)) return false;
    memcpy(plan->first, first, sizeof *first * (size_t)(part_count(&plan->table) + 1));
    fill_in(&p);
    return true;
}

void split_plan_at(const TrainConfig *config, const Layout *layout, const SplitPlan *of, const int *first, Arena *arena,
                   SplitPlan *out) {
    int parts = part_count(&of->table);
    Planner p = {config, layout, out, arena, 0};
    *out = *of;
    out->first = arena_array(arena, int, parts + 1);
    for (int i = 0; i <= parts; i++) out->first[i] = first[i];
    fill_in(&p);
}
