/* Pictures: JPEG and PNG bytes to RGB, and the transforms of training and evaluation. */
#pragma once
#include "base/error.h"
#include "base/philox.h"
#include "base/buffer.h"
#include <stddef.h>
#include <stdint.h>

typedef struct Image { // owned pixels; image_free
    int width, height;
    uint8_t *pixels; // (height, width, 3) RGB
} Image;

typedef struct ImageInfo {
    int width, height;
    int orientation;
    const char *format;
} ImageInfo; // upright size; "jpeg", "png"

typedef struct DecodeOptions {
    int least_side; // the picture may be decoded at a smaller scale as long as both sides stay >= this; 0: full size
    uint8_t background[3]; // under transparent pixels
    int64_t most_pixels;   // refuse more, before any allocation; 0: IMAGE_MOST_PIXELS
} DecodeOptions;
enum { IMAGE_MOST_PIXELS = 178956970 }; // as Pillow's bomb limit
// For least_side: a picture that will be resampled to S is decoded at no less than DECODE_MARGIN x S, so that training
// and evaluation see it through the same filters.
enum { DECODE_MARGIN = 2 };

bool image_colour(const char *text, uint8_t rgb[3]);                    // "#rrggbb"; false: it is none
bool image_probe(const void *bytes, size_t size, ImageInfo *, Error *); // header only, nothing decoded
// Decodes and turns upright (EXIF orientation). Anything damaged is an error: truncated data too.
bool image_decode(const void *bytes, size_t size, const DecodeOptions *, Image *, Error *);
void image_free(Image *); // zeroed structs are allowed
bool image_encode_png(const Image *, Buffer *out, Error *);
bool image_encode_jpeg(const Image *, int quality, Buffer *out, Error *);

typedef struct Crop {
    double x, y, width, height;
} Crop; // in pixels of the source
// Resamples the crop to (out_height, out_width, 3) with Pillow's antialiased bicubic (a = -0.5), within 1 grey level.
void image_resize(const Image *, Crop, uint8_t *out, int out_width, int out_height, bool flip);
// torchvision's RandomResizedCrop draw: area share in `scale`, aspect in `ratio` (log-uniform), 10 tries, then centre.
Crop crop_random(int width, int height, const double scale[2], const double ratio[2], Rng *);
// torchvision's ColorJitter without hue, on (pixels, 3): brightness, contrast (about the picture's mean grey) and
// saturation, each by a factor drawn from [1 - strength, 1 + strength]; strength in [0, 1].
void colour_jitter(uint8_t *rgb, int64_t pixels, double strength, Rng *);
// Evaluation: the shorter side to `side`, then the centre (as Resize + CenterCrop): the crop of the source that gives
// it.
Crop crop_center(int width, int height);
