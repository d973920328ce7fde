/* JSON through jansson, with messages that name file, line and column. */
#pragma once
#include "buffer.h"
#include "error.h"
#include <jansson.h>

// Duplicate keys, more than 64 levels and non-UTF-8 are refused. `name` is for messages. Returns a new reference.
json_t *json_parse(const char *text, size_t size, const char *name, Error *);
json_t *json_read_file(const char *path, Error *);
bool    json_write_file(const char *path, const json_t *, Error *); // atomic, indented, sorted as inserted
bool    json_text(const json_t *, Buffer *out);                     // what json_write_file writes; false: no JSON
// Values of an object; where the key is absent or of another type: `fallback`.
const char *json_get_string(const json_t *, const char *key, const char *fallback);
int64_t     json_get_int(const json_t *, const char *key, int64_t fallback);
double      json_get_number(const json_t *, const char *key, double fallback);

// Lines of a JSONL file, one object each. `json_lines_next` returns true with *value == NULL at the end.
typedef struct JsonLines JsonLines;
JsonLines *json_lines_open(const char *path, Error *);
bool       json_lines_next(JsonLines *, json_t **value, Error *); // *value: new reference; the message names the line
int64_t    json_lines_number(const JsonLines *);                  // of the line last returned, from 1
void       json_lines_close(JsonLines *);                         // NULL is allowed
