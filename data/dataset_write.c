/* See dataset_write.h; docs/formats.md has dataset.json field by field. */
#include "data/dataset_write.h"
#include "base/files.h"
#include "base/philox.h"
#include "data/histogram.h"
#include "data/manifest.h"
#include "data/utf8.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEDGER_NAME "ledger.jsonl"

struct DatasetWriter {
    DatasetOptions options; // strings copied; path: where it is written
    char *replaced;         // the dataset whose place it takes in the end, until then whole; NULL: none
    char **option_texts;
    ShardWriter *shard; // the one being written, or NULL
    Buffer shards;      // ShardInfo each
    int64_t samples, bytes;
    Histogram width, height, caption;
    Counts languages, dropped;
    json_t *sources;
    Buffer ledger;
    uint64_t chain; // XXH3-64 that ties each line of the ledger to those before it
};

static char *copy(const char *text) {
    char *out = strdup(text ? text : "");
    check(out);
    return out;
}

// Files that a dataset is made of, also where a build was killed while it wrote them aside (.tmp): these, and no
// others, are removed to make room for another.
static bool is_ours(const char *file) {
    static const char *const fixed[] = {MANIFEST_NAME, LEDGER_NAME, "sizes.json", "__len__"};
    static const char *const ends[] = {".tar", ".bfx", ".idx", "_stats.json"};
    char name[64];
    size_t size = strlen(file);
    if (size > 4 && strcmp(file + size - 4, ".tmp") == 0) size -= 4;
    if (size >= sizeof name) return false;
    snprintf(name, sizeof name, "%.*s", (int)size, file);
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (strcmp(name, fixed[i]) == 0) return true;
    if (strncmp(name, "shard-", 6) != 0 || strspn(name + 6, "0123456789") != 6) return false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(name + 12, ends[i]) == 0) return true;
    return false;
}

// dataset.json goes first: from then on the folder is no dataset.
static bool remove_old(const char *folder, char **names, int count, Error *error) {
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < count; i++) {
            if ((strcmp(names[i], MANIFEST_NAME) == 0) != (pass == 0) || !is_ours(names[i])) continue;
            Buffer path = {0};
            buffer_printf(&path, "%s/%s", folder, names[i]);
            bool ok = unlink(path.data) == 0 || error_set_errno(error, ERROR_FAILED, "%s: cannot remove", path.data);
            buffer_free(&path);
            if (!ok) return false;
        }
    return folder_sync(folder, error);
}

// Makes the folder where it is absent. An error where it holds anything that is no dataset's.
static bool open_folder(const char *path, int *files, Error *error) {
    char **names = NULL;
    if (!folder_create(path, error) || !folder_list(path, &names, files, error)) return false;
    bool ok = true;
    for (int i = 0; ok && i < *files; i++)
        if (!is_ours(names[i]))
            ok = error_set(error, ERROR_USAGE, "%s: holds %s, which is no part of a dataset: give a new folder", path,
                           names[i]);
    names_free(names, *files);
    return ok;
}

static bool empty_folder(const char *path, Error *error) {
    char **names = NULL;
    int count = 0;
    bool ok = folder_list(path, &names, &count, error) && remove_old(path, names, count, error);
    names_free(names, count);
    return ok;
}

// An empty folder to write into. Where a dataset is to be replaced: one beside it, and *replaced is its path; owned.
static char *make_room(const DatasetOptions *o, char **replaced, Error *error) {
    int files = 0;
    char *aside = NULL;
    *replaced = NULL;
    if (!open_folder(o->path, &files, error)) return NULL;
    if (!files) return copy(o->path);
    if (!o->force) {
        error_set(error, ERROR_USAGE, "%s: holds a dataset already: give another folder, or --force to replace it",
                  o->path);
        return NULL;
    }
    *replaced = realpath(o->path, NULL); // without links and slashes at the end
    check(*replaced && asprintf(&aside, "%s.building", *replaced) > 0);
    if (open_folder(aside, &files, error) && empty_folder(aside, error)) return aside;
    free(aside);
    free(*replaced);
    return NULL;
}

