/* Values of command-line options, with messages that name the option. */
#pragma once
#include "base/error.h"

// A number in [least, most].
bool option_number(const char *text, double least, double most, const char *option, double *value, Error *);
// The index of `text` in "one|two|three".
bool option_choice(const char *text, const char *choices, const char *option, int *index, Error *);
