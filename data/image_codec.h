/* What image.c asks of the decoders: one pair of functions a format. Each refuses what is damaged or too large before
 * it allocates pixels, and leaves turning upright to image.c. */
#pragma once
#include "data/image.h"

bool jpeg_probe(const uint8_t *bytes, size_t size, ImageInfo *, Error *); // info: as stored, orientation beside it
bool png_probe(const uint8_t *bytes, size_t size, ImageInfo *, Error *);
bool jpeg_decode(const uint8_t *bytes, size_t size, const DecodeOptions *, Image *, int *orientation, Error *);
bool png_decode(const uint8_t *bytes, size_t size, const DecodeOptions *, Image *, int *orientation, Error *);

// False with a message where width x height is more than the options allow (NULL: IMAGE_MOST_PIXELS).
bool image_size_allowed(int64_t width, int64_t height, const DecodeOptions *, Error *);
// Orientation 1..8 from a TIFF block (what follows "Exif\0\0" in a JPEG, an eXIf chunk of a PNG); 1 where it is absent
// or broken.
int exif_orientation(const uint8_t *tiff, size_t size);
