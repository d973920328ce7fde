/* Runs tasks over a model and gathers their results. */
#pragma once
#include "eval/results.h"
#include "fusion/model_files.h"

typedef struct EvaluateOptions {
    const char *const *tasks; // names of shipped tasks, or paths of YAML files
    int task_count;
    const char *data;     // NULL: each task's own
    int64_t limit, batch; // samples; limit 0: all
    const char *samples;  // folder for samples_TASK.jsonl; NULL: none
    int threads;          // that decode pictures; 0: one per core
} EvaluateOptions;

// *results: a results object (new reference) of the tasks that were run, also where a later one failed; NULL: none was.
bool evaluate(LoadedModel *, Backend *, const EvaluateOptions *, json_t **results, Log *, Error *);
