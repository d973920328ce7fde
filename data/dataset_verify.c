/* The thorough check of a dataset: every bit of every file. Hashes say whether something changed; then the sidecar says
 * where each header and each member must lie, so that damage is named by shard, byte and key, and what other readers
 * would lose from there on is told. */
#include "base/files.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/progress.h"
#include "data/manifest.h"
#include "data/sidecar.h"
#include "data/tar.h"
#include "data/verify.h"
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TOLD_A_SHARD = 20 }; // findings of one shard that are written out

typedef struct Check {
    const char *folder;
    Manifest manifest;
    Log *log;
    json_t *list; // of findings, or NULL
    int64_t findings;
    int64_t in_shard; // of the shard at hand
    Digest *digest;
    Buffer keys; // (samples) SampleKey
} Check;

typedef struct SampleKey {
    uint64_t hash;
    int32_t shard;
    uint32_t sample;
} SampleKey;

__attribute__((format(printf, 2, 3))) static void found(Check *c, const char *format, ...) {
    Error text = {0};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text.message, sizeof text.message, format, arguments);
    va_end(arguments);
    c->findings++;
    if (++c->in_shard > TOLD_A_SHARD) return;
    log_error(c->log, "%s", text.message);
    if (c->list) json_array_append_new(c->list, json_string(text.message));
}

// A file's hash against what dataset.json says of it.
static void check_file(Check *c, const char *name, const char *expected) {
    Buffer path = {0};
    Error error = {0};
    uint8_t hash[SHA256_SIZE];
    char hex[SHA256_HEX + 1];
    int64_t size;
    buffer_printf(&path, "%s/%s", c->folder, name);
    if (!digest_file(path.data, c->digest, &size, &error)) {
        found(c, "%s", error.message);
    } else {
        digest_sha256(c->digest, hash);
        hex_encode(hash, SHA256_SIZE, hex);
        if (strcmp(hex, expected) != 0)
            found(c, "%s: damaged: its SHA-256 is not the one in " MANIFEST_NAME, path.data);
    }
    buffer_free(&path);
}

// One line of the ledger: its last field is the hash of the rest under the chain so far.
static bool ledger_line_ok(const char *line, size_t size, uint64_t *chain) {
    static const char field[] = ",\"chain\":\"";
    enum { TAIL = sizeof field - 1 + 16 + 2 }; // ,"chain":"0123456789abcdef"}
    char hex[17];
    if (size < TAIL + 2) return false;
    const char *tail = line + size - TAIL;
    Buffer tied = {0};
    buffer_printf(&tied, "%016llx%.*s}", (unsigned long long)*chain, (int)(size - TAIL), line);
    *chain = hash_u64(tied.data, tied.size);
    buffer_free(&tied);
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)*chain);
    return memcmp(tail, field, sizeof field - 1) == 0 && memcmp(tail + sizeof field - 1, hex, 16) == 0 &&
           memcmp(tail + TAIL - 2, "\"}", 2) == 0;
}

