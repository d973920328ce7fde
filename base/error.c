/* See error.h. Messages are formatted aside first, so that a message may be made from the one it replaces. */
#include "base/error.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Text {
    char data[sizeof((Error *)0)->message];
    size_t size;
} Text;

// Appends what fits. A cut is made at a character, never inside one.
static void append(Text *text, const char *part) {
    size_t n = strlen(part), room = sizeof text->data - 1 - text->size;
    if (n > room) {
        n = room;
        while (n && ((unsigned char)part[n] & 0xC0) == 0x80) n--;
    }
    memcpy(text->data + text->size, part, n);
    text->size += n;
    text->data[text->size] = 0;
}

__attribute__((format(printf, 2, 0))) static void append_format(Text *text, const char *format, va_list arguments) {
    char part[sizeof text->data + 4]; // longer than what can be kept, so that append sees where it has to cut
    vsnprintf(part, sizeof part, format, arguments);
    append(text, part);
}

static bool store(Error *error, ErrorKind kind, const Text *text) {
    error->kind = kind;
    memcpy(error->message, text->data, text->size + 1);
    return false;
}

// In parentheses these names are no macros: see error.h.
bool(error_set)(Error *error, ErrorKind kind, const char *format, ...) {
    Text text = {{0}, 0};
    va_list arguments;
    va_start(arguments, format);
    append_format(&text, format, arguments);
    va_end(arguments);
    return store(error, kind, &text);
}

bool(error_set_errno)(Error *error, ErrorKind kind, const char *format, ...) {
    char reason[128];
    Text text = {{0}, 0};
    va_list arguments;
    const char *why = strerror_r(errno, reason, sizeof reason);
    va_start(arguments, format);
    append_format(&text, format, arguments);
    va_end(arguments);
    append(&text, ": ");
    append(&text, why);
    return store(error, kind, &text);
}

bool(error_prefix)(Error *error, const char *format, ...) {
    Text text = {{0}, 0};
    va_list arguments;
    va_start(arguments, format);
    append_format(&text, format, arguments);
    va_end(arguments);
    append(&text, ": ");
    append(&text, error->message);
    return store(error, error->kind == ERROR_NONE ? ERROR_FAILED : error->kind, &text);
}

_Noreturn void check_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, condition);
    abort();
}
