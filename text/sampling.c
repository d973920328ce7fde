/* See sampling.h. */
#include "text/sampling.h"
#include <math.h>

static const double LOG2_E = 1.44269504088896340736, MOST_FACTOR = 1e30; // of a temperature next to nothing

const char *sampling_check(const Sampling *s) {
    if (!(s->temperature >= 0 && s->temperature <= 100)) return "temperature must be from 0 (greedy) to 100";
    if (s->top_k < 0) return "top_k must be 0 (all) or more";
    if (!(s->top_p > 0 && s->top_p <= 1)) return "top_p must be above 0 and at most 1 (all)";
    return NULL;
}

WordDraw sampling_draw(const Sampling *s, uint64_t prompt, int64_t most) {
    double factor = s->temperature > 0 ? fmin(LOG2_E / s->temperature, MOST_FACTOR) : 0;
    return (WordDraw){.factor = (float)factor,
                      .top_k = s->top_k < INT32_MAX ? (int32_t)s->top_k : 0,
                      .top_p = s->top_p,
                      .seed = s->seed,
                      .number = prompt,
                      .most = most < INT32_MAX ? (int32_t)most : INT32_MAX};
}
