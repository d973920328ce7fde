/* See activity.h. Names of kernels come mangled (Itanium C++ ABI): a length in front of each part. */
#include "kernels/cuda/host/activity.h"
#include "base/error.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST = 40 }; // characters that are kept of a name

struct Activities {
    Activity *items;
    int64_t count, capacity, left_out;
    char **names; // copies, each once
    int name_count, name_capacity;
};

Activities *activities_new(void) {
    Activities *a = calloc(1, sizeof *a);
    check(a);
    return a;
}

void activities_free(Activities *a) {
    if (!a) return;
    for (int i = 0; i < a->name_count; i++) free(a->names[i]);
    free(a->names);
    free(a->items);
    free(a);
}

static const char *own_name(Activities *a, const char *name) {
    for (int i = 0; i < a->name_count; i++)
        if (!strcmp(a->names[i], name)) return a->names[i];
    if (a->name_count == a->name_capacity) {
        a->name_capacity = 2 * a->name_capacity + 64;
        a->names = realloc(a->names, sizeof *a->names * (size_t)a->name_capacity);
        check(a->names);
    }
    check((a->names[a->name_count] = strdup(name)));
    return a->names[a->name_count++];
}

void activities_add(Activities *a, const Activity *one) {
    if (a->count == MOST_ACTIVITIES) {
        a->left_out++;
        return;
    }
    if (a->count == a->capacity) {
        a->capacity = 2 * a->capacity + 1024;
        a->items = realloc(a->items, sizeof *a->items * (size_t)a->capacity);
        check(a->items);
    }
    a->items[a->count] = *one;
    a->items[a->count++].name = one->name ? own_name(a, one->name) : NULL;
}

int64_t activities_left_out(const Activities *a) { return a->left_out; }

// ---- names ----

typedef struct Part { // of a mangled name
    const char *text;
    size_t length; // 0: none
} Part;

// The part that begins at *at, behind which *at stands then.
static Part take_part(const char **at) {
    char *end;
    if (!isdigit((unsigned char)**at)) return (Part){*at, 0};
    size_t length = strtoul(*at, &end, 10);
    if (!length || length > strlen(end)) return (Part){*at, 0};
    *at = end + length;
    return (Part){end, length};
}

// The last of several parts: what namespaces hold.
static Part take_last(const char **at) {
    Part last = {*at, 0};
    for (Part next; (next = take_part(at)).length;) last = next;
    return last;
}

static void kernel_name(const char *mangled, char name[64]) {
    const char *at = mangled;
    Part own = {mangled, strlen(mangled)}, of = {mangled, 0};
    if (!strncmp(at, "_Z", 2)) {
        at += 2;
        while (*at == 'N' || *at == 'L') at++;
        Part found = take_last(&at);
        if (found.length) own = found;
        if (found.length && *at == 'I') { // template arguments
            at++;
            while (*at == 'N' || *at == 'L') at++;
            of = take_last(&at);
        }
    }
    if (own.length > LONGEST) own.length = LONGEST;
    if (of.length > 63 - 1 - LONGEST) of.length = 63 - 1 - LONGEST;
    snprintf(name, 64, "%.*s%s%.*s", (int)own.length, own.text, of.length ? " " : "", (int)of.length, of.text);
}

void activity_name(const Activity *a, char name[64]) {
    static const char *const ways[] = {"copy", "copy to device", "copy to host", "copy on device"};
    double size = (double)a->bytes;
    const char *unit = size < 1024 ? "B" : size < 0x1p20 ? "KiB" : "MiB";
    double in_unit = size < 1024 ? size : size < 0x1p20 ? size / 1024 : size / 0x1p20;
    if (a->kind == ACTIVITY_KERNEL)
        kernel_name(a->name ? a->name : "kernel", name);
    else
        snprintf(name, 64, "%s, %.*f %s", a->kind == ACTIVITY_FILL ? "fill" : ways[a->way], size < 1024 ? 0 : 1,
                 in_unit, unit);
}

// ---- slices ----

static int by_begin(const void *left, const void *right) {
    const Activity *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

// Seconds of the host. Differences are taken in whole nanoseconds, which a double would not hold.
static double host_time(ClockPair first, ClockPair last, uint64_t at) {
    double since = (double)(int64_t)(at - first.device), between = (double)(int64_t)(last.device - first.device);
    double rate = between > 0 ? (last.host - first.host) / between : 1e-9;
    return first.host + since * rate;
}

typedef struct Streams {
    uint32_t *known;
    int count, capacity;
} Streams;

static int stream_number(Streams *s, uint32_t stream) {
    for (int i = 0; i < s->count; i++)
        if (s->known[i] == stream) return i;
    if (s->count == s->capacity) {
        s->capacity = 2 * s->capacity + 8;
        s->known = realloc(s->known, sizeof *s->known * (size_t)s->capacity);
        check(s->known);
    }
    s->known[s->count] = stream;
    return s->count++;
}

void activities_tell(Activities *a, ClockPair first, ClockPair last, void *context,
                     void (*slice)(void *context, const DeviceSlice *)) {
    Streams streams = {0};
    if (a->count) qsort(a->items, (size_t)a->count, sizeof *a->items, by_begin);
    for (int64_t i = 0; i < a->count; i++) {
        const Activity *one = &a->items[i];
        char name[64];
        if (!one->begin || one->end < one->begin) continue; // it had not ended
        activity_name(one, name);
        DeviceSlice s = {name, stream_number(&streams, one->stream), host_time(first, last, one->begin),
                         host_time(first, last, one->end)};
        slice(context, &s);
    }
    a->count = 0;
    free(streams.known);
}
