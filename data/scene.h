/* A scene of the synthetic data: one to three equal figures, perhaps a tiny other one, and what can be said and asked
 * about it in English and Chinese. A scene is a pure function of (seed, number). */
#pragma once
#include "base/buffer.h"
#include "data/draw.h"

enum { SCENE_COLOURS = 8, SCENE_COUNT_MOST = 3, SCENE_FIGURES = SCENE_COUNT_MOST + 1 };
typedef enum { ENGLISH, CHINESE, LANGUAGES } Language;
typedef enum { ASK_COLOUR, ASK_SHAPE, ASK_COUNT, ASK_POSITION, ASK_SIZE, ASK_YES_NO, QUESTIONS } Question;

typedef struct Scene {
    int side;       // pixels
    int background; // index of its name
    int colour;     // of the figures that the scene is about
    Shape shape;
    int count;    // of them
    int position; // count 1: where it is
    bool large;   // count 1
    bool extra;   // a tiny figure of another colour and shape
    int extra_colour;
    Shape extra_shape;
    Question question;
    int asked_colour; // ASK_YES_NO: is there a figure of this colour and shape?
    Shape asked_shape;
    Colour top, bottom; // of the background
    Figure figures[SCENE_FIGURES];
    int figure_count;
} Scene;

Scene scene_make(uint64_t seed, uint64_t number);
Image scene_draw(const Scene *); // image_free

// Each appends to the buffer.
void scene_class(const Scene *, Language, Buffer *);        // "red circle"
void scene_caption(const Scene *, Language, Buffer *);      // "a big red circle on the left"
void scene_question(const Scene *, Language, Buffer *);     // "what colour is the circle?"
void scene_answer(const Scene *, Language, Buffer *);       // "red"
void scene_story(const Scene *, Language, Buffer *);        // some sentences of plain text about it
void scene_row(const Scene *, const char *image, Buffer *); // the line of captions.jsonl, with its end
