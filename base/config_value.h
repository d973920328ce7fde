/* Inside the configuration: single values. */
#pragma once
#include "config.h"
#include "config_yaml.h"

// Any type but CONFIG_LIST. prefix: in front of the key's name in messages.
bool config_read_value(const ConfigKey *, const YamlNode *, const char *prefix, void *value, Arena *, Error *);
// The words of "a|b|c" or "a,b,c"; "" has none. *words: in the arena.
int  config_split(const char *text, char separator, const char ***words, Arena *);
