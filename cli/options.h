/* Words and options of the command line, and their values, with messages that name what is wrong and what is near. */
#pragma once
#include "base/error.h"
#include <getopt.h>

// The next option's `val` ('h' for -h), -1 behind the last. '?' with the error where it is none of `options` (the
// nearest is named), could be several, or lacks its value. command: "data build".
int option_next(int argc, char **argv, const struct option *options, const char *command, Error *error);
// As option_next, but only what stands before the first word. letters: short options as getopt has them ("n:").
int option_leading(int argc, char **argv, const char *letters, const struct option *options, const char *command,
                   Error *error);
// The error for a word that is none of `names`: "bifocal: no command 'trian', did you mean 'train'?". Returns false.
bool option_unknown(Error *error, const char *what, const char *word, const char *const *names, int count,
                    const char *help);

enum { CONFIG_SETTINGS = 256 }; // at the most
typedef struct ConfigWords {    // of a command that takes [CONFIG] [section.key=value]...; borrowed from the command line
    const char *config;         // NULL: none
    const char *settings[CONFIG_SETTINGS];
    int count;
} ConfigWords;
// Adds all words behind the options; false with the error where there is a second CONFIG, or too many settings.
bool config_words(ConfigWords *, int argc, char **argv, Error *);
bool config_words_set(ConfigWords *, const char *setting, Error *); // adds one

// A number in [least, most].
bool option_number(const char *text, double least, double most, const char *option, double *value, Error *);
// The index of `text` in "one|two|three".
bool option_choice(const char *text, const char *choices, const char *option, int *index, Error *);
