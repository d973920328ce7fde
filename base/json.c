/* See json.h. */
#include "base/json.h"
#include "base/files.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_LEVELS = 64, BLOCK = 1 << 16, LONGEST_LINE = 64 << 20 };

// The parser recurses; depth is counted first, in one pass that only has to know where strings end.
static bool depth_allowed(const char *text, size_t size, const char *name, Error *error) {
    int level = 0, line = 1;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '\n') line++;
        if (c == '"')
            in_string = !in_string;
        else if (in_string)
            i += c == '\\';
        else if (c == '[' || c == '{')
            level++;
        else if (c == ']' || c == '}')
            level--;
        if (level > MAX_LEVELS)
            return error_set(error, ERROR_FAILED, "%s:%d: more than %d levels of lists and objects", name, line,
                             MAX_LEVELS);
    }
    return true;
}

json_t *json_parse(const char *text, size_t size, const char *name, Error *error) {
    json_error_t failure;
    if (!depth_allowed(text, size, name, error)) return NULL;
    json_t *value = json_loadb(size ? text : "", size, JSON_REJECT_DUPLICATES, &failure);
    if (!value) error_set(error, ERROR_FAILED, "%s:%d:%d: %s", name, failure.line, failure.column, failure.text);
    return value;
}

json_t *json_read_file(const char *path, Error *error) {
    Buffer text = {0};
    json_t *value = NULL;
    if (file_read(path, &text, error)) value = json_parse(text.data, text.size, path, error);
    buffer_free(&text);
    return value;
}

static int append_text(const char *text, size_t size, void *buffer) {
    buffer_append(buffer, text, size);
    return 0;
}

bool json_text(const json_t *value, Buffer *out) {
    buffer_clear(out);
    if (json_dump_callback(value, append_text, out, JSON_INDENT(2) | JSON_REAL_PRECISION(17) | JSON_ENCODE_ANY) != 0)
        return false;
    buffer_text(out, "\n");
    return true;
}

bool json_write_file(const char *path, const json_t *value, Error *error) {
    Buffer text = {0};
    bool ok = json_text(value, &text);
    if (ok)
        ok = file_write(path, text.data, text.size, error);
    else
        error_set(error, ERROR_FAILED, "%s: the value cannot be written as JSON", path);
    buffer_free(&text);
    return ok;
}

const char *json_get_string(const json_t *object, const char *key, const char *fallback) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : fallback;
}

int64_t json_get_int(const json_t *object, const char *key, int64_t fallback) {
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) ? json_integer_value(value) : fallback;
}

double json_get_number(const json_t *object, const char *key, double fallback) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

struct JsonLines {
    FILE *file;
    char *path;
    Buffer line;
    int64_t number;
    size_t at, filled; // of `block`
    char block[BLOCK];
};

JsonLines *json_lines_open(const char *path, Error *error) {
    FILE *file = fopen(path, "re");
    if (!file) {
        error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
        return NULL;
    }
    JsonLines *lines = calloc(1, sizeof *lines);
    check(lines);
    lines->file = file;
    lines->path = strdup(path);
    check(lines->path);
    return lines;
}

void json_lines_close(JsonLines *lines) {
    if (!lines) return;
    fclose(lines->file);
    free(lines->path);
    buffer_free(&lines->line);
    free(lines);
}

int64_t json_lines_number(const JsonLines *lines) { return lines->number; }

// The next line, without its end; *found is false at the end of the file. A line that is too long is passed over whole,
// so that the caller may go on behind it.
static bool read_line(JsonLines *lines, bool *found, Error *error) {
    bool ended = false, too_long = false;
    buffer_clear(&lines->line);
    *found = false;
    while (!ended) {
        if (lines->at == lines->filled) {
            lines->at = 0;
            lines->filled = fread(lines->block, 1, BLOCK, lines->file);
            if (lines->filled == 0) break;
        }
        const char *start = lines->block + lines->at, *end = memchr(start, '\n', lines->filled - lines->at);
        size_t size = end ? (size_t)(end - start) : lines->filled - lines->at;
        ended = end;
        *found = true;
        lines->at += size + ended;
        too_long |= lines->line.size + size > LONGEST_LINE;
        if (!too_long) buffer_append(&lines->line, start, size);
    }
    lines->number += *found;
    if (ferror(lines->file)) return error_set_errno(error, ERROR_FAILED, "%s: cannot read", lines->path);
    if (too_long)
        return error_set(error, ERROR_FAILED, "%s:%lld: longer than %d bytes", lines->path, (long long)lines->number,
                         LONGEST_LINE);
    return true;
}

// What is left without a byte order mark and white space in front.
static const char *line_text(const JsonLines *lines, size_t *size) {
    const char *text = lines->line.data ? lines->line.data : "", *end = text + lines->line.size;
    if (lines->number == 1 && !strncmp(text, "\xEF\xBB\xBF", 3)) text += 3;
    while (text < end && (*text == ' ' || *text == '\t' || *text == '\r')) text++;
    *size = (size_t)(end - text);
    return text;
}

bool json_lines_next(JsonLines *lines, json_t **value, Error *error) {
    size_t size = 0;
    *value = NULL;
    for (bool found = true; size == 0;) {
        if (!read_line(lines, &found, error)) return false;
        if (!found) return true;
        line_text(lines, &size);
    }
    json_error_t failure;
    char name[64];
    const char *text = line_text(lines, &size);
    snprintf(name, sizeof name, "line %lld", (long long)lines->number);
    if (!depth_allowed(text, size, name, error)) return error_prefix(error, "%s", lines->path);
    *value = json_loadb(text, size, JSON_REJECT_DUPLICATES, &failure);
    if (*value && json_is_object(*value)) return true;
    error_set(error, ERROR_FAILED, "%s:%lld:%d: %s", lines->path, (long long)lines->number, *value ? 1 : failure.column,
              *value ? "an object { } was expected on each line" : failure.text);
    json_decref(*value);
    *value = NULL;
    return false;
}
