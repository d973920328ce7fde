/* Opening a dataset and reading samples from it. See dataset.h; dataset_verify.c has the thorough check. */
#include "data/dataset.h"
#include "base/files.h"
#include "data/manifest.h"
#include "data/sidecar.h"
#include "data/tar.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEEP_OPEN = 512 }; // shards; datasets of more open them for each read, to stay below the limit of descriptors

typedef struct Shard {
    char *path;
    int descriptor; // -1 where it is opened for each read
    int64_t first;  // number of its first sample
    Sidecar sidecar;
} Shard;

struct Dataset {
    char *path;
    Manifest manifest;
    Shard *shards;
};

static int open_shard(const Shard *shard, Error *error) {
    int descriptor = open(shard->path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) error_set_errno(error, ERROR_FAILED, "%s: cannot open", shard->path);
    return descriptor;
}

static bool check_size(const Shard *shard, const ShardInfo *info, Error *error) {
    int64_t size = file_size(shard->path);
    if (size == info->bytes) return true;
    if (size < 0)
        return error_set(error, ERROR_FAILED, "%s: the shard is missing; build the dataset again", shard->path);
    return error_set(error, ERROR_FAILED, "%s: %lld bytes, dataset.json says %lld: cut or changed; build again",
                     shard->path, (long long)size, (long long)info->bytes);
}

static bool read_sidecar(const Dataset *d, Shard *shard, const ShardInfo *info, Error *error) {
    Buffer path = {0}, bytes = {0};
    uint8_t hash[SHA256_SIZE];
    bool ok = false;
    buffer_printf(&path, "%s/%s", d->path, info->sidecar);
    if (!file_read_limited(path.data, INT64_C(8) << 30, &bytes, error)) goto done;
    sha256(bytes.data, bytes.size, hash);
    bool same = memcmp(hash, info->sidecar_sha256, SHA256_SIZE) == 0;
    if (!sidecar_decode(&shard->sidecar, &bytes, path.data, error)) goto done;
    if (!same || shard->sidecar.tar_size != (uint64_t)info->bytes || shard->sidecar.sample_count != info->samples)
        error_set(error, ERROR_FAILED, "%s: not the sidecar that dataset.json names: stale or swapped; build again",
                  path.data);
    else
        ok = true;
done:
    buffer_free(&path);
    buffer_free(&bytes);
    return ok;
}

static bool open_one(Dataset *d, int index, int64_t first, Error *error) {
    Shard *shard = &d->shards[index];
    const ShardInfo *info = &d->manifest.shards[index];
    Buffer path = {0};
    buffer_printf(&path, "%s/%s", d->path, info->path);
    shard->path = path.data;
    shard->first = first;
    if (!check_size(shard, info, error) || !read_sidecar(d, shard, info, error)) return false;
    if (d->manifest.shard_count <= KEEP_OPEN) shard->descriptor = open_shard(shard, error);
    return d->manifest.shard_count > KEEP_OPEN || shard->descriptor >= 0;
}

Dataset *dataset_open(const char *path, Error *error) {
    Dataset *d = calloc(1, sizeof *d);
    check(d);
    d->path = strdup(path);
    check(d->path);
    if (!manifest_read(&d->manifest, path, error)) goto failed;
    d->shards = calloc((size_t)d->manifest.shard_count, sizeof *d->shards);
    check(d->shards);
    for (int i = 0; i < d->manifest.shard_count; i++) d->shards[i].descriptor = -1;
    int64_t first = 0;
    for (int i = 0; i < d->manifest.shard_count; i++) {
        if (!open_one(d, i, first, error)) goto failed;
        first += d->manifest.shards[i].samples;
    }
    return d;
failed:
    dataset_close(d);
    return NULL;
}

void dataset_close(Dataset *d) {
    if (!d) return;
    for (int i = 0; d->shards && i < d->manifest.shard_count; i++) {
        sidecar_free(&d->shards[i].sidecar);
        if (d->shards[i].descriptor >= 0) close(d->shards[i].descriptor);
        free(d->shards[i].path);
    }
    free(d->shards);
    manifest_free(&d->manifest);
    free(d->path);
    free(d);
}

