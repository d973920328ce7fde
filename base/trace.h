/* A timeline in Chrome's trace format (chrome://tracing, Perfetto): slices on named tracks. One file a process; tracks
 * of several processes show beside one another when their files are joined. */
#pragma once
#include "base/error.h"
#include <stdint.h>

typedef struct Trace Trace;

// rank: the process's number in the timeline. Slices are kept in memory until trace_write. Thread-safe.
Trace *trace_new(int rank);
void trace_free(Trace *); // NULL is allowed
double trace_now(void);   // seconds, one clock for all processes of a machine
// track: "compute", "communication", "loader", "save"; both strings are copied. A NULL trace does nothing.
void trace_slice(Trace *, const char *track, const char *name, double begin, double end);
// What no viewer draws, but a program that reads the file wants to know (trace_read.h). values: a JSON object on one
// line. Kept however many slices there are. A NULL trace does nothing.
void trace_note(Trace *, const char *name, const char *values);
// A number over time, drawn as a curve of its own, from `at` (seconds) on. A NULL trace does nothing.
void trace_counter(Trace *, const char *name, double at, double value);
// Calls `slice` for each slice that the host itself drew, in the order they were drawn (those that end first).
void trace_each(const Trace *, void (*slice)(void *context, const char *name, double begin, double end), void *context);
bool trace_write(const Trace *, const char *path, Error *); // complete JSON; written aside and renamed
// One file from those of all ranks, at least one. Times are those of the first one's clock; machines are compared by
// the time of day.
bool trace_join(const char *const *paths, int count, const char *out, Error *);
