/* See safetensors.h: the writer. The same tensors give the same bytes, in whatever order they come. */
#include "base/json.h"
#include "base/philox.h"
#include "base/safetensors.h"
#include "base/safetensors_checksum.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { LARGE = 1 << 20 }; // bytes of data

static int64_t data_bytes(const SafeTensor *tensors, int count) {
    int64_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += tensors[i].bytes;
    return bytes;
}

static int append_text(const char *text, size_t size, void *buffer) {
    buffer_append(buffer, text, size);
    return 0;
}

static bool append_quoted(Buffer *header, const char *text, const char *path, Error *error) {
    json_t *string = json_string(text);
    if (!string) return error_set(error, ERROR_FAILED, "%s: a name or a metadata text is not UTF-8: '%s'", path, text);
    check(json_dump_callback(string, append_text, header, JSON_ENCODE_ANY) == 0);
    json_decref(string);
    return true;
}

static bool append_pair(Buffer *header, const char *key, const char *value, const char *path, Error *error) {
    buffer_text(header, ",");
    if (!append_quoted(header, key, path, error)) return false;
    buffer_text(header, ":");
    return append_quoted(header, value, path, error);
}

static bool append_metadata(Buffer *header, const SafeTensor *tensors, int count, const char *const *metadata,
                            int pairs, const char *path, Error *error) {
    char digits[SAFETENSORS_CHECKSUM_DIGITS + 1];
    Buffer key = {0};
    bool ok = true;
    safetensors_hex(0, digits);
    buffer_printf(header, "%s%s\",\"format\":\"pt\"", SAFETENSORS_HEADER_START, digits);
    for (int i = 0; i < pairs && ok; i++) { // keys of this writer, copied from another file, are made anew
        if (!strcmp(metadata[2 * i], "format") || !strncmp(metadata[2 * i], "xxh3", 4)) continue;
        ok = append_pair(header, metadata[2 * i], metadata[2 * i + 1], path, error);
    }
    for (int i = 0; i < count && ok; i++) {
        buffer_clear(&key);
        buffer_printf(&key, "xxh3/%s", tensors[i].name);
        safetensors_hex(hash_u64(tensors[i].data, (uint64_t)tensors[i].bytes), digits);
        ok = append_pair(header, key.data, digits, path, error);
    }
    buffer_free(&key);
    buffer_text(header, "}");
    return ok;
}

// Adds one tensor's entry; *offset moves behind its data.
static bool append_tensor(Buffer *header, const SafeTensor *tensor, int64_t *offset, const char *path, Error *error) {
    int64_t bytes = safetensors_dtype_size(tensor->dtype);
    check(bytes > 0 && tensor->rank >= 0 && tensor->rank <= SAFETENSORS_MAX_RANK);
    buffer_text(header, ",");
    if (!append_quoted(header, tensor->name, path, error)) return false;
    buffer_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", tensor->dtype);
    for (int i = 0; i < tensor->rank; i++) {
        bytes *= tensor->shape[i];
        buffer_printf(header, "%s%" PRId64, i ? "," : "", tensor->shape[i]);
    }
    check(bytes == tensor->bytes);
    buffer_printf(header, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", *offset, *offset + bytes);
    *offset += bytes;
    return true;
}

static int by_size_then_name(const void *a, const void *b) {
    const SafeTensor *x = a, *y = b;
    int64_t sizes = safetensors_dtype_size(y->dtype) - safetensors_dtype_size(x->dtype);
    return sizes ? (sizes > 0) - (sizes < 0) : strcmp(x->name, y->name);
}

static bool build_header(Buffer *header, const SafeTensor *tensors, int count, const char *const *metadata, int pairs,
                         const char *path, Error *error) {
    int64_t offset = 0;
    if (!append_metadata(header, tensors, count, metadata, pairs, path, error)) return false;
    for (int i = 0; i < count; i++)
        if (!append_tensor(header, &tensors[i], &offset, path, error)) return false;
    buffer_text(header, "}");
    while (header->size % 8) buffer_text(header, " ");
    char digits[SAFETENSORS_CHECKSUM_DIGITS + 1];
    safetensors_hex(safetensors_header_hash(header->data, header->size), digits);
    memcpy(header->data + sizeof SAFETENSORS_HEADER_START - 1, digits, SAFETENSORS_CHECKSUM_DIGITS);
    return true;
}

static bool write_all(AtomicFile *file, const Buffer *header, const SafeTensor *tensors, int count, Error *error) {
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(header->size >> 8 * i);
    if (!atomic_write(file, length, sizeof length, error)) return false;
    if (!atomic_write(file, header->data, header->size, error)) return false;
    for (int i = 0; i < count; i++)
        if (!atomic_write(file, tensors[i].data, (size_t)tensors[i].bytes, error)) return false;
    return true;
}

bool safetensors_write(const char *path, const SafeTensor *tensors, int count, const char *const *metadata, int pairs,
                       Error *error) {
    bool ok = false;
    Buffer header = {0};
    SafeTensor *sorted = calloc((size_t)count + 1, sizeof *sorted);
    check(sorted && count >= 0);
    if (count) memcpy(sorted, tensors, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size_then_name);
    if (!build_header(&header, sorted, count, metadata, pairs, path, error)) goto done;
    AtomicFile *file = data_bytes(sorted, count) < LARGE ? atomic_open(path, error) : atomic_open_large(path, error);
    if (!file) goto done;
    if (write_all(file, &header, sorted, count, error))
        ok = atomic_commit(file, error);
    else
        atomic_abandon(file);
done:
    buffer_free(&header);
    free(sorted);
    return ok;
}
