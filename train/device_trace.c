/* See device_trace.h. */
#include "train/device_trace.h"
#include "base/error.h"
#include "train/device_timeline.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 32, GAPS = 3, NAME = 64 }; // ranges inside one another; gaps that are told; bytes of a name

typedef struct Range {
    char name[NAME];
    double begin;
} Range;

struct DeviceTrace {
    Backend *backend;
    Trace *trace;
    bool watched;
    DeviceTimeline timeline;
    int64_t pieces; // of work
    Range ranges[DEEPEST];
    int depth;
    void (*push)(Backend *, const char *); // those that were there before, which are called too
    void (*pop)(Backend *);
};

// ---- layers ----

static void push(Backend *b, const char *name) {
    DeviceTrace *d = b->listener;
    if (d->depth < DEEPEST) {
        Range *r = &d->ranges[d->depth];
        snprintf(r->name, sizeof r->name, "%s", name);
        r->begin = trace_now();
    }
    d->depth++;
    if (d->push) d->push(b, name);
}

static void pop(Backend *b) {
    DeviceTrace *d = b->listener;
    check(d->depth > 0);
    if (--d->depth < DEEPEST)
        trace_slice(d->trace, "layers", d->ranges[d->depth].name, d->ranges[d->depth].begin, trace_now());
    if (d->pop) d->pop(b);
}

DeviceTrace *device_trace_begin(Backend *b, Trace *trace) {
    if (!trace) return NULL;
    DeviceTrace *d = calloc(1, sizeof *d);
    check(d);
    *d = (DeviceTrace){.backend = b, .trace = trace, .push = b->range_push, .pop = b->range_pop};
    b->listener = d;
    b->range_push = push, b->range_pop = pop;
    d->watched = b->watch_begin && b->watch_begin(b);
    return d;
}

// ---- the device's own work ----

static void draw(void *context, const DeviceSlice *s) {
    DeviceTrace *d = context;
    char track[NAME];
    snprintf(track, sizeof track, "device stream %d",
             s->stream < 3 ? s->stream : 3); // the rest lie in lanes of the last
    trace_slice(d->trace, track, s->name, s->begin, s->end);
    device_timeline_add(&d->timeline, (TimeSpan){s->begin, s->end});
    d->pieces++;
}

typedef struct Steps { // of the host
    const DeviceTrace *device;
    TimeSpan all;
    double busy;
    int64_t count;
} Steps;

static void add_step(void *context, const char *name, double begin, double end) {
    Steps *s = context;
    if (strncmp(name, "step ", 5) != 0) return;
    double busy = device_timeline_busy(&s->device->timeline, (TimeSpan){begin, end});
    trace_counter(s->device->trace, "device busy, percent", begin, end > begin ? 100 * busy / (end - begin) : 0);
    s->all = (TimeSpan){s->count ? s->all.begin : begin, end};
    s->busy += busy;
    s->count++;
}

typedef struct Look { // for what the host does at a time
    double at, since;
    char name[NAME];
} Look;

static void look(void *context, const char *name, double begin, double end) {
    Look *l = context;
    if (begin > l->at || end < l->at || begin < l->since) return;
    l->since = begin; // the innermost
    snprintf(l->name, sizeof l->name, "%s", name);
}

static void tell_gap(const DeviceTrace *d, TimeSpan gap, double start, Log *log) {
    Look l = {.at = (gap.begin + gap.end) / 2, .name = "nothing that is drawn"};
    trace_each(d->trace, look, &l);
    log_info(log, "no work for %.3g ms, %.3f s into the steps: the host was at '%s'", 1e3 * (gap.end - gap.begin),
             gap.begin - start, l.name);
}

static void tell(DeviceTrace *d, Log *log) {
    Steps steps = {.device = d};
    TimeSpan gaps[GAPS];
    trace_each(d->trace, add_step, &steps);
    if (!steps.count) return;
    double lasted = steps.all.end - steps.all.begin;
    log_info(log, "the device worked %.1f %% of %lld step%s, %.0f pieces of work each", 100 * steps.busy / lasted,
             (long long)steps.count, steps.count > 1 ? "s" : "", (double)d->pieces / (double)steps.count);
    int count = device_timeline_gaps(&d->timeline, steps.all, gaps, GAPS);
    for (int i = 0; i < count; i++) tell_gap(d, gaps[i], steps.all.begin, log);
}

void device_trace_end(DeviceTrace *d, Log *log) {
    if (!d) return;
    Backend *b = d->backend;
    b->range_push = d->push, b->range_pop = d->pop;
    b->listener = NULL;
    if (d->watched) {
        b->watch_end(b, d, draw);
        tell(d, log);
    }
    device_timeline_free(&d->timeline);
    free(d);
}
