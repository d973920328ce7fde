/* See answers.h. */
#include "eval/answers.h"
#include "fusion/generate.h"
#include <stdlib.h>
#include <string.h>

static void keep_answer(Answers *a, const char *normalized, double match) {
    if (a->count == a->capacity) {
        a->capacity = a->capacity ? 2 * a->capacity : 256;
        a->target = realloc(a->target, sizeof *a->target * (size_t)a->capacity);
        a->match = realloc(a->match, sizeof *a->match * (size_t)a->capacity);
        check(a->target && a->match);
    }
    a->target[a->count] = strdup(normalized);
    check(a->target[a->count]);
    a->match[a->count++] = match;
}

void wanted_clear(Wanted *w) {
    for (int i = 0; i < w->count; i++) free(w->text[i]);
    w->count = 0;
}

// Decodes, compares, keeps and logs one answer.
static bool compare(Evaluation *e, const SampleBatch *b, int i, const TokenIds *said, const Wanted *wanted, Answers *a,
                    Error *error) {
    Buffer text = {0}, given = {0}, right = {0};
    bool ok = tokenizer_decode(e->model->tokenizer, said->ids, said->count, &text, error);
    double match = 0;
    check(wanted->count > 0);
    normalize_answer(text.size ? text.data : "", &given);
    for (int w = wanted->count - 1; w >= 0; w--) { // the first comes last and stays in `right`
        normalize_answer(wanted->text[w], &right);
        if (!strcmp(given.data, right.data)) match = 1;
    }
    if (ok) keep_answer(a, right.data, match);
    if (ok)
        log_sample(e, b->ids[i], &b->samples[i], wanted->text[0], json_stringn(text.data ? text.data : "", text.size),
                   "exact_match", match);
    buffer_free(&text);
    buffer_free(&given);
    buffer_free(&right);
    return ok;
}

bool answers_generate(Evaluation *e, const SampleBatch *b, const TokenIds *questions, const Wanted *wanted, Answers *a,
                      Error *error) {
    size_t side = (size_t)e->model->config.vision.image_size, count = (size_t)b->count;
    Prompt *prompts = calloc(count + 1, sizeof *prompts);
    Segment(*segments)[2] = calloc(count + 1, sizeof *segments);
    TokenIds *said = calloc(count + 1, sizeof *said);
    int *sample = calloc(count + 1, sizeof *sample), used = 0;
    check(prompts && segments && said && sample);
    for (int i = 0; i < b->count; i++) {
        if (!wanted[i].count) continue;
        segments[i][0] = segment_image(0);
        if (questions) segments[i][1] = segment_text(&questions[i]);
        prompts[used] = (Prompt){.segments = segments[i],
                                 .count = questions ? 2 : 1,
                                 .pixels = b->pixels + 3 * side * side * (size_t)i,
                                 .images = 1,
                                 .number = (uint64_t)b->ids[i]};
        sample[used++] = i;
    }
    GenerateOptions options = {.sampling = {.top_p = 1}, .max_tokens = e->task->max_tokens, .batch = e->batch};
    bool ok = generate(e->tape, e->model->joint, e->model->tokenizer, prompts, used, &options, said, error);
    for (int k = 0; ok && k < used; k++) ok = compare(e, b, sample[k], &said[k], &wanted[sample[k]], a, error);
    for (size_t i = 0; i < count; i++) token_ids_free(&said[i]);
    free(sample);
    free(said);
    free(segments);
    free(prompts);
    return ok;
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static double share_of_most_frequent(char *const *answers, int64_t count) {
    char **sorted = malloc(sizeof *sorted * (size_t)(count + 1));
    check(sorted);
    memcpy(sorted, answers, sizeof *sorted * (size_t)count);
    qsort(sorted, (size_t)count, sizeof *sorted, by_bytes);
    int64_t most = 0, run = 0;
    for (int64_t i = 0; i < count; i++) {
        run = i && !strcmp(sorted[i], sorted[i - 1]) ? run + 1 : 1;
        if (run > most) most = run;
    }
    free(sorted);
    return (double)most / (double)count;
}

Metric answers_metric(const Answers *a) {
    return metric_mean("exact_match", a->match, a->count, a->count ? share_of_most_frequent(a->target, a->count) : 0);
}

void answers_free(Answers *a) {
    for (int64_t i = 0; i < a->count; i++) free(a->target[i]);
    free(a->target);
    free(a->match);
    *a = (Answers){0};
}
