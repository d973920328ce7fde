/* See tiny_compare.h. */
#include "tests/train/tiny_compare.h"
#include "base/files.h"
#include "base/safetensors_set.h"
#include "fusion/model_files.h"
#include "train/checkpoint.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *tiny_records(const TinyRun *r, const char *name) {
    static const char *const clocks[] = {"seconds", "waited", "communication"};
    Error error = {0};
    json_t *all = json_array(), *record;
    char *path = tiny_run_path(r, name, "metrics.jsonl");
    JsonLines *lines = json_lines_open(path, &error);
    assert_non_null(lines);
    while (json_lines_next(lines, &record, &error) && record) {
        for (int i = 0; i < 3; i++) json_object_del(record, clocks[i]);
        json_array_append_new(all, record);
    }
    json_lines_close(lines);
    free(path);
    return all;
}

// The largest difference between two numbers under one key, relative to the first; INFINITY where keys differ.
static double apart(const json_t *x, const json_t *y) {
    const char *key;
    const json_t *value;
    double most = json_object_size(x) == json_object_size(y) ? 0 : INFINITY;
    json_object_foreach((json_t *)x, key, value) {
        const json_t *other = json_object_get(y, key);
        double p = json_number_value(value), q = other ? json_number_value(other) : INFINITY;
        double difference = p == q ? 0 : fabs(p - q) / fabs(p);
        if (!(difference <= most)) most = difference;
    }
    return most;
}

double tiny_apart(const TinyRun *r, const char *a, const char *b) {
    json_t *x = tiny_records(r, a), *y = tiny_records(r, b);
    double most = 0;
    assert_int_equal(json_array_size(x), json_array_size(y));
    assert_true(json_array_size(x) > 0);
    for (size_t i = 0; i < json_array_size(x); i++) {
        double difference = apart(json_array_get(x, i), json_array_get(y, i));
        if (!(difference <= most)) most = difference;
    }
    json_decref(x);
    json_decref(y);
    return most;
}

double tiny_losses_apart(const TinyRun *r, const char *a, const char *b) {
    json_t *x = tiny_records(r, a), *y = tiny_records(r, b);
    double squares = 0;
    size_t count = 0;
    assert_int_equal(json_array_size(x), json_array_size(y));
    for (size_t i = 0; i < json_array_size(x); i++) {
        const json_t *p = json_object_get(json_array_get(x, i), "loss"),
                     *q = json_object_get(json_array_get(y, i), "loss");
        assert_true(!p == !q);
        if (!p) continue;
        double difference = json_number_value(p) - json_number_value(q);
        assert_true(isfinite(difference));
        squares += difference * difference;
        count++;
    }
    json_decref(x);
    json_decref(y);
    assert_true(count > 0);
    return sqrt(squares / (double)count);
}

void assert_close_records(const TinyRun *r, const char *a, const char *b, double tolerance) {
    double difference = tiny_apart(r, a, b);
    if (!(difference <= tolerance)) fail_msg("the records of %s and %s are %g apart", a, b, difference);
}

void assert_same_records(const TinyRun *r, const char *a, const char *b) { assert_close_records(r, a, b, 0); }

static Buffer read_file(const TinyRun *r, const char *name, const char *file) {
    Buffer out = {0};
    Error error = {0};
    char *path = tiny_run_path(r, name, file);
    assert_done(file_read(path, &out, &error), &error);
    free(path);
    return out;
}

void assert_same_file(const TinyRun *r, const char *a, const char *b, const char *file) {
    Buffer x = read_file(r, a, file), y = read_file(r, b, file);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    buffer_free(&x);
    buffer_free(&y);
}

static SafeTensorsSet open_set(const TinyRun *r, const char *name, const char *part) {
    SafeTensorsSet set = {0};
    Error error = {0};
    char found[1024], *run = temporary_path(r->folder, name);
    assert_done(model_find_checkpoint(run, found, NULL, &error), &error);
    assert_done(safetensors_set_open(&set, found, part, &error), &error);
    free(run);
    return set;
}

static double tensors_apart(const SafeTensor *x, const SafeTensor *y) {
    const float *p = x->data, *q = y->data;
    double most = 0, apart_most = 0;
    assert_string_equal(x->name, y->name);
    assert_int_equal(x->bytes, y->bytes);
    for (int64_t i = 0; i < x->bytes / (int64_t)sizeof(float); i++) {
        assert_true(isfinite(p[i]) && isfinite(q[i]));
        most = fmax(most, fabs((double)p[i]));
        apart_most = fmax(apart_most, fabs((double)p[i] - (double)q[i]));
    }
    return apart_most > 0 ? apart_most / most : 0;
}

double tiny_end_apart(const TinyRun *r, const char *a, const char *b) {
    static const char *const parts[] = {"model", "optimizer"};
    double most = 0;
    for (int i = 0; i < 2; i++) {
        SafeTensorsSet x = open_set(r, a, parts[i]), y = open_set(r, b, parts[i]);
        assert_int_equal(x.all.count, y.all.count);
        for (int t = 0; t < x.all.count; t++) most = fmax(most, tensors_apart(&x.all.tensors[t], &y.all.tensors[t]));
        safetensors_set_close(&x);
        safetensors_set_close(&y);
    }
    return most;
}

void assert_same_end(const TinyRun *r, const char *a, const char *b) { assert_true(tiny_end_apart(r, a, b) == 0); }

// One number of one tensor of a checkpoint becomes NaN, its checksums made anew.
static void poison(const char *path, const char *tensor) {
    Error error = {0};
    SafeTensors file = {0};
    assert_done(safetensors_open(&file, path, &error), &error);
    SafeTensor *copy = calloc((size_t)file.count, sizeof *copy);
    assert_non_null(copy);
    for (int i = 0; i < file.count; i++) {
        void *data = malloc((size_t)file.tensors[i].bytes + 1);
        memcpy(data, file.tensors[i].data, (size_t)file.tensors[i].bytes);
        if (!strcmp(file.tensors[i].name, tensor)) *(float *)data = NAN;
        copy[i] = file.tensors[i];
        copy[i].data = data;
    }
    assert_done(safetensors_write(path, copy, file.count, NULL, 0, &error), &error);
    for (int i = 0; i < file.count; i++) free((void *)copy[i].data);
    free(copy);
    safetensors_close(&file);
}

// The checksums in state.json made anew, for a checkpoint that a test has changed.
static void seal_again(const char *folder, const TrainState *state) {
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors", "model.json", "tokenizer.model"};
    CheckpointFile files[4] = {0};
    Error error = {0};
    for (int i = 0; i < 4; i++) {
        snprintf(files[i].name, sizeof files[i].name, "%s", names[i]);
        assert_done(checkpoint_file_look(&files[i], folder, &error), &error);
    }
    assert_done(checkpoint_state_write(folder, state, files, 4, &error), &error);
}

void tiny_poison(const TinyRun *r, const char *name, const char *checkpoint, const char *tensor) {
    TrainState saved;
    Error error = {0};
    char *folder = tiny_run_path(r, name, checkpoint), *path = temporary_path(folder, "model.safetensors");
    assert_done(checkpoint_state_read(folder, &saved, &error), &error);
    poison(path, tensor);
    seal_again(folder, &saved);
    free(folder);
    free(path);
}
