/* See stages.h. */
#include "train/stages.h"
#include "train/agree.h"
#include "train/split_plan.h"
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

static bool split_by_cost(const TrainConfig *c, const Layout *l, double memory_limit, Stages *s, Arena *memory,
                          Error *error) {
    SplitPlan plan;
    SplitOptions options = {.shape = l->pipeline,
                            .measured = !strcmp(c->parallel.split, "measured"),
                            .threads = (int)c->threads,
                            .rates = machine_rates(c),
                            .memory = memory_limit};
    if (!split_plan_find(c, l, &options, memory, &plan, error)) return false;
    memcpy(s->first, plan.first, sizeof *s->first * (size_t)(s->parts + 1));
    return true;
}

static bool split(const TrainConfig *c, const Layout *l, double memory_limit, Stages *s, Arena *memory, Error *error) {
    const char *how = c->parallel.split;
    if (!strcmp(how, "cost") || !strcmp(how, "measured")) return split_by_cost(c, l, memory_limit, s, memory, error);
    if (strcmp(how, "blocks") != 0) return read_split(s, how, memory, error);
    split_evenly(s->units, s->count, s->parts, s->first);
    return true;
}

bool stages_resolve(const TrainConfig *c, const Layout *l, double memory_limit, Comm *world, Arena *memory, Stages *s,
                    Error *error) {
    *s = (Stages){.count = joint_units(&c->model, NULL), .parts = l->pipeline.stages * l->pipeline.chunks};
    s->units = arena_array(memory, JointUnit, s->count);
    s->first = arena_array(memory, int, s->parts + 1);
    joint_units(&c->model, s->units);
    bool ok = pipeline_make(&l->pipeline, memory, &s->table, error);
    if (ok && (comm_rank(world) == 0 || strcmp(c->parallel.split, "measured") != 0))
        ok = split(c, l, memory_limit, s, memory, error); // by all alike, for one message; a clock may differ
    if (!agree(world, ok, error)) return false;
    comm_broadcast(world, s->first, (int64_t)sizeof *s->first * (s->parts + 1), 0, "split of the model");
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
