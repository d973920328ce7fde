/* Results: a JSON file in the layout of lm-evaluation-harness, into which later evaluations are merged, and a table. */
#pragma once
#include "base/buffer.h"
#include "base/json.h"
#include "eval/metrics.h"
#include "eval/task.h"

enum { MOST_METRICS = 16 };

typedef struct Score { // of one task
    Metric metrics[MOST_METRICS];
    int count;
    int64_t original, effective; // samples in the data, and those scored (limits, damaged ones)
} Score;

void score_add(Score *, Metric);

// An empty results object about a model; new reference.
json_t *results_new(const char *model, uint64_t tokenizer, int64_t step, int64_t batch);
// data: where the samples came from, and its root where it is a dataset (else NULL).
void results_add(json_t *results, const Task *, const Score *, const char *data, const char *root);
// Reads what `path` holds (absent: nothing), merges, writes. A file that is no results file is an error.
bool results_write(const char *path, const json_t *results, Error *);
// |Tasks|Version|Filter|n-shot|Metric| |Value| |Stderr|Chance|
void results_table(const json_t *results, Buffer *out);
