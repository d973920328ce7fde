/* See trace_read.h. A line is an event, so that a file of any length is read in the memory of one. */
#include "base/trace_read.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct TraceReader {
    char *path;
    FILE *in;
    char *line;
    size_t capacity;
    json_t *head;   // the first line
    json_t *tracks; // names by track_key
};

typedef struct TrackKey {
    char text[48];
} TrackKey;

static TrackKey track_key(const json_t *event) {
    TrackKey key;
    snprintf(key.text, sizeof key.text, "%lld %lld", (long long)json_get_int(event, "pid", -1),
             (long long)json_get_int(event, "tid", -1));
    return key;
}

static bool not_a_trace(const TraceReader *r, Error *error) {
    return error_set(error, ERROR_FAILED,
                     "%s: not a whole trace of `bifocal train --trace`; let the run write it again", r->path);
}

// The first line is closed here, so that it is a value by itself.
static bool read_head(TraceReader *r, Error *error) {
    Buffer text = {0};
    Error ignored = {0};
    if (getline(&r->line, &r->capacity, r->in) > 0) buffer_text(&text, r->line);
    buffer_text(&text, "]}");
    r->head = json_parse(text.data, text.size, r->path, &ignored);
    buffer_free(&text);
    return json_is_number(json_object_get(trace_head(r), "clock")) || not_a_trace(r, error);
}

TraceReader *trace_open(const char *path, Error *error) {
    TraceReader *r = calloc(1, sizeof *r);
    check(r && (r->path = strdup(path)) && (r->tracks = json_object()));
    r->in = fopen(path, "re");
    if (!r->in) error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
    if (r->in && read_head(r, error)) return r;
    trace_close(r);
    return NULL;
}

void trace_close(TraceReader *r) {
    if (!r) return;
    if (r->in) fclose(r->in);
    json_decref(r->head);
    json_decref(r->tracks);
    free(r->line);
    free(r->path);
    free(r);
}

const json_t *trace_head(const TraceReader *r) { return json_object_get(r->head, "otherData"); }

bool trace_next(TraceReader *r, json_t **event, Error *error) {
    *event = NULL;
    ssize_t size = getline(&r->line, &r->capacity, r->in);
    if (size <= 0) return not_a_trace(r, error);
    if (!strcmp(r->line, "]}\n")) return true;
    while (size > 0 && (r->line[size - 1] == '\n' || r->line[size - 1] == ',')) size--;
    *event = json_parse(r->line, (size_t)size, r->path, error);
    if (!*event) return false;
    if (!strcmp(json_get_string(*event, "name", ""), "thread_name"))
        json_object_set(r->tracks, track_key(*event).text, json_object_get(json_object_get(*event, "args"), "name"));
    return true;
}

const char *trace_track(const TraceReader *r, const json_t *slice) {
    return json_string_value(json_object_get(r->tracks, track_key(slice).text));
}
