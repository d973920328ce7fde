/* The device in the timeline of a run: its own work on a track for each stream, beside what the host does; what share
 * of each step it worked; and its longest gaps, with what the host was at then. Layers of the model on a track of their
 * own, forward and backward, as the host goes through them. */
#pragma once
#include "base/log.h"
#include "base/trace.h"
#include "kernels/backend.h"

typedef struct DeviceTrace DeviceTrace;

// From here on. trace NULL: returns NULL. Backend and trace are borrowed, and outlive it.
DeviceTrace *device_trace_begin(Backend *, Trace *);
// Draws everything, tells the log, and frees it. NULL is allowed. log NULL: nothing is told.
void device_trace_end(DeviceTrace *, Log *);
