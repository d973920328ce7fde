/* What tiny runs left behind: compared, or spoilt. */
#pragma once
#include "base/json.h"
#include "tests/train/tiny_run.h"

// All records of a run, without what a clock measured; the caller's reference.
json_t *tiny_records(const TinyRun *, const char *name);
// The largest difference between two numbers of the same record, relative to the first's; INFINITY where keys differ.
double tiny_apart(const TinyRun *, const char *a, const char *b);
// The root of the mean square of the differences between the losses of both runs' steps.
double tiny_losses_apart(const TinyRun *, const char *a, const char *b);
void assert_close_records(const TinyRun *, const char *a, const char *b, double tolerance);
void assert_same_records(const TinyRun *, const char *a, const char *b); // to the last digit written
void assert_same_file(const TinyRun *, const char *a, const char *b, const char *file);
// Weights and moments of the newest checkpoints of both runs: the largest difference of two numbers, relative to the
// largest of their tensor.
double tiny_end_apart(const TinyRun *, const char *a, const char *b);
void assert_same_end(const TinyRun *, const char *a, const char *b); // the same bits
// One number of a tensor of a run's checkpoint ("checkpoints/step-00000003", of a single rank) becomes NaN, the
// checksums made anew.
void tiny_poison(const TinyRun *, const char *name, const char *checkpoint, const char *tensor);
