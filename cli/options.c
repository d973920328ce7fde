/* See options.h. */
#include "cli/options.h"
#include "base/config.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_OPTIONS = 64 };

bool option_unknown(Error *error, const char *what, const char *word, const char *const *names, int count,
                    const char *help) {
    const char *near = nearest_word(word, names, count);
    return error_set(error, ERROR_USAGE, "no %s '%s'%s%s%s; see `bifocal %s`", what, word,
                     near ? ", did you mean '" : "", near ? near : "", near ? "'?" : "", help);
}

// What getopt_long could not take: argv[optind - 1], or one letter of it.
static void refuse_option(int argc, char **argv, const struct option *options, const char *command, Error *error) {
    char word[64], help[64];
    const char *names[MOST_OPTIONS], *given = argv[optind > 1 && optind <= argc ? optind - 1 : argc - 1];
    int count = 0, like = 0;
    snprintf(help, sizeof help, "%s --help", command);
    if (strncmp(given, "--", 2) != 0 && optopt) {
        error_set(error, ERROR_USAGE, "no option '-%c'; see `bifocal %s`", optopt, help);
        return;
    }
    snprintf(word, sizeof word, "%.*s", (int)strcspn(given + 2, "="), given + 2);
    for (const struct option *o = options; o->name && count < MOST_OPTIONS; o++) {
        like += strncmp(o->name, word, strlen(word)) == 0;
        names[count++] = o->name;
    }
    if (optopt)
        error_set(error, ERROR_USAGE, "--%s takes no value; see `bifocal %s`", word, help);
    else if (like)
        error_set(error, ERROR_USAGE, "--%s is the start of several options; see `bifocal %s`", word, help);
    else {
        const char *near = nearest_word(word, names, count);
        error_set(error, ERROR_USAGE, "no option '--%s'%s%s%s; see `bifocal %s`", word,
                  near ? ", did you mean '--" : "", near ? near : "", near ? "'?" : "", help);
    }
}

static int next(int argc, char **argv, const char *letters, const struct option *options, const char *command,
                Error *error) {
    int c = getopt_long(argc, argv, letters, options, NULL);
    if (c == '?') refuse_option(argc, argv, options, command, error);
    if (c != ':') return c;
    error_set(error, ERROR_USAGE, "%s wants a value; see `bifocal %s --help`", argv[argc - 1], command);
    return '?';
}

// The colon: getopt prints nothing by itself.
int option_next(int argc, char **argv, const struct option *options, const char *command, Error *error) {
    return next(argc, argv, ":h", options, command, error);
}

int option_leading(int argc, char **argv, const char *letters, const struct option *options, const char *command,
                   Error *error) {
    char all[32];
    snprintf(all, sizeof all, "+:h%s", letters);
    return next(argc, argv, all, options, command, error);
}

bool config_words_set(ConfigWords *w, const char *setting, Error *error) {
    if (w->count == CONFIG_SETTINGS)
        return error_set(error, ERROR_USAGE, "too many settings: '%s', where %d are the most", setting,
                         CONFIG_SETTINGS);
    w->settings[w->count++] = setting;
    return true;
}

bool config_words(ConfigWords *w, int argc, char **argv, Error *error) {
    for (int i = optind; i < argc; i++) {
        bool setting = strchr(argv[i], '=');
        if (setting && !config_words_set(w, argv[i], error)) return false;
        if (!setting && w->config) return error_set(error, ERROR_USAGE, "a second CONFIG: '%s'", argv[i]);
        if (!setting) w->config = argv[i];
    }
    return true;
}

bool option_number(const char *text, double least, double most, const char *option, double *value, Error *error) {
    char *end = NULL;
    errno = 0;
    *value = strtod(text, &end);
    if (errno || end == text || *end || !(*value >= least && *value <= most))
        return error_set(error, ERROR_USAGE, "%s '%s' is not a number from %.15g to %.15g", option, text, least, most);
    return true;
}

bool option_choice(const char *text, const char *choices, const char *option, int *index, Error *error) {
    size_t size = strlen(text);
    *index = 0;
    for (const char *word = choices; word; (*index)++) {
        if (strcspn(word, "|") == size && !strncmp(word, text, size)) return true;
        word = strchr(word, '|');
        if (word) word++;
    }
    return error_set(error, ERROR_USAGE, "%s '%s' is none of %s", option, text, choices);
}
