/* Any chunks behind a PNG's signature decode or are refused. CRCs are made right first, so that the fuzzer gets past
 * them. */
#include "data/image.h"
#include <string.h>
#include <zlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static uint32_t big_u32(const uint8_t *b) {
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

static void mend_crcs(uint8_t *png, size_t size) {
    for (size_t at = 8; size - at >= 12;) {
        size_t length = big_u32(png + at);
        if (length > size - at - 12) return;
        uint32_t crc = (uint32_t)crc32(0, png + at + 4, (uInt)length + 4);
        for (int i = 0; i < 4; i++) png[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += length + 12;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    const DecodeOptions options = {.background = {1, 2, 3}, .most_pixels = 1 << 20};
    uint8_t png[1 << 16] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    size_t count = size < sizeof png - 8 ? size : sizeof png - 8;
    ImageInfo info;
    Image image;
    Error error;
    memcpy(png + 8, bytes, count);
    mend_crcs(png, count + 8);
    bool probed = image_probe(png, count + 8, &info, &error);
    if (image_decode(png, count + 8, &options, &image, &error)) {
        check(probed && image.width == info.width && image.height == info.height);
        image_free(&image);
    }
    return 0;
}
