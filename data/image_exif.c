/* The one thing wanted of EXIF: which way up the picture is (tag 0x0112 of the first directory of its TIFF block).
 * Cameras and editors write broken blocks, so whatever does not parse means upright. */
#include "data/image_codec.h"
#include <string.h>

enum { TAG_ORIENTATION = 0x0112, TYPE_SHORT = 3, TYPE_LONG = 4, ENTRY_BYTES = 12 };

typedef struct Tiff {
    const uint8_t *bytes;
    size_t size;
    bool big_endian;
} Tiff;

static uint32_t read_u16(const Tiff *t, size_t at) {
    const uint8_t *b = t->bytes + at;
    return t->big_endian ? (uint32_t)(b[0] << 8 | b[1]) : (uint32_t)(b[1] << 8 | b[0]);
}

static uint32_t read_u32(const Tiff *t, size_t at) {
    uint32_t first = read_u16(t, at), second = read_u16(t, at + 2);
    return t->big_endian ? first << 16 | second : second << 16 | first;
}

int exif_orientation(const uint8_t *tiff, size_t size) {
    if (size < 8) return 1;
    Tiff t = {tiff, size, tiff[0] == 'M'};
    if (memcmp(tiff, "II*\0", 4) != 0 && memcmp(tiff, "MM\0*", 4) != 0) return 1;
    size_t directory = read_u32(&t, 4);
    if (directory > size - 2) return 1;
    size_t entries = read_u16(&t, directory);
    for (size_t i = 0; i < entries; i++) {
        size_t at = directory + 2 + i * ENTRY_BYTES;
        if (at + ENTRY_BYTES > size) return 1;
        if (read_u16(&t, at) != TAG_ORIENTATION) continue;
        uint32_t type = read_u16(&t, at + 2);
        uint32_t value = type == TYPE_SHORT ? read_u16(&t, at + 8) : type == TYPE_LONG ? read_u32(&t, at + 8) : 0;
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}
