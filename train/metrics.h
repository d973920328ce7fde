/* metrics.jsonl: one object a step, the one truth that the terminal line and the report are made from. */
#pragma once
#include "base/json.h"
#include <stdint.h>

typedef struct Metrics Metrics;
// Opens RUN/metrics.jsonl to append. Records of steps after `last_step` (of a run that is resumed, or a line that was
// cut short) are dropped first; the file is rewritten aside and renamed.
Metrics *metrics_open(const char *run, int64_t last_step, Error *);
bool metrics_write(Metrics *, json_t *record, Error *); // steals the reference; flushed to the file at once
void metrics_close(Metrics *);                          // NULL is allowed
