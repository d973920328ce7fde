/* Filled shapes with soft edges on a picture: coverage exact along rows, eight sub-rows a pixel. Only + - * / and
 * square roots, so that a picture has the same bytes on every machine. */
#pragma once
#include "data/image.h"

typedef struct Colour {
    uint8_t red, green, blue;
} Colour;

typedef enum { SHAPE_CIRCLE, SHAPE_SQUARE, SHAPE_TRIANGLE, SHAPE_STAR, SHAPE_CROSS, SHAPE_RING, SHAPES } Shape;

typedef struct Figure {
    Shape shape;
    double x, y, radius; // centre and size in pixels
    double tilt;         // tangent of half the angle it is turned by
    Colour colour;
} Figure;

Image draw_canvas(int side, Colour top, Colour bottom); // (side, side), from one colour to the other; image_free
void draw_figure(Image *, const Figure *);
