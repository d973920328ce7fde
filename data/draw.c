/* See draw.h. A figure is cut by horizontal lines into spans; a span covers pixels in part at its two ends. */
#include "data/draw.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SUB_ROWS = 8, CORNERS_MOST = 12 };

typedef struct Outline {
    int count; // 0: a circle, or a ring
    double corner[CORNERS_MOST][2];
} Outline;

// Corners on the unit circle or inside, about equal in area.
static const Outline outlines[SHAPES] = {
    [SHAPE_SQUARE] = {4, {{-.82, -.82}, {.82, -.82}, {.82, .82}, {-.82, .82}}},
    [SHAPE_TRIANGLE] = {3, {{0, -1.08}, {.9353, .54}, {-.9353, .54}}},
    [SHAPE_STAR] = {10,
                    {{0, -1.1},
                     {.264503, -.364058},
                     {1.046162, -.339919},
                     {.427975, .139058},
                     {.646564, .889919},
                     {0, .45},
                     {-.646564, .889919},
                     {-.427975, .139058},
                     {-1.046162, -.339919},
                     {-.264503, -.364058}}},
    [SHAPE_CROSS] = {12,
                     {{-.33, -1},
                      {.33, -1},
                      {.33, -.33},
                      {1, -.33},
                      {1, .33},
                      {.33, .33},
                      {.33, 1},
                      {-.33, 1},
                      {-.33, .33},
                      {-1, .33},
                      {-1, -.33},
                      {-.33, -.33}}},
};
static const double circle_radius = 0.92, ring_outer = 0.98, ring_inner = 0.55;

Image draw_canvas(int side, Colour top, Colour bottom) {
    Image image = {side, side, malloc((size_t)side * (size_t)side * 3)};
    check(side > 1 && image.pixels);
    const uint8_t a[3] = {top.red, top.green, top.blue}, b[3] = {bottom.red, bottom.green, bottom.blue};
    for (int y = 0; y < side; y++)
        for (int i = 0; i < 3 * side; i++) {
            int c = i % 3;
            image.pixels[3 * side * y + i] =
                (uint8_t)((a[c] * (side - 1 - y) + b[c] * y + (side - 1) / 2) / (side - 1));
        }
    return image;
}

// Where a circle of radius r around the figure's centre crosses the line dy below it.
static int cross_circle(double x, double r, double dy, double *out) {
    if (dy * dy >= r * r) return 0;
    double half = sqrt(r * r - dy * dy);
    out[0] = x - half;
    out[1] = x + half;
    return 2;
}

static int cross_polygon(const double (*corner)[2], int n, double y, double *out) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        const double *a = corner[i], *b = corner[(i + 1) % n];
        if ((a[1] <= y) == (b[1] <= y)) continue;
        out[count++] = a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]);
    }
    return count;
}

static void sort(double *values, int n) {
    for (int i = 1; i < n; i++) {
        double v = values[i];
        int k = i;
        for (; k > 0 && values[k - 1] > v; k--) values[k] = values[k - 1];
        values[k] = v;
    }
}

static void turn(const Figure *f, double corner[CORNERS_MOST][2]) {
    const Outline *o = &outlines[f->shape];
    double t = f->tilt, d = 1 + t * t, cosine = (1 - t * t) / d, sine = 2 * t / d;
    for (int i = 0; i < o->count; i++) {
        double x = o->corner[i][0] * f->radius, y = o->corner[i][1] * f->radius;
        corner[i][0] = f->x + cosine * x - sine * y;
        corner[i][1] = f->y + sine * x + cosine * y;
    }
}

// Adds the share of each pixel of a row that the span [begin, end) covers.
static void cover(double *row, int width, double begin, double end, double weight) {
    if (begin < 0) begin = 0;
    if (end > width) end = width;
    for (int x = (int)begin; x < width && x < end; x++) {
        double left = begin > x ? begin : x, right = end < x + 1 ? end : x + 1;
        if (right > left) row[x] += (right - left) * weight;
    }
}

static void blend(uint8_t *pixel, uint8_t colour, double share) {
    *pixel = (uint8_t)(*pixel + (colour - *pixel) * share + 0.5);
}

void draw_figure(Image *image, const Figure *f) {
    double corner[CORNERS_MOST][2] = {{0}}, crossing[CORNERS_MOST], *row = calloc((size_t)image->width, sizeof *row);
    check(row);
    turn(f, corner);
    for (int y = 0; y < image->height; y++) {
        memset(row, 0, (size_t)image->width * sizeof *row);
        for (int sub = 0; sub < SUB_ROWS; sub++) {
            double at = y + (sub + 0.5) / SUB_ROWS;
            int n = 0;
            if (f->shape == SHAPE_CIRCLE) {
                n = cross_circle(f->x, circle_radius * f->radius, at - f->y, crossing);
            } else if (f->shape == SHAPE_RING) {
                n = cross_circle(f->x, ring_outer * f->radius, at - f->y, crossing);
                n += cross_circle(f->x, ring_inner * f->radius, at - f->y, crossing + n);
            } else {
                n = cross_polygon((const double(*)[2])corner, outlines[f->shape].count, at, crossing);
            }
            sort(crossing, n);
            for (int i = 0; i + 1 < n; i += 2) cover(row, image->width, crossing[i], crossing[i + 1], 1.0 / SUB_ROWS);
        }
        for (int x = 0; x < image->width; x++) {
            if (row[x] == 0) continue;
            uint8_t *pixel = image->pixels + 3 * ((size_t)y * (size_t)image->width + (size_t)x);
            blend(pixel, f->colour.red, row[x]);
            blend(pixel + 1, f->colour.green, row[x]);
            blend(pixel + 2, f->colour.blue, row[x]);
        }
    }
    free(row);
}
