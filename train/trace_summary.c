/* See trace_summary.h. */
#include "train/trace_summary.h"
#include "base/trace_read.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const double gap_classes[GAP_CLASSES - 1] = {2e-6, 5e-6, 20e-6, 100e-6, 1e-3};
static const double MICRO = 1e-6; // seconds of a timeline's unit
static const char STREAM[] = "device stream", HOST[] = "compute", STEP[] = "step "; // tracks have lanes
enum { UNSETTLED = 2 }; // steps in which things are set up and captured

typedef struct Reading {
    Arena *arena;
    json_t *numbers; // of names
    WorkTotal *totals;
    int count, totals_room;
    DeviceWork *work;
    int64_t work_count, work_room;
    DeviceWork *steps; // their times alone
    int64_t step_count, step_room;
} Reading;

static void *grown(void *items, int64_t *room, size_t size) {
    *room = 2 * *room + 256;
    items = realloc(items, (size_t)*room * size);
    check(items);
    return items;
}

// ---- what is in the file ----

// Copies and fills are one whatever their size: "copy to host, 4.0 MiB".
static int number_of(Reading *r, const char *name) {
    const char *comma = strchr(name, ',');
    const char *own = comma ? arena_printf(r->arena, "%.*s", (int)(comma - name), name) : name;
    json_t *known = json_object_get(r->numbers, own);
    if (known) return (int)json_integer_value(known);
    if (r->count == r->totals_room) {
        int64_t room = r->totals_room;
        r->totals = grown(r->totals, &room, sizeof *r->totals);
        r->totals_room = (int)room;
    }
    json_object_set_new(r->numbers, own, json_integer(r->count));
    r->totals[r->count] = (WorkTotal){.name = arena_printf(r->arena, "%s", own)};
    return r->count++;
}

static void add_work(Reading *r, DeviceWork w) {
    if (r->work_count == r->work_room) r->work = grown(r->work, &r->work_room, sizeof *r->work);
    r->work[r->work_count++] = w;
}

static void add_step(Reading *r, DeviceWork w) {
    if (r->step_count == r->step_room) r->steps = grown(r->steps, &r->step_room, sizeof *r->steps);
    r->steps[r->step_count++] = w;
}

static void take(Reading *r, const TraceReader *reader, const json_t *event, int rank) {
    const char *track = trace_track(reader, event), *name = json_get_string(event, "name", "");
    if (strcmp(json_get_string(event, "ph", ""), "X") != 0 || json_get_int(event, "pid", -1) != rank || !track) return;
    double begin = MICRO * json_get_number(event, "ts", 0);
    DeviceWork w = {.begin = begin, .end = begin + MICRO * json_get_number(event, "dur", 0)};
    if (!strncmp(track, STREAM, strlen(STREAM))) {
        w.stream = atoi(track + strlen(STREAM));
        w.name = number_of(r, name);
        add_work(r, w);
    } else if (!strncmp(name, STEP, strlen(STEP)) && !strncmp(track, HOST, strlen(HOST))) {
        add_step(r, w);
    }
}

static bool read_all(Reading *r, const char *path, int rank, Error *error) {
    TraceReader *reader = trace_open(path, error);
    json_t *event = NULL;
    bool ok = reader != NULL;
    while (ok && (ok = trace_next(reader, &event, error)) && event) {
        take(r, reader, event, rank);
        json_decref(event);
    }
    trace_close(reader);
    if (!ok) return false;
    if (!r->work_count)
        return error_set(error, ERROR_FAILED,
                         "%s: no work of a GPU is in it; `bifocal train CONFIG device=cuda --trace` notes that where "
                         "CUDA's libcupti is found",
                         path);
    return r->step_count || error_set(error, ERROR_FAILED, "%s: no step is in it", path);
}

// ---- sums ----

