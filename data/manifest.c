/* See manifest.h. */
#include "data/manifest.h"
#include "base/files.h"
#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SHARDS = 1000000 };
static const int64_t most_bytes = INT64_C(1) << 30;

json_t *manifest_shards_json(const ShardInfo *shards, int count) {
    json_t *array = json_array();
    for (int i = 0; i < count; i++) {
        const ShardInfo *s = &shards[i];
        char tar[SHA256_HEX + 1], sidecar[SHA256_HEX + 1];
        hex_encode(s->sha256, SHA256_SIZE, tar);
        hex_encode(s->sidecar_sha256, SHA256_SIZE, sidecar);
        json_array_append_new(array, json_pack("{s:s,s:I,s:I,s:s,s:s,s:s}", "path", s->path, "bytes",
                                               (json_int_t)s->bytes, "samples", (json_int_t)s->samples, "sha256", tar,
                                               "sidecar", s->sidecar, "sidecar_sha256", sidecar));
    }
    return array;
}

void manifest_root(const ShardInfo *shards, int count, char root[SHA256_HEX + 1]) {
    uint8_t(*leaves)[SHA256_SIZE] = calloc((size_t)count, SHA256_SIZE);
    uint8_t hash[SHA256_SIZE];
    check(leaves);
    for (int i = 0; i < count; i++) merkle_leaf(shards[i].sha256, shards[i].sidecar_sha256, leaves[i]);
    merkle_root((const uint8_t(*)[SHA256_SIZE])leaves, (size_t)count, hash);
    hex_encode(hash, SHA256_SIZE, root);
    free(leaves);
}

// The place of the seal's digits: the last value of the file.
static char *find_seal(Buffer *text, const char *digits) {
    char *found = NULL;
    for (char *p = text->data; p && (p = strstr(p, digits)); p++) found = p;
    return found;
}

// The seal is the SHA-256 of the file with zeros for the seal's own digits.
static void seal_of(Buffer *text, char *place, char digits[SHA256_HEX + 1]) {
    uint8_t hash[SHA256_SIZE];
    memset(place, '0', SHA256_HEX);
    sha256(text->data, text->size, hash);
    hex_encode(hash, SHA256_SIZE, digits);
}

void manifest_seal(json_t *json, Buffer *out) {
    char digits[SHA256_HEX + 1];
    memset(digits, '0', SHA256_HEX);
    digits[SHA256_HEX] = 0;
    json_object_set_new(json, "sha256", json_string(digits));
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    check(text);
    buffer_clear(out);
    buffer_text(out, text);
    buffer_text(out, "\n");
    free(text);
    char *place = find_seal(out, digits);
    seal_of(out, place, digits);
    memcpy(place, digits, SHA256_HEX);
}

static bool check_seal(Buffer *text, const json_t *json, const char *path, Error *error) {
    const char *told = json_get_string(json, "sha256", "");
    char digits[SHA256_HEX + 1];
    char *place = strlen(told) == SHA256_HEX ? find_seal(text, told) : NULL;
    if (!place) return error_set(error, ERROR_FAILED, "%s: it has no seal (sha256): damaged, or not ours", path);
    char copy[SHA256_HEX + 1];
    memcpy(copy, told, sizeof copy);
    seal_of(text, place, digits);
    return strcmp(digits, copy) == 0 ||
           error_set(error, ERROR_FAILED, "%s: its checksum does not match: it is damaged or was edited; build again",
                     path);
}

// "shard-000000.tar": so a path never leaves the folder.
static bool take_name(const json_t *json, const char *key, char out[32]) {
    const char *name = json_get_string(json, key, "");
    if (!*name || strlen(name) >= 32 || strchr(name, '/') || name[0] == '.') return false;
    memcpy(out, name, strlen(name) + 1);
    return true;
}

static bool take_shard(const json_t *json, ShardInfo *s) {
    s->bytes = json_get_int(json, "bytes", -1);
    s->samples = json_get_int(json, "samples", -1);
    return take_name(json, "path", s->path) && take_name(json, "sidecar", s->sidecar) && s->bytes > 0 &&
           s->samples > 0 && s->samples <= UINT32_MAX &&
           hex_decode(json_get_string(json, "sha256", ""), s->sha256, SHA256_SIZE) &&
           hex_decode(json_get_string(json, "sidecar_sha256", ""), s->sidecar_sha256, SHA256_SIZE);
}

static bool take_fields(Manifest *m, const char *path, Error *error) {
    if (strcmp(json_get_string(m->json, "format", ""), MANIFEST_FORMAT) != 0)
        return error_set(error, ERROR_FAILED, "%s: not a dataset of this program (format)", path);
    if (json_get_int(m->json, "version", 0) != MANIFEST_VERSION)
        return error_set(error, ERROR_FAILED, "%s: dataset version %lld; this program reads %d", path,
                         (long long)json_get_int(m->json, "version", 0), MANIFEST_VERSION);
    const json_t *shards = json_object_get(m->json, "shards");
    size_t count = json_array_size(shards);
    if (count < 1 || count > MOST_SHARDS) return error_set(error, ERROR_FAILED, "%s: no shards in it", path);
    m->shards = calloc(count, sizeof *m->shards);
    check(m->shards);
    m->shard_count = (int)count;
    for (int i = 0; i < m->shard_count; i++) {
        if (!take_shard(json_array_get(shards, (size_t)i), &m->shards[i]))
            return error_set(error, ERROR_FAILED, "%s: shards[%d] lacks a field or holds a wrong one", path, i);
        m->samples += m->shards[i].samples;
    }
    if (json_get_int(m->json, "samples", -1) != m->samples)
        return error_set(error, ERROR_FAILED, "%s: samples is not the sum over the shards", path);
    manifest_root(m->shards, m->shard_count, m->root);
    return strcmp(m->root, json_get_string(m->json, "root", "")) == 0 ||
           error_set(error, ERROR_FAILED, "%s: the Merkle root is not that of the shards", path);
}

bool manifest_read(Manifest *m, const char *folder, Error *error) {
    Buffer path = {0}, text = {0};
    bool ok = false;
    *m = (Manifest){0};
    buffer_printf(&path, "%s/" MANIFEST_NAME, folder);
    if (!folder_exists(folder)) {
        error_set(error, ERROR_FAILED, "%s: no such folder", folder);
    } else if (!file_exists(path.data)) {
        error_set(error, ERROR_FAILED,
                  "%s: not a dataset: it has no " MANIFEST_NAME " (make one with bifocal data build; an interrupted "
                  "build leaves none)",
                  folder);
    } else if (file_read_limited(path.data, most_bytes, &text, error)) {
        m->json = json_parse(text.data ? text.data : "", text.size, path.data, error);
        ok = m->json && check_seal(&text, m->json, path.data, error) && take_fields(m, path.data, error);
    }
    buffer_free(&path);
    buffer_free(&text);
    if (!ok) manifest_free(m);
    return ok;
}

void manifest_free(Manifest *m) {
    json_decref(m->json);
    free(m->shards);
    *m = (Manifest){0};
}
