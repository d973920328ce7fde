/* The reading half of schedule_trace.h: the file is gone through once, and of each stage at the chosen place its rows
 * and steps are kept; then each step's rows are held against the table. */
#include "base/trace_read.h"
#include "train/schedule_trace.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double ROUNDED = 2e-9; // seconds: the file has nanoseconds
static const double LONGEST = 1e12; // seconds: beyond are no times

typedef struct Drawn { // a row, or a step
    Slot row;
    int64_t step;
    Span span; // seconds
} Drawn;

typedef struct DrawnList {
    Drawn *items;
    int64_t count, capacity;
} DrawnList;

typedef struct StageTrace {
    int64_t rank; // -1: not in the file
    DrawnList rows, features, steps;
} StageTrace;

typedef struct Reading {
    const char *path;
    const TraceChoice *choice;
    Arena *arena;
    ScheduleTrace *out;
    StageTrace *stages; // NULL: no pipeline was noted yet
    StageTrace *last;   // whose slice came last: a rank's stand behind one another
    bool limited;       // the trace left slices out
    PipelineShape shape;
} Reading;

static bool wrong(const Reading *r, Error *error, const char *what) {
    return error_set(error, ERROR_FAILED, "%s: %s", r->path, what);
}

// ---- what ranks noted ----

static bool read_pair(const json_t *note, const char *key, int *place, int *size) {
    json_t *pair = json_object_get(note, key);
    json_int_t p = json_integer_value(json_array_get(pair, 0)), s = json_integer_value(json_array_get(pair, 1));
    *place = (int)p, *size = (int)s;
    return json_array_size(pair) == 2 && p >= 0 && p < s && s <= 1 << 20;
}

static bool read_count(const json_t *note, const char *key, int most, int *value) {
    int64_t count = json_get_int(note, key, -1);
    *value = (int)count;
    return count >= 0 && count <= most;
}

static bool same_shape(const PipelineShape *a, const PipelineShape *b) {
    return a->kind == b->kind && a->stages == b->stages && a->microbatches == b->microbatches && a->chunks == b->chunks;
}

// The first rank's note says what all must say.
static bool begin_stages(Reading *r, const PipelineShape *s, Error *error) {
    if (!pipeline_shape_valid(s, error)) return error_prefix(error, "%s", r->path);
    r->shape = *s;
    r->stages = arena_array(r->arena, StageTrace, s->stages);
    for (int i = 0; i < s->stages; i++) r->stages[i].rank = -1;
    return true;
}

static bool take_note(Reading *r, const json_t *note, int64_t rank, Error *error) {
    PipelineShape s = {0};
    ScheduleTrace *out = r->out;
    int stage, data, tensor, data_ranks, tensor_ranks;
    bool ok = rank >= 0 && read_count(note, "stages", MOST_STAGES, &s.stages) &&
              read_count(note, "microbatches", MOST_MICROBATCHES, &s.microbatches) &&
              read_count(note, "chunks", MOST_CHUNKS, &s.chunks) && read_count(note, "stage", s.stages - 1, &stage) &&
              read_pair(note, "data", &data, &data_ranks) && read_pair(note, "tensor", &tensor, &tensor_ranks) &&
              pipeline_kind(json_get_string(note, "schedule", ""), &s.kind, error);
    if (!ok)
        return error_set(error, ERROR_FAILED, "%s: what rank %" PRId64 " noted of its pipeline is damaged", r->path,
                         rank);
    if (!r->stages) {
        out->data = data_ranks, out->tensor = tensor_ranks;
        if (!begin_stages(r, &s, error)) return false;
    }
    if (!same_shape(&s, &r->shape) || out->data != data_ranks || out->tensor != tensor_ranks)
        return error_set(error, ERROR_FAILED,
                         "%s: rank %" PRId64 " noted another pipeline than the first rank; the "
                         "file is of more than one run",
                         r->path, rank);
    if (data != r->choice->data || tensor != r->choice->tensor) return true;
    if (r->stages[stage].rank >= 0)
        return error_set(error, ERROR_FAILED, "%s: ranks %" PRId64 " and %" PRId64 " are both stage %d", r->path,
                         r->stages[stage].rank, rank, stage);
    r->stages[stage].rank = rank;
    return true;
}

// ---- slices ----

static StageTrace *stage_of(Reading *r, int64_t rank) {
    if (r->last && r->last->rank == rank) return r->last;
    for (int i = 0; r->stages && i < r->shape.stages; i++)
        if (r->stages[i].rank == rank) return r->last = &r->stages[i];
    return NULL;
}

