/* See sidecar.h; docs/formats.md has the layout byte by byte. */
#include "data/sidecar.h"
#include "base/files.h"
#include "base/philox.h"
#include "data/dataset.h"
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(SidecarMember) == 32 && sizeof(SidecarSample) == 48, "records are written as they lie");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file is little-endian");

enum { VERSION = 1, SECTIONS = 3, ALIGNMENT = 64, MOST_KEY = 200 };
static const char magic[8] = {'\x89', 'B', 'F', 'X', '\r', '\n', '\x1a', '\n'};
static const char end_magic[8] = {'B', 'F', 'X', ' ', 'e', 'n', 'd', '\n'};
static const uint64_t most_bytes = UINT64_C(8) << 30; // a shard with more records than this holds was not written by us

typedef struct Section {
    uint64_t offset, bytes;
    uint32_t crc, reserved;
} Section;

typedef struct Header {
    char magic[8];
    uint32_t version, flags;
    uint64_t tar_size;
    Hash128 tar_hash;
    uint32_t samples, members;
    Section sections[SECTIONS]; // members, samples, names
    uint32_t reserved;
    uint32_t crc; // of what is before
} Header;
_Static_assert(sizeof(Header) == 128, "the header is 128 bytes");

static uint64_t aligned(uint64_t n) { return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static Header make_header(const Sidecar *s) {
    Header h = {.version = VERSION, .tar_size = s->tar_size, .tar_hash = s->tar_hash};
    memcpy(h.magic, magic, sizeof magic);
    h.samples = s->sample_count;
    h.members = s->member_count;
    const void *data[SECTIONS] = {s->members, s->samples, s->names};
    uint64_t bytes[SECTIONS] = {s->member_count * sizeof(SidecarMember), s->sample_count * sizeof(SidecarSample),
                                s->names_size};
    uint64_t at = sizeof h;
    for (int i = 0; i < SECTIONS; i++) {
        h.sections[i] = (Section){.offset = at, .bytes = bytes[i], .crc = crc32c(0, data[i], bytes[i])};
        at = aligned(at + bytes[i]);
    }
    h.crc = crc32c(0, &h, offsetof(Header, crc));
    return h;
}

void sidecar_encode(const Sidecar *s, Buffer *out) {
    static const char zeros[ALIGNMENT];
    const void *data[SECTIONS] = {s->members, s->samples, s->names};
    Header h = make_header(s);
    buffer_clear(out);
    buffer_append(out, &h, sizeof h);
    for (int i = 0; i < SECTIONS; i++) {
        if (h.sections[i].bytes) buffer_append(out, data[i], h.sections[i].bytes);
        buffer_append(out, zeros, aligned(out->size) - out->size);
    }
    buffer_append(out, end_magic, sizeof end_magic);
}

static bool damaged(Error *error, const char *name, const char *what) {
    return error_set(error, ERROR_FAILED, "%s: damaged sidecar: %s; build the dataset again", name, what);
}

static bool decode_header(const Buffer *file, const char *name, Header *h, Error *error) {
    if (file->size < sizeof *h + sizeof end_magic) return damaged(error, name, "it is cut short");
    memcpy(h, file->data, sizeof *h);
    if (memcmp(h->magic, magic, sizeof magic) != 0) return damaged(error, name, "it does not begin as one (byte 0)");
    if (h->crc != crc32c(0, h, offsetof(Header, crc))) return damaged(error, name, "the header's checksum (byte 124)");
    if (h->version != VERSION)
        return error_set(error, ERROR_FAILED, "%s: sidecar version %u; this program reads version %d", name, h->version,
                         VERSION);
    if (h->flags || h->reserved) return damaged(error, name, "unknown flags");
    return true;
}

// Sections lie where the writer puts them, with zeros between and the end magic behind.
static bool check_sections(const Buffer *file, const Header *h, const char *name, Error *error) {
    static const char *const titles[SECTIONS] = {"member records", "sample records", "names"};
    uint64_t bytes[SECTIONS] = {h->members * sizeof(SidecarMember), h->samples * sizeof(SidecarSample),
                                h->sections[2].bytes};
    uint64_t at = sizeof *h, size = file->size;
    for (int i = 0; i < SECTIONS; i++) {
        const Section *s = &h->sections[i];
        if (s->offset != at || s->bytes != bytes[i] || s->reserved || s->bytes > size || at > size - s->bytes)
            return damaged(error, name, "the section table");
        if (crc32c(0, file->data + at, s->bytes) != s->crc)
            return error_set(error, ERROR_FAILED, "%s: damaged sidecar: the checksum of the %s; build again", name,
                             titles[i]);
        uint64_t next = aligned(at + s->bytes);
        if (next > size) return damaged(error, name, "it is cut short");
        for (uint64_t k = at + s->bytes; k < next; k++)
            if (file->data[k]) return damaged(error, name, "bytes between the sections");
        at = next;
    }
    if (size - at != sizeof end_magic || memcmp(file->data + at, end_magic, sizeof end_magic) != 0)
        return damaged(error, name, "its end");
    return true;
}

int key_length(const char *name) {
    int n = 0;
    for (; name[n] && name[n] != '.'; n++) {
        char c = name[n];
        bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
        if (!good || n >= MOST_KEY) return 0;
    }
    return name[n] == '.' && name[n + 1] ? n : 0;
}

static bool member_ok(const Sidecar *s, uint32_t index, uint32_t sample, uint64_t *before) {
    const SidecarMember *m = &s->members[index];
    if (m->sample != sample || m->kind > MEMBER_OTHER || m->flags || m->name >= s->names_size) return false;
    if (m->offset % 512 || m->offset < *before + 512 || m->length > s->tar_size || m->offset > s->tar_size - m->length)
        return false;
    *before = m->offset + m->length;
    return key_length(s->names + m->name) > 0;
}

static bool sample_ok(const Sidecar *s, uint32_t index, uint32_t first, uint64_t *before) {
    const SidecarSample *sample = &s->samples[index];
    if (sample->first_member != first || sample->flags || sample->reserved) return false;
    if (!sample->members || sample->members > SAMPLE_MEMBERS || sample->members > s->member_count - first) return false;
    for (uint32_t i = 0; i < sample->members; i++)
        if (!member_ok(s, first + i, index, before)) return false;
    const char *key = sidecar_name(s, first);
    size_t length = (size_t)key_length(key);
    if (hash_u64(key, length) != sample->key_hash) return false;
    for (uint32_t i = 1; i < sample->members; i++)
        if (strncmp(sidecar_name(s, first + i), key, length + 1) != 0) return false;
    return true;
}

// Checksums say that the bytes are as written; this says that what was written makes sense.
static bool check_records(const Sidecar *s, const char *name, Error *error) {
    if (s->names_size && s->names[s->names_size - 1]) return damaged(error, name, "the last name has no end");
    uint32_t first = 0;
    uint64_t before = 0;
    for (uint32_t i = 0; i < s->sample_count; i++) {
        if (!sample_ok(s, i, first, &before))
            return error_set(error, ERROR_FAILED, "%s: the sidecar's records of sample %u contradict each other", name,
                             i);
        first += s->samples[i].members;
    }
    return first == s->member_count || damaged(error, name, "members without a sample");
}

bool sidecar_decode(Sidecar *s, Buffer *bytes, const char *name, Error *error) {
    Header h;
    *s = (Sidecar){.file = *bytes};
    *bytes = (Buffer){0};
    if (!decode_header(&s->file, name, &h, error) || !check_sections(&s->file, &h, name, error)) goto failed;
    s->tar_size = h.tar_size;
    s->tar_hash = h.tar_hash;
    s->sample_count = h.samples;
    s->member_count = h.members;
    if (h.sections[2].bytes > UINT32_MAX) {
        damaged(error, name, "too many names");
        goto failed;
    }
    s->names_size = (uint32_t)h.sections[2].bytes;
    // Sections begin at multiples of 64 and buffers at multiples of 16: the records are aligned.
    s->members = (const void *)(s->file.data + h.sections[0].offset);
    s->samples = (const void *)(s->file.data + h.sections[1].offset);
    s->names = s->file.data + h.sections[2].offset;
    if (check_records(s, name, error)) return true;
failed:
    sidecar_free(s);
    return false;
}

bool sidecar_read(Sidecar *s, const char *path, Error *error) {
    Buffer bytes = {0};
    *s = (Sidecar){0};
    if (!file_read_limited(path, (int64_t)most_bytes, &bytes, error)) {
        buffer_free(&bytes);
        return false;
    }
    return sidecar_decode(s, &bytes, path, error);
}

void sidecar_free(Sidecar *s) {
    buffer_free(&s->file);
    *s = (Sidecar){0};
}

const char *sidecar_name(const Sidecar *s, uint32_t member) { return s->names + s->members[member].name; }
