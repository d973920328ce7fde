/* Reads a timeline back, event by event, as trace_write and trace_join left it. */
#pragma once
#include "base/json.h"

typedef struct TraceReader TraceReader;

TraceReader *trace_open(const char *path, Error *); // NULL where it is no timeline of this program
void trace_close(TraceReader *);                    // NULL is allowed
const json_t *trace_head(const TraceReader *);      // "otherData": clock, machine, left_out; lives with the reader
// The next event as it stands there; NULL behind the last. A new reference. Where it ends false, the file is damaged.
bool trace_next(TraceReader *, json_t **event, Error *);
// The track that a slice was drawn on ("compute"; "compute 2" below it), or NULL. Tracks are named before their slices.
const char *trace_track(const TraceReader *, const json_t *slice);
