/* See config.h: from a tree of YAML and overrides to a struct. Overrides join the tree as nodes behind what the file
 * says, then one walk over the tree fills the struct; what comes later wins. Values are read in config_value.c, written
 * in config_write.c. */
#include "base/config.h"
#include "base/config_value.h"
#include "base/config_yaml.h"
#include "base/files.h"
#include "base/unicode.h"
#include <stdlib.h>
#include <string.h>

enum { LARGEST_FILE = 1 << 20, MOST_ITEMS = 1024 };

typedef struct Reading {
    const ConfigSchema *schema;
    void *out;
    const char *prefix; // in front of the schema's names in messages: "" or "data.0."
    bool *given;        // (schema->count)
    Arena *arena;
    Error *error;
} Reading;

static bool read_struct(const ConfigSchema *, const YamlNode *map, const char *prefix, void *out, Arena *, Error *);

static bool starts_with_section(const char *name, const char *section) {
    size_t n = strlen(section);
    return !strncmp(name, section, n) && name[n] == '.';
}

static const ConfigKey *find_key(const ConfigSchema *schema, const char *name, int *index) {
    for (*index = 0; *index < schema->count; ++*index)
        if (!strcmp(schema->keys[*index].name, name)) return &schema->keys[*index];
    return NULL;
}

static bool is_section(const ConfigSchema *schema, const char *name) {
    for (int i = 0; i < schema->count; i++)
        if (starts_with_section(schema->keys[i].name, name)) return true;
    return false;
}

// A known key or section near `name`: by spelling, or the same last word in another section.
static const char *suggest(const ConfigSchema *schema, const char *name, Arena *arena) {
    int count = 0, most = schema->count;
    const char *last = strrchr(name, '.') ? strrchr(name, '.') + 1 : name;
    for (int i = 0; i < schema->count; i++)
        for (const char *c = schema->keys[i].name; *c; c++) most += *c == '.';
    const char **words = arena_array(arena, const char *, most + 1);
    for (int i = 0; i < schema->count; i++) {
        const char *key = schema->keys[i].name;
        words[count++] = key;
        for (const char *dot = strchr(key, '.'); dot; dot = strchr(dot + 1, '.'))
            words[count++] = arena_printf(arena, "%.*s", (int)(dot - key), key);
    }
    const char *near = nearest_word(name, words, count);
    for (int i = 0; i < schema->count && !near; i++) {
        const char *dot = strrchr(schema->keys[i].name, '.');
        if (!strcmp(dot ? dot + 1 : schema->keys[i].name, last)) near = schema->keys[i].name;
    }
    return near;
}

static bool unknown_key(const Reading *reading, const YamlNode *node, const char *name) {
    const char *near = suggest(reading->schema, name, reading->arena);
    return error_set(reading->error, ERROR_USAGE, "%s: unknown key '%s%.200s'%s%s%s%s", node->key_place,
                     reading->prefix, name, near ? "; did you mean '" : "; --help lists all keys",
                     near ? reading->prefix : "", near ? near : "", near ? "'?" : "");
}

static bool read_list(const Reading *reading, const ConfigKey *key, const YamlNode *node, ConfigList *list) {
    if (node->kind == YAML_SCALAR && !*node->text) {
        *list = (ConfigList){NULL, 0};
        return true;
    }
    if (node->kind != YAML_LIST)
        return error_set(reading->error, ERROR_USAGE, "%s: %s%s must be a list of maps (- key: value)", node->place,
                         reading->prefix, key->name);
    if (node->count > MOST_ITEMS)
        return error_set(reading->error, ERROR_USAGE, "%s: %s%s has more than %d items", node->place, reading->prefix,
                         key->name, MOST_ITEMS);
    char *items = arena_zeroed(reading->arena, key->item->size * (size_t)node->count);
    int index = 0;
    for (const YamlNode *child = node->first; child; child = child->next, index++) {
        const char *prefix = arena_printf(reading->arena, "%s%s.%d.", reading->prefix, key->name, index);
        if (child->kind != YAML_MAP)
            return error_set(reading->error, ERROR_USAGE, "%s: %.*s must be a map of keys (key: value)", child->place,
                             (int)strlen(prefix) - 1, prefix);
        void *item = items + key->item->size * (size_t)index;
        if (!read_struct(key->item, child, prefix, item, reading->arena, reading->error)) return false;
    }
    *list = (ConfigList){items, node->count};
    return true;
}

static bool read_section(const Reading *reading, const YamlNode *map, const char *section) {
    for (const YamlNode *node = map->first; node; node = node->next) {
        int index;
        const char *name = *section ? arena_printf(reading->arena, "%s.%s", section, node->key) : node->key;
        const ConfigKey *key = find_key(reading->schema, name, &index);
        if (key) {
            void *value = (char *)reading->out + key->offset;
            reading->given[index] = true;
            bool ok = key->type == CONFIG_LIST
                          ? read_list(reading, key, node, value)
                          : config_read_value(key, node, reading->prefix, value, reading->arena, reading->error);
            if (!ok) return false;
        } else if (!is_section(reading->schema, name)) {
            return unknown_key(reading, node, name);
        } else if (node->kind == YAML_MAP) {
            if (!read_section(reading, node, name)) return false;
        } else if (node->kind == YAML_LIST || *node->text) { // nothing at all is an empty section
            return error_set(reading->error, ERROR_USAGE, "%s: '%s%s' is a section, keys were expected under it",
                             node->place, reading->prefix, name);
        }
    }
    return true;
}

