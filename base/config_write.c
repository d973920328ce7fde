/* See config.h: a configuration as YAML, and the help for its keys. */
#include "base/config.h"
#include "base/config_value.h"
#include "base/unicode.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INDENT = 2, PLACE_COLUMN = 36 };

static bool is_plain(const char *text) {
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.+-";
    return *text && strchr(first, *text) && strspn(text, rest) == strlen(text);
}

// Control characters, and what YAML takes for the end of a line or for a mark.
static bool must_escape(uint32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029 || code == 0xFEFF ||
           code == 0xFFFE || code == 0xFFFF;
}

static void write_text(Buffer *out, const char *text) {
    if (is_plain(text)) {
        buffer_text(out, text);
        return;
    }
    uint32_t code;
    buffer_text(out, "\"");
    for (int length; (length = utf8_decode(text, strlen(text), &code)) > 0; text += length) {
        if (code == '"' || code == '\\')
            buffer_printf(out, "\\%c", (char)code);
        else if (must_escape(code))
            buffer_printf(out, "\\u%04x", code);
        else
            buffer_append(out, text, (size_t)length);
    }
    buffer_text(out, "\"");
}

// The fewest digits that read back as the same number.
static void write_number(Buffer *out, double number) {
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number) break;
    }
    buffer_text(out, text);
}

static void write_words(Buffer *out, StringList words) {
    buffer_text(out, "[");
    for (int i = 0; i < words.count; i++) {
        if (i) buffer_text(out, ", ");
        write_text(out, words.items[i]);
    }
    buffer_text(out, "]");
}

static void write_choice(Buffer *out, const char *choices, int index) {
    while (index-- > 0) choices = strchr(choices, '|') + 1;
    buffer_append(out, choices, strcspn(choices, "|"));
}

static void write_choices(Buffer *out, const char *choices, unsigned set) {
    bool any = false;
    buffer_text(out, "[");
    for (int i = 0; i < 32; i++) {
        if (!(set >> i & 1)) continue;
        if (any) buffer_text(out, ", ");
        write_choice(out, choices, i);
        any = true;
    }
    buffer_text(out, "]");
}

static void write_value(Buffer *out, const ConfigKey *key, const void *value) {
    switch (key->type) {
    case CONFIG_BOOL:
        buffer_text(out, *(const bool *)value ? "true" : "false");
        break;
    case CONFIG_INT:
        buffer_printf(out, "%" PRId64, *(const int64_t *)value);
        break;
    case CONFIG_FLOAT:
        write_number(out, *(const double *)value);
        break;
    case CONFIG_STRING:
        write_text(out, *(const char *const *)value);
        break;
    case CONFIG_CHOICE:
        write_choice(out, key->choices, *(const int *)value);
        break;
    case CONFIG_STRINGS:
        write_words(out, *(const StringList *)value);
        break;
    case CONFIG_CHOICES:
        write_choices(out, key->choices, *(const unsigned *)value);
        break;
    case CONFIG_LIST:
        buffer_text(out, "[]");
        break;
    }
}

static void write_section(const ConfigSchema *, const void *, const char *section, int indent, Buffer *);

static void write_list(const ConfigKey *key, const ConfigList *list, int indent, Buffer *out) {
    buffer_text(out, "\n");
    for (int i = 0; i < list->count; i++) {
        size_t start = out->size;
        write_section(key->item, (const char *)list->items + key->item->size * (size_t)i, "", indent + INDENT, out);
        memcpy(out->data + start + indent, "- ", INDENT);
    }
}

// All keys whose names start with `section`; each section inside is written where its first key stands.
static void write_section(const ConfigSchema *schema, const void *config, const char *section, int indent,
                          Buffer *out) {
    size_t skip = strlen(section);
    for (int i = 0; i < schema->count; i++) {
        const ConfigKey *key = &schema->keys[i];
        if (strncmp(key->name, section, skip) != 0) continue;
        const char *name = key->name + skip, *dot = strchr(name, '.');
        size_t inside = dot ? (size_t)(dot + 1 - key->name) : 0;
        bool written = false;
        for (int j = 0; j < i && inside; j++) written |= !strncmp(schema->keys[j].name, key->name, inside);
        if (written) continue;
        buffer_printf(out, "%*s%.*s:", indent, "", dot ? (int)(dot - name) : (int)strlen(name), name);
        if (dot) {
            char *deeper = strndup(key->name, inside);
            check(deeper);
            buffer_text(out, "\n");
            write_section(schema, config, deeper, indent + INDENT, out);
            free(deeper);
            continue;
        }
        const void *value = (const char *)config + key->offset;
        if (key->type == CONFIG_LIST && ((const ConfigList *)value)->count > 0) {
            write_list(key, value, indent, out);
            continue;
        }
        buffer_text(out, " ");
        write_value(out, key, value);
        buffer_text(out, "\n");
    }
}

void config_write(const ConfigSchema *schema, const void *config, Buffer *yaml) {
    write_section(schema, config, "", 0, yaml);
}

static void help_type(const ConfigKey *key, Buffer *out) {
    static const char *const names[] = {"true or false", "whole number",  "number",  "text",
                                        "one of ",       "list of texts", "any of ", "list of maps"};
    buffer_text(out, names[key->type]);
    if (key->type == CONFIG_CHOICE || key->type == CONFIG_CHOICES) buffer_text(out, key->choices);
    if (key->least != 0 || key->most != 0) buffer_printf(out, " from %.10g to %.10g", key->least, key->most);
    if (key->unit && *key->unit) buffer_printf(out, ", %s", key->unit);
}

static void help_keys(const ConfigSchema *schema, const char *prefix, Buffer *out) {
    for (int i = 0; i < schema->count; i++) {
        const ConfigKey *key = &schema->keys[i];
        Buffer name = {0};
        buffer_printf(&name, "%s%s", prefix, key->name);
        if (key->fallback && key->type != CONFIG_LIST) buffer_printf(&name, "=%s", key->fallback);
        buffer_printf(out, "  %-*s  ", PLACE_COLUMN, name.data);
        help_type(key, out);
        if (!key->fallback) buffer_text(out, "; must be given");
        buffer_printf(out, "\n      %s\n", key->help ? key->help : "");
        if (key->item) {
            buffer_clear(&name);
            buffer_printf(&name, "%s%s.N.", prefix, key->name);
            help_keys(key->item, name.data, out);
        }
        buffer_free(&name);
    }
}

void config_help(const ConfigSchema *schema, Buffer *out) { help_keys(schema, "", out); }
