/* See safetensors.h: the reader. A scanner walks the header's outermost object and hands each value to the JSON parser
 * by itself, so that a hostile header of 100 MB never becomes one tree. Every size is checked before it is used:
 * shapes, offsets, their order, and the end of the file. */
#include "base/json.h"
#include "base/safetensors.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t LONGEST_HEADER = 100000000; // bytes, by the format

typedef struct Reader {
    SafeTensors *out;
    const char *path;
    const char *text; // the header's JSON; not terminated
    size_t size, at;
    int64_t data_size; // bytes behind the header
    Buffer tensors;    // of SafeTensor, in the order of the header
    bool has_metadata;
    Error *error;
} Reader;

static bool refuse(Reader *reader, const char *what) {
    return error_set(reader->error, ERROR_FAILED, "%s: not a valid safetensors file: %s at byte %zu", reader->path,
                     what, reader->at + 8);
}

static bool refuse_entry(Reader *reader, const char *name, const char *what) {
    return error_set(reader->error, ERROR_FAILED, "%s: not a valid safetensors file: tensor '%.200s' (byte %zu): %s",
                     reader->path, name, reader->at + 8, what);
}

static char peek(Reader *reader) { // 0 at the end
    while (reader->at < reader->size && memchr(" \t\r\n", reader->text[reader->at], 4)) reader->at++;
    return reader->at < reader->size ? reader->text[reader->at] : 0;
}

// The value at `at` as text, found by its brackets and quotes alone; whether it is valid is for the parser to say.
static bool skip_value(Reader *reader, const char **start, size_t *length) {
    int64_t level = 0;
    bool in_string = false;
    peek(reader);
    size_t begin = reader->at;
    for (; reader->at < reader->size; reader->at++) {
        char c = reader->text[reader->at];
        if (c == '"')
            in_string = !in_string;
        else if (in_string)
            reader->at += c == '\\';
        else if (c == '{' || c == '[')
            level++;
        else if ((c == '}' || c == ']' || c == ',' || c == ':') && level == 0)
            break;
        else if (c == '}' || c == ']')
            level--;
    }
    if (reader->at > reader->size) reader->at = reader->size;
    *start = reader->text + begin;
    *length = reader->at - begin;
    return *length > 0 || refuse(reader, "a value is missing");
}

static json_t *parse_value(Reader *reader, size_t begin, const char *text, size_t length) {
    json_error_t failure;
    json_t *value = NULL;
    int level = 0, deepest = 0; // brackets in strings are counted too: nothing valid comes near the limit
    for (size_t i = 0; i < length && text[0] != '"'; i++) {
        level += (text[i] == '[' || text[i] == '{') - (text[i] == ']' || text[i] == '}');
        deepest = level > deepest ? level : deepest;
    }
    if (deepest <= 64) value = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &failure);
    if (value) return value;
    reader->at = begin;
    refuse(reader, deepest > 64 ? "values nested too deeply" : failure.text);
    return NULL;
}

static bool read_shape(Reader *reader, SafeTensor *tensor, const json_t *shape, int64_t *elements) {
    size_t rank = json_array_size(shape);
    *elements = 1;
    if (!json_is_array(shape)) return refuse_entry(reader, tensor->name, "shape must be a list of integers");
    if (rank > SAFETENSORS_MAX_RANK)
        return refuse_entry(reader, tensor->name, "more than 8 dimensions are not supported");
    for (size_t i = 0; i < rank; i++) {
        const json_t *item = json_array_get(shape, i);
        int64_t extent = json_integer_value(item);
        if (!json_is_integer(item) || extent < 0)
            return refuse_entry(reader, tensor->name, "shape must be a list of integers from 0 up");
        if (__builtin_mul_overflow(*elements, extent, elements))
            return refuse_entry(reader, tensor->name, "the shape's product overflows");
        tensor->shape[i] = extent;
    }
    tensor->rank = (int)rank;
    return true;
}

