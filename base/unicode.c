/* See unicode.h. */
#include "base/unicode.h"

int utf8_decode(const char *text, size_t size, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}; // that needs this many bytes
    const unsigned char *bytes = (const unsigned char *)text;
    if (size == 0) return 0;
    int length = bytes[0] < 0x80   ? 1
                 : bytes[0] < 0xC0 ? 0
                 : bytes[0] < 0xE0 ? 2
                 : bytes[0] < 0xF0 ? 3
                 : bytes[0] < 0xF8 ? 4
                                   : 0;
    if (length == 0 || (size_t)length > size) return 0;
    uint32_t value = length == 1 ? bytes[0] : bytes[0] & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if ((bytes[i] & 0xC0) != 0x80) return 0;
        value = value << 6 | (bytes[i] & 0x3Fu);
    }
    if (value < least[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return 0;
    *code = value;
    return length;
}

bool utf8_valid(const char *text, size_t size) {
    uint32_t code;
    for (size_t at = 0; at < size;) {
        int length = utf8_decode(text + at, size - at, &code);
        if (length == 0) return false;
        at += (size_t)length;
    }
    return true;
}
