/* Answers that a model generates about pictures, compared with the right ones: exact match after lower-casing and
 * folding white space. */
#pragma once
#include "eval/evaluation.h"

enum { ANSWER_BATCHES = 8 }; // so many batches are read before prompts of equal length are brought together

typedef struct Answers { // owned; zero-initialise; answers_free
    char **target;       // (count) normalised
    double *match;       // (count) 0 or 1
    int64_t count, capacity;
} Answers;

// Generates for every sample of the batch behind its picture and its question (questions NULL: none); targets: (count)
// what should come. Samples whose target is NULL are skipped.
bool answers_generate(Evaluation *, const SampleBatch *, const TokenIds *questions, char *const *targets, Answers *,
                      Error *);
// "exact_match"; its chance is the share of the most frequent answer.
Metric answers_metric(const Answers *);
void answers_free(Answers *);