// The part written with the dataset has a hash in dataset.json; lines appended later hang on it by the chain.
static void check_ledger(Check *c) {
    const json_t *told = json_object_get(c->manifest.json, "ledger");
    int64_t bytes = json_get_int(told, "bytes", 0);
    Buffer path = {0}, text = {0};
    Error error = {0};
    uint8_t hash[SHA256_SIZE];
    char hex[SHA256_HEX + 1];
    buffer_printf(&path, "%s/%s", c->folder, json_get_string(told, "path", "ledger.jsonl"));
    if (!file_read(path.data, &text, &error)) {
        found(c, "%s", error.message);
        goto done;
    }
    if ((int64_t)text.size < bytes) {
        found(c, "%s: %zu bytes, %lld were written: it is cut", path.data, text.size, (long long)bytes);
        goto done;
    }
    sha256(text.data, (size_t)bytes, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    if (strcmp(hex, json_get_string(told, "sha256", "")) != 0)
        found(c, "%s: damaged: the part written with the dataset has another SHA-256", path.data);
    uint64_t chain = 0;
    int64_t number = 1;
    for (size_t at = 0; at < text.size; number++) {
        const char *line = text.data + at, *end = memchr(line, '\n', text.size - at);
        if (!end || !ledger_line_ok(line, (size_t)(end - line), &chain)) {
            found(c, "%s:%lld: damaged: the line's hash does not match", path.data, (long long)number);
            break;
        }
        at += (size_t)(end - line) + 1;
    }
done:
    buffer_free(&path);
    buffer_free(&text);
}

// Files that dataset.json does not know: a shard that lies beside the others would be read by tools that take *.tar.
static void check_strangers(Check *c) {
    char **names = NULL;
    int count = 0;
    Error error = {0};
    if (!folder_list(c->folder, &names, &count, &error)) {
        found(c, "%s", error.message);
        return;
    }
    for (int i = 0; i < count; i++) {
        const char *extension = path_extension(names[i]);
        bool known = strcmp(extension, "tar") != 0 && strcmp(extension, "bfx") != 0;
        for (int k = 0; !known && k < c->manifest.shard_count; k++)
            known = strcmp(names[i], c->manifest.shards[k].path) == 0 ||
                    strcmp(names[i], c->manifest.shards[k].sidecar) == 0;
        if (!known) found(c, "%s/%s: not in " MANIFEST_NAME ": remove it", c->folder, names[i]);
    }
    names_free(names, count);
}

typedef struct ShardCheck {
    Check *check;
    int index;
    Buffer path;
    Sidecar sidecar;
    int descriptor;
    int64_t size; // of the tar as it lies there
    Buffer header, bytes;
    TarSource source;
} ShardCheck;

static void check_hash(ShardCheck *s) {
    const ShardInfo *info = &s->check->manifest.shards[s->index];
    Error error = {0};
    uint8_t hash[SHA256_SIZE];
    int64_t size;
    if (!digest_file(s->path.data, s->check->digest, &size, &error)) {
        found(s->check, "%s", error.message);
        return;
    }
    Hash128 fast = digest_xxh3(s->check->digest);
    digest_sha256(s->check->digest, hash);
    if (size != info->bytes)
        found(s->check, "%s: %lld bytes, dataset.json says %lld: %s", s->path.data, (long long)size,
              (long long)info->bytes, size < info->bytes ? "it is cut" : "something follows its end");
    if (memcmp(hash, info->sha256, SHA256_SIZE) != 0)
        found(s->check, "%s: damaged: its SHA-256 is not the one in " MANIFEST_NAME, s->path.data);
    else if (s->sidecar.samples && (fast.low != s->sidecar.tar_hash.low || fast.high != s->sidecar.tar_hash.high))
        found(s->check, "%s: the sidecar's XXH3-128 is of another file: stale", s->path.data);
}

// What tools that know no sidecar lose: they stop, most of them silently, at the first damaged header.
static void tell_lost(ShardCheck *s, uint32_t member, const char *what) {
    const Sidecar *c = &s->sidecar;
    uint32_t sample = c->members[member].sample, left = c->sample_count - sample;
    const char *name = sidecar_name(c, member), *last = sidecar_name(c, c->member_count - 1);
    const SidecarMember *m = &c->members[member];
    found(
        s->check,
        "%s: byte %lld: %s of %s. Readers without the sidecar lose the %u samples from key %.*s to %.*s; with it only "
        "what is named here is lost",
        s->path.data, (long long)m->offset - (long long)s->header.size, what, name, left, key_length(name), name,
        key_length(last), last);
}

static bool all_zero(const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i]) return false;
    return true;
}

