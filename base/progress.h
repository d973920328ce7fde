/* Progress of long work: on a terminal one line that is redrawn (done/total, rate, time left, what it waits for);
 * elsewhere a plain line every `PROGRESS_PLAIN_SECONDS`. Updates cost nothing between redraws. Thread-safe. */
#pragma once
#include "log.h"
#include <stdint.h>

enum { PROGRESS_PLAIN_SECONDS = 10 };
typedef struct Progress Progress;

// label: "building shards"; unit: "images"; total 0: not known. The log's stream decides terminal or plain.
Progress *progress_start(Log *, const char *label, const char *unit, int64_t total);
void progress_resume(Progress *,
                     int64_t done); // before the first update: work done earlier, no part of rates; may be NULL
void progress_update(Progress *, int64_t done,
                     const char *detail); // detail: what it waits for, or figures; may be NULL
void progress_end(Progress *);            // prints the final line and frees; NULL is allowed
