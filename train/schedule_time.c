/* See schedule_time.h. */
#include "train/schedule_time.h"
#include <math.h>

// When what others wait for is done: of each part and microbatch its forward and its input gradient; < 0: not yet.
typedef struct Done {
    const PipelineShape *shape;
    double *forward, *gradient; // (parts, microbatches)
} Done;

static double *done_at(const Done *d, Work work, int part, int microbatch) {
    double *times = work == WORK_FORWARD ? d->forward : d->gradient;
    return times + (int64_t)part * d->shape->microbatches + microbatch;
}

static double duration(const PipelineCosts *c, const PipelineShape *s, int part, const Slot *row) {
    int64_t at = c->each ? (int64_t)part * s->microbatches + row->microbatch : part;
    switch (row->work) {
    case WORK_FORWARD:
        return c->forward[at];
    case WORK_INPUT_GRADIENT:
        return c->input[at];
    case WORK_WEIGHT_GRADIENT:
        return c->weight[at];
    default:
        return c->input[at] + c->weight[at];
    }
}

// When what the row reads is there, < 0: not yet known.
static double ready_at(const Done *d, const PipelineCosts *c, int stage, const Slot *row) {
    int part = pipeline_part(d->shape, stage, row->chunk), source = pipeline_source(d->shape, row->work, part);
    int from, chunk;
    if (source < 0) return 0;
    double at = *done_at(d, row->work, source, row->microbatch);
    pipeline_place(d->shape, source, &from, &chunk);
    return at < 0 || from == stage ? at : at + c->send;
}

// Gives the row its time, where what it reads is there.
static bool run_row(const Done *d, const PipelineCosts *c, const Timeline *line, int stage, int index) {
    const Slot *row = &line->table->rows[stage][index];
    double ready = ready_at(d, c, stage, row), free_at = index ? line->spans[stage][index - 1].end : 0;
    int part = pipeline_part(d->shape, stage, row->chunk);
    if (ready < 0) return false;
    Span span = {.begin = fmax(ready, free_at)};
    span.end = span.begin + duration(c, d->shape, part, row);
    if (row->work != WORK_WEIGHT_GRADIENT) *done_at(d, row->work, part, row->microbatch) = span.end;
    line->spans[stage][index] = span;
    return true;
}

Timeline timeline_simulate(const PipelineTable *t, const PipelineCosts *c, Arena *arena) {
    const PipelineShape *s = &t->shape;
    int64_t cells = (int64_t)s->stages * s->chunks * s->microbatches;
    Timeline line = {t, arena_array(arena, Span *, s->stages)};
    for (int i = 0; i < s->stages; i++) line.spans[i] = arena_array(arena, Span, t->counts[i]);
    ArenaMark mark = arena_mark(arena);
    Done done = {s, arena_array(arena, double, cells), arena_array(arena, double, cells)};
    int *next = arena_array(arena, int, s->stages);
    for (int64_t k = 0; k < cells; k++) done.forward[k] = done.gradient[k] = -1;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < s->stages; i++)
            for (; next[i] < t->counts[i] && run_row(&done, c, &line, i, next[i]); next[i]++) moved = true;
    }
    for (int i = 0; i < s->stages; i++) check(next[i] == t->counts[i]);
    arena_rewind(arena, mark);
    return line;
}

static StageTime stage_time(const Timeline *line, int stage) {
    const Span *spans = line->spans[stage];
    int count = line->table->counts[stage];
    StageTime own = {.span = {spans[0].begin, spans[count - 1].end}};
    for (int k = 0; k < count; k++) own.busy += spans[k].end - spans[k].begin;
    return own;
}

PipelineTime timeline_measure(const Timeline *line, StageTime *stages) {
    const PipelineTable *t = line->table;
    PipelineTime time = {0};
    double first = INFINITY, last = -INFINITY, busy = 0;
    for (int i = 0; i < t->shape.stages; i++) {
        StageTime own = stage_time(line, i);
        first = fmin(first, own.span.begin);
        last = fmax(last, own.span.end);
        busy += own.busy;
        time.cycle = fmax(time.cycle, own.span.end - own.span.begin);
        time.work = fmax(time.work, own.busy);
        if (stages) stages[i] = own;
    }
    time.begin = first;
    time.total = last - first;
    time.bubble = time.total > 0 ? 1 - busy / (t->shape.stages * time.total) : 0;
    for (int i = 0; stages && time.total > 0 && i < t->shape.stages; i++)
        stages[i].bubble = 1 - stages[i].busy / time.total;
    time.rate = time.cycle > 0 ? (time.cycle - time.work) / time.cycle : 0;
    return time;
}
