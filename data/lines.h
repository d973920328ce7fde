/* Lines of a text file as they are, in flat memory whatever the file holds. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include <stdint.h>

typedef struct Lines Lines;
Lines *lines_open(const char *path, size_t most, Error *); // most: bytes of a line that is kept
// The next line with its end ("\n" or "\r\n"; the last may have none). *line is empty and *found false behind the last.
// A line over `most` bytes is passed over: it comes with *too_long set and only its beginning.
bool lines_next(Lines *, Buffer *line, bool *found, bool *too_long, Error *);
int64_t lines_number(const Lines *); // of the line last returned, from 1
void lines_close(Lines *);           // NULL is allowed
bool lines_count(const char *path, int64_t *count, Error *);
