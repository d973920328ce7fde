/* A model of random weights on disk, and data for it: pictures of noise with captions, classes, questions and answers.
 */
#pragma once
#include "eval/evaluate.h"
#include "kernels/cpu/cpu.h"

enum { TINY_SAMPLES = 23, TINY_SIDE = 16 };

typedef struct TinyEval {
    char *folder; // captions.jsonl, images/, text.jsonl, model/
    char *captions, *texts;
    Backend *backend;
    LoadedModel model;
} TinyEval;

void tiny_eval_open(TinyEval *, int threads, Dtype);
void tiny_eval_close(TinyEval *);
// A task file of this text in the folder; the path lives with the folder and is freed by the caller.
char *tiny_task(const TinyEval *, const char *name, const char *yaml);
// One task over `data`; fails the test where it fails. The caller owns the results.
json_t *tiny_run(TinyEval *, const char *task, const char *data, int64_t batch);
double tiny_metric(const json_t *results, const char *task, const char *key); // NAN where it is no number
