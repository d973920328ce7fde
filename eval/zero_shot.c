/* Zero-shot classification (Radford et al. 2021): a class is the mean of the normalised features of its templates,
 * normalised again; the answer is the class nearest to the picture. N pictures, C classes, E width of the features. */
#include "data/template.h"
#include "eval/evaluation.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Classes {
    char **names; // (count), sorted or in the order of the file
    int count, capacity;
} Classes;

typedef struct Seen {  // pictures as they are read
    char **class_name; // (count)
    int64_t *ids;
    float *features; // (count, E)
    int64_t count;
} Seen;

static void classes_add(Classes *c, const char *name) {
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 64;
        c->names = realloc(c->names, sizeof *c->names * (size_t)c->capacity);
        check(c->names);
    }
    c->names[c->count] = strdup(name);
    check(c->names[c->count++]);
}

static void names_release(char **names, int64_t count) {
    for (int64_t i = 0; i < count; i++) free(names[i]);
    free(names);
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// The distinct names that occur in the data, sorted.
static void classes_from_data(Classes *c, const Seen *seen) {
    char **sorted = malloc(sizeof *sorted * (size_t)(seen->count + 1));
    check(sorted);
    memcpy(sorted, seen->class_name, sizeof *sorted * (size_t)seen->count);
    qsort(sorted, (size_t)seen->count, sizeof *sorted, by_bytes);
    for (int64_t i = 0; i < seen->count; i++)
        if (!i || strcmp(sorted[i], sorted[i - 1]) != 0) classes_add(c, sorted[i]);
    free(sorted);
}

static bool classes_from_file(Classes *c, const char *path, Error *error) {
    Buffer text = {0};
    bool ok = file_read(path, &text, error);
    char *rest = text.data;
    for (char *line; ok && (line = strsep(&rest, "\r\n"));)
        if (*line) classes_add(c, line);
    buffer_free(&text);
    return ok && (c->count || error_set(error, ERROR_USAGE, "%s: there are no class names in it", path));
}

static int class_index(const Classes *c, const char *name) {
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->names[i], name)) return i;
    return -1;
}

// A field's text, or a number as text; owned; NULL where it is neither.
static char *field_text(const json_t *fields, const char *field) {
    const json_t *value = json_object_get(fields, field);
    if (json_is_string(value)) return strdup(json_string_value(value));
    return json_is_integer(value) ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
}

static bool read_pictures(Evaluation *e, Seen *seen, SampleBatch *batch, Error *error) {
    int64_t width = e->model->config.embedding;
    size_t most = (size_t)examples_count(e->examples);
    float *features = malloc(sizeof(float) * (size_t)(e->batch * width));
    *seen = (Seen){.class_name = calloc(most, sizeof(char *)), .ids = calloc(most, sizeof(int64_t))};
    seen->features = calloc(most * (size_t)width, sizeof(float));
    check(features && seen->class_name && seen->ids && seen->features);
    bool ok = true;
    while ((ok = ok && sample_batch_next(e, batch, true, error)) && batch->count) {
        ok = picture_features(e, batch, features, error);
        for (int i = 0; ok && i < batch->count; i++) {
            char *name = field_text(batch->samples[i].fields, e->task->class_field);
            if (!name) {
                ok = error_set(error, ERROR_USAGE,
                               "%s: no field '%s' with a class; name it with `class_field` in the task",
                               batch->samples[i].name, e->task->class_field);
                break;
            }
            memcpy(seen->features + seen->count * width, features + i * width, sizeof(float) * (size_t)width);
            seen->ids[seen->count] = batch->ids[i];
            seen->class_name[seen->count++] = name;
        }
    }
    free(features);
    return ok;
}

static void seen_free(Seen *seen) {
    names_release(seen->class_name, seen->count);
    free(seen->ids);
    free(seen->features);
}

// The texts of template t for all classes, owned.
static bool class_texts(const Evaluation *e, const Classes *c, const char *pattern, char **texts, Error *error) {
    Template *template = template_parse(pattern, error);
    bool ok = template != NULL;
    for (int i = 0; ok && i < c->count; i++) {
        json_t *fields = json_pack("{s:s}", e->task->class_field, c->names[i]);
        Buffer text = {0};
        ok = template_expand(template, 0, fields, 0, &text, error);
        texts[i] = text.data; // taken over
        json_decref(fields);
    }
    template_free(template);
    return ok || error_prefix(error, "task %s", e->task->name);
}

static void normalize(double *x, int64_t width) {
    double square = 0;
    for (int64_t i = 0; i < width; i++) square += x[i] * x[i];
    for (int64_t i = 0; i < width; i++) x[i] /= fmax(sqrt(square), 1e-12);
}

