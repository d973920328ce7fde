/* Image-text retrieval: R@k, the share of queries with a positive among the first k, both ways. Equal texts are one
 * text, so a caption that several pictures share is right for each of them. N pictures, M texts, E width. */
#include "eval/evaluation.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Pairs {
    int64_t count, texts;       // N, M
    char **text;                // (N) of each picture, owned; the first M of `distinct` are used
    const char **distinct;      // (M) sorted
    int64_t *ids;               // (N) number of each picture's sample
    int64_t *text_of;           // (N) into distinct
    int64_t *pictures_of;       // (M) how many pictures have it
    float *pictures, *features; // (N, E), (M, E)
} Pairs;

static const int CUTS[] = {1, 5, 10};
enum { CUT_COUNT = 3 };

static bool read_pairs(Evaluation *e, Pairs *p, Error *error) {
    int64_t width = e->model->config.embedding;
    size_t most = (size_t)examples_count(e->examples);
    SampleBatch batch = {0};
    float *features = malloc(sizeof(float) * (size_t)(e->batch * width));
    p->text = calloc(most, sizeof *p->text);
    p->ids = calloc(most, sizeof *p->ids);
    p->pictures = calloc(most * (size_t)width, sizeof *p->pictures);
    check(features && p->text && p->ids && p->pictures);
    bool ok = true;
    while ((ok = ok && sample_batch_next(e, &batch, true, error)) && batch.count) {
        ok = picture_features(e, &batch, features, error);
        for (int i = 0; ok && i < batch.count; i++) {
            Buffer text = {0};
            Error missing = {0};
            if (!example_caption(e, &batch.samples[i], 0, &text, &missing)) {
                sample_left_out(e, &batch, missing.message);
                buffer_free(&text);
                continue;
            }
            memcpy(p->pictures + p->count * width, features + i * width, sizeof(float) * (size_t)width);
            p->ids[p->count] = batch.ids[i];
            p->text[p->count++] = text.data; // taken over
        }
    }
    free(features);
    sample_batch_free(&batch);
    return ok && (p->count || error_set(error, ERROR_FAILED, "no sample has a picture and a text"));
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static void find_distinct(Pairs *p) {
    p->distinct = malloc(sizeof *p->distinct * (size_t)p->count);
    p->text_of = malloc(sizeof *p->text_of * (size_t)p->count);
    p->pictures_of = calloc((size_t)p->count, sizeof *p->pictures_of);
    check(p->distinct && p->text_of && p->pictures_of);
    memcpy(p->distinct, p->text, sizeof *p->distinct * (size_t)p->count);
    qsort(p->distinct, (size_t)p->count, sizeof *p->distinct, by_bytes);
    for (int64_t i = 0; i < p->count; i++)
        if (!i || strcmp(p->distinct[i], p->distinct[p->texts - 1]) != 0) p->distinct[p->texts++] = p->distinct[i];
    for (int64_t i = 0; i < p->count; i++) {
        const char **at = bsearch(&p->text[i], p->distinct, (size_t)p->texts, sizeof *p->distinct, by_bytes);
        p->text_of[i] = at - p->distinct;
        p->pictures_of[p->text_of[i]]++;
    }
}

// hit[k * queries + q]: whether query q has a positive among its first CUTS[k].
static void mark_hits(double *hit, int64_t queries, int64_t query, int64_t rank) {
    for (int k = 0; k < CUT_COUNT; k++) hit[k * queries + query] = rank < CUTS[k];
}

// Picture i's caption and the one the model gives it; scores (M).
static void log_picture(Evaluation *e, const Pairs *p, int64_t i, const float *scores, bool hit) {
    Example x = {0};
    Error ignored = {0}; // it was read before
    int64_t best = 0;
    for (int64_t m = 1; m < p->texts; m++)
        if (scores[m] > scores[best]) best = m;
    if (examples_read(e->examples, p->ids[i], &x, &ignored))
        log_sample(e, p->ids[i], &x, p->text[i], json_string(p->distinct[best]), "image_to_text_R@1", hit);
    example_free(&x);
}

static bool pictures_to_texts(Evaluation *e, const Pairs *p, double *hit, float *scores, Error *error) {
    int64_t width = e->model->config.embedding;
    for (int64_t i = 0; i < p->count; i += e->batch) {
        int64_t rows = p->count - i < e->batch ? p->count - i : e->batch;
        if (!similarities(e, p->pictures + i * width, rows, p->features, p->texts, scores, error)) return false;
        for (int64_t r = 0; r < rows; r++) {
            const float *row = scores + r * p->texts;
            int64_t rank = rank_of(row, p->texts, p->text_of[i + r]);
            mark_hits(hit, p->count, i + r, rank);
            if (e->samples) log_picture(e, p, i + r, row, rank == 0);
        }
    }
    return true;
}

static bool texts_to_pictures(Evaluation *e, const Pairs *p, double *hit, float *scores, Error *error) {
    int64_t width = e->model->config.embedding;
    for (int64_t i = 0; i < p->texts; i += e->batch) {
        int64_t rows = p->texts - i < e->batch ? p->texts - i : e->batch;
        if (!similarities(e, p->features + i * width, rows, p->pictures, p->count, scores, error)) return false;
        for (int64_t r = 0; r < rows; r++) {
            const float *row = scores + r * p->count;
            int64_t best = -1; // the likeliest of its own pictures
            for (int64_t j = 0; j < p->count; j++)
                if (p->text_of[j] == i + r && (best < 0 || row[j] > row[best])) best = j;
            mark_hits(hit, p->texts, i + r, rank_of(row, p->count, best));
        }
    }
    return true;
}

static void add_recalls(Score *score, const char *const names[CUT_COUNT], const double *hit, int64_t queries,
                        const double chance[CUT_COUNT]) {
    for (int k = 0; k < CUT_COUNT; k++) score_add(score, metric_mean(names[k], hit + k * queries, queries, chance[k]));
}

static void add_metrics(Score *score, const Pairs *p, const double *to_text, const double *to_picture) {
    static const char *const text_names[] = {"image_to_text_R@1", "image_to_text_R@5", "image_to_text_R@10"};
    static const char *const picture_names[] = {"text_to_image_R@1", "text_to_image_R@5", "text_to_image_R@10"};
    double text_chance[CUT_COUNT], picture_chance[CUT_COUNT] = {0};
    for (int k = 0; k < CUT_COUNT; k++) {
        text_chance[k] = chance_within(CUTS[k], 1, p->texts);
        for (int64_t i = 0; i < p->texts; i++)
            picture_chance[k] += chance_within(CUTS[k], p->pictures_of[i], p->count) / (double)p->texts;
    }
    add_recalls(score, text_names, to_text, p->count, text_chance);
    add_recalls(score, picture_names, to_picture, p->texts, picture_chance);
}

static void pairs_free(Pairs *p) {
    for (int64_t i = 0; i < p->count; i++) free(p->text[i]);
    free(p->text);
    free(p->ids);
    free(p->distinct);
    free(p->text_of);
    free(p->pictures_of);
    free(p->pictures);
    free(p->features);
}

bool score_retrieval(Evaluation *e, Score *score, Error *error) {
    Pairs p = {0};
    double *hits = NULL;
    float *scores = NULL;
    bool ok = read_pairs(e, &p, error);
    if (!ok) goto done;
    find_distinct(&p);
    int64_t widest = p.count > p.texts ? p.count : p.texts;
    p.features = malloc(sizeof *p.features * (size_t)(p.texts * e->model->config.embedding));
    scores = malloc(sizeof *scores * (size_t)(e->batch * widest));
    hits = calloc((size_t)(CUT_COUNT * (p.count + p.texts)), sizeof *hits);
    check(p.features && scores && hits);
    double *to_picture = hits + CUT_COUNT * p.count;
    ok = text_features(e, p.distinct, p.texts, p.features, error) && pictures_to_texts(e, &p, hits, scores, error) &&
         texts_to_pictures(e, &p, to_picture, scores, error);
    if (ok) add_metrics(score, &p, hits, to_picture);
    score->effective = p.count;
done:
    free(hits);
    free(scores);
    pairs_free(&p);
    return ok;
}
