/* When a device worked and when it did not: pieces of work of all its streams, as one line. */
#pragma once
#include <stdint.h>

typedef struct TimeSpan { // seconds
    double begin, end;
} TimeSpan;

typedef struct DeviceTimeline { // zero-initialise; device_timeline_free
    TimeSpan *spans;            // in the order of their beginnings; those that touch are one
    int64_t count, capacity;
} DeviceTimeline;

void device_timeline_add(DeviceTimeline *, TimeSpan); // in the order of their beginnings
void device_timeline_free(DeviceTimeline *);
double device_timeline_busy(const DeviceTimeline *, TimeSpan within); // seconds
// The longest stretches inside `within` without work, the longest first; returns how many, at most `most`.
int device_timeline_gaps(const DeviceTimeline *, TimeSpan within, TimeSpan *gaps, int most);
