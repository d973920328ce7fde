/* One open source at a time; the texts of one line or sample are queued and handed out one by one. */
#include "cli/tokenizer_sources.h"
#include "base/buffer.h"
#include "base/files.h"
#include "base/json.h"
#include "data/dataset.h"
#include <stdlib.h>
#include <string.h>

struct TextSources {
    const char *const *sources, *const *fields;
    int count, field_count;
    int at;                // the next source to open
    Buffer text;           // a text file, or the queue of one line or sample: texts, each followed by a zero
    size_t queued;         // bytes of the queue already handed out
    size_t lines, seen;    // of the open .jsonl: lines, and texts found
    JsonLines *json;       // the open .jsonl
    Dataset *dataset;      // the open dataset
    Buffer bytes;          // of its sample
    int64_t sample, texts; // its next sample; texts handed out in all
    Error error;
};

static bool is_jsonl(const char *path) { return !strcmp(path_extension(path), "jsonl"); }

static bool check_source(const TextSources *t, const char *path, Error *error) {
    if (folder_exists(path)) {
        Dataset *dataset = dataset_open(path, error);
        dataset_close(dataset);
        return dataset != NULL;
    }
    if (!file_exists(path)) return error_set(error, ERROR_USAGE, "%s: no such file or dataset folder", path);
    if (is_jsonl(path) && !t->field_count)
        return error_set(error, ERROR_USAGE, "%s: say which fields hold text (--text-field NAME)", path);
    return true;
}

TextSources *text_sources_open(const char *const *sources, int count, const char *const *fields, int field_count,
                               Error *error) {
    TextSources *t = calloc(1, sizeof *t);
    check(t);
    *t = (TextSources){.sources = sources, .count = count, .fields = fields, .field_count = field_count};
    for (int i = 0; i < count; i++)
        if (!check_source(t, sources[i], error)) {
            text_sources_close(t, error);
            return NULL;
        }
    return t;
}

static void queue_text(TextSources *t, const char *text, size_t size) {
    if (!size || strlen(text) < size) return; // nothing, or not text
    buffer_append(&t->text, text, size + 1);
    t->seen++;
}

static void queue_fields(TextSources *t, const json_t *object) {
    for (int f = 0; f < t->field_count; f++) {
        const json_t *value = json_object_get(object, t->fields[f]), *item = value;
        size_t i = 0;
        do {
            if (json_is_array(value)) item = json_array_get(value, i);
            if (json_is_string(item)) queue_text(t, json_string_value(item), json_string_length(item));
        } while (json_is_array(value) && ++i < json_array_size(value));
    }
}

// One more line of the open .jsonl; closes it at its end.
static bool read_line(TextSources *t) {
    json_t *line = NULL;
    if (!json_lines_next(t->json, &line, &t->error)) return false;
    if (line) {
        t->lines++;
        queue_fields(t, line);
        json_decref(line);
        return true;
    }
    json_lines_close(t->json);
    t->json = NULL;
    if (t->lines && !t->seen)
        return error_set(&t->error, ERROR_USAGE, "%s: no line has text in '%s'", t->sources[t->at - 1], t->fields[0]);
    return true;
}

// One more sample of the open dataset; closes it at its end.
static bool read_sample(TextSources *t) {
    if (t->sample == dataset_samples(t->dataset)) {
        dataset_close(t->dataset);
        t->dataset = NULL;
        return true;
    }
    Sample sample;
    if (!dataset_sample(t->dataset, t->sample++, &sample, &t->bytes, &t->error)) return false;
    const Member *member = NULL;
    for (int i = 0; (member = sample_member(&sample, MEMBER_TEXT, i)); i++)
        queue_text(t, (const char *)member->bytes, (size_t)member->size);
    member = t->field_count ? sample_member(&sample, MEMBER_JSON, 0) : NULL;
    if (!member) return true;
    json_t *object = json_parse((const char *)member->bytes, (size_t)member->size, member->name, &t->error);
    if (!object) return error_prefix(&t->error, "%s/%s", t->sources[t->at - 1], sample.shard);
    queue_fields(t, object);
    json_decref(object);
    return true;
}

static bool open_next(TextSources *t) {
    const char *path = t->sources[t->at++];
    t->lines = t->seen = 0;
    t->sample = 0;
    if (folder_exists(path)) return (t->dataset = dataset_open(path, &t->error)) != NULL;
    if (is_jsonl(path)) return (t->json = json_lines_open(path, &t->error)) != NULL;
    return file_read(path, &t->text, &t->error);
}

// A text file is handed out whole, zero bytes and all; the queue text by text.
static const char *take(TextSources *t, size_t *size) {
    const char *text = t->text.data + t->queued;
    *size = t->json || t->dataset ? strlen(text) : t->text.size - t->queued;
    t->queued += *size + 1;
    t->texts++;
    return text;
}

const char *text_sources_next(void *sources, size_t *size) {
    TextSources *t = sources;
    while (t->error.kind == ERROR_NONE) {
        if (t->queued < t->text.size) return take(t, size);
        buffer_clear(&t->text);
        t->queued = 0;
        if (t->json)
            read_line(t);
        else if (t->dataset)
            read_sample(t);
        else if (t->at == t->count)
            return NULL;
        else
            open_next(t);
    }
    return NULL;
}

int64_t text_sources_count(const TextSources *t) { return t->texts; }

bool text_sources_close(TextSources *t, Error *error) {
    if (!t) return true;
    bool ok = t->error.kind == ERROR_NONE;
    if (!ok) *error = t->error;
    json_lines_close(t->json);
    dataset_close(t->dataset);
    buffer_free(&t->text);
    buffer_free(&t->bytes);
    free(t);
    return ok;
}
