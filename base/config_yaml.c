/* See config_yaml.h. The only file that knows libfyaml: its parser's events become a tree. What configuration has no
 * use for (anchors, aliases, several documents, maps as keys) is refused with its place. */
#include "base/config_yaml.h"
#include "base/unicode.h"
#include <libfyaml.h>
#include <string.h>

enum { MAX_LEVELS = 32, MAX_KEYS = 4096 };

typedef struct Yaml {
    struct fy_parser *parser;
    struct fy_diag *diagnostics;
    const char *name;
    Arena *arena;
    Error *error;
} Yaml;

void yaml_append(YamlNode *parent, YamlNode *child) {
    if (parent->last)
        parent->last->next = child;
    else
        parent->first = child;
    parent->last = child;
    parent->count++;
}

static bool refuse(Yaml *yaml, const char *place, const char *what) {
    return error_set(yaml->error, ERROR_USAGE, "%s: %s", place, what);
}

// What libfyaml has against the text. It reports most errors once, with the place it noticed them at.
static bool syntax_error(Yaml *yaml) {
    void *at = NULL;
    struct fy_diag_error *found = fy_diag_errors_iterate(yaml->diagnostics, &at);
    if (!found) return error_set(yaml->error, ERROR_USAGE, "%s: not valid YAML", yaml->name);
    return error_set(yaml->error, ERROR_USAGE, "%s:%d:%d: %s", yaml->name, found->line, found->column, found->msg);
}

static const char *place_of(Yaml *yaml, struct fy_token *token) {
    const struct fy_mark *mark = token ? fy_token_start_mark(token) : NULL;
    if (!mark) return yaml->name;
    return arena_printf(yaml->arena, "%s:%d:%d", yaml->name, mark->line + 1, mark->column + 1);
}

static YamlNode *new_node(Yaml *yaml, YamlKind kind, struct fy_token *token) {
    YamlNode *node = arena_zeroed(yaml->arena, sizeof *node);
    node->kind = kind;
    node->place = place_of(yaml, token);
    return node;
}

static YamlNode *scalar_node(Yaml *yaml, struct fy_token *token) {
    YamlNode *node = new_node(yaml, YAML_SCALAR, token);
    size_t size = 0;
    const char *text = token ? fy_token_get_text(token, &size) : "";
    if (text && memchr(text, 0, size)) {
        refuse(yaml, node->place, "a zero byte in a value");
        return NULL;
    }
    node->text = arena_printf(yaml->arena, "%.*s", (int)size, text ? text : "");
    return node;
}

static YamlNode *parse_node(Yaml *yaml, struct fy_event *event, int level);

// Also keeps the search over the keys so far short.
static bool key_is_new(Yaml *yaml, const YamlNode *map, const char *key, const char *place) {
    if (map->count >= MAX_KEYS) return refuse(yaml, place, "too many keys");
    for (const YamlNode *child = map->first; child; child = child->next) {
        if (strcmp(child->key, key) != 0) continue;
        return error_set(yaml->error, ERROR_USAGE, "%s: '%s' is already given at %s", place, key, child->key_place);
    }
    return true;
}

// Children up to the event that ends the list or map.
static bool parse_children(Yaml *yaml, YamlNode *parent, enum fy_event_type end, int level) {
    for (;;) {
        YamlNode *child = NULL, *key = NULL;
        struct fy_event *event = fy_parser_parse(yaml->parser);
        if (!event) return syntax_error(yaml);
        bool ended = event->type == end;
        if (!ended) child = parse_node(yaml, event, level);
        fy_parser_event_free(yaml->parser, event);
        if (ended) return true;
        if (!child) return false;
        if (parent->kind == YAML_MAP) {
            key = child;
            if (key->kind != YAML_SCALAR) return refuse(yaml, key->place, "a key must be a word");
            if (!key_is_new(yaml, parent, key->text, key->place)) return false;
            if (!(event = fy_parser_parse(yaml->parser))) return syntax_error(yaml);
            child = parse_node(yaml, event, level);
            fy_parser_event_free(yaml->parser, event);
            if (!child) return false;
            child->key = key->text;
            child->key_place = key->place;
            if (child->place == yaml->name) child->place = key->place; // nothing was written: no place of its own
        }
        yaml_append(parent, child);
    }
}

