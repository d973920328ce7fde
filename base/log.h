/* What a program tells its user while it works: lines on stderr, and in a file where one is given. Thread-safe. */
#pragma once
#include "error.h"
#include <stdio.h>

typedef enum { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR } LogLevel;
typedef struct Log Log;

Log *log_new(LogLevel least, FILE *stream);                    // stream: usually stderr; not owned
bool log_open_file(Log *, const char *path, Error *);          // appends every line there too
// From here on the stream gets only lines of `least` or above, with `prefix` in front; a file gets all as before. Copied.
void log_set_stream(Log *, LogLevel least, const char *prefix);
void log_free(Log *);                                          // NULL is allowed
void log_write(Log *, LogLevel, const char *format, ...) PRINTF_LIKE(3, 4); // a NULL log is silent
#define log_info(log, ...)    log_write((log), LOG_INFO, __VA_ARGS__)
#define log_warning(log, ...) log_write((log), LOG_WARNING, __VA_ARGS__)
#define log_error(log, ...)   log_write((log), LOG_ERROR, __VA_ARGS__)

bool log_is_terminal(const Log *);           // false for NULL
void log_status(Log *, const char *text);    // a line kept below the others on a terminal, cut to its width; NULL: none
