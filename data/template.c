/* See template.h. Parsed once into pieces, each literal text or the name of a field. */
#include "data/template.h"
#include "base/arena.h"
#include <ctype.h>
#include <string.h>

typedef struct Piece {
    bool field;
    const char *text; // literal text, or the field's name
} Piece;

typedef struct Variant {
    Piece *pieces;
    int count;
} Variant;

struct Template {
    Arena *arena;
    const char *source; // as it was given, for messages
    Variant *variants;
    int count;
};

static const char *copy_part(Arena *arena, const char *text, size_t size) {
    char *copy = arena_allocate(arena, size + 1);
    memcpy(copy, text, size);
    copy[size] = 0;
    return copy;
}

// Literal text from *at up to a field or the end; doubled braces become one.
static bool parse_literal(Template *t, const char **at, const char *end, Piece *piece, Error *error) {
    const char *from = *at;
    char *copy = arena_allocate(t->arena, (size_t)(end - from) + 1), *out = copy;
    for (; *at < end; (*at)++) {
        char c = **at;
        bool doubled = *at + 1 < end && (*at)[1] == c;
        if ((c == '{' || c == '}') && doubled)
            (*at)++;
        else if (c == '{')
            break;
        else if (c == '}')
            return error_set(error, ERROR_USAGE, "template \"%s\": } without {; write }} for a brace", t->source);
        *out++ = c;
    }
    *out = 0;
    *piece = (Piece){false, copy};
    return true;
}

static bool parse_field(Template *t, const char **at, const char *end, Piece *piece, Error *error) {
    const char *name = *at + 1, *close = memchr(name, '}', (size_t)(end - name));
    if (!close) return error_set(error, ERROR_USAGE, "template \"%s\": { without }; write {{ for a brace", t->source);
    if (close == name)
        return error_set(error, ERROR_USAGE, "template \"%s\": {} names no field; write {{}} for braces", t->source);
    if (memchr(name, '{', (size_t)(close - name)))
        return error_set(error, ERROR_USAGE, "template \"%s\": { within a field's name", t->source);
    *piece = (Piece){true, copy_part(t->arena, name, (size_t)(close - name))};
    *at = close + 1;
    return true;
}

static bool parse_variant(Template *t, const char *text, size_t size, Variant *variant, Error *error) {
    const char *at = text, *end = text + size;
    variant->pieces = arena_array(t->arena, Piece, size + 1);
    while (at < end) {
        Piece *piece = &variant->pieces[variant->count++];
        bool field = *at == '{' && !(at + 1 < end && at[1] == '{');
        if (!(field ? parse_field(t, &at, end, piece, error) : parse_literal(t, &at, end, piece, error))) return false;
    }
    if (!variant->count) return error_set(error, ERROR_USAGE, "template \"%s\": an empty variant", t->source);
    return true;
}

Template *template_parse(const char *text, Error *error) {
    Arena *arena = arena_new(4096);
    Template *t = arena_array(arena, Template, 1);
    t->arena = arena;
    t->source = arena_string(arena, text);
    t->count = 1;
    for (const char *bar = text; (bar = strstr(bar, "||")); bar += 2) t->count++;
    t->variants = arena_array(arena, Variant, t->count);
    for (int v = 0; v < t->count; v++) {
        const char *bar = strstr(text, "||");
        size_t size = bar ? (size_t)(bar - text) : strlen(text);
        if (!parse_variant(t, text, size, &t->variants[v], error)) {
            template_free(t);
            return NULL;
        }
        if (bar) text = bar + 2;
    }
    return t;
}

void template_free(Template *t) {
    if (t) arena_free(t->arena);
}

int template_variants(const Template *t) { return t->count; }

static bool append_value(const json_t *value, uint64_t draw, Buffer *out) {
    if (json_is_array(value) && json_array_size(value)) {
        value = json_array_get(value, (size_t)(draw % json_array_size(value)));
        if (json_is_array(value)) return false;
    }
    if (json_is_string(value) && json_string_length(value))
        buffer_append(out, json_string_value(value), json_string_length(value));
    else if (json_is_integer(value))
        buffer_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        buffer_printf(out, "%g", json_real_value(value));
    else
        return false;
    return true;
}

static bool is_blank(const char *text, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (!isspace((unsigned char)text[i])) return false;
    return true;
}

static void take_back(Buffer *out, size_t size) {
    out->size = size;
    if (out->data) out->data[size] = 0;
}

bool template_expand(const Template *t, int variant, const json_t *object, uint64_t draw, Buffer *out, Error *error) {
    size_t before = out->size;
    check(variant >= 0 && variant < t->count);
    const Variant *v = &t->variants[variant];
    for (int p = 0; p < v->count; p++) {
        const Piece *piece = &v->pieces[p];
        if (!piece->field) {
            buffer_text(out, piece->text);
        } else if (!append_value(json_object_get(object, piece->text), draw, out)) {
            take_back(out, before);
            return error_set(error, ERROR_FAILED, "field \"%s\" of the template \"%s\" is absent or empty", piece->text,
                             t->source);
        }
    }
    if (!is_blank(out->data + before, out->size - before)) return true;
    take_back(out, before);
    return error_set(error, ERROR_FAILED, "the template \"%s\" gives a blank text", t->source);
}

bool template_draw(const Template *t, const json_t *object, uint64_t draw, Buffer *out, Error *error) {
    uint64_t count = (uint64_t)t->count, first = draw % count;
    for (uint64_t i = 0; i < count; i++)
        if (template_expand(t, (int)((first + i) % count), object, draw / count, out, error)) return true;
    return false;
}
