/* See options.h. */
#include "cli/options.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
