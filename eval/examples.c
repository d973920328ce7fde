/* See examples.h. Lines of a .jsonl stay parsed in memory; images and datasets are read when asked for. */
#include "eval/examples.h"
#include "base/files.h"
#include "data/dataset.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Examples {
    char *path, *folder; // owned; folder: of a .jsonl
    const char *image_field;
    Dataset *dataset;
    json_t *lines; // array
    Buffer bytes;  // of a dataset's sample
    int64_t count, original;
};

enum { MOST_IMAGE_BYTES = 256 << 20 };

static bool read_lines(Examples *e, Error *error) {
    JsonLines *lines = json_lines_open(e->path, error);
    json_t *line = NULL;
    bool ok = lines != NULL;
    e->lines = json_array();
    while (ok && (ok = json_lines_next(lines, &line, error)) && line) json_array_append_new(e->lines, line);
    json_lines_close(lines);
    e->original = (int64_t)json_array_size(e->lines);
    return ok;
}

static bool open_source(Examples *e, Error *error) {
    if (folder_exists(e->path)) {
        e->dataset = dataset_open(e->path, error);
        if (e->dataset) e->original = dataset_samples(e->dataset);
        return e->dataset != NULL;
    }
    if (!file_exists(e->path)) return error_set(error, ERROR_USAGE, "%s: no such file or dataset folder", e->path);
    if (!strcmp(path_extension(e->path), "jsonl")) return read_lines(e, error);
    if (strcmp(path_extension(e->path), "txt") != 0)
        return error_set(error, ERROR_USAGE, "%s: neither a .jsonl, a .txt nor a dataset folder", e->path);
    e->original = 1;
    return true;
}

Examples *examples_open(const char *path, int64_t limit, const char *image_field, Error *error) {
    Examples *e = calloc(1, sizeof *e);
    check(e);
    e->path = strdup(path);
    e->folder = strndup(path, (size_t)(path_base(path) - path));
    check(e->path && e->folder);
    e->image_field = image_field;
    bool ok = open_source(e, error);
    if (ok && !e->original) ok = error_set(error, ERROR_FAILED, "%s: there are no samples in it", path);
    if (!ok) {
        examples_close(e);
        return NULL;
    }
    e->count = limit > 0 && limit < e->original ? limit : e->original;
    return e;
}

void examples_close(Examples *e) {
    if (!e) return;
    dataset_close(e->dataset);
    json_decref(e->lines);
    buffer_free(&e->bytes);
    free(e->path);
    free(e->folder);
    free(e);
}

int64_t examples_count(const Examples *e) { return e->count; }
int64_t examples_original(const Examples *e) { return e->original; }
const char *examples_root(const Examples *e) { return e->dataset ? dataset_root(e->dataset) : NULL; }

void example_free(Example *x) {
    json_decref(x->fields);
    buffer_free(&x->text);
    buffer_free(&x->image);
    *x = (Example){0};
}

static void clear(Example *x) {
    json_decref(x->fields);
    x->fields = NULL;
    buffer_clear(&x->text);
    buffer_clear(&x->image);
}

// The image's path counts from the .jsonl's folder, and must stay inside it.
static bool read_image_file(Examples *e, Example *x, Error *error) {
    const char *name = json_get_string(x->fields, e->image_field, NULL);
    if (!name) return true;
    if (name[0] == '/' || strstr(name, ".."))
        return error_set(error, ERROR_FAILED, "image '%s' lies outside the folder of the .jsonl", name);
    Buffer path = {0};
    buffer_printf(&path, "%s%s", e->folder, name);
    bool ok = !file_exists(path.data) || file_is_regular(path.data) ||
              error_set(error, ERROR_FAILED, "%s: is not a regular file", path.data);
    ok = ok && file_read_limited(path.data, MOST_IMAGE_BYTES, &x->image, error);
    buffer_free(&path);
    return ok;
}

static bool read_sample(Examples *e, int64_t index, Example *x, Error *error) {
    Sample sample;
    if (!dataset_sample(e->dataset, index, &sample, &e->bytes, error)) return false;
    snprintf(x->name, sizeof x->name, "%s/%s", sample.shard, sample.key);
    const Member *text = sample_member(&sample, MEMBER_TEXT, 0), *image = sample_member(&sample, MEMBER_IMAGE, 0),
                 *json = sample_member(&sample, MEMBER_JSON, 0);
    if (text) buffer_append(&x->text, text->bytes, (size_t)text->size);
    if (image && e->image_field) buffer_append(&x->image, image->bytes, (size_t)image->size);
    x->fields = json ? json_parse((const char *)json->bytes, (size_t)json->size, json->name, error) : json_object();
    return x->fields != NULL;
}

bool examples_read(Examples *e, int64_t index, Example *x, Error *error) {
    check(index >= 0 && index < e->count);
    clear(x);
    snprintf(x->name, sizeof x->name, "%s:%lld", path_base(e->path), (long long)index + 1);
    bool ok = true;
    if (e->dataset) {
        ok = read_sample(e, index, x, error);
    } else if (e->lines) {
        x->fields = json_incref(json_array_get(e->lines, (size_t)index));
        ok = !e->image_field || read_image_file(e, x, error);
    } else {
        x->fields = json_object();
        ok = file_read(e->path, &x->text, error);
    }
    return ok || error_prefix(error, "%s", x->name);
}
