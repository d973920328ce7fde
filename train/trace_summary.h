/* What a device did in the steps of a traced run (`bifocal train --trace`): its kernels and copies by the time they
 * took, and when it had nothing to do, between which two pieces of work. */
#pragma once
#include "base/arena.h"
#include "base/buffer.h"
#include "base/error.h"
#include <stdint.h>

enum { SUMMARY_GAPS = 10, GAP_CLASSES = 6 };
extern const double gap_classes[GAP_CLASSES - 1]; // seconds: where one ends and the next begins

typedef struct WorkTotal { // of a kernel, or of copies of one kind
    const char *name;
    int64_t count;
    double seconds, longest;
} WorkTotal;

typedef struct WorkGap {        // no stream of the device worked
    double begin, seconds;      // from the first step on
    const char *before, *after; // NULL: the steps' beginning, or their end
} WorkGap;

typedef struct DeviceWork {
    double begin, end; // seconds, from the first step on
    int name, stream;  // of TraceSummary.of; from 0 on
} DeviceWork;

typedef struct TraceSummary {
    int64_t steps;        // that are looked at: without the first two, where there are more
    double seconds, busy; // of all of them, from the first one's beginning to the last one's end
    WorkTotal *of;        // (count) the longest together first
    int count;
    WorkGap gaps[SUMMARY_GAPS]; // (gap_count) the longest first
    int gap_count;
    int64_t gaps_in[GAP_CLASSES]; // how many of which length
    double idle_in[GAP_CLASSES];  // seconds that these are together
    DeviceWork *work;             // (work_count) in the order of their beginnings
    int64_t work_count;
    int streams;
    double drawn[2]; // begin and end of the step in the middle
} TraceSummary;

// Of one rank. In the arena. False where the file is no timeline, or no device is in it.
bool trace_summary_read(const char *path, int rank, Arena *, TraceSummary *, Error *);
void trace_summary_text(const TraceSummary *, int most, Buffer *out); // `most` kernels
void trace_summary_html(const TraceSummary *, int most, Buffer *out); // a section with inline SVG
