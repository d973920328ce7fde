/* Any bytes behind a JPEG's start decode at full or reduced size, or are refused; never more. */
#include "data/image.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    const DecodeOptions options = {.least_side = size ? bytes[size - 1] : 0, .most_pixels = 1 << 20};
    uint8_t jpeg[1 << 16] = {0xFF, 0xD8, 0xFF};
    size_t count = size < sizeof jpeg - 3 ? size : sizeof jpeg - 3;
    ImageInfo info;
    Image image;
    Error error;
    memcpy(jpeg + 3, bytes, count);
    bool probed = image_probe(jpeg, count + 3, &info, &error);
    if (image_decode(jpeg, count + 3, &options, &image, &error)) {
        check(probed && image.width > 0 && image.width <= info.width && image.height > 0 &&
              image.height <= info.height);
        image_free(&image);
    }
    return 0;
}