static bool read_range(Reader *reader, SafeTensor *tensor, const json_t *offsets, int64_t elements) {
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return refuse_entry(reader, tensor->name, "data_offsets must be two integers");
    int64_t begin = json_integer_value(first), end = json_integer_value(last), bytes = 0;
    if (begin < 0 || end < begin || end > reader->data_size)
        return refuse_entry(reader, tensor->name, "data_offsets lie outside the file's data");
    if (__builtin_mul_overflow(elements, safetensors_dtype_size(tensor->dtype), &bytes) || bytes != end - begin)
        return refuse_entry(reader, tensor->name, "data_offsets do not fit shape and dtype");
    tensor->data = reader->text + reader->size + begin;
    tensor->bytes = bytes;
    return true;
}

static bool read_tensor(Reader *reader, const char *name, const json_t *entry) {
    SafeTensor tensor = {.name = arena_string(reader->out->memory, name)};
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    int64_t elements = 0;
    if (json_object_size(entry) != 3 || !dtype)
        return refuse_entry(reader, name, "an entry has exactly dtype, shape and data_offsets");
    if (!safetensors_dtype_size(dtype)) {
        char what[160];
        snprintf(what, sizeof what,
                 "dtype '%.40s' is not one of BOOL U8 I8 F8_E5M2 F8_E4M3 I16 U16 F16 BF16 I32 U32 F32 F64 I64 U64",
                 dtype);
        return refuse_entry(reader, name, what);
    }
    tensor.dtype = arena_string(reader->out->memory, dtype);
    if (!read_shape(reader, &tensor, json_object_get(entry, "shape"), &elements)) return false;
    if (!read_range(reader, &tensor, json_object_get(entry, "data_offsets"), elements)) return false;
    buffer_append(&reader->tensors, &tensor, sizeof tensor);
    return true;
}

static int by_key(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static bool read_metadata(Reader *reader, json_t *object) {
    SafeTensors *out = reader->out;
    const char *key;
    json_t *value;
    if (!json_is_object(object)) return refuse(reader, "__metadata__ must be an object");
    if (reader->has_metadata) return refuse(reader, "__metadata__ is there twice");
    reader->has_metadata = true;
    out->metadata = arena_array(out->memory, char *, 2 * json_object_size(object) + 1);
    json_object_foreach(object, key, value) {
        if (!json_is_string(value)) return refuse(reader, "a value of __metadata__ is not a string");
        out->metadata[2 * out->metadata_count] = arena_string(out->memory, key);
        out->metadata[2 * out->metadata_count + 1] = arena_string(out->memory, json_string_value(value));
        out->metadata_count++;
    }
    qsort(out->metadata, (size_t)out->metadata_count, 2 * sizeof *out->metadata, by_key);
    return true;
}

// "name": {entry}, with `at` behind it in the end
static bool read_entry(Reader *reader) {
    const char *text;
    size_t length, begin;
    bool ok = false;
    json_t *name = NULL, *entry = NULL;
    if (peek(reader) != '"') return refuse(reader, "a name in quotes was expected");
    begin = reader->at;
    if (!skip_value(reader, &text, &length)) return false;
    if (!(name = parse_value(reader, begin, text, length))) goto done;
    if (peek(reader) != ':') {
        refuse(reader, "a colon was expected");
        goto done;
    }
    reader->at++;
    if (peek(reader) != '{') {
        refuse(reader, "an object was expected");
        goto done;
    }
    begin = reader->at;
    if (!skip_value(reader, &text, &length) || !(entry = parse_value(reader, begin, text, length))) goto done;
    ok = !strcmp(json_string_value(name), "__metadata__") ? read_metadata(reader, entry)
                                                          : read_tensor(reader, json_string_value(name), entry);
done:
    json_decref(name);
    json_decref(entry);
    return ok;
}

static bool read_header(Reader *reader) {
    if (!reader->size || reader->text[0] != '{') return refuse(reader, "the header must start with {");
    reader->at = 1;
    if (peek(reader) == '}')
        reader->at++;
    else {
        char c;
        do {
            if (!read_entry(reader)) return false;
            c = peek(reader);
            if (c != ',' && c != '}') return refuse(reader, "a comma or } was expected");
            reader->at++;
        } while (c == ',');
    }
    peek(reader);
    return reader->at == reader->size || refuse(reader, "something other than spaces follows the header's object");
}

static int by_place(const void *a, const void *b) {
    const SafeTensor *x = a, *y = b;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const SafeTensor *)a)->name, ((const SafeTensor *)b)->name);
}