// What was written comes where the old dataset is, in one step where the file system can: whoever is stopped before it
// leaves the old one whole.
static bool take_place(DatasetWriter *w, Error *error) {
    const char *aside = w->options.path;
    if (!w->replaced) return true;
    if (renameat2(AT_FDCWD, aside, AT_FDCWD, w->replaced, RENAME_EXCHANGE) == 0)
        return folder_sync(w->replaced, error) && empty_folder(aside, error) &&
               (rmdir(aside) == 0 || error_set_errno(error, ERROR_FAILED, "%s: cannot remove the folder", aside));
    if (errno != EINVAL && errno != ENOSYS)
        return error_set_errno(error, ERROR_FAILED, "%s: cannot take the place of %s", aside, w->replaced);
    return empty_folder(w->replaced, error) && path_rename(aside, w->replaced, error);
}

DatasetWriter *dataset_create(const DatasetOptions *o, Error *error) {
    char *replaced, *folder = make_room(o, &replaced, error);
    if (!folder) return NULL;
    DatasetWriter *w = calloc(1, sizeof *w);
    check(w);
    w->options = *o;
    w->options.path = folder;
    w->replaced = replaced;
    w->options.name = copy(o->name);
    w->options.license = copy(o->license);
    w->options.source = copy(o->source);
    w->option_texts = calloc((size_t)o->option_count + 1, sizeof *w->option_texts);
    check(w->option_texts);
    for (int i = 0; i < o->option_count; i++) w->option_texts[i] = copy(o->options[i]);
    w->sources = json_array();
    return w;
}

static void writer_free(DatasetWriter *w) {
    shard_abandon(w->shard);
    for (int i = 0; i < w->options.option_count; i++) free(w->option_texts[i]);
    free(w->option_texts);
    free((char *)w->options.path);
    free((char *)w->options.name);
    free((char *)w->options.license);
    free((char *)w->options.source);
    buffer_free(&w->shards);
    buffer_free(&w->ledger);
    json_decref(w->sources);
    free(w->replaced);
    free(w);
}

void dataset_abandon(DatasetWriter *w) {
    Error ignored = {0};
    if (!w) return;
    if (w->replaced && empty_folder(w->options.path, &ignored)) (void)rmdir(w->options.path);
    writer_free(w);
}

int64_t dataset_written(const DatasetWriter *w) { return w->samples; }

static int shard_count(const DatasetWriter *w) { return (int)(w->shards.size / sizeof(ShardInfo)); }

static bool close_shard(DatasetWriter *w, Error *error) {
    ShardInfo info;
    ShardWriter *shard = w->shard;
    w->shard = NULL;
    if (!shard_finish(shard, w->options.dali_index, &info, error)) return false;
    buffer_append(&w->shards, &info, sizeof info);
    w->bytes += info.bytes;
    return true;
}

static void measure(DatasetWriter *w, const NewSample *s) {
    if (s->width) {
        histogram_add(&w->width, s->width);
        histogram_add(&w->height, s->height);
    }
    for (int i = 0; i < s->member_count; i++) {
        const NewMember *m = &s->members[i];
        if (m->kind != MEMBER_TEXT) continue;
        histogram_add(&w->caption, (int64_t)utf8_count(m->bytes, m->size));
        counts_add(&w->languages, utf8_script(m->bytes, m->size));
    }
}

bool dataset_add(DatasetWriter *w, const NewSample *sample, Error *error) {
    char key[24];
    NewSample s = *sample;
    snprintf(key, sizeof key, "%09lld", (long long)w->samples);
    s.key = key;
    if (!w->shard && !(w->shard = shard_create(w->options.path, shard_count(w), error))) return false;
    if (!shard_add(w->shard, &s, error)) return false;
    measure(w, &s);
    w->samples++;
    return shard_bytes(w->shard) < w->options.shard_size || close_shard(w, error);
}

void dataset_add_source(DatasetWriter *w, const char *name, int64_t bytes, const uint8_t hash[SHA256_SIZE]) {
    char hex[SHA256_HEX + 1];
    hex_encode(hash, SHA256_SIZE, hex);
    json_array_append_new(w->sources,
                          json_pack("{s:s,s:I,s:s}", "name", name, "bytes", (json_int_t)bytes, "sha256", hex));
}