// The C classes' features, (C, E).
static bool class_features(Evaluation *e, const Classes *c, float *out, Error *error) {
    int64_t width = e->model->config.embedding, n = c->count * width;
    double *sum = calloc((size_t)n, sizeof *sum);
    float *features = malloc(sizeof *features * (size_t)n);
    check(sum && features);
    bool ok = true;
    for (int t = 0; ok && t < e->task->templates.count; t++) {
        char **texts = calloc((size_t)c->count, sizeof *texts);
        check(texts);
        ok = class_texts(e, c, e->task->templates.items[t], texts, error) &&
             text_features(e, (const char *const *)texts, c->count, features, error);
        for (int64_t i = 0; ok && i < n; i++) sum[i] += (double)features[i];
        names_release(texts, c->count);
    }
    for (int i = 0; ok && i < c->count; i++) normalize(sum + i * width, width);
    for (int64_t i = 0; ok && i < n; i++) out[i] = (float)sum[i];
    free(sum);
    free(features);
    return ok;
}

// Ranks of the right classes among the scores of all pictures.
static bool rank_pictures(Evaluation *e, const Seen *seen, const Classes *c, const float *classes, const int32_t *label,
                          int64_t *rank, Error *error) {
    int64_t width = e->model->config.embedding;
    float *scores = malloc(sizeof(float) * (size_t)(e->batch * c->count));
    check(scores);
    bool ok = true;
    for (int64_t i = 0; ok && i < seen->count; i += e->batch) {
        int64_t rows = seen->count - i < e->batch ? seen->count - i : e->batch;
        ok = similarities(e, seen->features + i * width, rows, classes, c->count, scores, error);
        for (int64_t r = 0; ok && r < rows; r++) {
            const float *row = scores + r * c->count;
            rank[i + r] = rank_of(row, c->count, label[i + r]);
            int64_t best = 0;
            for (int64_t k = 1; e->samples && k < c->count; k++)
                if (row[k] > row[best]) best = k;
            Example none = {.fields = NULL};
            if (e->samples && examples_read(e->examples, seen->ids[i + r], &none, error))
                log_sample(e, seen->ids[i + r], &none, c->names[label[i + r]], json_string(c->names[best]), "acc",
                           rank[i + r] == 0);
            example_free(&none);
        }
    }
    free(scores);
    return ok;
}

static bool find_labels(const Evaluation *e, const Seen *seen, const Classes *c, int32_t *label, Error *error) {
    for (int64_t i = 0; i < seen->count; i++)
        if ((label[i] = class_index(c, seen->class_name[i])) < 0)
            return error_set(error, ERROR_USAGE, "class '%s' of sample %lld is not in %s", seen->class_name[i],
                             (long long)seen->ids[i] + 1, e->task->classes);
    return true;
}

static void add_metrics(Score *score, const int64_t *rank, const int32_t *label, int64_t n, int classes) {
    double *first = calloc((size_t)n, sizeof *first), *five = calloc((size_t)n, sizeof *five);
    check(first && five);
    for (int64_t i = 0; i < n; i++) {
        first[i] = rank[i] == 0;
        five[i] = rank[i] < 5;
    }
    score_add(score, metric_mean("acc", first, n, 1.0 / classes));
    if (classes > 5) score_add(score, metric_mean("acc5", five, n, 5.0 / classes));
    score_add(score, metric_class_mean("mean_per_class_recall", first, label, n, classes, 1.0 / classes));
    free(first);
    free(five);
}

bool score_zero_shot(Evaluation *e, Score *score, Error *error) {
    Seen seen = {0};
    Classes classes = {0};
    SampleBatch batch = {0};
    int32_t *label = NULL;
    int64_t *rank = NULL;
    float *features = NULL;
    bool ok = read_pictures(e, &seen, &batch, error);
    if (!ok) goto done;
    if (*e->task->classes)
        ok = classes_from_file(&classes, e->task->classes, error);
    else
        classes_from_data(&classes, &seen);
    label = calloc((size_t)seen.count + 1, sizeof *label);
    rank = calloc((size_t)seen.count + 1, sizeof *rank);
    features = malloc(sizeof *features * (size_t)(classes.count * e->model->config.embedding) + 1);
    check(label && rank && features);
    ok = ok && find_labels(e, &seen, &classes, label, error) && class_features(e, &classes, features, error) &&
         rank_pictures(e, &seen, &classes, features, label, rank, error);
    if (ok) add_metrics(score, rank, label, seen.count, classes.count);
    score->effective = seen.count;
done:
    free(features);
    free(rank);
    free(label);
    names_release(classes.names, classes.count);
    seen_free(&seen);
    sample_batch_free(&batch);
    return ok;
}
