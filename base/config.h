/* Configuration: one table of keys is the YAML reader, the command-line overrides, --help, validation and the file that
 * a run keeps. A key is a dotted name and a place in a plain struct. */
#pragma once
#include "arena.h"
#include "buffer.h"
#include "error.h"

typedef enum {
    CONFIG_BOOL,    // bool
    CONFIG_INT,     // int64_t
    CONFIG_FLOAT,   // double
    CONFIG_STRING,  // const char *, in the arena; never NULL
    CONFIG_CHOICE,  // int: the index into `choices`
    CONFIG_STRINGS, // StringList: a YAML list of strings, or "a,b,c" on the command line
    CONFIG_CHOICES, // unsigned: a set of `choices`, bit i for choice i; a YAML list, or "a,b" on the command line
    CONFIG_LIST,    // ConfigList: a YAML list of maps, each read by `item`
} ConfigType;

typedef struct StringList { const char **items; int count; } StringList;
typedef struct ConfigList { void *items; int count; } ConfigList; // items: array of `item->size` bytes each

typedef struct ConfigSchema ConfigSchema;
typedef struct ConfigKey {
    const char *name;            // "train.learning_rate"; in an item's schema: "path"
    ConfigType  type;
    size_t      offset;          // of the value in the struct
    const char *fallback;        // the default as it would be written; NULL: the user must give it
    double      least, most;     // INT, FLOAT: the range, both ends included (both 0: any finite)
    const char *choices;         // CHOICE, CHOICES: "one|two|three"
    const ConfigSchema *item;    // LIST
    const char *unit, *help;     // unit: "tokens", "" where there is none
} ConfigKey;

struct ConfigSchema {
    const ConfigKey *keys;
    int              count;
    size_t           size; // of the struct
};

// Sets every key to its default (those without one to zero, "").
void config_defaults(const ConfigSchema *, void *out, Arena *);
// Defaults, then the file (path may be NULL: none), then overrides "section.key=value" ("data.0.path=..." for lists) in
// order; then required keys are checked. Unknown keys are errors with the nearest known one; messages carry file, line
// and column, or the override as typed. `out` holds strings in the arena.
bool config_read(const ConfigSchema *, const char *path, const char *const *overrides, int n_overrides, void *out,
                 Arena *, Error *);
void config_write(const ConfigSchema *, const void *config, Buffer *yaml); // resolved: reads back to the same values
void config_help(const ConfigSchema *, Buffer *out);                       // every key: type, default, range, unit, help
// The nearest of `count` words to `word` by edits, or NULL where none is near.
const char *nearest_word(const char *word, const char *const *words, int count);
