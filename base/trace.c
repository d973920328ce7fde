/* See trace.h. An event is a line of its own in the file, so that files are joined line by line, however long they are.
 * The format: "Trace Event Format", Google 2016; complete events ("X") and metadata ("M"). */
#include "base/trace.h"
#include "base/clock.h"
#include "base/files.h"
#include "base/trace_read.h"
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MOST_TRACKS = 16,
    MOST_LANES = 16,       // of a track: see lay_out
    MOST_SLICES = 1 << 20, // those that come later are counted and left out: a trace is of minutes, not of days
    BLOCK = 1 << 16,       // bytes written at once
};

typedef struct Slice {
    int track;
    size_t name; // where it starts in Trace.names
    double begin, end;
} Slice;

struct Trace {
    pthread_mutex_t lock;
    int rank, tracks;
    char *track[MOST_TRACKS];
    Buffer names; // one behind the other, each with its zero
    Slice *slices;
    size_t count, capacity;
    Buffer notes; // whole events, each with what separates it from the one before
    long long left_out;
    double clock;     // what is added to trace_now for the time of day, by which machines are compared
    char machine[37]; // whose clock trace_now is; "": unknown
};

static double time_of_day(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double trace_now(void) { return clock_seconds(); }

Trace *trace_new(int rank) {
    static const char *const order[] = {"compute", "communication", "loader", "save"}; // as a viewer shall show them
    Trace *t = calloc(1, sizeof *t);
    check(t && pthread_mutex_init(&t->lock, NULL) == 0);
    t->rank = rank;
    t->clock = time_of_day() - trace_now();
    clock_machine(t->machine);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) check((t->track[t->tracks++] = strdup(order[i])));
    return t;
}

