/* A growing run of bytes, always followed by a zero so that text can be used as a C string. Zero-initialise it. */
#pragma once
#include <stdarg.h>
#include <stddef.h>

typedef struct Buffer {
    char  *data; // owned; NULL while empty
    size_t size, capacity;
} Buffer;

void buffer_append(Buffer *, const void *bytes, size_t count);
void buffer_text(Buffer *, const char *text);
void buffer_printf(Buffer *, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buffer_reserve(Buffer *, size_t capacity);
void buffer_clear(Buffer *); // keeps the memory
void buffer_free(Buffer *);