int64_t dataset_samples(const Dataset *d) { return d->manifest.samples; }
const char *dataset_root(const Dataset *d) { return d->manifest.root; }
const char *dataset_path(const Dataset *d) { return d->path; }
static int shard_of(const Dataset *d, int64_t number) {
    int low = 0, high = d->manifest.shard_count; // shards[low].first <= number < shards[high].first
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (d->shards[middle].first <= number)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// The members of a sample lie side by side: one read takes them all, headers between included.
static bool read_span(const Shard *shard, int64_t begin, int64_t end, Buffer *bytes, Error *error) {
    int descriptor = shard->descriptor >= 0 ? shard->descriptor : open_shard(shard, error);
    if (descriptor < 0) return false;
    buffer_clear(bytes);
    buffer_reserve(bytes, (size_t)(end - begin) + 1);
    TarSource source = tar_source_file(&descriptor, end, shard->path);
    bool ok = source.read(source.context, begin, bytes->data, (size_t)(end - begin), error);
    if (shard->descriptor < 0) close(descriptor);
    if (!ok) return error_prefix(error, "%s", shard->path);
    bytes->size = (size_t)(end - begin);
    return true;
}

static bool take_member(const Shard *shard, uint32_t index, uint8_t *bytes, Member *out, Error *error) {
    const SidecarMember *m = &shard->sidecar.members[index];
    *out = (Member){(MemberKind)m->kind, sidecar_name(&shard->sidecar, index), bytes, (int64_t)m->length, m->crc};
    if (crc32c(0, bytes, m->length) != m->crc)
        return error_set(error, ERROR_FAILED, "%s: %s at byte %llu is damaged: its CRC-32C does not match", shard->path,
                         out->name, (unsigned long long)m->offset);
    bytes[m->length] = 0; // padding, the next member's header or the spare byte: nobody reads it any more
    return true;
}

bool dataset_sample(const Dataset *d, int64_t number, Sample *out, Buffer *bytes, Error *error) {
    check(number >= 0 && number < d->manifest.samples);
    int index = shard_of(d, number);
    const Shard *shard = &d->shards[index];
    const SidecarSample *s = &shard->sidecar.samples[number - shard->first];
    const SidecarMember *members = shard->sidecar.members + s->first_member;
    const SidecarMember *last = members + s->members - 1;
    int64_t begin = (int64_t)members->offset, end = (int64_t)(last->offset + last->length);
    *out = (Sample){.shard = d->manifest.shards[index].path, .number = (uint64_t)number, .member_count = s->members};
    const char *name = sidecar_name(&shard->sidecar, s->first_member);
    memcpy(out->key, name, (size_t)key_length(name));
    out->width = (int)s->width;
    out->height = (int)s->height;
    if (!read_span(shard, begin, end, bytes, error)) return false;
    for (int i = 0; i < s->members; i++) {
        uint8_t *at = (uint8_t *)bytes->data + ((int64_t)members[i].offset - begin);
        if (!take_member(shard, s->first_member + (uint32_t)i, at, &out->members[i], error)) return false;
    }
    return true;
}

int dataset_images(const Dataset *d, int64_t number) {
    check(number >= 0 && number < d->manifest.samples);
    const Shard *shard = &d->shards[shard_of(d, number)];
    const SidecarSample *s = &shard->sidecar.samples[number - shard->first];
    int images = 0;
    for (int i = 0; i < s->members; i++) images += shard->sidecar.members[s->first_member + i].kind == MEMBER_IMAGE;
    return images;
}

const Member *sample_member(const Sample *s, MemberKind kind, int index) {
    for (int i = 0; i < s->member_count; i++)
        if (s->members[i].kind == kind && index-- == 0) return &s->members[i];
    return NULL;
}