void trace_free(Trace *t) {
    if (!t) return;
    for (int i = 0; i < t->tracks; i++) free(t->track[i]);
    buffer_free(&t->names);
    buffer_free(&t->notes);
    free(t->slices);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

// ---- slices ----

static int track_of(Trace *t, const char *name) {
    for (int i = 0; i < t->tracks; i++)
        if (!strcmp(t->track[i], name)) return i;
    check(t->tracks < MOST_TRACKS && "tracks of a trace");
    check((t->track[t->tracks] = strdup(name)));
    return t->tracks++;
}

static void append(Trace *t, const char *track, const char *name, double begin, double end) {
    if (t->count == t->capacity) {
        t->capacity = t->capacity ? 2 * t->capacity : 1024;
        t->slices = realloc(t->slices, t->capacity * sizeof *t->slices);
        check(t->slices);
    }
    t->slices[t->count++] = (Slice){track_of(t, track), t->names.size, begin, end};
    buffer_append(&t->names, name, strlen(name) + 1);
}

void trace_slice(Trace *t, const char *track, const char *name, double begin, double end) {
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    if (t->count < MOST_SLICES)
        append(t, track, name, begin, end);
    else
        t->left_out++;
    pthread_mutex_unlock(&t->lock);
}

// ---- lanes ----

// Slices of a track that overlap without nesting (two reductions under way) are drawn in lanes below one another.
typedef struct Lanes {
    const Slice **order; // (count) by track, begin, and the longer first
    int *lane;           // (count) of order[i]
    bool used[MOST_TRACKS][MOST_LANES];
} Lanes;

static int by_begin(const void *left, const void *right) {
    const Slice *a = *(const Slice *const *)left, *b = *(const Slice *const *)right;
    if (a->track != b->track) return a->track < b->track ? -1 : 1;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end == b->end ? 0 : a->end > b->end ? -1 : 1;
}

typedef struct Lane { // the slices that are open at a time, each inside the one before it
    double end[64];
    int depth;
} Lane;

static bool fits(Lane *lane, const Slice *s) {
    while (lane->depth && lane->end[lane->depth - 1] <= s->begin) lane->depth--;
    return lane->depth == 0 || (lane->depth < 64 && s->end <= lane->end[lane->depth - 1]);
}

static void lay_out(const Trace *t, Lanes *out) {
    Lane lanes[MOST_LANES] = {0};
    out->order = calloc(t->count + 1, sizeof *out->order);
    out->lane = calloc(t->count + 1, sizeof *out->lane);
    check(out->order && out->lane);
    for (size_t i = 0; i < t->count; i++) out->order[i] = &t->slices[i];
    qsort(out->order, t->count, sizeof *out->order, by_begin);
    for (size_t i = 0; i < t->count; i++) {
        const Slice *s = out->order[i];
        int lane = 0;
        if (i && s->track != out->order[i - 1]->track) memset(lanes, 0, sizeof lanes);
        while (lane < MOST_LANES - 1 && !fits(&lanes[lane], s)) lane++;
        if (lanes[lane].depth < 64) lanes[lane].end[lanes[lane].depth++] = s->end;
        out->lane[i] = lane;
        out->used[s->track][lane] = true;
    }
}

// ---- one process's file ----

static void append_quoted(Buffer *out, const char *text) {
    json_t *string = json_string(text);
    char *quoted = json_dumps(string, JSON_ENCODE_ANY);
    buffer_text(out, quoted ? quoted : "\"(not UTF-8)\"");
    free(quoted);
    json_decref(string);
}

// Tells a viewer a name; what: process_name or thread_name, which also gets its place in the order.
static void append_name(Buffer *out, int rank, int track, const char *what, const char *name) {
    bool process = track < 0;
    buffer_printf(out, "{\"ph\": \"M\", \"pid\": %d, \"tid\": %d, \"name\": \"%s\", \"args\": {\"name\": ", rank,
                  process ? 0 : track, what);
    append_quoted(out, name);
    buffer_printf(
        out, "}},\n{\"ph\": \"M\", \"pid\": %d, \"tid\": %d, \"name\": \"%s\", \"args\": {\"sort_index\": %d}}", rank,
        process ? 0 : track, process ? "process_sort_index" : "thread_sort_index", process ? rank : track);
}

// Both ends are rounded to nanoseconds, so that slices which nest still do.
static void append_slice(Buffer *out, const Trace *t, const Slice *s, int lane) {
    long long begin = llround(s->begin * 1e9), end = llround(s->end * 1e9);
    long long lasted = end > begin ? end - begin : 0;
    buffer_printf(
        out, "{\"ph\": \"X\", \"pid\": %d, \"tid\": %d, \"ts\": %lld.%03lld, \"dur\": %lld.%03lld, \"name\": ", t->rank,
        s->track * MOST_LANES + lane, begin / 1000, begin % 1000, lasted / 1000, lasted % 1000);
    append_quoted(out, t->names.data + s->name);
    buffer_text(out, "}");
}

void trace_note(Trace *t, const char *name, const char *values) {
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    buffer_printf(&t->notes, ",\n{\"ph\": \"M\", \"pid\": %d, \"tid\": 0, \"name\": ", t->rank);
    append_quoted(&t->notes, name);
    buffer_printf(&t->notes, ", \"args\": %s}", values);
    pthread_mutex_unlock(&t->lock);
}

void trace_counter(Trace *t, const char *name, double at, double value) {
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    buffer_printf(&t->notes, ",\n{\"ph\": \"C\", \"pid\": %d, \"tid\": 0, \"ts\": %.3f, \"name\": ", t->rank, at * 1e6);
    append_quoted(&t->notes, name);
    buffer_printf(&t->notes, ", \"args\": {\"value\": %.6g}}", value);
    pthread_mutex_unlock(&t->lock);
}

void trace_each(const Trace *t, void (*slice)(void *context, const char *name, double begin, double end),
                void *context) {
    pthread_mutex_t *lock = (pthread_mutex_t *)&t->lock;
    char name[128];
    for (size_t i = 0;; i++) { // others may draw meanwhile, the callee too
        pthread_mutex_lock(lock);
        bool there = i < t->count, host = there && strncmp(t->track[t->slices[i].track], "device", 6) != 0;
        Slice s = there ? t->slices[i] : (Slice){0};
        if (there) snprintf(name, sizeof name, "%s", t->names.data + s.name);
        pthread_mutex_unlock(lock);
        if (!there) return;
        if (host) slice(context, name, s.begin, s.end);
    }
}

static bool flush(AtomicFile *file, Buffer *text, Error *error) {
    bool ok = atomic_write(file, text->data ? text->data : "", text->size, error);
    buffer_clear(text);
    return ok;
}

static void append_head(Buffer *out, double clock, const char *machine, long long left_out) {
    buffer_printf(out, "{\"displayTimeUnit\": \"ms\", \"otherData\": {\"clock\": %.9f, \"machine\": ", clock);
    append_quoted(out, machine);
    buffer_printf(out, ", \"left_out\": %lld}, \"traceEvents\": [\n", left_out);
}

static void append_names(Buffer *out, const Trace *t, const Lanes *lanes) {
    char name[64];
    snprintf(name, sizeof name, "rank %d", t->rank);
    append_name(out, t->rank, -1, "process_name", name);
    for (int track = 0; track < t->tracks; track++) {
        for (int lane = 0; lane < MOST_LANES; lane++) {
            if (!lanes->used[track][lane]) continue;
            if (lane)
                snprintf(name, sizeof name, "%s %d", t->track[track], lane + 1);
            else
                snprintf(name, sizeof name, "%s", t->track[track]);
            buffer_text(out, ",\n");
            append_name(out, t->rank, track * MOST_LANES + lane, "thread_name", name);
        }
    }
}

bool trace_write(const Trace *t, const char *path, Error *error) {
    Buffer text = {0};
    Lanes lanes = {0};
    pthread_mutex_t *lock = (pthread_mutex_t *)&t->lock; // a file is a look at the trace
    AtomicFile *file = atomic_open(path, error);
    if (!file) return false;
    pthread_mutex_lock(lock);
    lay_out(t, &lanes);
    append_head(&text, t->clock, t->machine, t->left_out);
    append_names(&text, t, &lanes);
    buffer_append(&text, t->notes.data, t->notes.size);
    bool ok = true;
    for (size_t i = 0; i < t->count && ok; i++) {
        buffer_text(&text, ",\n");
        append_slice(&text, t, lanes.order[i], lanes.lane[i]);
        if (text.size > BLOCK) ok = flush(file, &text, error);
    }
    pthread_mutex_unlock(lock);
    buffer_text(&text, "\n]}\n");
    ok = ok && flush(file, &text, error);
    if (ok)
        ok = atomic_commit(file, error);
    else
        atomic_abandon(file);
    buffer_free(&text);
    free(lanes.order);
    free(lanes.lane);
    return ok;
}

// ---- the files of all processes ----

// One file that is being copied into another.
typedef struct Part {
    TraceReader *in;
    double clock;
    const char *machine;
} Part;

static bool open_part(Part *p, const char *path, long long *left_out, Error *error) {
    p->in = trace_open(path, error);
    if (!p->in) return false;
    const json_t *head = trace_head(p->in);
    p->clock = json_get_number(head, "clock", 0);
    p->machine = json_get_string(head, "machine", "");
    *left_out += json_get_int(head, "left_out", 0);
    return true;
}

// Its events, so many microseconds later.
static bool copy_events(const Part *p, double later, bool *first, AtomicFile *out, Error *error) {
    json_t *event;
    while (trace_next(p->in, &event, error)) {
        if (!event) return true;
        json_t *ts = json_object_get(event, "ts");
        if (ts) json_object_set_new(event, "ts", json_real(json_number_value(ts) + later));
        char *text = json_dumps(event, JSON_REAL_PRECISION(17));
        json_decref(event);
        check(text);
        bool ok = (*first || atomic_write(out, ",\n", 2, error)) && atomic_write(out, text, strlen(text), error);
        free(text);
        if (!ok) return false;
        *first = false;
    }
    return false;
}

// Microseconds to add to the times of a part. All parts of a machine are placed by the first of them: their clock is
// one, and the time of day may have been set between the starts of two processes.
static double later_than_first(const Part *parts, int part) {
    int same = 0;
    while (same < part && (!parts[part].machine[0] || strcmp(parts[same].machine, parts[part].machine) != 0)) same++;
    return (parts[same].clock - parts[0].clock) * 1e6;
}

bool trace_join(const char *const *paths, int count, const char *path, Error *error) {
    Buffer head = {0};
    long long left_out = 0;
    bool first = true;
    AtomicFile *out = NULL;
    Part *parts = calloc((size_t)count, sizeof *parts);
    bool ok = true;
    check(count > 0 && parts);
    for (int i = 0; i < count && ok; i++) ok = open_part(&parts[i], paths[i], &left_out, error);
    ok = ok && (out = atomic_open(path, error));
    if (ok) append_head(&head, parts[0].clock, parts[0].machine, left_out);
    ok = ok && flush(out, &head, error);
    for (int i = 0; i < count && ok; i++) ok = copy_events(&parts[i], later_than_first(parts, i), &first, out, error);
    ok = ok && atomic_write(out, "\n]}\n", 4, error);
    if (ok)
        ok = atomic_commit(out, error);
    else
        atomic_abandon(out);
    for (int i = 0; i < count; i++) trace_close(parts[i].in);
    free(parts);
    buffer_free(&head);
    return ok;
}
