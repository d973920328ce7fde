/* How the next token is chosen from its scores: greedy, or by lot under a temperature among the top k and the top p
 * (nucleus; Holtzman et al. 2020). A draw is a pure function of (seed, prompt, position): what else is in the batch
 * changes nothing. The choice itself is the backend's (choose_words). */
#pragma once
#include "kernels/backend.h"

typedef struct Sampling {
    double temperature; // 0: greedy
    int64_t top_k;      // 0: all
    double top_p;       // smallest set of likeliest tokens that holds this probability; 1: all
    uint64_t seed;
} Sampling;

const char *sampling_check(const Sampling *); // NULL, or what is out of range
// For the backend: prompt number `prompt` makes `most` tokens at the most.
WordDraw sampling_draw(const Sampling *, uint64_t prompt, int64_t most);
