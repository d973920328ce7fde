/* Antialiased bicubic resampling as Pillow does it (Image.resize(size, BICUBIC, box)), so that models trained here and
 * elsewhere see the same pixels: the kernel (a = -0.5) is widened by the scale when shrinking, each axis is one pass
 * with fixed-point weights, and what the first pass makes is rounded to 8 bits. The kernel reaches over the edge of the
 * crop into the picture around it. */
#include "data/resize_lines.h"
#include "data/image.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// |x| < 1: 1.5 |x|^3 - 2.5 |x|^2 + 1; |x| < 2: -0.5 |x|^3 + 2.5 |x|^2 - 4 |x| + 2.
static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static int32_t fixed_point(double weight) { return (int32_t)(weight * (1 << WEIGHT_BITS) + (weight < 0 ? -0.5 : 0.5)); }

// `size` source pixels of which [from, to) become `count`. Single precision for the box, as in the original.
static Taps taps_new(int size, float from, float to, int count) {
    double scale = (double)(to - from) / count, widened = scale < 1 ? 1 : scale, support = 2 * widened;
    Taps taps = {.most = (int)ceil(support) * 2 + 1};
    taps.first = malloc(sizeof(int) * (size_t)count * 2);
    taps.weight = malloc(sizeof(int32_t) * (size_t)count * (size_t)taps.most);
    double *exact = malloc(sizeof(double) * (size_t)taps.most);
    check(taps.first && taps.weight && exact);
    taps.number = taps.first + count;
    for (int i = 0; i < count; i++) {
        double center = from + (i + 0.5) * scale, sum = 0;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (end > size) end = size;
        int32_t *weight = taps.weight + (size_t)i * (size_t)taps.most;
        for (int t = 0; t < end - first; t++) sum += exact[t] = bicubic((t + first - center + 0.5) * (1 / widened));
        for (int t = 0; t < end - first; t++) weight[t] = fixed_point(sum != 0 ? exact[t] / sum : exact[t]);
        taps.first[i] = first;
        taps.number[i] = end - first;
    }
    free(exact);
    return taps;
}

static void taps_free(Taps *taps) {
    free(taps->first);
    free(taps->weight);
}

typedef struct Passes { // one resampling: all sizes and scratch memory
    const ResizeLines *lines;
    const Image *image;
    Taps x, y;
    int width, height; // of the result
    uint8_t *line;     // a line that goes over x, padded
    uint8_t *middle;   // what the first pass made
    uint8_t *out;
} Passes;

static void result_over_y(const Passes *p, int i, const uint8_t *lines, size_t bytes, uint8_t *out) {
    p->lines->over_y(lines, bytes, p->y.weight + (size_t)i * (size_t)p->y.most, p->y.number[i], bytes, out);
}

// middle: (rows of the source that are needed, width, 3).
static void run_x_first(const Passes *p) {
    size_t source = (size_t)p->image->width * 3, bytes = (size_t)p->width * 3;
    int first = p->y.first[0], end = p->y.first[p->height - 1] + p->y.number[p->height - 1];
    for (int y = first; y < end; y++) {
        memcpy(p->line, p->image->pixels + (size_t)y * source, source);
        p->lines->over_x(p->line, &p->x, p->width, p->middle + (size_t)(y - first) * bytes);
    }
    for (int i = 0; i < p->height; i++)
        result_over_y(p, i, p->middle + (size_t)(p->y.first[i] - first) * bytes, bytes, p->out + (size_t)i * bytes);
}

// Here each line of the result goes through both passes at once.
static void run_y_first(const Passes *p) {
    size_t source = (size_t)p->image->width * 3;
    for (int i = 0; i < p->height; i++) {
        result_over_y(p, i, p->image->pixels + (size_t)p->y.first[i] * source, source, p->line);
        p->lines->over_x(p->line, &p->x, p->width, p->out + (size_t)i * (size_t)p->width * 3);
    }
}

// Pillow (from 13) goes over y first where that axis shrinks much more. Rounding in between makes the order count.
static bool y_comes_first(const Image *image, int width, int height) {
    int narrower = image->width > width ? image->width - width : 0;
    return image->height > height && image->height - height > 2 * narrower;
}

static void mirror(uint8_t *pixels, int width, int height) {
    for (int y = 0; y < height; y++, pixels += (size_t)width * 3)
        for (int left = 0, right = width - 1; left < right; left++, right--)
            for (int c = 0; c < 3; c++) {
                uint8_t kept = pixels[left * 3 + c];
                pixels[left * 3 + c] = pixels[right * 3 + c];
                pixels[right * 3 + c] = kept;
            }
}

static void resample(Passes *p, float left, float top, float right, float bottom) {
    size_t source = (size_t)p->image->width * 3;
    bool y_first = y_comes_first(p->image, p->width, p->height);
    p->lines = resize_lines_best();
    p->x = taps_new(p->image->width, left, right, p->width);
    p->y = taps_new(p->image->height, top, bottom, p->height);
    p->line = calloc(1, source + LINE_PADDING);
    p->middle = y_first ? NULL : malloc((size_t)p->width * 3 * (size_t)p->image->height);
    check(p->line && (y_first || p->middle));
    if (y_first)
        run_y_first(p);
    else
        run_x_first(p);
    free(p->line);
    free(p->middle);
    taps_free(&p->x);
    taps_free(&p->y);
}

static float within(double at, int size) { return at <= 0 ? 0 : at >= size ? (float)size : (float)at; }

void image_resize(const Image *image, Crop crop, uint8_t *out, int out_width, int out_height, bool flip) {
    float left = within(crop.x, image->width), right = within(crop.x + crop.width, image->width);
    float top = within(crop.y, image->height), bottom = within(crop.y + crop.height, image->height);
    check(out_width > 0 && out_height > 0 && right > left && bottom > top);
    bool whole = left == 0 && top == 0 && right == (float)image->width && bottom == (float)image->height;
    if (whole && out_width == image->width && out_height == image->height) {
        memcpy(out, image->pixels, (size_t)out_width * 3 * (size_t)out_height);
    } else {
        Passes p = {.image = image, .width = out_width, .height = out_height, .out = out};
        resample(&p, left, top, right, bottom);
    }
    if (flip) mirror(out, out_width, out_height);
}
