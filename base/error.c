/* See error.h. */
#include "base/error.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Cuts at a character, where vsnprintf cut in the middle of one.
static void trim_utf8(char *text, size_t capacity) {
    size_t n = strlen(text);
    if (n + 1 < capacity) return;
    while (n && ((unsigned char)text[n - 1] & 0xC0) == 0x80) n--;
    if (n && ((unsigned char)text[n - 1] & 0x80)) n--;
    text[n] = 0;
}

static void set(Error *error, ErrorKind kind, const char *format, va_list arguments) {
    error->kind = kind;
    vsnprintf(error->message, sizeof error->message, format, arguments);
    trim_utf8(error->message, sizeof error->message);
}

bool error_set(Error *error, ErrorKind kind, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    set(error, kind, format, arguments);
    va_end(arguments);
    return false;
}

bool error_set_errno(Error *error, ErrorKind kind, const char *format, ...) {
    int number = errno;
    va_list arguments;
    va_start(arguments, format);
    set(error, kind, format, arguments);
    va_end(arguments);
    size_t n = strlen(error->message);
    snprintf(error->message + n, sizeof error->message - n, ": %s", strerror(number));
    return false;
}

bool error_prefix(Error *error, const char *format, ...) {
    char    text[sizeof error->message], before[sizeof error->message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(before, sizeof before, format, arguments);
    va_end(arguments);
    memcpy(text, error->message, sizeof text);
    size_t n = strlen(before), room = sizeof error->message - 1;
    if (n > room - 2) n = room - 2;
    memcpy(error->message, before, n);
    snprintf(error->message + n, sizeof error->message - n, ": %s", text);
    trim_utf8(error->message, sizeof error->message);
    if (error->kind == ERROR_NONE) error->kind = ERROR_FAILED;
    return false;
}

_Noreturn void check_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, condition);
    abort();
}