// A line of the ledger ends with the hash of itself (without that field) under the hash of the line before: what is
// appended later cannot be changed or cut out unnoticed.
int64_t dataset_drop(DatasetWriter *w, const char *cause, const char *place, const char *detail) {
    json_t *line = json_pack("{s:s,s:s,s:s+,s:s+}", "event", "quarantined", "cause", cause, "place", place, "",
                             "detail", detail, "");
    if (!line) line = json_pack("{s:s,s:s}", "event", "quarantined", "cause", cause); // a place that is not UTF-8
    char hex[17];
    char *text = json_dumps(line, JSON_COMPACT);
    check(text);
    Buffer tied = {0};
    buffer_printf(&tied, "%016llx%s", (unsigned long long)w->chain, text);
    w->chain = hash_u64(tied.data, tied.size);
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)w->chain);
    buffer_printf(&w->ledger, "%.*s,\"chain\":\"%s\"}\n", (int)strlen(text) - 1, text, hex);
    buffer_free(&tied);
    free(text);
    json_decref(line);
    return counts_add(&w->dropped, cause);
}

int64_t dataset_dropped(const DatasetWriter *w, Buffer *causes) {
    for (int i = 0; i < w->dropped.used; i++)
        buffer_printf(causes, "%s%lld %s", i ? ", " : "", (long long)w->dropped.items[i].count,
                      w->dropped.items[i].name);
    return counts_total(&w->dropped);
}

