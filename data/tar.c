/* Headers of tar members, written one way only. See tar.h; tar_read.c has the reader. */
#include "data/tar.h"
#include <stdio.h>
#include <string.h>

enum { NAME_FIELD = 100 };
static const int64_t ustar_most = INT64_C(077777777777); // 11 octal digits

static void octal(char *field, int digits, uint64_t value) {
    field[digits] = 0;
    for (int i = digits - 1; i >= 0; i--, value >>= 3) field[i] = (char)('0' + (value & 7));
}

static void append_block(Buffer *out, const char *name, size_t name_length, int64_t size, char type) {
    char b[TAR_BLOCK] = {0};
    memcpy(b, name, name_length < NAME_FIELD ? name_length : NAME_FIELD);
    octal(b + 100, 7, 0644);
    octal(b + 108, 7, 0);
    octal(b + 116, 7, 0);
    octal(b + 124, 11, (uint64_t)size);
    octal(b + 136, 11, 0);
    b[156] = type;
    memcpy(b + 257,
           "ustar\0"
           "00",
           8);
    octal(b + 329, 7, 0);
    octal(b + 337, 7, 0);
    memset(b + 148, ' ', 8);
    unsigned sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++) sum += (unsigned char)b[i];
    octal(b + 148, 6, sum);
    b[155] = ' ';
    buffer_append(out, b, sizeof b);
}

// "LENGTH key=value\n", where LENGTH counts itself.
static void append_record(Buffer *out, const char *key, const char *value) {
    size_t rest = strlen(key) + strlen(value) + 3, length = rest + 1;
    for (;;) {
        char digits[24];
        size_t n = (size_t)snprintf(digits, sizeof digits, "%zu", length);
        if (n + rest == length) break;
        length = n + rest;
    }
    buffer_printf(out, "%zu %s=%s\n", length, key, value);
}

void tar_append_header(Buffer *out, const char *name, int64_t size) {
    static const char zeros[TAR_BLOCK];
    size_t length = strlen(name);
    check(length > 0 && length <= TAR_NAME_MOST && size >= 0);
    bool long_name = length > NAME_FIELD, large = size > ustar_most;
    if (long_name || large) {
        Buffer pax = {0};
        char number[24];
        snprintf(number, sizeof number, "%lld", (long long)size);
        if (long_name) append_record(&pax, "path", name);
        if (large) append_record(&pax, "size", number);
        append_block(out, "PaxHeader", 9, (int64_t)pax.size, 'x');
        buffer_append(out, pax.data, pax.size);
        buffer_append(out, zeros, (size_t)tar_padding((int64_t)pax.size));
        buffer_free(&pax);
    }
    append_block(out, name, length, large ? 0 : size, '0');
}