// No hole, no overlap, nothing behind, no name twice. Leaves the tensors sorted by name.
static bool check_layout(Reader *reader) {
    SafeTensor *tensors = reader->out->tensors;
    const char *end = reader->text + reader->size;
    size_t count = (size_t)reader->out->count;
    qsort(tensors, count, sizeof *tensors, by_place);
    for (size_t i = 0; i < count; i++) {
        const char *begin = tensors[i].data;
        if (begin != end)
            return refuse_entry(reader, tensors[i].name, begin < end ? "overlaps another" : "hole before it");
        end = begin + tensors[i].bytes;
    }
    int64_t behind = reader->data_size - (end - (reader->text + reader->size));
    if (behind) {
        return error_set(reader->error, ERROR_FAILED,
                         "%s: not a valid safetensors file: %" PRId64 " bytes behind the last tensor", reader->path,
                         behind);
    }
    qsort(tensors, count, sizeof *tensors, by_name);
    for (size_t i = 1; i < count; i++)
        if (!strcmp(tensors[i - 1].name, tensors[i].name))
            return refuse_entry(reader, tensors[i].name, "is there twice");
    return true;
}

static bool find_header(Reader *reader) {
    const MappedFile *file = &reader->out->file;
    uint64_t length = 0;
    if (file->size < 8)
        return error_set(reader->error, ERROR_FAILED, "%s: too short for a safetensors file", reader->path);
    for (int i = 7; i >= 0; i--) length = length << 8 | file->data[i];
    if (length > LONGEST_HEADER || length > (uint64_t)file->size - 8)
        return error_set(reader->error, ERROR_FAILED,
                         "%s: not a valid safetensors file, or cut: its header is said to have %" PRIu64
                         " bytes, the file has %" PRId64,
                         reader->path, length, file->size);
    reader->text = (const char *)file->data + 8;
    reader->size = (size_t)length;
    reader->data_size = file->size - 8 - (int64_t)length;
    return true;
}

bool safetensors_open(SafeTensors *out, const char *path, Error *error) {
    Reader reader = {.out = out, .path = path, .error = error};
    *out = (SafeTensors){.file.descriptor = -1};
    if (!mapped_open(&out->file, path, error)) return false;
    out->memory = arena_new(1 << 16);
    bool ok = find_header(&reader) && read_header(&reader);
    if (ok) {
        size_t bytes = reader.tensors.size;
        out->count = (int)(bytes / sizeof *out->tensors);
        out->tensors = arena_allocate(out->memory, bytes);
        if (bytes) memcpy(out->tensors, reader.tensors.data, bytes);
        ok = check_layout(&reader);
    }
    buffer_free(&reader.tensors);
    if (!ok) safetensors_close(out);
    return ok;
}

void safetensors_close(SafeTensors *file) {
    mapped_close(&file->file);
    arena_free(file->memory);
    *file = (SafeTensors){.file.descriptor = -1};
}

const SafeTensor *safetensors_find(const SafeTensors *file, const char *name) {
    SafeTensor key = {.name = name};
    if (!file->count) return NULL;
    return bsearch(&key, file->tensors, (size_t)file->count, sizeof key, by_name);
}

const char *safetensors_metadata(const SafeTensors *file, const char *key) {
    if (!file->metadata_count) return NULL;
    char *const *pair = bsearch(&key, file->metadata, (size_t)file->metadata_count, 2 * sizeof *file->metadata, by_key);
    return pair ? pair[1] : NULL;
}