// Writes folder/name and notes its hash, so that verify covers it.
static bool write_extra(DatasetWriter *w, const char *name, const char *text, size_t size, json_t *files,
                        Error *error) {
    Buffer path = {0};
    uint8_t hash[SHA256_SIZE];
    char hex[SHA256_HEX + 1];
    buffer_printf(&path, "%s/%s", w->options.path, name);
    bool ok = file_write(path.data, text, size, error);
    sha256(text, size, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    json_object_set_new(files, name, json_string(hex));
    buffer_free(&path);
    return ok;
}

// The index of a shard is there already: only its hash is wanted.
static bool note_index(DatasetWriter *w, const ShardInfo *shard, json_t *files, Error *error) {
    Buffer path = {0};
    Digest *digest = digest_new();
    uint8_t hash[SHA256_SIZE];
    char name[48], hex[SHA256_HEX + 1];
    int64_t size;
    snprintf(name, sizeof name, "%.12s.idx", shard->path);
    buffer_printf(&path, "%s/%s", w->options.path, name);
    bool ok = digest_file(path.data, digest, &size, error);
    digest_sha256(digest, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    json_object_set_new(files, name, json_string(hex));
    digest_free(digest);
    buffer_free(&path);
    return ok;
}

// What other WebDataset tools look for: sizes.json, __len__ and statistics as img2dataset leaves them.
static bool write_extras(DatasetWriter *w, json_t *files, Error *error) {
    const ShardInfo *shards = (const ShardInfo *)w->shards.data;
    Buffer sizes = {0}, text = {0};
    bool ok = true;
    for (int i = 0; ok && i < shard_count(w); i++) {
        long long n = shards[i].samples;
        char name[48];
        buffer_printf(&sizes, "%s\"%s\": %lld", i ? ", " : "{", shards[i].path, n);
        buffer_clear(&text);
        buffer_printf(&text,
                      "{\"count\": %lld, \"successes\": %lld, \"failed_to_download\": 0, \"failed_to_resize\": 0, "
                      "\"status_dict\": {\"success\": %lld}}\n",
                      n, n, n);
        snprintf(name, sizeof name, "%.12s_stats.json", shards[i].path);
        ok = write_extra(w, name, text.data, text.size, files, error) &&
             (!w->options.dali_index || note_index(w, &shards[i], files, error));
    }
    buffer_text(&sizes, "}\n");
    buffer_clear(&text);
    buffer_printf(&text, "%lld\n", (long long)w->samples);
    ok = ok && write_extra(w, "sizes.json", sizes.data, sizes.size, files, error) &&
         write_extra(w, "__len__", text.data, text.size, files, error);
    buffer_free(&sizes);
    buffer_free(&text);
    return ok;
}

// A version 8 UUID (RFC 9562) out of the content: the same samples under the same name are the same dataset.
static void make_uuid(const DatasetWriter *w, const char *root, char out[37]) {
    Buffer text = {0};
    uint8_t h[SHA256_SIZE];
    char x[33];
    buffer_printf(&text, "%s\n%s\n%s", MANIFEST_FORMAT, root, w->options.name);
    sha256(text.data, text.size, h);
    h[6] = (uint8_t)((h[6] & 0x0F) | 0x80);
    h[8] = (uint8_t)((h[8] & 0x3F) | 0x80);
    hex_encode(h, 16, x);
    snprintf(out, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", x, x + 8, x + 12, x + 16, x + 20);
    buffer_free(&text);
}

static json_t *options_json(const DatasetWriter *w) {
    json_t *array = json_array();
    for (int i = 0; i < w->options.option_count; i++) json_array_append_new(array, json_string(w->option_texts[i]));
    return array;
}

static json_t *ledger_json(const DatasetWriter *w) {
    uint8_t hash[SHA256_SIZE];
    char hex[SHA256_HEX + 1];
    sha256(w->ledger.data, w->ledger.size, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    return json_pack("{s:s,s:I,s:s}", "path", LEDGER_NAME, "bytes", (json_int_t)w->ledger.size, "sha256", hex);
}

static json_t *manifest_json(const DatasetWriter *w, const DatasetSummary *s, json_t *files) {
    const ShardInfo *shards = (const ShardInfo *)w->shards.data;
    json_t *json = json_pack("{s:s,s:i,s:s,s:s,s:s,s:n}", "format", MANIFEST_FORMAT, "version", MANIFEST_VERSION,
                             "name", w->options.name, "uuid", s->uuid, "root", s->root, "parent_root");
    json_object_set_new(json, "samples", json_integer(s->samples));
    json_object_set_new(json, "bytes", json_integer(s->bytes));
    json_object_set_new(json, "shards", manifest_shards_json(shards, s->shards));
    json_object_set_new(json, "histograms",
                        json_pack("{s:o,s:o,s:o,s:n,s:o}", "width", histogram_json(&w->width), "height",
                                  histogram_json(&w->height), "caption_characters", histogram_json(&w->caption),
                                  "tokens", "language", counts_json(&w->languages)));
    json_object_set_new(json, "dropped", counts_json(&w->dropped));
    json_object_set_new(json, "dedup", json_pack("{s:s,s:i}", "method", "none", "removed", 0));
    json_object_set_new(json, "license", json_string(w->options.license));
    json_object_set_new(json, "source", json_pack("{s:s,s:O}", "name", w->options.source, "files", w->sources));
    json_object_set_new(json, "options", options_json(w));
    json_object_set_new(json, "tool", json_string("bifocal " BIFOCAL_VERSION));
    json_object_set_new(json, "tokenizer", json_null());
    json_object_set_new(json, "ledger", ledger_json(w));
    json_object_set_new(json, "files", files);
    return json;
}

static bool write_all(DatasetWriter *w, DatasetSummary *s, Error *error) {
    Buffer path = {0}, text = {0};
    if (w->samples == 0) {
        dataset_dropped(w, &text);
        error_set(error, ERROR_FAILED, "%s: no sample was left to write (%s)",
                  w->replaced ? w->replaced : w->options.path, text.size ? text.data : "the sources are empty");
        buffer_free(&text);
        return false;
    }
    if (w->shard && !close_shard(w, error)) return false;
    *s = (DatasetSummary){.samples = w->samples, .bytes = w->bytes, .shards = shard_count(w)};
    s->dropped = counts_total(&w->dropped);
    manifest_root((const ShardInfo *)w->shards.data, s->shards, s->root);
    make_uuid(w, s->root, s->uuid);
    json_t *files = json_object();
    bool ok = write_extras(w, files, error);
    buffer_printf(&path, "%s/" LEDGER_NAME, w->options.path);
    ok = ok && file_write(path.data, w->ledger.data, w->ledger.size, error);
    json_t *json = manifest_json(w, s, files);
    manifest_seal(json, &text);
    json_decref(json);
    buffer_clear(&path);
    buffer_printf(&path, "%s/" MANIFEST_NAME, w->options.path);
    ok = ok && file_write(path.data, text.data, text.size, error);
    buffer_free(&path);
    buffer_free(&text);
    return ok;
}

bool dataset_finish(DatasetWriter *w, DatasetSummary *summary, Error *error) {
    bool ok = write_all(w, summary, error) && take_place(w, error);
    if (ok)
        writer_free(w);
    else
        dataset_abandon(w);
    return ok;
}
