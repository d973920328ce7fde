/* How a training sample shows a picture: torchvision's RandomResizedCrop and ColorJitter; the centre for evaluation. */
#include "data/image.h"
#include <math.h>

enum { CROP_TRIES = 10 };

static double uniform_between(Rng *rng, double least, double most) { return least + (most - least) * rng_uniform(rng); }

// The largest centred part whose aspect lies in `ratio`.
static Crop crop_fallback(int width, int height, const double ratio[2]) {
    double aspect = (double)width / height, w = width, h = height;
    if (aspect < ratio[0]) h = fmin(rint(w / ratio[0]), height);
    if (aspect > ratio[1]) w = fmin(rint(h * ratio[1]), width);
    return (Crop){floor((width - w) / 2), floor((height - h) / 2), w, h};
}

Crop crop_random(int width, int height, const double scale[2], const double ratio[2], Rng *rng) {
    for (int i = 0; i < CROP_TRIES; i++) {
        double area = (double)width * height * uniform_between(rng, scale[0], scale[1]);
        double aspect = exp(uniform_between(rng, log(ratio[0]), log(ratio[1])));
        double w = rint(sqrt(area * aspect)), h = rint(sqrt(area / aspect));
        if (!(w > 0 && h > 0 && w <= width && h <= height)) continue;
        uint64_t rows = (uint64_t)height - (uint64_t)h + 1, columns = (uint64_t)width - (uint64_t)w + 1; // to start at
        uint64_t y = rng_below(rng, rows), x = rng_below(rng, columns);
        return (Crop){(double)x, (double)y, w, h};
    }
    return crop_fallback(width, height, ratio);
}

Crop crop_center(int width, int height) {
    int side = width < height ? width : height;
    return (Crop){(width - side) / 2.0, (height - side) / 2.0, side, side};
}

// ITU-R 601, as torchvision's and Pillow's grey.
static float luma(const float colour[3]) { return 0.299f * colour[0] + 0.587f * colour[1] + 0.114f * colour[2]; }

static float mean_luma(const uint8_t *rgb, int64_t pixels) {
    double sum = 0;
    for (int64_t i = 0; i < pixels; i++) sum += luma((float[]){rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]});
    return (float)(sum / (double)(pixels > 0 ? pixels : 1));
}

static uint8_t to_byte(float value) { return (uint8_t)(value <= 0 ? 0 : value >= 255 ? 255 : value + 0.5f); }

void colour_jitter(uint8_t *rgb, int64_t pixels, double strength, Rng *rng) {
    float factor[3]; // brightness, contrast, saturation
    for (int i = 0; i < 3; i++) factor[i] = (float)uniform_between(rng, 1 - strength, 1 + strength);
    float grey = factor[0] * mean_luma(rgb, pixels);
    for (int64_t i = 0; i < 3 * pixels; i += 3) {
        float colour[3];
        for (int c = 0; c < 3; c++) colour[c] = grey + factor[1] * (factor[0] * rgb[i + c] - grey);
        float own = luma(colour);
        for (int c = 0; c < 3; c++) rgb[i + c] = to_byte(own + factor[2] * (colour[c] - own));
    }
}
