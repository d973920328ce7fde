/* See build.h: options, the two datasets of a split, sources and the closing words. build_sample.c makes the samples.
 */
#include "data/build.h"
#include "base/files.h"
#include "data/importer.h"
#include <stdlib.h>
#include <string.h>

static const Importer *const importers[] = {&import_folder, &import_jsonl, &import_array, &import_text};
enum { IMPORTERS = sizeof importers / sizeof *importers };

static const Importer *importer_for(const char *path, const BuildOptions *o, Error *error) {
    Buffer manifest = {0};
    buffer_printf(&manifest, "%s/dataset.json", path);
    bool dataset = file_exists(manifest.data);
    buffer_free(&manifest);
    if (!file_exists(path) && !folder_exists(path)) {
        error_set(error, ERROR_USAGE, "%s: no such source", path);
        return NULL;
    }
    if (dataset) {
        error_set(error, ERROR_USAGE, "%s: is a dataset already", path);
        return NULL;
    }
    for (int i = 0; i < IMPORTERS; i++)
        if (importers[i]->takes(path, o)) return importers[i];
    error_set(error, ERROR_USAGE,
              "%s: not a kind of source known here: .jsonl, .json, a folder of pictures, .txt; with --documents any "
              "other file is read as text",
              path);
    return NULL;
}

static bool check_rules(const BuildOptions *o, Error *error) {
    const RowRules *r = &o->rules;
    int images = o->image_template ? 1 : r->image_count;
    if (!r->question_field != !r->answer_field)
        return error_set(error, ERROR_USAGE, "--question-field and --answer-field come together");
    if (images + r->text_count + 1 > SAMPLE_MEMBERS)
        return error_set(error, ERROR_USAGE, "a sample has at most %d pictures and captions together",
                         SAMPLE_MEMBERS - 1);
    return true;
}

static bool check_options(const BuildOptions *o, Error *error) {
    if (!o->source_count) return error_set(error, ERROR_USAGE, "no source given");
    if (!o->out) return error_set(error, ERROR_USAGE, "--out DIR is missing: where the dataset goes");
    if (!(o->validation_fraction >= 0 && o->validation_fraction < 1))
        return error_set(error, ERROR_USAGE, "--validation-fraction must be at least 0 and below 1");
    if ((o->validation_fraction > 0) != (o->validation_out != NULL))
        return error_set(error, ERROR_USAGE, "--validation-fraction and --validation-out come together");
    if (o->validation_out && strcmp(o->validation_out, o->out) == 0)
        return error_set(error, ERROR_USAGE, "--validation-out and --out are the same folder");
    if (o->shard_size < 0 || o->limit < 0) return error_set(error, ERROR_USAGE, "a size or limit below 0");
    return check_rules(o, error);
}

static void option(Buffer *text, const char *name, const char *value) {
    if (!value) return;
    buffer_printf(text, "%s=%s", name, value);
    buffer_append(text, "", 1);
}

// What shaped the samples, one zero-terminated "name=value" behind the other.
static void describe_options(const BuildOptions *o, const char *part, Buffer *text) {
    static const char *const cuts[] = {NULL, "whole", "lines", "blank"};
    char number[64];
    for (int i = 0; i < o->rules.image_count; i++) option(text, "image-field", o->rules.image_fields[i]);
    for (int i = 0; i < o->rules.text_count; i++) option(text, "text-field", o->rules.text_fields[i]);
    option(text, "question-field", o->rules.question_field);
    option(text, "answer-field", o->rules.answer_field);
    option(text, "image-template", o->image_template);
    option(text, "columns", o->columns);
    option(text, "documents", cuts[o->documents]);
    if (o->limit) {
        snprintf(number, sizeof number, "%lld", (long long)o->limit);
        option(text, "limit", number);
    }
    if (!o->validation_out) return;
    snprintf(number, sizeof number, "%s of %.17g, seed %llu", part, o->validation_fraction,
             (unsigned long long)o->seed);
    option(text, "split", number);
}

