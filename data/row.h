/* One row of a source, judged: which pictures and texts it names, or why it cannot be a sample. Pure: no file is
 * touched, so that it can be tested and fuzzed alone. */
#pragma once
#include "base/buffer.h"
#include "data/template.h"
#include <jansson.h>
#include <stddef.h>

enum { ROW_FIELDS = 4, CAPTION_MOST = 1 << 20, ROW_MOST = 16 << 20 }; // fields of each kind; bytes

typedef struct RowRules { // zero-initialise it
    const char *image_fields[ROW_FIELDS], *text_fields[ROW_FIELDS];
    int image_count, text_count;
    const char *question_field, *answer_field; // both or none
    const Template *image_template;            // NULL, or the path in place of image fields; borrowed
} RowRules;

typedef struct Row { // zero-initialise it; strings lie in `texts` and `json`
    json_t *json;
    const char *images[ROW_FIELDS]; // paths as written
    Buffer texts[ROW_FIELDS];       // the captions; without text fields "question answer"
    int image_count, text_count;
    Buffer image_path, detail; // detail: what is wrong, for people
} Row;

// A line of a .jsonl. Returns NULL, or the cause why the row is left out ("row_not_json", "caption_blank", ...).
const char *row_parse(const RowRules *, const char *text, size_t size, Row *);
const char *row_read(const RowRules *, json_t *object, Row *); // takes a reference of its own
// A caption or document: NULL or the cause. Removes a byte order mark in front and line ends behind, and puts a space
// in place of NUL.
const char *text_judge(Buffer *text, Buffer *detail);
void row_free(Row *); // zeroed structs are allowed
