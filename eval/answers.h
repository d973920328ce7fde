/* Answers that a model generates about pictures, compared with the right ones: exact match after lower-casing and
 * folding white space. */
#pragma once
#include "eval/evaluation.h"

enum { ANSWER_BATCHES = 8 }; // so many batches are read before prompts of equal length are brought together

enum { MOST_WANTED = 8 };
typedef struct Wanted { // right answers of a sample; owned; wanted_clear
    char *text[MOST_WANTED];
    int count; // 0: the sample is skipped
} Wanted;
void wanted_clear(Wanted *);

typedef struct Answers { // owned; zero-initialise; answers_free
    char **target;       // (count) the first right answer, normalised
    double *match;       // (count) 0 or 1
    int64_t count, capacity;
} Answers;

// Generates for every sample of the batch behind its picture and its question (questions NULL: none); wanted:
// (count) what should come, any of it.
bool answers_generate(Evaluation *, const SampleBatch *, const TokenIds *questions, const Wanted *wanted, Answers *,
                      Error *);
// "exact_match"; its chance is the share of the most frequent answer.
Metric answers_metric(const Answers *);
void answers_free(Answers *);
