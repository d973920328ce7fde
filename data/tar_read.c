/* The strict tar reader: ustar, PAX path and size, GNU long names and base-256 sizes. See tar.h. */
#include "base/files.h"
#include "data/tar.h"
#include "data/utf8.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_EXTENSION = 1 << 20 }; // bytes of a PAX header or a long name

static bool read_memory(void *context, int64_t offset, void *out, size_t count, Error *error) {
    const Buffer *b = context;
    if (offset < 0 || (uint64_t)offset > b->size || count > b->size - (uint64_t)offset)
        return error_set(error, ERROR_FAILED, "read beyond the end");
    memcpy(out, b->data + offset, count);
    return true;
}

static bool read_file(void *context, int64_t offset, void *out, size_t count, Error *error) {
    int descriptor = *(const int *)context;
    for (size_t done = 0; done < count;) {
        ssize_t n = pread(descriptor, (char *)out + done, count - done, offset + (int64_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set_errno(error, ERROR_FAILED, "cannot read at byte %lld", (long long)offset);
        if (n == 0)
            return error_set(error, ERROR_FAILED, "the file ends at byte %lld: it shrank while in use",
                             (long long)(offset + (int64_t)done));
        done += (size_t)n;
    }
    return true;
}

TarSource tar_source_memory(const Buffer *bytes, const char *name) {
    return (TarSource){read_memory, (void *)bytes, (int64_t)bytes->size, name};
}

TarSource tar_source_file(const int *descriptor, int64_t size, const char *name) {
    return (TarSource){read_file, (void *)descriptor, size, name};
}

TarReader tar_reader(TarSource source) { return (TarReader){.source = source}; }

static bool fail(const TarReader *r, int64_t offset, const char *what, Error *error) {
    return error_set(error, ERROR_FAILED, "%s: byte %lld: %s", r->source.name, (long long)offset, what);
}

static bool read_at(const TarReader *r, int64_t offset, void *out, size_t count, Error *error) {
    if (!r->source.read(r->source.context, offset, out, count, error)) return error_prefix(error, "%s", r->source.name);
    return true;
}

static bool is_zero(const uint8_t *b, size_t n) { return n == 0 || (b[0] == 0 && memcmp(b, b + 1, n - 1) == 0); }

static bool checksum_ok(const uint8_t *b) {
    unsigned sum = 8 * ' ', told = 0;
    for (int i = 0; i < TAR_BLOCK; i++)
        if (i < 148 || i >= 156) sum += b[i];
    int i = 148;
    while (i < 156 && b[i] == ' ') i++;
    for (; i < 156 && b[i] >= '0' && b[i] <= '7'; i++) told = told * 8 + (unsigned)(b[i] - '0');
    return sum == told;
}

// A number field: octal, or base-256 where its first bit is set. -1 where it is neither or does not fit.
static int64_t number(const uint8_t *field, int size) {
    if (field[0] & 0x80) {
        if (field[0] != 0x80) return -1; // negative, or beyond 2^63
        int64_t value = 0;
        for (int i = 1; i < size; i++) {
            if (value > (INT64_MAX >> 8)) return -1;
            value = value << 8 | field[i];
        }
        return value;
    }
    int i = 0;
    int64_t value = 0;
    while (i < size && field[i] == ' ') i++;
    if (i == size || field[i] == 0) return -1;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = value * 8 + (field[i] - '0');
    return i == size || field[i] == 0 || field[i] == ' ' ? value : -1;
}

// Names what stands behind blocks of zeros, in the block at chunk + at, `before` + at bytes behind the first zero.
static const char *what_follows(const uint8_t *chunk, size_t n, int64_t at, int64_t before) {
    if (before + at == TAR_BLOCK) return "the archive goes on behind one block of zeros: a block was zeroed";
    if ((size_t)at + TAR_BLOCK <= n && checksum_ok(chunk + at)) return "another archive follows: unpack and join them";
    return "garbage behind the end of the archive";
}

// From the first zero block on all must be zero, and there must be two.
static bool check_end(TarReader *r, bool *end, Error *error) {
    enum { CHUNK = 1 << 16 };
    int64_t first = r->at, size = r->source.size;
    uint8_t *chunk = malloc(CHUNK);
    bool ok = false;
    check(chunk);
    if (size - first < 2 * TAR_BLOCK) {
        fail(r, first, "one block of zeros and no second: the archive is cut", error);
        goto done;
    }
    for (int64_t at = first; at < size; at += CHUNK) {
        size_t n = size - at < CHUNK ? (size_t)(size - at) : CHUNK;
        if (!read_at(r, at, chunk, n, error)) goto done;
        if (is_zero(chunk, n)) continue;
        int64_t i = 0;
        while (!chunk[i]) i++;
        fail(r, at + i, what_follows(chunk, n, i / TAR_BLOCK * TAR_BLOCK, at - first), error);
        goto done;
    }
    *end = true;
    ok = true;
done:
    free(chunk);
    return ok;
}

static bool read_extension(const TarReader *r, int64_t at, int64_t size, Buffer *out, Error *error) {
    if (size > MOST_EXTENSION) return fail(r, at, "an extended header over 1 MiB", error);
    if (size > r->source.size - at) return fail(r, at, "the archive is cut inside an extended header", error);
    buffer_clear(out);
    buffer_reserve(out, (size_t)size + 1);
    out->size = (size_t)size;
    out->data[size] = 0;
    return read_at(r, at, out->data, (size_t)size, error);
}

typedef struct Pending { // what extended headers said about the next member
    Buffer name;
    bool has_name, sparse;
    int64_t size; // -1: nothing
} Pending;

// Digits at *p up to `stop`; moves behind it. -1 where there is something else or it overflows.
static int64_t digits(const char **p, const char *end, char stop) {
    int64_t value = 0;
    const char *q = *p;
    for (; q < end && *q >= '0' && *q <= '9'; q++) {
        if (value > (INT64_MAX - 9) / 10) return -1;
        value = value * 10 + (*q - '0');
    }
    if (q == *p || q == end || *q != stop) return -1;
    *p = q + 1;
    return value;
}

static bool apply_record(Pending *next, const char *key, const char *equals, const char *end) {
    size_t length = (size_t)(equals - key);
    const char *value = equals + 1;
    if (length == 4 && memcmp(key, "path", 4) == 0) {
        buffer_clear(&next->name);
        buffer_append(&next->name, value, (size_t)(end - value));
        next->has_name = true;
    } else if (length == 4 && memcmp(key, "size", 4) == 0) {
        next->size = digits(&value, end + 1, '\n');
        return next->size >= 0 && value == end + 1;
    } else if (length > 11 && memcmp(key, "GNU.sparse.", 11) == 0) {
        next->sparse = true;
    }
    return true;
}

// Records "LENGTH key=value\n" that tile the header exactly.
static bool parse_pax(const Buffer *pax, Pending *next) {
    const char *p = pax->data, *end = pax->data + pax->size;
    while (p < end) {
        const char *start = p;
        int64_t length = digits(&p, end, ' ');
        if (length < 0 || length > end - start || start + length <= p) return false;
        const char *last = start + length - 1, *equals = memchr(p, '=', (size_t)(last - p));
        if (*last != '\n' || !equals || !apply_record(next, p, equals, last)) return false;
        p = last + 1;
    }
    return true;
}

static const char *set_name(TarEntry *entry, const uint8_t *block, const Pending *next) {
    char joined[257];
    size_t n = 0;
    if (next->has_name) {
        n = next->name.size;
        while (n && next->name.data[n - 1] == 0) n--; // GNU long names end with a zero
        if (n > TAR_NAME_MOST) return "a name longer than 1,024 bytes";
        memcpy(entry->name, next->name.data, n);
    } else {
        size_t prefix = memcmp(block + 257, "ustar\0", 6) == 0 ? strnlen((const char *)block + 345, 155) : 0;
        if (prefix) {
            memcpy(joined, block + 345, prefix);
            joined[prefix++] = '/';
        }
        size_t length = strnlen((const char *)block, 100);
        memcpy(joined + prefix, block, length);
        n = prefix + length;
        memcpy(entry->name, joined, n);
    }
    entry->name[n] = 0;
    return n ? NULL : "a member without a name";
}

static bool climbs(const char *name) {
    for (const char *p = name; p; p = strchr(p, '/')) {
        if (*p == '/') p++;
        if (p[0] == '.' && p[1] == '.' && (p[2] == 0 || p[2] == '/')) return true;
    }
    return false;
}

static const char *refusal(const TarEntry *entry, const Pending *next) {
    switch (entry->type) {
    case '1':
        return "a hard link";
    case '2':
        return "a symbolic link";
    case '3':
    case '4':
        return "a device";
    case '6':
        return "a FIFO";
    case 'S':
        return "a sparse file";
    case '0':
        break;
    default:
        return "an entry of unknown type";
    }
    if (next->sparse) return "a sparse file";
    if (next->has_name && strlen(entry->name) != strnlen(next->name.data, next->name.size)) return "a zero in its name";
    if (next->has_name && next->name.size && memchr(next->name.data, 0, next->name.size - 1))
        return "a zero in its name";
    if (!utf8_valid(entry->name, strlen(entry->name))) return "a name that is not UTF-8";
    if (entry->name[0] == '/') return "an absolute path";
    if (climbs(entry->name)) return "a path that climbs out by ..";
    if (entry->size == 0) return "no bytes";
    return NULL;
}

// One header at r->at. *extended: it was about the next one.
static bool read_header(TarReader *r, uint8_t block[TAR_BLOCK], int64_t *size, Error *error) {
    if (r->source.size - r->at < TAR_BLOCK)
        return fail(r, r->at,
                    r->at == r->source.size ? "the archive ends without its two blocks of zeros: it is cut"
                                            : "the archive is cut inside a header",
                    error);
    if (!read_at(r, r->at, block, TAR_BLOCK, error)) return false;
    if (is_zero(block, TAR_BLOCK)) return true;
    if (r->at == 0 && block[0] == 0x1f && block[1] == 0x8b)
        return fail(r, 0, "this is gzip, not tar: unpack it with gunzip first", error);
    if (!checksum_ok(block)) return fail(r, r->at, "damaged header: its checksum does not match", error);
    *size = number(block + 124, 12);
    return *size >= 0 || fail(r, r->at, "damaged header: its size is not a number or does not fit", error);
}

static bool finish_entry(TarReader *r, TarEntry *entry, const uint8_t *block, const Pending *next, int64_t size,
                         Error *error) {
    if (next->size >= 0) {
        if (size && size != next->size)
            return fail(r, r->at, "the sizes of the PAX and the ustar header disagree", error);
        size = next->size;
    }
    const char *wrong = set_name(entry, block, next);
    if (wrong) return fail(r, r->at, wrong, error);
    entry->type = block[156] == 0 || block[156] == '7' ? '0' : (char)block[156];
    entry->data_offset = r->at + TAR_BLOCK;
    bool bodiless = entry->type >= '1' && entry->type <= '6';
    entry->size = bodiless ? 0 : size;
    entry->refused = refusal(entry, next);
    if (entry->size > r->source.size - entry->data_offset ||
        tar_padding(entry->size) > r->source.size - entry->data_offset - entry->size) {
        error_set(error, ERROR_FAILED, "%s: byte %lld: the archive is cut inside the data of %s", r->source.name,
                  (long long)r->source.size, entry->name);
        return false;
    }
    r->at = entry->data_offset + entry->size + tar_padding(entry->size);
    return true;
}

// An extended header about the next member ('x', 'L') or about all that follow ('g', which is passed over).
static bool take_extension(TarReader *r, char type, int64_t size, Pending *next, Error *error) {
    Buffer bytes = {0};
    int64_t at = r->at;
    bool ok = read_extension(r, at + TAR_BLOCK, size, &bytes, error);
    if (ok && type == 'x' && !parse_pax(&bytes, next)) ok = fail(r, at, "a PAX header whose lengths are wrong", error);
    if (ok && type == 'L') {
        if (!size || bytes.data[size - 1]) ok = fail(r, at, "a long name without an end", error);
        buffer_clear(&next->name);
        buffer_append(&next->name, bytes.data, bytes.size);
        next->has_name = true;
    }
    r->at = at + TAR_BLOCK + size + tar_padding(size);
    buffer_free(&bytes);
    return ok;
}

bool tar_next(TarReader *r, TarEntry *entry, bool *end, Error *error) {
    Pending next = {.size = -1};
    bool ok = false;
    *end = false;
    *entry = (TarEntry){.header_offset = r->at};
    if (r->source.size == 0) return fail(r, 0, "the file is empty", error);
    for (;;) {
        uint8_t block[TAR_BLOCK];
        int64_t size = 0;
        if (!read_header(r, block, &size, error)) goto done;
        if (is_zero(block, TAR_BLOCK)) {
            ok = next.has_name || next.size >= 0 ? fail(r, r->at, "an extended header and no member", error)
                                                 : check_end(r, end, error);
            goto done;
        }
        char type = (char)block[156];
        if (type == 'x' || type == 'L' || type == 'g' || type == 'K') {
            if (!take_extension(r, type, size, &next, error)) goto done;
            continue;
        }
        if (!finish_entry(r, entry, block, &next, size, error)) goto done;
        if (entry->type == '5') { // a folder
            entry->header_offset = r->at;
            buffer_free(&next.name);
            next = (Pending){.size = -1};
            continue;
        }
        ok = true;
        goto done;
    }
done:
    buffer_free(&next.name);
    return ok;
}
