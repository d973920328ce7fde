/* See device_timeline.h. */
#include "train/device_timeline.h"
#include "base/error.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void device_timeline_add(DeviceTimeline *t, TimeSpan span) {
    TimeSpan *last = t->count ? &t->spans[t->count - 1] : NULL;
    check(!last || span.begin >= last->begin);
    if (last && span.begin <= last->end) {
        last->end = fmax(last->end, span.end);
        return;
    }
    if (t->count == t->capacity) {
        t->capacity = 2 * t->capacity + 1024;
        t->spans = realloc(t->spans, sizeof *t->spans * (size_t)t->capacity);
        check(t->spans);
    }
    t->spans[t->count++] = span;
}

void device_timeline_free(DeviceTimeline *t) {
    free(t->spans);
    *t = (DeviceTimeline){0};
}

// The first span that ends behind `at`.
static int64_t first_behind(const DeviceTimeline *t, double at) {
    int64_t low = 0, high = t->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (t->spans[middle].end > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

double device_timeline_busy(const DeviceTimeline *t, TimeSpan within) {
    double busy = 0;
    for (int64_t i = first_behind(t, within.begin); i < t->count && t->spans[i].begin < within.end; i++)
        busy += fmin(t->spans[i].end, within.end) - fmax(t->spans[i].begin, within.begin);
    return busy;
}

// Keeps `gaps` in falling order of length.
static int insert(TimeSpan *gaps, int count, int most, TimeSpan gap) {
    int at = count;
    while (at > 0 && gaps[at - 1].end - gaps[at - 1].begin < gap.end - gap.begin) at--;
    if (at == most) return count;
    if (count < most) count++;
    memmove(gaps + at + 1, gaps + at, sizeof *gaps * (size_t)(count - at - 1));
    gaps[at] = gap;
    return count;
}

int device_timeline_gaps(const DeviceTimeline *t, TimeSpan within, TimeSpan *gaps, int most) {
    double idle_since = within.begin;
    int count = 0;
    for (int64_t i = first_behind(t, within.begin); i < t->count && t->spans[i].begin < within.end; i++) {
        if (t->spans[i].begin > idle_since)
            count = insert(gaps, count, most, (TimeSpan){idle_since, t->spans[i].begin});
        idle_since = t->spans[i].end;
    }
    if (idle_since < within.end) count = insert(gaps, count, most, (TimeSpan){idle_since, within.end});
    return count;
}
