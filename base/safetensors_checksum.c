/* See safetensors.h and safetensors_checksum.h: element sizes and checksums, for reader and writer. */
#include "base/safetensors_checksum.h"
#include "base/philox.h"
#include "base/safetensors.h"
#include <inttypes.h>
#include <string.h>

int64_t safetensors_dtype_size(const char *dtype) {
    static const struct {
        const char *name;
        int64_t size;
    } dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                  {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                  {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(dtypes[i].name, dtype)) return dtypes[i].size;
    return 0;
}

void safetensors_hex(uint64_t hash, char out[SAFETENSORS_CHECKSUM_DIGITS + 1]) {
    snprintf(out, SAFETENSORS_CHECKSUM_DIGITS + 1, "%016" PRIx64, hash);
}

uint64_t safetensors_header_hash(const char *header, size_t size) {
    static const size_t start = sizeof SAFETENSORS_HEADER_START - 1;
    Buffer copy = {0};
    check(size >= start + SAFETENSORS_CHECKSUM_DIGITS);
    buffer_append(&copy, header, size);
    memset(copy.data + start, '0', SAFETENSORS_CHECKSUM_DIGITS);
    uint64_t hash = hash_u64(copy.data, copy.size);
    buffer_free(&copy);
    return hash;
}

static bool damaged(const char *path, const char *what, const char *name, Error *error) {
    return error_set(error, ERROR_FAILED,
                     "%s: damaged: %s%s%s does not match its checksum; restore the file from a copy", path, what,
                     *name ? " " : "", name);
}

static bool header_intact(const SafeTensors *file, const char *stated) {
    static const char start[] = SAFETENSORS_HEADER_START;
    const char *header = (const char *)file->file.data + 8;
    uint64_t size = 0;
    char digits[SAFETENSORS_CHECKSUM_DIGITS + 1];
    for (int i = 7; i >= 0; i--) size = size << 8 | file->file.data[i];
    if (!stated || size < sizeof start + SAFETENSORS_CHECKSUM_DIGITS || memcmp(header, start, sizeof start - 1) != 0)
        return false;
    safetensors_hex(safetensors_header_hash(header, (size_t)size), digits);
    return !strcmp(digits, stated);
}

// Files of other writers have no checksums. One that has any must have them all, or a flipped bit in a key could hide.
bool safetensors_verify(const SafeTensors *file, const char *path, Error *error) {
    bool any = false;
    for (int i = 0; i < file->metadata_count; i++) any |= !strncmp(file->metadata[2 * i], "xxh3", 4);
    if (!any) return true;
    if (!mapped_check(&file->file, path, error)) return false;
    if (!header_intact(file, safetensors_metadata(file, "xxh3"))) return damaged(path, "the header", "", error);
    for (int i = 0; i < file->count; i++) {
        const SafeTensor *tensor = &file->tensors[i];
        char digits[SAFETENSORS_CHECKSUM_DIGITS + 1];
        Buffer key = {0};
        buffer_printf(&key, "xxh3/%s", tensor->name);
        const char *stated = safetensors_metadata(file, key.data);
        buffer_free(&key);
        safetensors_hex(hash_u64(tensor->data, (uint64_t)tensor->bytes), digits);
        if (!stated || strcmp(stated, digits) != 0) return damaged(path, "tensor", tensor->name, error);
    }
    return true;
}

void safetensors_hash_text(const char *text, size_t size, char hash[SAFETENSORS_HASH]) {
    safetensors_hex(hash_u64(text, size), hash);
}

bool safetensors_hash_file(const char *path, char hash[SAFETENSORS_HASH], Error *error) {
    Buffer bytes = {0};
    bool ok = file_read(path, &bytes, error);
    if (ok) safetensors_hash_text(bytes.data, bytes.size, hash);
    buffer_free(&bytes);
    return ok;
}

bool safetensors_check_file(const SafeTensors *file, const char *path, Error *error) {
    char hash[SAFETENSORS_HASH];
    const char *stated = safetensors_metadata(file, path_base(path));
    if (!stated) return true;
    if (!safetensors_hash_file(path, hash, error)) return false;
    if (!strcmp(stated, hash)) return true;
    return error_set(error, ERROR_FAILED,
                     "%s: damaged, or of another checkpoint: its hash is %s, %s was expected; restore it from a copy, "
                     "or take an earlier checkpoint",
                     path, hash, stated);
}
