/* The timeline of a run: what every rank computes, exchanges, waits for and saves, in one file. */
#pragma once
#include "base/trace.h"
#include "kernels/comm/comm.h"

// Collective. path NULL: *out becomes NULL. False where a rank could not write there at the end. From here on the
// world's calls are slices, too.
bool run_trace_open(Trace **out, const char *path, Comm *world, Error *);
// Collective. Each rank writes PATH.rank-00000 and so on, the first joins them to PATH and removes them.
bool run_trace_write(const Trace *, const char *path, Comm *world, Error *);
// For a run that failed: this rank's part alone, beside PATH.
void run_trace_leave(const Trace *, const char *path, int rank);
void run_trace_free(Trace *, Comm *world); // NULL is allowed
