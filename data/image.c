/* See image.h. Finds the format by its first bytes, hands the work to image_jpeg.c or image_png.c, and turns what
 * comes back upright. */
#include "data/image.h"
#include "data/image_codec.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef enum { FORMAT_JPEG, FORMAT_PNG, FORMAT_OTHER } Format;

static Format format_of(const uint8_t *bytes, size_t size) {
    if (size >= 3 && !memcmp(bytes, "\xFF\xD8\xFF", 3)) return FORMAT_JPEG;
    if (size >= 8 && !memcmp(bytes, "\x89PNG\r\n\x1A\n", 8)) return FORMAT_PNG;
    return FORMAT_OTHER;
}

// What else the bytes look like, for the message.
static bool refuse_format(const uint8_t *bytes, size_t size, Error *error) {
    static const struct {
        const char *start, *name;
        size_t skip;
    } known[] = {
        {"WEBP", "WebP", 8}, {"GIF8", "GIF", 0},      {"BM", "BMP", 0},       {"II*", "TIFF", 0},
        {"MM", "TIFF", 0},   {"ftypavif", "AVIF", 4}, {"ftyphei", "HEIC", 4}, {"<", "HTML or XML", 0},
    };
    if (!size) return error_set(error, ERROR_FAILED, "the picture is empty");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t length = strlen(known[i].start);
        if (size >= known[i].skip + length && !memcmp(bytes + known[i].skip, known[i].start, length))
            return error_set(error, ERROR_FAILED, "not a JPEG or PNG but %s; convert it", known[i].name);
    }
    return error_set(error, ERROR_FAILED, "neither JPEG nor PNG; convert it");
}

bool image_size_allowed(int64_t width, int64_t height, const DecodeOptions *options, Error *error) {
    int64_t most = options && options->most_pixels > 0 ? options->most_pixels : IMAGE_MOST_PIXELS;
    if (width > 0 && height > 0 && width <= most / height) return true;
    return error_set(error, ERROR_FAILED,
                     "%" PRId64 " x %" PRId64 " pixels are outside what is allowed (at most %" PRId64
                     "); shrink the picture",
                     width, height, most);
}

bool image_probe(const void *bytes, size_t size, ImageInfo *info, Error *error) {
    bool ok;
    switch (format_of(bytes, size)) {
    case FORMAT_JPEG:
        ok = jpeg_probe(bytes, size, info, error);
        break;
    case FORMAT_PNG:
        ok = png_probe(bytes, size, info, error);
        break;
    default:
        return refuse_format(bytes, size, error);
    }
    if (ok && info->orientation >= 5) {
        int width = info->width;
        info->width = info->height;
        info->height = width;
    }
    return ok;
}

// EXIF's eight: 2 mirrored, 3 turned by half, 4 flipped, 5 transposed, 6 wants a quarter turn clockwise, 7 transposed
// over the other diagonal, 8 a quarter turn anticlockwise. As where (x, y) of the result is taken from.
static void turn_upright(Image *image, int orientation) {
    if (orientation == 1) return;
    bool swapped = orientation >= 5;
    size_t width = (size_t)image->width, height = (size_t)image->height;
    size_t out_width = swapped ? height : width, out_height = swapped ? width : height;
    bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    uint8_t *turned = malloc(width * height * 3), *out = turned;
    check(turned);
    for (size_t y = 0; y < out_height; y++)
        for (size_t x = 0; x < out_width; x++, out += 3) {
            size_t column = swapped ? y : x, row = swapped ? x : y;
            if (from_right) column = width - 1 - column;
            if (from_bottom) row = height - 1 - row;
            memcpy(out, image->pixels + (row * width + column) * 3, 3);
        }
    free(image->pixels);
    *image = (Image){(int)out_width, (int)out_height, turned};
}

bool image_decode(const void *bytes, size_t size, const DecodeOptions *options, Image *image, Error *error) {
    int orientation = 1;
    bool ok;
    *image = (Image){0};
    switch (format_of(bytes, size)) {
    case FORMAT_JPEG:
        ok = jpeg_decode(bytes, size, options, image, &orientation, error);
        break;
    case FORMAT_PNG:
        ok = png_decode(bytes, size, options, image, &orientation, error);
        break;
    default:
        return refuse_format(bytes, size, error);
    }
    if (ok) turn_upright(image, orientation);
    return ok;
}

bool image_colour(const char *text, uint8_t rgb[3]) {
    if (text[0] != '#' || strlen(text) != 7 || strspn(text + 1, "0123456789abcdefABCDEF") != 6) return false;
    unsigned long colour = strtoul(text + 1, NULL, 16);
    for (int i = 0; i < 3; i++) rgb[i] = (uint8_t)(colour >> (16 - 8 * i));
    return true;
}

void image_free(Image *image) {
    free(image->pixels);
    *image = (Image){0};
}