static void keep(DrawnList *list, Drawn one) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 256;
        list->items = realloc(list->items, (size_t)list->capacity * sizeof *list->items);
        check(list->items);
    }
    list->items[list->count++] = one;
}

static bool take_slice(Reading *r, const TraceReader *in, const json_t *e, Error *error) {
    StageTrace *stage = stage_of(r, json_get_int(e, "pid", -1));
    const char *track = stage ? trace_track(in, e) : NULL, *name = json_get_string(e, "name", "");
    double begin = 1e-6 * json_get_number(e, "ts", NAN), lasts = 1e-6 * json_get_number(e, "dur", NAN);
    Drawn one = {.span = {begin, begin + lasts}};
    if (!track) return true;
    if (!(fabs(begin) <= LONGEST && lasts >= 0 && lasts <= LONGEST))
        return wrong(r, error, "a slice without its times");
    long long step;
    if (!strcmp(track, "stage") && schedule_trace_slot(name, &one.row)) keep(&stage->rows, one);
    if (!strcmp(track, "stage") && !strncmp(name, "features ", 9)) keep(&stage->features, one);
    if (!strcmp(track, "compute") && sscanf(name, "step %lld", &step) == 1) {
        one.step = step;
        keep(&stage->steps, one);
    }
    return true;
}

static bool read_events(Reading *r, TraceReader *in, Error *error) {
    for (json_t *e;;) {
        if (!trace_next(in, &e, error)) return false;
        if (!e) return true;
        const char *kind = json_get_string(e, "ph", "");
        bool ok = true;
        if (!strcmp(kind, "X")) ok = take_slice(r, in, e, error);
        if (!strcmp(kind, "M") && !strcmp(json_get_string(e, "name", ""), "pipeline"))
            ok = take_note(r, json_object_get(e, "args"), json_get_int(e, "pid", -1), error);
        json_decref(e);
        if (!ok) return false;
    }
}

static int by_begin(const void *left, const void *right) {
    const Drawn *a = left, *b = right;
    return (a->span.begin > b->span.begin) - (a->span.begin < b->span.begin);
}

// At least one step's rows, so that what follows takes memory by what is in the file, not by what it says.
static bool check_stage(const Reading *r, int stage, Error *error) {
    const StageTrace *s = &r->stages[stage];
    int want = pipeline_rows(&r->shape, stage, NULL);
    if (s->rank < 0)
        return error_set(error, ERROR_FAILED, "%s: stage %d is not in it; it takes the files of all ranks as one",
                         r->path, stage);
    if (s->rows.count >= want) return true;
    return error_set(error, ERROR_FAILED,
                     "%s: stage %d has %" PRId64
                     " rows in all, but a step of %s has %d; the run ended before its first "
                     "step, or its trace is damaged",
                     r->path, stage, s->rows.count, pipeline_names[r->shape.kind], want);
}

static void sort(DrawnList *list) {
    if (list->count) qsort(list->items, (size_t)list->count, sizeof *list->items, by_begin);
}

static bool read_file(Reading *r, Error *error) {
    const TraceChoice *c = r->choice;
    TraceReader *in = trace_open(r->path, error);
    if (!in) return false;
    r->limited = json_get_int(trace_head(in), "left_out", 0) > 0;
    bool ok = read_events(r, in, error);
    trace_close(in);
    if (!ok) return false;
    if (!r->stages) return wrong(r, error, "no rank noted a pipeline: the run had none (parallel.pipeline: 1)");
    if (c->data >= r->out->data || c->tensor >= r->out->tensor)
        return error_set(error, ERROR_USAGE, "%s: there is no data place %d, tensor place %d: the run had %d x %d",
                         r->path, c->data, c->tensor, r->out->data, r->out->tensor);
    for (int i = 0; i < r->shape.stages; i++) {
        StageTrace *s = &r->stages[i];
        if (!check_stage(r, i, error)) return false;
        sort(&s->rows);
        sort(&s->features);
        sort(&s->steps);
    }
    return pipeline_make(&r->shape, r->arena, &r->out->table, error);
}

// ---- steps ----

static int by_step(const void *left, const void *right) {
    const Drawn *a = left, *b = right;
    return (a->step > b->step) - (a->step < b->step);
}

// Steps follow one another in time as in number.
static const Drawn *step_of(const StageTrace *s, int64_t number) {
    if (!s->steps.count) return NULL;
    return bsearch(&(Drawn){.step = number}, s->steps.items, (size_t)s->steps.count, sizeof(Drawn), by_step);
}

