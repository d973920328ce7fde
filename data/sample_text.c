/* See sample_text.h. */
#include "data/sample_text.h"
#include "base/json.h"
#include <ctype.h>
#include <string.h>

Prepared sample_texts(const Sample *sample) {
    Prepared p = {.key = {sample->key, strlen(sample->key)}};
    for (int i = 0; i < sample->member_count; i++) {
        const Member *m = &sample->members[i];
        Text text = {(const char *)m->bytes, (size_t)m->size};
        if (m->kind == MEMBER_TEXT) p.text[p.texts++] = text;
        if (m->kind == MEMBER_JSON && !p.json.text) p.json = text;
    }
    return p;
}

int sample_text_count(const Template *template, const Prepared *p) {
    return template ? template_variants(template) : p->texts;
}

static json_t *fields_of(const Prepared *p, Error *error) {
    if (p->json.text) return json_parse(p->json.text, p->json.size, "its .json", error);
    error_set(error, ERROR_FAILED, "it has no .json for the template's fields");
    return NULL;
}

static bool is_blank(const Text *text) {
    for (size_t i = 0; i < text->size; i++)
        if (!isspace((unsigned char)text->text[i])) return false;
    return true;
}

static bool text_of_file(const Prepared *p, int variant, Buffer *out, Error *error) {
    if (!p->texts) return error_set(error, ERROR_FAILED, "it has no text");
    const Text *text = &p->text[variant];
    if (is_blank(text)) return error_set(error, ERROR_FAILED, "its text is blank");
    buffer_append(out, text->text, text->size);
    return true;
}

bool sample_text(const Template *template, const Prepared *p, int variant, Buffer *out, Error *error) {
    if (!template) return text_of_file(p, variant, out, error);
    json_t *fields = fields_of(p, error);
    bool ok = fields && template_expand(template, variant, fields, 0, out, error);
    json_decref(fields);
    return ok;
}

// Takes white space off both ends of what was appended behind `before`.
static void trim(Buffer *out, size_t before) {
    size_t from = before, end = out->size;
    while (end > from && isspace((unsigned char)out->data[end - 1])) end--;
    while (from < end && isspace((unsigned char)out->data[from])) from++;
    memmove(out->data + before, out->data + from, end - from);
    out->size = before + (end - from);
    out->data[out->size] = 0;
}

bool sample_text_draw(const Template *template, const Prepared *p, uint64_t draw, Buffer *out, Error *error) {
    size_t before = out->size;
    bool ok;
    if (template) {
        json_t *fields = fields_of(p, error);
        ok = fields && template_draw(template, fields, draw, out, error);
        json_decref(fields);
    } else {
        ok = text_of_file(p, p->texts ? (int)(draw % (uint64_t)p->texts) : 0, out, error);
    }
    if (ok) trim(out, before);
    return ok;
}
