/* What the scorers share: the model, batches of samples with their pictures, and the features of texts. A sample whose
 * picture or text cannot be read is left out, named in the log and counted. */
#pragma once
#include "base/log.h"
#include "base/threads.h"
#include "data/template.h"
#include "eval/examples.h"
#include "eval/results.h"
#include "eval/task.h"
#include "fusion/model_files.h"
#include "kernels/tape.h"

typedef struct Evaluation {
    LoadedModel *model; // all borrowed
    Tape *tape;         // does not record
    Threads *threads;   // for decoding pictures
    Log *log;
    const Task *task;
    Examples *examples;
    const Template *text; // the task's, or NULL
    int text_variants;    // of it; 1 without
    int64_t batch;        // samples at a time; changes no score
    Buffer *samples;      // a JSON line for each sample goes here; NULL: nowhere
    Arena *memory;        // scratch: whoever uses it resets it
} Evaluation;

typedef struct SampleBatch { // owned; sample_batch_free
    int64_t next;            // sample to read next: start at 0
    int64_t left_out;        // so far
    char cause[256];         // why the first of them was
    int capacity;            // samples at a time; 0: the evaluation's batch
    int count;
    Example *samples; // (count)
    int64_t *ids;     // (count) number of each in the data
    uint8_t *pixels;  // (count, views, S, S, 3), where pictures are asked for; views: those the task averages
} SampleBatch;

// The next samples, up to the capacity; count 0 at the end.
bool sample_batch_next(Evaluation *, SampleBatch *, bool pictures, Error *);
void sample_batch_free(SampleBatch *);

// Appends the text of a sample as it is: variant `variant` of the task's `text`; without a template: its .txt, or its
// field "caption" or "text".
bool example_text(const Evaluation *, const Example *, int variant, Buffer *out, Error *);
// The same without white space at either end, as training reads captions.
bool example_caption(const Evaluation *, const Example *, int variant, Buffer *out, Error *);
// A sample without what the task needs of it: said in the log. The count goes into left_out.
void sample_left_out(Evaluation *, SampleBatch *, const char *why);

// Normalised features of texts, (count, E) into `out`.
bool text_features(Evaluation *, const char *const *texts, int64_t count, float *out, Error *);
// Normalised features of a batch's pictures, (count, E) into `out`.
bool picture_features(Evaluation *, const SampleBatch *, float *out, Error *);
// out[i, j] = a[i] . b[j]: (rows, width) (columns, width) -> (rows, columns); a few rows at a time.
bool similarities(Evaluation *, const float *a, int64_t rows, const float *b, int64_t columns, float *out, Error *);
// Place of `chosen` among the scores (count), from 0: larger scores and equal ones in front of it go first. A NaN makes
// it last.
int64_t rank_of(const float *scores, int64_t count, int64_t chosen);

// Lower case, runs of white space as one space, none at the ends.
void normalize_answer(const char *text, Buffer *out);
// One line into the log of samples, where there is one. `response` is taken over.
void log_sample(Evaluation *, int64_t id, const Example *, const char *target, json_t *response, const char *metric,
                double value);
bool tape_passed(const Tape *, const char *doing, Error *);

// The scorers, one a type of task.
bool score_zero_shot(Evaluation *, Score *, Error *);
bool score_retrieval(Evaluation *, Score *, Error *);
bool score_caption(Evaluation *, Score *, Error *);
bool score_vqa(Evaluation *, Score *, Error *);
bool score_perplexity(Evaluation *, Score *, Error *);
