/* See stages.h. */
#include "train/stages.h"
#include "train/agree.h"
#include <string.h>

static int unit_named(const Stages *s, const char *name, size_t length) {
    for (int u = 0; u < s->count; u++)
        if (strlen(s->units[u].name) == length && !strncmp(s->units[u].name, name, length)) return u;
    return -1;
}

static bool no_such_unit(const Stages *s, const char *name, size_t length, Arena *memory, Error *error) {
    const char **names = arena_array(memory, const char *, s->count);
    for (int u = 0; u < s->count; u++) names[u] = s->units[u].name;
    char *word = arena_printf(memory, "%.*s", (int)length, name);
    const char *near = nearest_word(word, names, s->count);
    return error_set(
        error, ERROR_USAGE,
        "parallel.split: the model has no unit '%s'%s%s%s; give cost, measured or blocks, or the first unit "
        "of each part but the first (see `bifocal plan stages`)",
        word, near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

// "vision.blocks.6,text.embed": the first unit of each part but the first.
static bool read_split(const Stages *s, const char *text, Arena *memory, Error *error) {
    int part = 0;
    s->first[0] = 0;
    for (const char *at = text; *at;) {
        size_t length = strcspn(at, ",");
        int unit = unit_named(s, at, length);
        if (unit < 0) return no_such_unit(s, at, length, memory, error);
        if (unit <= s->first[part])
            return error_set(error, ERROR_USAGE,
                             "parallel.split: %s does not come behind %s, where the part before begins",
                             s->units[unit].name, s->units[s->first[part]].name);
        if (++part < s->parts) s->first[part] = unit;
        at += length;
        at += *at == ',';
    }
    if (part != s->parts - 1)
        return error_set(error, ERROR_USAGE, "parallel.split names %d unit%s, but %d parts want %d: all but the first",
                         part, part == 1 ? "" : "s", s->parts, s->parts - 1);
    s->first[s->parts] = s->count;
    return true;
}

// What the stages hold must fit where the split does not come from the splitter, which sees to it.
static bool check_fits(const SplitPlan *plan, double memory_limit, const char *how, Error *error) {
    static const double GIB = 0x1p30;
    for (int i = 0; i < plan->table.shape.stages; i++) {
        const StagePlan *s = &plan->stages[i];
        if (s->parameters + s->tapes <= memory_limit) continue;
        return error_set(error, ERROR_USAGE,
                         "parallel.split %s: stage %d needs %.3g GiB (%.3g for parameters, gradients and moments, %.3g "
                         "for activations), %.3g GiB are there for it; parallel.split: cost looks for one that fits, "
                         "more stages, more (smaller) microbatches or train.recompute: full take less",
                         how, i, (s->parameters + s->tapes) / GIB, s->parameters / GIB, s->tapes / GIB,
                         memory_limit / GIB);
    }
    return true;
}

static bool begin(const TrainConfig *c, const Layout *l, Arena *memory, Stages *s, Error *error) {
    *s = (Stages){.count = joint_units(&c->model, NULL), .parts = l->pipeline.stages * l->pipeline.chunks};
    s->units = arena_array(memory, JointUnit, s->count);
    s->first = arena_array(memory, int, s->parts + 1);
    s->tapes = arena_array(memory, double, l->pipeline.stages);
    joint_units(&c->model, s->units);
    return pipeline_make(&l->pipeline, memory, &s->table, error);
}

static bool split(const TrainConfig *c, const Layout *l, MachineRates rates, double memory_limit, Stages *s,
                  Arena *memory, SplitPlan *plan, Error *error) {
    const char *how = c->parallel.split;
    bool measured = !strcmp(how, "measured"), found = measured || !strcmp(how, "cost");
    SplitOptions options = {.shape = l->pipeline,
                            .measured = measured,
                            .threads = (int)c->threads,
                            .rates = rates,
                            .memory = found ? memory_limit : 0};
    if (!strcmp(how, "blocks"))
        split_evenly(s->units, s->count, s->parts, s->first);
    else if (!found && !read_split(s, how, memory, error))
        return false;
    if (!(found ? split_plan_find(c, l, &options, memory, plan, error)
                : split_plan_given(c, l, &options, s->first, memory, plan, error)))
        return false;
    memcpy(s->first, plan->first, sizeof *s->first * (size_t)(s->parts + 1));
    for (int i = 0; i < l->pipeline.stages; i++) s->tapes[i] = plan->stages[i].tapes;
    return found || check_fits(plan, memory_limit, how, error);
}

bool stages_plan(const TrainConfig *c, const Layout *l, MachineRates rates, double memory_limit, Arena *memory,
                 Stages *s, SplitPlan *plan, Error *error) {
    return begin(c, l, memory, s, error) && split(c, l, rates, memory_limit, s, memory, plan, error);
}

bool stages_resolve(const TrainConfig *c, const Layout *l, double memory_limit, Comm *world, Arena *memory, Stages *s,
                    Error *error) {
    SplitPlan plan;
    Arena *work = arena_new(1 << 16);
    bool ok = begin(c, l, memory, s, error);
    if (ok && comm_rank(world) == 0) ok = split(c, l, machine_rates(c), memory_limit, s, work, &plan, error);
    arena_free(work);
    if (!agree_with_first(world, ok, error)) return false;
    comm_broadcast(world, s->first, (int64_t)sizeof *s->first * (s->parts + 1), 0, "split of the model");
    comm_broadcast(world, s->tapes, (int64_t)sizeof *s->tapes * l->pipeline.stages, 0, "memory of stages");
    return true;
}

int *stages_chunks(const Stages *s, int stage, Arena *memory) {
    int *chunks = arena_array(memory, int, s->count);
    for (int part = 0; part < s->parts; part++) {
        int place, chunk;
        pipeline_place(&s->table.shape, part, &place, &chunk);
        for (int u = s->first[part]; u < s->first[part + 1]; u++) chunks[u] = place == stage ? chunk : -1;
    }
    return chunks;
}

void stages_describe(const Stages *s, Buffer *out) {
    for (int stage = 0; stage < s->table.shape.stages; stage++) {
        buffer_printf(out, "%sstage %d:", stage ? "\n" : "", stage);
        for (int chunk = 0; chunk < s->table.shape.chunks; chunk++) {
            int part = pipeline_part(&s->table.shape, stage, chunk), first = s->first[part], end = s->first[part + 1];
            buffer_printf(out, "%s %s", chunk ? ";" : "", s->units[first].name);
            if (end - first > 1) buffer_printf(out, " .. %s (%d units)", s->units[end - 1].name, end - first);
        }
    }
}