static int by_begin(const void *a, const void *b) {
    const DeviceWork *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static int by_seconds(const void *a, const void *b) {
    const WorkTotal *x = *(WorkTotal *const *)a, *y = *(WorkTotal *const *)b;
    return x->seconds != y->seconds ? (x->seconds < y->seconds) - (x->seconds > y->seconds) : strcmp(x->name, y->name);
}

static void note_gap(TraceSummary *s, WorkGap gap) {
    int class = 0, at = s->gap_count;
    if (!(gap.seconds > 0)) return;
    while (class < GAP_CLASSES - 1 && gap.seconds > gap_classes[class]) class ++;
    s->gaps_in[class]++;
    s->idle_in[class] += gap.seconds;
    while (at > 0 && s->gaps[at - 1].seconds < gap.seconds) at--;
    if (at == SUMMARY_GAPS) return;
    if (s->gap_count < SUMMARY_GAPS) s->gap_count++;
    memmove(s->gaps + at + 1, s->gaps + at, sizeof gap * (size_t)(s->gap_count - at - 1));
    s->gaps[at] = gap;
}

// Work in the order of its beginnings, inside of [0, seconds).
static void walk(TraceSummary *s, const WorkTotal *names) {
    double until = 0;
    const char *last = NULL;
    for (int64_t i = 0; i < s->work_count; i++) {
        const DeviceWork *w = &s->work[i];
        if (w->begin > until) note_gap(s, (WorkGap){until, w->begin - until, last, names[w->name].name});
        if (w->end <= until) continue;
        s->busy += w->end - fmax(w->begin, until);
        until = w->end;
        last = names[w->name].name;
    }
    if (until < s->seconds) note_gap(s, (WorkGap){until, s->seconds - until, last, NULL});
}

// Only work that lies in the steps, cut at their ends, and times from their beginning on.
static void keep_within(Reading *r, TraceSummary *s, double begin) {
    s->work = arena_array(r->arena, DeviceWork, r->work_count);
    for (int64_t i = 0; i < r->work_count; i++) {
        DeviceWork w = r->work[i];
        w.begin = fmax(w.begin - begin, 0), w.end = fmin(w.end - begin, s->seconds);
        if (w.end <= w.begin) continue;
        WorkTotal *t = &r->totals[w.name];
        t->count++, t->seconds += w.end - w.begin, t->longest = fmax(t->longest, w.end - w.begin);
        if (w.stream >= s->streams) s->streams = w.stream + 1;
        s->work[s->work_count++] = w;
    }
}

// The longest first; work has their new numbers.
static void order_totals(const Reading *r, TraceSummary *s) {
    WorkTotal **order = arena_array(r->arena, WorkTotal *, r->count);
    int *place = arena_array(r->arena, int, r->count);
    s->of = arena_array(r->arena, WorkTotal, r->count);
    for (int i = 0; i < r->count; i++) order[i] = &r->totals[i];
    qsort(order, (size_t)r->count, sizeof(WorkTotal *), by_seconds);
    for (int i = 0; i < r->count; i++) {
        place[order[i] - r->totals] = i;
        s->of[i] = *order[i];
        s->count += order[i]->count > 0;
    }
    for (int64_t i = 0; i < s->work_count; i++) s->work[i].name = place[s->work[i].name];
}

static void sum_up(Reading *r, TraceSummary *s) {
    qsort(r->work, (size_t)r->work_count, sizeof *r->work, by_begin);
    qsort(r->steps, (size_t)r->step_count, sizeof *r->steps, by_begin);
    int64_t first = r->step_count > UNSETTLED ? UNSETTLED : 0, middle = first + (r->step_count - first) / 2;
    double begin = r->steps[first].begin;
    s->steps = r->step_count - first;
    s->seconds = r->steps[r->step_count - 1].end - begin;
    s->drawn[0] = r->steps[middle].begin - begin, s->drawn[1] = r->steps[middle].end - begin;
    keep_within(r, s, begin);
    walk(s, r->totals);
    order_totals(r, s);
}

bool trace_summary_read(const char *path, int rank, Arena *arena, TraceSummary *s, Error *error) {
    Reading r = {.arena = arena, .numbers = json_object()};
    *s = (TraceSummary){0};
    bool ok = read_all(&r, path, rank, error);
    if (ok) sum_up(&r, s);
    json_decref(r.numbers);
    free(r.totals);
    free(r.work);
    free(r.steps);
    return ok;
}
