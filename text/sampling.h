/* Choosing the next token from its logits: greedy, or by lot under a temperature among the top k and the top p
 * (nucleus; Holtzman et al. 2020). A draw is a pure function of (seed, prompt, position): what else is in the batch
 * changes nothing. */
#pragma once
#include <stdint.h>

typedef struct Sampling {
    double temperature; // 0: greedy
    int64_t top_k;      // 0: all
    double top_p;       // smallest set of likeliest tokens that holds this probability; 1: all
    uint64_t seed;
} Sampling;

typedef struct Candidate {
    float logit;
    int32_t id;
    double probability; // not normalised
} Candidate;

const char *sampling_check(const Sampling *); // NULL, or what is out of range
// The largest logit, the first of equals; -1 where a logit is NaN or none is finite.
int32_t sample_greedy(const float *logits, int64_t vocabulary);
// scratch: (vocabulary). prompt: global number of the prompt; position: of the new token behind it. -1 as above.
int32_t sample_token(const Sampling *, const float *logits, int64_t vocabulary, uint64_t prompt, uint64_t position,
                     Candidate *scratch);
