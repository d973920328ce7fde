/* See row.h. */
#include "data/row.h"
#include "base/json.h"
#include "data/utf8.h"
#include <string.h>

static const char *cause(Row *row, const char *name, const char *format, const char *value) {
    buffer_clear(&row->detail);
    buffer_printf(&row->detail, format, value);
    return name;
}

const char *text_judge(Buffer *text, Buffer *detail) {
    buffer_clear(detail);
    if (text->size > CAPTION_MOST) {
        buffer_printf(detail, "%zu bytes, at most %d", text->size, CAPTION_MOST);
        return "caption_too_long";
    }
    if (!utf8_valid(text->data ? text->data : "", text->size)) {
        buffer_text(detail, "not UTF-8");
        return "caption_not_utf8";
    }
    size_t n = text->size, mark = n >= 3 && memcmp(text->data, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    if (mark) memmove(text->data, text->data + mark, n -= mark);
    while (n && (text->data[n - 1] == '\n' || text->data[n - 1] == '\r')) n--;
    for (size_t i = 0; i < n; i++)
        if (!text->data[i]) text->data[i] = ' ';
    text->size = n;
    if (text->data) text->data[n] = 0;
    return utf8_blank(text->data ? text->data : "", n) ? "caption_blank" : NULL;
}

static const char *add_text(Row *row, const char *field, const char *value, size_t size) {
    Buffer *text = &row->texts[row->text_count];
    buffer_clear(text);
    buffer_append(text, value, size);
    const char *why = text_judge(text, &row->detail);
    if (why && !row->detail.size) buffer_printf(&row->detail, "field \"%s\"", field);
    if (!why) row->text_count++;
    return why;
}

// The first field is the sample's caption and must be there; the others are further captions and may be absent.
static const char *read_texts(const RowRules *rules, Row *row) {
    for (int i = 0; i < rules->text_count; i++) {
        const char *field = rules->text_fields[i];
        const json_t *value = json_object_get(row->json, field);
        bool absent = !value || json_is_null(value);
        if (absent && i == 0) return cause(row, "caption_missing", "no field \"%s\"", field);
        if (absent) continue;
        if (!json_is_string(value)) return cause(row, "caption_not_text", "field \"%s\" is no text", field);
        const char *why = add_text(row, field, json_string_value(value), json_string_length(value));
        if (why && (i == 0 || strcmp(why, "caption_blank") != 0)) return why;
    }
    return NULL;
}

static const char *read_question(const RowRules *rules, Row *row) {
    const char *fields[2] = {rules->question_field, rules->answer_field};
    Buffer both = {0};
    const char *why = NULL;
    if (!fields[0]) return NULL;
    for (int i = 0; i < 2 && !why; i++) {
        const json_t *value = json_object_get(row->json, fields[i]);
        if (!json_is_string(value))
            why = cause(row, "question_missing", "no text in field \"%s\"", fields[i]);
        else if (utf8_blank(json_string_value(value), json_string_length(value)))
            why = cause(row, "question_blank", "field \"%s\"", fields[i]);
        else
            buffer_printf(&both, "%s%s", i ? " " : "", json_string_value(value));
    }
    if (!why && !rules->text_count) why = add_text(row, "question", both.data, both.size);
    buffer_free(&both);
    return why;
}

static const char *read_images(const RowRules *rules, Row *row) {
    if (rules->image_template) {
        Error error = {0};
        buffer_clear(&row->image_path);
        if (!template_expand(rules->image_template, 0, row->json, 0, &row->image_path, &error))
            return cause(row, "image_field_missing", "%s", error.message);
        row->images[row->image_count++] = row->image_path.data;
    }
    for (int i = 0; !rules->image_template && i < rules->image_count; i++) {
        const json_t *value = json_object_get(row->json, rules->image_fields[i]);
        if (!json_is_string(value) || !json_string_length(value))
            return cause(row, "image_field_missing", "no path in field \"%s\"", rules->image_fields[i]);
        row->images[row->image_count++] = json_string_value(value);
    }
    return NULL;
}

const char *row_read(const RowRules *rules, json_t *object, Row *row) {
    json_incref(object); // before the old one goes: it may be the same
    json_decref(row->json);
    row->json = object;
    row->image_count = row->text_count = 0;
    buffer_clear(&row->detail);
    if (!json_is_object(object)) return cause(row, "row_not_object", "%s", "not a JSON object");
    const char *why = read_images(rules, row);
    if (!why) why = read_texts(rules, row);
    return why ? why : read_question(rules, row);
}

// json_parse names file, line and column, "row:1:17: ..."; of a row only the column says something.
static void tell_column(Row *row, const char *message) {
    static const char place[] = "row:1:";
    const char *rest = strncmp(message, place, sizeof place - 1) == 0 ? message + sizeof place - 1 : message;
    buffer_clear(&row->detail);
    buffer_printf(&row->detail, "%s%s", *rest == ' ' ? "" : "column ", *rest == ' ' ? rest + 1 : rest);
}

const char *row_parse(const RowRules *rules, const char *text, size_t size, Row *row) {
    Error error = {0};
    if (!utf8_valid(text, size)) return cause(row, "row_not_utf8", "%s", "not UTF-8");
    json_t *object = json_parse(text, size, "row", &error);
    if (!object) {
        tell_column(row, error.message);
        return "row_not_json";
    }
    const char *why = row_read(rules, object, row);
    json_decref(object);
    return why;
}

void row_free(Row *row) {
    json_decref(row->json);
    for (int i = 0; i < ROW_FIELDS; i++) buffer_free(&row->texts[i]);
    buffer_free(&row->image_path);
    buffer_free(&row->detail);
    *row = (Row){0};
}