// The member's header, data and padding, all read at once into s->bytes. False where the file ends before.
static bool check_member(ShardCheck *s, uint32_t index, uint64_t before) {
    const SidecarMember *m = &s->sidecar.members[index];
    const char *name = sidecar_name(&s->sidecar, index);
    Error error = {0};
    buffer_clear(&s->header);
    tar_append_header(&s->header, name, (int64_t)m->length);
    if (m->offset != before + s->header.size) {
        found(s->check, "%s: the sidecar places %s where it cannot lie", s->path.data, name);
        return false;
    }
    size_t size = s->header.size + m->length + (size_t)tar_padding((int64_t)m->length);
    if ((int64_t)(before + size) > s->size) {
        tell_lost(s, index, "the shard is cut inside or before the data");
        return false;
    }
    buffer_clear(&s->bytes);
    buffer_reserve(&s->bytes, size + 1);
    if (!s->source.read(s->source.context, (int64_t)before, s->bytes.data, size, &error)) {
        found(s->check, "%s: %s", s->path.data, error.message);
        return false;
    }
    const char *data = s->bytes.data + s->header.size;
    if (memcmp(s->bytes.data, s->header.data, s->header.size) != 0) tell_lost(s, index, "damaged header");
    if (crc32c(0, data, m->length) != m->crc)
        found(s->check, "%s: byte %llu: %s is damaged: its CRC-32C does not match", s->path.data,
              (unsigned long long)m->offset, name);
    if (!all_zero(data + m->length, size - s->header.size - m->length))
        found(s->check, "%s: byte %llu: the padding behind %s is not zero", s->path.data,
              (unsigned long long)(m->offset + m->length), name);
    return true;
}

// The first image and the first text of each sample, as they were paired when the dataset was built.
static void check_pair(ShardCheck *s, uint32_t sample, const uint32_t crcs[2], const bool has[2]) {
    const char *name = sidecar_name(&s->sidecar, s->sidecar.samples[sample].first_member);
    if ((has[0] || has[1]) && crcs[1] != s->sidecar.samples[sample].pair_crc)
        found(s->check, "%s: sample %.*s: image and text are not the pair that was written", s->path.data,
              key_length(name), name);
}

static void check_members(ShardCheck *s) {
    uint64_t before = 0;
    for (uint32_t i = 0; i < s->sidecar.sample_count; i++) {
        const SidecarSample *sample = &s->sidecar.samples[i];
        uint32_t crcs[2] = {0}; // so far, and with the first of each kind
        bool has[2] = {false};
        for (uint32_t k = 0; k < sample->members; k++) {
            uint32_t index = sample->first_member + k;
            const SidecarMember *m = &s->sidecar.members[index];
            if (!check_member(s, index, before)) return;
            if (m->kind <= MEMBER_TEXT && !has[m->kind]) {
                has[m->kind] = true;
                crcs[1] = crc32c(crcs[1], s->bytes.data + s->header.size, m->length);
            }
            before = m->offset + m->length + (uint64_t)tar_padding((int64_t)m->length);
        }
        check_pair(s, i, crcs, has);
    }
    char end[2 * TAR_BLOCK];
    Error error = {0};
    if ((int64_t)(before + sizeof end) > s->size) {
        found(s->check, "%s: byte %llu: the two blocks of zeros at the end are cut", s->path.data,
              (unsigned long long)before);
    } else if (!s->source.read(s->source.context, (int64_t)before, end, sizeof end, &error)) {
        found(s->check, "%s: %s", s->path.data, error.message);
    } else if (!all_zero(end, sizeof end) || (int64_t)(before + sizeof end) != s->size) {
        found(s->check, "%s: byte %llu: something other than two blocks of zeros ends it", s->path.data,
              (unsigned long long)before);
    }
}

// Without a sidecar the tar itself must say what is in it.
static void check_structure(ShardCheck *s) {
    TarReader reader = tar_reader(s->source);
    TarEntry entry;
    Error error = {0};
    bool end = false;
    int64_t members = 0;
    while (tar_next(&reader, &entry, &end, &error) && !end) {
        if (entry.refused)
            found(s->check, "%s: byte %lld: %s: %s", s->path.data, (long long)entry.header_offset, entry.name,
                  entry.refused);
        members++;
    }
    if (end)
        log_info(s->check->log, "%s: as a tar it is whole, with %lld members", s->path.data, (long long)members);
    else
        found(s->check, "%s", error.message);
}

