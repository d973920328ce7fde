/* Sampling the next token. Probabilities are summed in double, in order of falling logits (ids break ties), so that the
 * choice is the same everywhere. */
#include "text/sampling.h"
#include "base/philox.h"
#include <math.h>
#include <stdlib.h>

const char *sampling_check(const Sampling *s) {
    if (!(s->temperature >= 0 && s->temperature <= 100)) return "temperature must be from 0 (greedy) to 100";
    if (s->top_k < 0) return "top_k must be 0 (all) or more";
    if (!(s->top_p > 0 && s->top_p <= 1)) return "top_p must be above 0 and at most 1 (all)";
    return NULL;
}

int32_t sample_greedy(const float *logits, int64_t vocabulary) {
    int64_t best = 0;
    for (int64_t i = 0; i < vocabulary; i++) {
        if (isnan(logits[i])) return -1;
        if (logits[i] > logits[best]) best = i;
    }
    return isfinite(logits[best]) ? (int32_t)best : -1;
}

static int by_falling_logit(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

// How many of the sorted candidates stay; *total: the sum of their probabilities.
static int64_t keep_likely(const Sampling *s, const Candidate *c, int64_t count, double *total) {
    double all = 0, kept = 0;
    if (s->top_k > 0 && s->top_k < count) count = s->top_k;
    for (int64_t i = 0; i < count; i++) all += c[i].probability;
    for (int64_t i = 0; i < count; i++) {
        kept += c[i].probability;
        if (s->top_p < 1 && kept >= s->top_p * all) count = i + 1;
    }
    *total = kept;
    return count;
}

int32_t sample_token(const Sampling *s, const float *logits, int64_t vocabulary, uint64_t prompt, uint64_t position,
                     Candidate *scratch) {
    int32_t best = sample_greedy(logits, vocabulary);
    if (best < 0 || s->temperature == 0) return best;
    for (int64_t i = 0; i < vocabulary; i++) {
        double behind = ((double)logits[i] - (double)logits[best]) / s->temperature;
        scratch[i] = (Candidate){logits[i], (int32_t)i, exp(behind)};
    }
    qsort(scratch, (size_t)vocabulary, sizeof *scratch, by_falling_logit);
    double total = 0, sum = 0;
    int64_t count = keep_likely(s, scratch, vocabulary, &total);
    Rng rng = rng_for(s->seed, PURPOSE_SAMPLING, prompt);
    rng.index = (uint32_t)position * 2; // a draw takes two words
    double at = rng_uniform(&rng) * total;
    for (int64_t i = 0; i < count; i++)
        if ((sum += scratch[i].probability) > at) return scratch[i].id;
    return scratch[count - 1].id; // rounding
}