static bool read_struct(const ConfigSchema *schema, const YamlNode *map, const char *prefix, void *out, Arena *arena,
                        Error *error) {
    bool *given = arena_array(arena, bool, schema->count);
    Reading reading = {schema, out, prefix, given, arena, error};
    config_defaults(schema, out, arena);
    if (!read_section(&reading, map, "")) return false;
    for (int i = 0; i < schema->count; i++) {
        const ConfigKey *key = &schema->keys[i];
        if (key->fallback || given[i]) continue;
        return error_set(error, ERROR_USAGE, "%s: '%s%s' must be given: %s", map->place, prefix, key->name,
                         key->help ? key->help : "it has no default");
    }
    return true;
}

// The node last given under a dotted name, however its sections are nested. NULL where there is none.
static YamlNode *find_node(YamlNode *map, const char *name) {
    YamlNode *found = NULL;
    for (YamlNode *node = map->first; node; node = node->next) {
        YamlNode *inside = NULL;
        if (!strcmp(node->key, name))
            inside = node;
        else if (node->kind == YAML_MAP && starts_with_section(name, node->key))
            inside = find_node(node, name + strlen(node->key) + 1);
        if (inside) found = inside;
    }
    return found;
}

static YamlNode *new_map(Arena *arena, YamlKind kind, const char *key, const char *place) {
    YamlNode *node = arena_zeroed(arena, sizeof *node);
    node->kind = kind;
    node->key = key;
    node->place = node->key_place = place;
    return node;
}

// For "data.1.path": the map of item 1 of the list "data" (made where it is the next one); *rest is "path". The root
// itself where the name leads into no list. NULL with an error where there is no such item.
static YamlNode *override_target(const ConfigSchema *schema, YamlNode *root, const char *name, const char *place,
                                 const char **rest, Arena *arena, Error *error) {
    *rest = name;
    for (int i = 0; i < schema->count; i++) {
        const ConfigKey *key = &schema->keys[i];
        char *end;
        if (key->type != CONFIG_LIST || !starts_with_section(name, key->name)) continue;
        const char *digits = name + strlen(key->name) + 1;
        long index = strtol(digits, &end, 10);
        YamlNode *list = find_node(root, key->name);
        if (end == digits || *end != '.' || index < 0) break;
        if (!list || list->kind != YAML_LIST) {
            list = new_map(arena, YAML_LIST, key->name, place);
            yaml_append(root, list);
        }
        if (index > list->count || index >= MOST_ITEMS) {
            error_set(error, ERROR_USAGE, "%s: %s has %d items, the next is %s.%d", place, key->name, list->count,
                      key->name, list->count);
            return NULL;
        }
        if (index == list->count) yaml_append(list, new_map(arena, YAML_MAP, NULL, place));
        YamlNode *item = list->first;
        while (index-- > 0) item = item->next;
        *rest = end + 1;
        return item;
    }
    return root;
}

static bool add_override(const ConfigSchema *schema, YamlNode *root, const char *text, Arena *arena, Error *error) {
    const char *equals = strchr(text, '='), *place = arena_printf(arena, "override '%s'", text), *rest;
    if (!utf8_valid(text, strlen(text))) return error_set(error, ERROR_USAGE, "%s: is not UTF-8", place);
    if (!equals || equals == text) return error_set(error, ERROR_USAGE, "%s: section.key=value was expected", place);
    const char *name = arena_printf(arena, "%.*s", (int)(equals - text), text), *value = equals + 1;
    YamlNode *target = override_target(schema, root, name, place, &rest, arena, error), *node;
    if (!target) return false;
    if (*value == '[') { // a list as YAML writes it
        node = yaml_parse(value, strlen(value), place, arena, error);
        if (!node) return false;
    } else {
        node = new_map(arena, YAML_SCALAR, rest, place);
        node->text = arena_string(arena, value);
        node->from_override = true;
    }
    node->key = rest;
    node->key_place = place;
    if (target->kind == YAML_MAP) yaml_append(target, node);
    return target->kind == YAML_MAP || error_set(error, ERROR_USAGE, "%s: %s is no map of keys", place, target->place);
}

bool config_read(const ConfigSchema *schema, const char *path, const char *const *overrides, int n_overrides, void *out,
                 Arena *arena, Error *error) {
    Buffer text = {0};
    YamlNode *root = new_map(arena, YAML_MAP, NULL, path ? path : "configuration");
    bool ok = true;
    if (path) {
        ok = file_read_limited(path, LARGEST_FILE, &text, error) &&
             (root = yaml_parse(text.data, text.size, path, arena, error));
        if (ok && root->kind != YAML_MAP)
            ok = error_set(error, ERROR_USAGE, "%s: keys were expected (section: key: value)", root->place);
    }
    for (int i = 0; ok && i < n_overrides; i++) ok = add_override(schema, root, overrides[i], arena, error);
    if (ok && path) root->place = path; // what is missing is missing in the file, not on its first line
    ok = ok && read_struct(schema, root, "", out, arena, error);
    if (!ok) error->kind = ERROR_USAGE;
    buffer_free(&text);
    return ok;
}