// What of the list lies inside the step; items NULL: nothing.
static DrawnList inside(const DrawnList *list, const Drawn *step) {
    int64_t low = 0, high = list->count, count = 0;
    if (!step) return (DrawnList){0};
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (list->items[middle].span.begin < step->span.begin)
            low = middle + 1;
        else
            high = middle;
    }
    while (low + count < list->count && list->items[low + count].span.end <= step->span.end + ROUNDED) count++;
    return (DrawnList){count ? list->items + low : NULL, count, count};
}

static bool same_row(const Slot *a, const Slot *b) {
    return a->work == b->work && a->microbatch == b->microbatch && a->chunk == b->chunk;
}

// Rows that are those of the table, in its order and one after the other.
static bool check_rows(const Reading *r, int64_t step, int stage, const Drawn *rows, Error *error) {
    const PipelineTable *t = &r->out->table;
    char got[48], want[48];
    for (int k = 0; k < t->counts[stage]; k++) {
        schedule_trace_name(&rows[k].row, got);
        schedule_trace_name(&t->rows[stage][k], want);
        if (!same_row(&rows[k].row, &t->rows[stage][k]))
            return error_set(error, ERROR_FAILED,
                             "%s: step %" PRId64 ", stage %d, row %d is '%s', but %s has '%s' there", r->path, step,
                             stage, k, got, pipeline_names[r->shape.kind], want);
        if (k && rows[k].span.begin < rows[k - 1].span.end - ROUNDED)
            return error_set(error, ERROR_FAILED,
                             "%s: step %" PRId64 ", stage %d: '%s' begins before the row in front of it has ended",
                             r->path, step, stage, got);
    }
    return true;
}

// The step's rows at a stage as spans. *cut: not all of them are in the file.
static bool take_rows(const Reading *r, TracedStep *step, int stage, bool *cut, Error *error) {
    const StageTrace *s = &r->stages[stage];
    const Drawn *window = step_of(s, step->number);
    DrawnList rows = inside(&s->rows, window), features = inside(&s->features, window);
    int64_t want = r->out->table.counts[stage];
    *cut = r->limited && rows.count < want;
    if (*cut) return true;
    if (!rows.items || rows.count != want)
        return error_set(error, ERROR_FAILED, "%s: step %" PRId64 ", stage %d: %" PRId64 " rows, but %s has %" PRId64,
                         r->path, step->number, stage, rows.count, pipeline_names[r->shape.kind], want);
    if (!check_rows(r, step->number, stage, rows.items, error)) return false;
    for (int64_t k = 0; k < want; k++) step->measured.spans[stage][k] = rows.items[k].span;
    if (features.items)
        step->features =
            fmax(step->features, features.items[features.count - 1].span.end - features.items[0].span.begin);
    return true;
}

// ---- beside the simulation ----

typedef struct Costs {                       // of a step as measured
    double *forward, *input, *weight, *gaps; // (parts, microbatches) but for the gaps
    double *mean[3];                         // (parts) of forward, input, weight
    double *done[2];                         // (parts, microbatches): end of the forward, of the input gradient
    int gap_count;
} Costs;

static Costs costs_new(const PipelineShape *s, Arena *arena) {
    int parts = s->stages * s->chunks;
    int64_t cells = (int64_t)parts * s->microbatches;
    return (Costs){arena_array(arena, double, cells),
                   arena_array(arena, double, cells),
                   arena_array(arena, double, cells),
                   arena_array(arena, double, 2 * cells),
                   .mean = {arena_array(arena, double, parts), arena_array(arena, double, parts),
                            arena_array(arena, double, parts)},
                   .done = {arena_array(arena, double, cells), arena_array(arena, double, cells)}};
}

static void take_means(const PipelineShape *s, Costs *c) {
    const double *const costs[3] = {c->forward, c->input, c->weight};
    for (int k = 0; k < 3; k++)
        for (int part = 0; part < s->stages * s->chunks; part++) {
            c->mean[k][part] = 0;
            for (int i = 0; i < s->microbatches; i++)
                c->mean[k][part] += costs[k][(int64_t)part * s->microbatches + i] / s->microbatches;
        }
}