static DatasetWriter *create(const BuildOptions *o, const char *path, const char *part, Error *error) {
    Buffer text = {0};
    const char *lines[2 * ROW_FIELDS + 16];
    int count = 0;
    describe_options(o, part, &text);
    for (size_t at = 0; at < text.size; at += strlen(text.data + at) + 1) lines[count++] = text.data + at;
    DatasetOptions d = {
        .path = path,
        .name = o->name ? o->name : "",
        .license = o->license,
        .source = o->source_name,
        .shard_size = o->shard_size ? o->shard_size : BUILD_SHARD_SIZE,
        .force = o->force,
        .dali_index = o->dali_index,
        .options = lines,
        .option_count = count,
    };
    DatasetWriter *w = dataset_create(&d, error);
    buffer_free(&text);
    return w;
}

static bool create_both(Builder *b, Error *error) {
    const BuildOptions *o = b->options;
    b->train = create(o, o->out, "training part", error);
    if (b->train && o->validation_out) b->validation = create(o, o->validation_out, "held-out part", error);
    return b->train && (b->validation || !o->validation_out);
}

// One source, and its hash for the record. Folders note theirs themselves.
static bool run_source(Builder *b, const Importer *importer, const char *path, Error *error) {
    if (!importer->run(b, path, error)) return false;
    if (folder_exists(path)) return true;
    Digest *digest = digest_new();
    uint8_t hash[SHA256_SIZE];
    int64_t size;
    bool ok = digest_file(path, digest, &size, error);
    digest_sha256(digest, hash);
    if (ok) dataset_add_source(b->train, path_base(path), size, hash);
    if (ok && b->validation) dataset_add_source(b->validation, path_base(path), size, hash);
    digest_free(digest);
    return ok;
}

// Rows of all sources, about. A source that cannot be read at all is found here, before anything is written.
static bool count_sources(const Builder *b, const Importer **chosen, int64_t *total, Error *error) {
    const BuildOptions *o = b->options;
    *total = 0;
    for (int i = 0; i < o->source_count; i++) {
        int64_t rows = 0;
        if (!chosen[i]->count(b, o->sources[i], &rows, error)) return false;
        *total += rows;
    }
    return true;
}

static bool run_sources(Builder *b, const Importer **chosen, int64_t total, Error *error) {
    const BuildOptions *o = b->options;
    b->progress = progress_start(b->log, "building", "rows", total);
    bool ok = true;
    for (int i = 0; ok && i < o->source_count; i++) ok = run_source(b, chosen[i], o->sources[i], error);
    progress_update(b->progress, b->rows, NULL);
    progress_end(b->progress);
    return ok;
}

static bool finish(Builder *b, BuildResult *result, Error *error) {
    Buffer causes = {0};
    int64_t dropped = dataset_dropped(b->train, &causes);
    if (dropped)
        log_warning(b->log, "left out %lld of %lld rows: %s (each is in ledger.jsonl)", (long long)dropped,
                    (long long)b->rows, causes.data);
    buffer_free(&causes);
    DatasetWriter *train = b->train, *validation = b->validation;
    b->train = b->validation = NULL;
    // The held-out part first: where the training part is whole, both are.
    if (validation && !dataset_finish(validation, &result->validation, error)) {
        dataset_abandon(train);
        return false;
    }
    return dataset_finish(train, &result->train, error);
}

bool build_dataset(const BuildOptions *o, Log *log, BuildResult *result, Error *error) {
    Builder b = {.options = o, .log = log, .rules = o->rules};
    const Importer **chosen = NULL;
    bool ok = false;
    *result = (BuildResult){0};
    if (!check_options(o, error)) return false;
    if (o->image_template && !(b.image_template = template_parse(o->image_template, error))) return false;
    b.rules.image_template = b.image_template;
    chosen = calloc((size_t)o->source_count, sizeof *chosen);
    check(chosen);
    for (int i = 0; i < o->source_count; i++)
        if (!(chosen[i] = importer_for(o->sources[i], o, error))) goto done;
    int64_t total;
    ok = count_sources(&b, chosen, &total, error) && create_both(&b, error) && run_sources(&b, chosen, total, error) &&
         finish(&b, result, error);
done:
    dataset_abandon(b.train);
    dataset_abandon(b.validation);
    template_free(b.image_template);
    row_free(&b.row);
    for (int i = 0; i < ROW_FIELDS; i++) buffer_free(&b.images[i]);
    buffer_free(&b.path);
    buffer_free(&b.place);
    free(chosen);
    return ok;
}
