/* Between config.c and config_yaml.c: a YAML text as a tree of nodes that know their places. */
#pragma once
#include "arena.h"
#include "error.h"

typedef enum YamlKind { YAML_SCALAR, YAML_LIST, YAML_MAP } YamlKind;

typedef struct YamlNode YamlNode;
struct YamlNode {
    YamlKind    kind;
    const char *key;         // in a map; NULL elsewhere
    const char *key_place;   // "file:line:column" or the override as typed
    const char *text, *place; // text: of a scalar
    bool        from_override; // text typed on the command line
    YamlNode   *first, *last, *next; // children; the next sibling
    int         count;
};

// The text's one document; an empty one is an empty map. Everything lives in the arena. NULL on failure.
YamlNode *yaml_parse(const char *text, size_t size, const char *name, Arena *, Error *);
void      yaml_append(YamlNode *parent, YamlNode *child);
