/* See buffer.h. Memory doubles; running out of it aborts, as it does in an arena. */
#include "base/buffer.h"
#include "base/error.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buffer_reserve(Buffer *buffer, size_t capacity) {
    check(capacity < SIZE_MAX / 2);
    if (buffer->data && capacity <= buffer->capacity) return;
    size_t larger = buffer->capacity * 2 > 64 ? buffer->capacity * 2 : 64;
    if (larger < capacity) larger = capacity;
    char *data = realloc(buffer->data, larger + 1); // one more for the zero behind the bytes
    check(data && "memory for a growing buffer");
    buffer->data = data;
    buffer->capacity = larger;
    data[buffer->size] = 0;
}

void buffer_append(Buffer *buffer, const void *bytes, size_t count) {
    check(count < SIZE_MAX / 4);
    buffer_reserve(buffer, buffer->size + count);
    if (count) memcpy(buffer->data + buffer->size, bytes, count);
    buffer->size += count;
    buffer->data[buffer->size] = 0;
}

void buffer_text(Buffer *buffer, const char *text) { buffer_append(buffer, text, strlen(text)); }

void buffer_printf(Buffer *buffer, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int count = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    check(count >= 0);
    buffer_reserve(buffer, buffer->size + (size_t)count);
    vsnprintf(buffer->data + buffer->size, (size_t)count + 1, format, again);
    va_end(again);
    buffer->size += (size_t)count;
}

void buffer_clear(Buffer *buffer) {
    buffer->size = 0;
    if (buffer->data) buffer->data[0] = 0;
}

void buffer_free(Buffer *buffer) {
    free(buffer->data);
    *buffer = (Buffer){0};
}
