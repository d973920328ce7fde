/* What test programs ask of run folders, inside a project's folder. */
#pragma once
#include "base/json.h"

enum { MOST_RECORDS = 512 };

char *run_path(const char *project, const char *run, const char *name); // of a file of the run; the caller frees it
int run_lines(const char *project, const char *run);                    // complete lines of its metrics, or 0
void run_wait_for_lines(const char *project, const char *run, int lines);
// The records of its metrics without what depends on the clock; ends with NULL. Returns how many.
int run_records(const char *project, const char *run, json_t *records[MOST_RECORDS]);
void assert_same_runs(const char *project, const char *a, const char *b, int steps); // their metrics: steps 1..steps
// The .safetensors of two checkpoints, whatever they are called.
void assert_same_checkpoints(const char *project, const char *a, const char *b);
void assert_same_files(const char *project, const char *a, const char *b); // names inside the project