// The node that `event` begins. NULL on failure.
static YamlNode *parse_node(Yaml *yaml, struct fy_event *event, int level) {
    YamlNode *node = NULL;
    struct fy_token *anchor = NULL;
    bool ok = level < MAX_LEVELS;
    if (!ok) {
        refuse(yaml, yaml->name, "lists and maps nested too deeply");
        return NULL;
    }
    switch (event->type) {
    case FYET_SCALAR:
        anchor = event->scalar.anchor;
        node = scalar_node(yaml, event->scalar.value);
        break;
    case FYET_SEQUENCE_START:
        anchor = event->sequence_start.anchor;
        node = new_node(yaml, YAML_LIST, event->sequence_start.sequence_start);
        ok = parse_children(yaml, node, FYET_SEQUENCE_END, level + 1);
        break;
    case FYET_MAPPING_START:
        anchor = event->mapping_start.anchor;
        node = new_node(yaml, YAML_MAP, event->mapping_start.mapping_start);
        ok = parse_children(yaml, node, FYET_MAPPING_END, level + 1);
        break;
    case FYET_ALIAS:
        ok = refuse(yaml, place_of(yaml, event->alias.anchor), "aliases are not supported; write it out");
        break;
    default:
        refuse(yaml, yaml->name, "not one YAML document");
        return NULL;
    }
    if (ok && anchor) ok = refuse(yaml, place_of(yaml, anchor), "anchors are not supported; write it out");
    return ok ? node : NULL;
}

static YamlNode *parse_document(Yaml *yaml) {
    YamlNode *root = NULL;
    for (;;) {
        struct fy_event *event = fy_parser_parse(yaml->parser);
        if (!event) {
            syntax_error(yaml);
            return NULL;
        }
        enum fy_event_type type = event->type;
        bool structure = type == FYET_STREAM_START || type == FYET_DOCUMENT_START || type == FYET_DOCUMENT_END;
        bool second = !structure && type != FYET_STREAM_END && root;
        if (second)
            refuse(yaml, yaml->name, "more than one YAML document");
        else if (!structure && type != FYET_STREAM_END)
            root = parse_node(yaml, event, 0);
        fy_parser_event_free(yaml->parser, event);
        if (type == FYET_STREAM_END) return root ? root : new_node(yaml, YAML_MAP, NULL);
        if (second || (!structure && !root)) return NULL;
    }
}

// What libfyaml is not given: text that is not UTF-8, and directives, over which its scanner can loop for ever.
static bool screen(Yaml *yaml, const char *text, size_t size) {
    uint32_t code;
    int line = 1, length;
    for (size_t at = 0; at < size; at += (size_t)length) {
        bool starts_line = at == 0 || text[at - 1] == '\n' || text[at - 1] == '\r';
        length = utf8_decode(text + at, size - at, &code);
        line += code == '\n' && length;
        const char *fault = length == 0                  ? "is not UTF-8"
                            : code == 0                  ? "has a zero byte"
                            : starts_line && code == '%' ? "is a YAML directive, which are not supported"
                                                         : NULL;
        if (fault) return error_set(yaml->error, ERROR_USAGE, "%s:%d: the line %s", yaml->name, line, fault);
    }
    return true;
}

YamlNode *yaml_parse(const char *text, size_t size, const char *name, Arena *arena, Error *error) {
    struct fy_diag_cfg settings;
    Yaml yaml = {.name = name, .arena = arena, .error = error};
    YamlNode *root = NULL;
    if (size >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) text += 3, size -= 3; // a byte order mark
    if (!screen(&yaml, text, size)) return NULL;
    fy_diag_cfg_default(&settings);
    settings.fp = NULL;
    yaml.diagnostics = fy_diag_create(&settings);
    check(yaml.diagnostics);
    fy_diag_set_collect_errors(yaml.diagnostics, true);
    struct fy_parse_cfg how = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_JSON_NONE, .diag = yaml.diagnostics};
    yaml.parser = fy_parser_create(&how);
    check(yaml.parser);
    if (size == 0)
        root = new_node(&yaml, YAML_MAP, NULL); // libfyaml takes size 0 for "up to the zero"
    else if (fy_parser_set_string(yaml.parser, text, size) == 0)
        root = parse_document(&yaml);
    else
        syntax_error(&yaml);
    fy_parser_destroy(yaml.parser);
    fy_diag_destroy(yaml.diagnostics);
    return root;
}