static void collect_keys(ShardCheck *s) {
    for (uint32_t i = 0; i < s->sidecar.sample_count; i++) {
        SampleKey key = {s->sidecar.samples[i].key_hash, s->index, i};
        buffer_append(&s->check->keys, &key, sizeof key);
    }
}

static bool load_sidecar(ShardCheck *s) {
    const ShardInfo *info = &s->check->manifest.shards[s->index];
    Buffer path = {0};
    Error error = {0};
    buffer_printf(&path, "%s/%s", s->check->folder, info->sidecar);
    char hex[SHA256_HEX + 1];
    hex_encode(info->sidecar_sha256, SHA256_SIZE, hex);
    check_file(s->check, info->sidecar, hex);
    bool ok = sidecar_read(&s->sidecar, path.data, &error);
    if (!ok) found(s->check, "%s", error.message);
    if (ok && (s->sidecar.tar_size != (uint64_t)info->bytes || s->sidecar.sample_count != info->samples))
        found(s->check, "%s: of another shard than " MANIFEST_NAME " says: stale", path.data);
    buffer_free(&path);
    return ok;
}

static void check_shard(Check *c, int index) {
    ShardCheck s = {.check = c, .index = index, .descriptor = -1};
    c->in_shard = 0;
    buffer_printf(&s.path, "%s/%s", c->folder, c->manifest.shards[index].path);
    bool placed = load_sidecar(&s);
    check_hash(&s);
    s.size = file_size(s.path.data);
    s.descriptor = open(s.path.data, O_RDONLY | O_CLOEXEC);
    s.source = tar_source_file(&s.descriptor, s.size, s.path.data);
    if (s.descriptor >= 0) {
        if (placed)
            check_members(&s);
        else
            check_structure(&s);
        close(s.descriptor);
    }
    collect_keys(&s);
    if (c->in_shard > TOLD_A_SHARD)
        log_error(c->log, "%s: and %lld findings more", s.path.data, (long long)(c->in_shard - TOLD_A_SHARD));
    sidecar_free(&s.sidecar);
    buffer_free(&s.path);
    buffer_free(&s.header);
    buffer_free(&s.bytes);
}

static int compare_keys(const void *a, const void *b) {
    const SampleKey *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    if (x->shard != y->shard) return x->shard < y->shard ? -1 : 1;
    return x->sample < y->sample ? -1 : x->sample > y->sample;
}

static void check_keys(Check *c) {
    SampleKey *keys = (SampleKey *)c->keys.data;
    size_t count = c->keys.size / sizeof *keys;
    c->in_shard = 0;
    if (count) qsort(keys, count, sizeof *keys, compare_keys);
    for (size_t i = 1; i < count; i++)
        if (keys[i].hash == keys[i - 1].hash)
            found(c, "%s: samples %u of %s and %u of %s have the same key", c->folder, keys[i - 1].sample,
                  c->manifest.shards[keys[i - 1].shard].path, keys[i].sample, c->manifest.shards[keys[i].shard].path);
}

int64_t dataset_verify_list(const char *path, json_t *list, Log *log, Error *error) {
    Check c = {.folder = path, .log = log, .list = list};
    if (!manifest_read(&c.manifest, path, error)) return -1;
    c.digest = digest_new();
    Progress *progress = progress_start(log, "verifying", "shards", c.manifest.shard_count);
    for (int i = 0; i < c.manifest.shard_count; i++) {
        check_shard(&c, i);
        progress_update(progress, i + 1, NULL);
    }
    progress_end(progress);
    check_keys(&c);
    c.in_shard = 0;
    const char *name;
    json_t *hash, *files = json_object_get(c.manifest.json, "files");
    json_object_foreach(files, name, hash) check_file(&c, name, json_is_string(hash) ? json_string_value(hash) : "");
    check_ledger(&c);
    check_strangers(&c);
    digest_free(c.digest);
    buffer_free(&c.keys);
    manifest_free(&c.manifest);
    return c.findings;
}

int64_t dataset_verify(const char *path, Log *log, Error *error) { return dataset_verify_list(path, NULL, log, error); }
