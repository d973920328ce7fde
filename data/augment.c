/* Which part of a picture a training sample shows: torchvision's RandomResizedCrop, and the centre for evaluation. */
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
