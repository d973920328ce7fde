/* See config.h and config_value.h: from text to values, each checked against its key's row. */
#include "base/config_value.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Value { // what the readers below share
    const ConfigKey *key;
    const char *place, *prefix;
    Arena *arena;
    Error *error;
} Value;

static bool wrong(const Value *value, const char *text, const char *expected) {
    return error_set(value->error, ERROR_USAGE, "%s: %s%s is '%.200s', %s was expected", value->place, value->prefix,
                     value->key->name, text, expected);
}

int config_split(const char *text, char separator, const char ***words, Arena *arena) {
    int count = *text ? 1 : 0, at = 0;
    for (const char *c = text; *c; c++) count += *c == separator;
    *words = arena_array(arena, const char *, count);
    while (at < count) {
        size_t length = strchr(text, separator) ? (size_t)(strchr(text, separator) - text) : strlen(text);
        (*words)[at++] = arena_printf(arena, "%.*s", (int)length, text);
        text += length + 1;
    }
    return count;
}

static bool out_of_range(const Value *value, double number) {
    const ConfigKey *key = value->key;
    return (key->least != 0 || key->most != 0) && !(number >= key->least && number <= key->most);
}

static bool refuse_range(const Value *value, const char *text) {
    return error_set(value->error, ERROR_USAGE, "%s: %s%s is %s, allowed is %.10g to %.10g%s%s", value->place,
                     value->prefix, value->key->name, text, value->key->least, value->key->most,
                     value->key->unit && *value->key->unit ? " " : "", value->key->unit ? value->key->unit : "");
}

static bool read_bool(const Value *value, const char *text, bool *out) {
    *out = !strcmp(text, "true");
    return *out || !strcmp(text, "false") || wrong(value, text, "true or false");
}

static bool read_int(const Value *value, const char *text, int64_t *out) {
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end || errno || strchr(" \t\n", *text)) return wrong(value, text, "a whole number");
    if (out_of_range(value, (double)number)) return refuse_range(value, text);
    *out = number;
    return true;
}

static bool read_float(const Value *value, const char *text, double *out) {
    char *end;
    double number = strtod(text, &end);
    if (end == text || *end || !isfinite(number) || strchr(" \t\n", *text)) return wrong(value, text, "a number");
    if (out_of_range(value, number)) return refuse_range(value, text);
    *out = number;
    return true;
}

static bool read_choice(const Value *value, const char *text, int *out) {
    const char **words;
    int count = config_split(value->key->choices, '|', &words, value->arena);
    for (*out = 0; *out < count; ++*out)
        if (!strcmp(words[*out], text)) return true;
    *out = 0;
    const char *near = nearest_word(text, words, count);
    return wrong(value, text,
                 arena_printf(value->arena, "%s%s%sone of %s", near ? "perhaps " : "", near ? near : "",
                              near ? ", " : "", value->key->choices));
}

static bool read_choices(const Value *value, StringList words, unsigned *out) {
    unsigned set = 0;
    for (int i = 0; i < words.count; i++) {
        int index;
        if (!read_choice(value, words.items[i], &index)) return false;
        check(index < 32);
        set |= 1u << index;
    }
    *out = set;
    return true;
}

// The words of a YAML list, or of "a,b,c" as typed on the command line; in a file a lone word is a list of one.
static bool read_words(const Value *value, const YamlNode *node, StringList *out) {
    if (node->kind == YAML_SCALAR && node->from_override) {
        out->count = config_split(node->text, ',', &out->items, value->arena);
        return true;
    }
    if (node->kind == YAML_MAP)
        return error_set(value->error, ERROR_USAGE, "%s: %s%s must be a list", node->place, value->prefix,
                         value->key->name);
    bool alone = node->kind == YAML_SCALAR;
    out->count = alone ? *node->text != 0 : node->count;
    out->items = arena_array(value->arena, const char *, out->count);
    const YamlNode *child = alone ? node : node->first;
    for (int i = 0; i < out->count; i++, child = child->next) {
        if (child->kind != YAML_SCALAR)
            return error_set(value->error, ERROR_USAGE, "%s: %s%s must be a list of words", child->place, value->prefix,
                             value->key->name);
        out->items[i] = child->text;
    }
    return true;
}

bool config_read_value(const ConfigKey *key, const YamlNode *node, const char *prefix, void *out, Arena *arena,
                       Error *error) {
    Value value = {key, node->place, prefix, arena, error};
    StringList words = {NULL, 0};
    if (key->type == CONFIG_STRINGS || key->type == CONFIG_CHOICES) {
        if (!read_words(&value, node, &words)) return false;
        if (key->type == CONFIG_CHOICES) return read_choices(&value, words, out);
        *(StringList *)out = words;
        return true;
    }
    if (node->kind != YAML_SCALAR)
        return error_set(error, ERROR_USAGE, "%s: %s%s must be a single value", node->place, prefix, key->name);
    switch (key->type) {
    case CONFIG_BOOL:
        return read_bool(&value, node->text, out);
    case CONFIG_INT:
        return read_int(&value, node->text, out);
    case CONFIG_FLOAT:
        return read_float(&value, node->text, out);
    case CONFIG_CHOICE:
        return read_choice(&value, node->text, out);
    default:
        *(const char **)out = node->text;
        return true;
    }
}

void config_defaults(const ConfigSchema *schema, void *out, Arena *arena) {
    memset(out, 0, schema->size);
    for (int i = 0; i < schema->count; i++) {
        const ConfigKey *key = &schema->keys[i];
        void *value = (char *)out + key->offset;
        Error error = {0};
        YamlNode node = {.kind = YAML_SCALAR, .text = key->fallback, .place = "default", .from_override = true};
        if (key->type == CONFIG_STRING) *(const char **)value = "";
        if (!key->fallback || key->type == CONFIG_LIST) continue;
        bool ok = config_read_value(key, &node, "", value, arena, &error);
        if (!ok) fprintf(stderr, "%s\n", error.message);
        check(ok && "a default that its own key does not allow");
    }
}

enum { LONGEST_WORD = 63 };

static int smallest(int a, int b, int c) {
    int least = a < b ? a : b;
    return least < c ? least : c;
}

// Edits between two words: insertions, deletions, substitutions, swaps of neighbours (optimal string alignment).
static int edits(const char *a, const char *b) {
    int n = (int)strlen(a), m = (int)strlen(b), rows[3][LONGEST_WORD + 1] = {{0}};
    if (n > LONGEST_WORD || m > LONGEST_WORD) return LONGEST_WORD;
    int *before = rows[0], *last = rows[1], *row = rows[2];
    for (int j = 0; j <= m; j++) last[j] = j;
    for (int i = 1; i <= n; i++) {
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            row[j] = smallest(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && before[j - 2] + 1 < row[j]) row[j] = before[j - 2] + 1;
        }
        int *oldest = before;
        before = last;
        last = row;
        row = oldest;
    }
    return last[m];
}

const char *nearest_word(const char *word, const char *const *words, int count) {
    const char *nearest = NULL;
    int most = (int)strlen(word) / 3, least = most < 1 ? 2 : most < 4 ? most + 1 : 5;
    for (int i = 0; i < count; i++) {
        int distance = edits(word, words[i]);
        if (distance >= least) continue;
        least = distance;
        nearest = words[i];
    }
    return nearest;
}
