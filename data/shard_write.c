/* See shard_write.h. */
#include "data/shard_write.h"
#include "base/files.h"
#include "base/philox.h"
#include "data/sidecar.h"
#include "data/tar.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ShardWriter {
    char *folder;
    ShardInfo info;
    AtomicFile *tar;
    Digest *digest;
    int64_t bytes;
    Buffer samples, members, names; // records of the sidecar as they will be written
    uint32_t member_count;
    Buffer header; // scratch
};

ShardWriter *shard_create(const char *folder, int number, Error *error) {
    ShardWriter *w = calloc(1, sizeof *w);
    Buffer path = {0};
    check(w && number >= 0 && number < 1000000);
    w->folder = strdup(folder);
    check(w->folder);
    snprintf(w->info.path, sizeof w->info.path, "shard-%06d.tar", number);
    snprintf(w->info.sidecar, sizeof w->info.sidecar, "shard-%06d.bfx", number);
    w->digest = digest_new();
    buffer_printf(&path, "%s/%s", folder, w->info.path);
    w->tar = atomic_open(path.data, error);
    buffer_free(&path);
    if (w->tar) return w;
    shard_abandon(w);
    return NULL;
}

void shard_abandon(ShardWriter *w) {
    if (!w) return;
    atomic_abandon(w->tar);
    digest_free(w->digest);
    buffer_free(&w->samples);
    buffer_free(&w->members);
    buffer_free(&w->names);
    buffer_free(&w->header);
    free(w->folder);
    free(w);
}

int64_t shard_bytes(const ShardWriter *w) { return w->bytes; }

static bool write_bytes(ShardWriter *w, const void *bytes, size_t count, Error *error) {
    digest_update(w->digest, bytes, count);
    w->bytes += (int64_t)count;
    return count == 0 || atomic_write(w->tar, bytes, count, error);
}

static bool add_member(ShardWriter *w, const char *key, const NewMember *m, Error *error) {
    static const char zeros[TAR_BLOCK];
    size_t name = w->names.size;
    check(m->size > 0);
    buffer_printf(&w->names, "%s.%s", key, m->extension);
    buffer_append(&w->names, "", 1);
    if (w->names.size > UINT32_MAX)
        return error_set(error, ERROR_FAILED, "%s: too many names in a shard", w->info.path);
    buffer_clear(&w->header);
    tar_append_header(&w->header, w->names.data + name, (int64_t)m->size);
    if (!write_bytes(w, w->header.data, w->header.size, error)) return false;
    SidecarMember record = {
        .offset = (uint64_t)w->bytes,
        .length = m->size,
        .crc = crc32c(0, m->bytes, m->size),
        .name = (uint32_t)name,
        .kind = (uint16_t)m->kind,
        .sample = (uint32_t)w->info.samples,
    };
    buffer_append(&w->members, &record, sizeof record);
    w->member_count++;
    return write_bytes(w, m->bytes, m->size, error) &&
           write_bytes(w, zeros, (size_t)tar_padding((int64_t)m->size), error);
}

static const NewMember *first_of(const NewSample *s, MemberKind kind) {
    for (int i = 0; i < s->member_count; i++)
        if (s->members[i].kind == kind) return &s->members[i];
    return NULL;
}

bool shard_add(ShardWriter *w, const NewSample *s, Error *error) {
    check(s->member_count > 0 && s->member_count <= SAMPLE_MEMBERS && w->info.samples < UINT32_MAX);
    const NewMember *image = first_of(s, MEMBER_IMAGE), *text = first_of(s, MEMBER_TEXT);
    SidecarSample record = {
        .key_hash = hash_u64(s->key, strlen(s->key)),
        .first_member = w->member_count,
        .width = (uint32_t)s->width,
        .height = (uint32_t)s->height,
        .members = (uint16_t)s->member_count,
    };
    if (image) record.pair_crc = crc32c(record.pair_crc, image->bytes, image->size);
    if (text) record.pair_crc = crc32c(record.pair_crc, text->bytes, text->size);
    for (int i = 0; i < s->member_count; i++)
        if (!add_member(w, s->key, &s->members[i], error)) return false;
    buffer_append(&w->samples, &record, sizeof record);
    w->info.samples++;
    return true;
}

// The index of NVIDIA DALI's WebDataset reader: "v1.2 N", then a line a sample of "extension offset size name ...".
static bool write_dali_index(const ShardWriter *w, const Sidecar *s, Error *error) {
    Buffer text = {0}, path = {0};
    buffer_printf(&text, "v1.2 %u\n", s->sample_count);
    for (uint32_t i = 0; i < s->member_count; i++) {
        const SidecarMember *m = &s->members[i];
        const char *name = sidecar_name(s, i);
        bool last = i + 1 == s->member_count || s->members[i + 1].sample != m->sample;
        buffer_printf(&text, "%s %llu %llu %s%c", strchr(name, '.') + 1, (unsigned long long)m->offset,
                      (unsigned long long)m->length, name, last ? '\n' : ' ');
    }
    buffer_printf(&path, "%s/%.*s.idx", w->folder, (int)strlen("shard-000000"), w->info.path);
    bool ok = file_write(path.data, text.data, text.size, error);
    buffer_free(&text);
    buffer_free(&path);
    return ok;
}

static bool write_sidecar(ShardWriter *w, bool dali_index, Error *error) {
    Buffer bytes = {0}, path = {0};
    Sidecar sidecar = {
        .tar_size = (uint64_t)w->bytes,
        .tar_hash = digest_xxh3(w->digest),
        .sample_count = (uint32_t)w->info.samples,
        .member_count = w->member_count,
        .names_size = (uint32_t)w->names.size,
        .samples = (const void *)w->samples.data,
        .members = (const void *)w->members.data,
        .names = w->names.data,
    };
    sidecar_encode(&sidecar, &bytes);
    sha256(bytes.data, bytes.size, w->info.sidecar_sha256);
    buffer_printf(&path, "%s/%s", w->folder, w->info.sidecar);
    bool ok =
        file_write(path.data, bytes.data, bytes.size, error) && (!dali_index || write_dali_index(w, &sidecar, error));
    buffer_free(&bytes);
    buffer_free(&path);
    return ok;
}

bool shard_finish(ShardWriter *w, bool dali_index, ShardInfo *info, Error *error) {
    static const char zeros[2 * TAR_BLOCK];
    bool ok = write_bytes(w, zeros, sizeof zeros, error);
    if (ok) {
        AtomicFile *tar = w->tar;
        w->tar = NULL;
        ok = atomic_commit(tar, error) && write_sidecar(w, dali_index, error);
    }
    if (ok) {
        w->info.bytes = w->bytes;
        digest_sha256(w->digest, w->info.sha256);
        *info = w->info;
    }
    shard_abandon(w);
    return ok;
}