static void take_costs(const Timeline *line, Costs *c) {
    const PipelineShape *s = &line->table->shape;
    for (int i = 0; i < s->stages; i++)
        for (int k = 0; k < line->table->counts[i]; k++) {
            const Slot *row = &line->table->rows[i][k];
            Span span = line->spans[i][k];
            int64_t at = (int64_t)pipeline_part(s, i, row->chunk) * s->microbatches + row->microbatch;
            double lasts = span.end - span.begin;
            if (row->work == WORK_FORWARD) c->forward[at] = lasts;
            if (row->work == WORK_WEIGHT_GRADIENT) c->weight[at] = lasts;
            if (row->work == WORK_INPUT_GRADIENT || row->work == WORK_BOTH_GRADIENTS) c->input[at] = lasts;
            if (row->work == WORK_BOTH_GRADIENTS) c->weight[at] = 0;
            if (row->work != WORK_WEIGHT_GRADIENT) c->done[row->work != WORK_FORWARD][at] = span.end;
        }
}

// How long after what it reads was done elsewhere each row began that had nothing else to wait for.
static void take_gaps(TracedStep *step, Costs *c) {
    const Timeline *line = &step->measured;
    const PipelineShape *s = &line->table->shape;
    c->gap_count = 0;
    for (int i = 0; i < s->stages; i++)
        for (int k = 0; k < line->table->counts[i]; k++) {
            const Slot *row = &line->table->rows[i][k];
            int source = pipeline_source(s, row->work, pipeline_part(s, i, row->chunk)), from, chunk;
            if (source < 0 || (pipeline_place(s, source, &from, &chunk), from == i)) continue;
            double done = c->done[row->work != WORK_FORWARD][(int64_t)source * s->microbatches + row->microbatch];
            double gap = line->spans[i][k].begin - done;
            step->early = fmax(step->early, -gap);
            if (k && done >= line->spans[i][k - 1].end) c->gaps[c->gap_count++] = fmax(gap, 0);
        }
}

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

double schedule_trace_median(double *values, int count) {
    if (!count) return 0;
    qsort(values, (size_t)count, sizeof *values, by_size);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

static void simulate(const Reading *r, TracedStep *step, Costs *c) {
    take_costs(&step->measured, c);
    take_gaps(step, c);
    step->send = schedule_trace_median(c->gaps, c->gap_count);
    PipelineCosts costs = {c->forward, c->input, c->weight, .send = step->send, .each = true};
    step->simulated = timeline_simulate(&r->out->table, &costs, r->arena);
    take_means(&r->shape, c);
    costs = (PipelineCosts){c->mean[0], c->mean[1], c->mean[2], .send = step->send};
    step->averaged = timeline_simulate(&r->out->table, &costs, r->arena);
}

// ---- all of it ----

static bool take_step(const Reading *r, int64_t number, Costs *costs, Error *error) {
    ScheduleTrace *out = r->out;
    TracedStep *step = &out->steps[out->count];
    *step = (TracedStep){.number = number, .measured = {&out->table, arena_array(r->arena, Span *, r->shape.stages)}};
    for (int i = 0; i < r->shape.stages; i++) {
        bool cut;
        step->measured.spans[i] = arena_array(r->arena, Span, out->table.counts[i]);
        if (!take_rows(r, step, i, &cut, error)) return false;
        if (!cut) continue;
        out->cut++;
        return true;
    }
    simulate(r, step, costs);
    out->count++;
    return true;
}

static bool take_steps(const Reading *r, Error *error) {
    const DrawnList *all = &r->stages[0].steps;
    int64_t wanted = r->choice->step;
    Costs costs = costs_new(&r->shape, r->arena);
    r->out->steps = arena_array(r->arena, TracedStep, all->count + 1);
    for (int64_t i = 0; i < all->count; i++)
        if ((!wanted || all->items[i].step == wanted) && !take_step(r, all->items[i].step, &costs, error)) return false;
    if (r->out->count) return true;
    if (!all->count) return wrong(r, error, "no step has ended in it");
    if (r->out->cut) return wrong(r, error, "no step is whole: its slices are limited; trace fewer steps");
    return error_set(error, ERROR_USAGE, "%s: step %" PRId64 " is not in it; %" PRId64 " to %" PRId64 " are", r->path,
                     wanted, all->items[0].step, all->items[all->count - 1].step);
}

bool schedule_trace_read(const char *path, const TraceChoice *choice, Arena *arena, ScheduleTrace *out, Error *error) {
    Reading r = {.path = path, .choice = choice, .arena = arena, .out = out};
    *out = (ScheduleTrace){0};
    bool ok = read_file(&r, error) && take_steps(&r, error);
    for (int i = 0; r.stages && i < r.shape.stages; i++) {
        free(r.stages[i].rows.items);
        free(r.stages[i].features.items);
        free(r.stages[i].steps.items);
    }
    return ok;
}
