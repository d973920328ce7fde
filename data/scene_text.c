/* The words about a scene, in English and Chinese. See scene.h. */
#include "data/scene.h"
#include <string.h>

static const char *const colour_names[LANGUAGES][SCENE_COLOURS] = {
    {"red", "orange", "yellow", "green", "blue", "purple", "pink", "black"},
    {"红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "黑色"},
};
static const char *const shape_names[LANGUAGES][SHAPES] = {
    {"circle", "square", "triangle", "star", "cross", "ring"},
    {"圆形", "正方形", "三角形", "星形", "十字形", "圆环"},
};
static const char *const shapes_plural[SHAPES] = {"circles", "squares", "triangles", "stars", "crosses", "rings"};
static const char *const count_names[LANGUAGES][SCENE_COUNT_MOST] = {{"one", "two", "three"}, {"一个", "两个", "三个"}};
static const char *const background_names[LANGUAGES][4] = {{"white", "grey", "light blue", "light green"},
                                                           {"白色", "灰色", "浅蓝色", "浅绿色"}};
static const char *const position_names[LANGUAGES][5] = {{"centre", "left", "right", "top", "bottom"},
                                                         {"中间", "左边", "右边", "上边", "下边"}};
static const char *const places[5] = {"in the centre", "on the left", "on the right", "at the top", "at the bottom"};
static const char *const question_kinds[QUESTIONS] = {"colour", "shape", "count", "position", "size", "yes-no"};

static const char *article(const char *word) { return strchr("aeiou", word[0]) ? "an" : "a"; }

void scene_class(const Scene *s, Language l, Buffer *out) {
    buffer_printf(out, "%s%s%s", colour_names[l][s->colour], l == ENGLISH ? " " : "", shape_names[l][s->shape]);
}

static void caption_english(const Scene *s, Buffer *out) {
    const char *colour = colour_names[ENGLISH][s->colour], *extra = colour_names[ENGLISH][s->extra_colour];
    if (s->count > 1)
        buffer_printf(out, "%s %s %s", count_names[ENGLISH][s->count - 1], colour, shapes_plural[s->shape]);
    else
        buffer_printf(out, "a %s %s %s %s", s->large ? "big" : "small", colour, shape_names[ENGLISH][s->shape],
                      places[s->position]);
    if (s->extra) buffer_printf(out, " and a tiny %s %s", extra, shape_names[ENGLISH][s->extra_shape]);
}

static void caption_chinese(const Scene *s, Buffer *out) {
    const char *colour = colour_names[CHINESE][s->colour], *shape = shape_names[CHINESE][s->shape];
    if (s->count > 1)
        buffer_printf(out, "有%s%s%s", count_names[CHINESE][s->count - 1], colour, shape);
    else
        buffer_printf(out, "%s有一个%s的%s%s", position_names[CHINESE][s->position], s->large ? "大" : "小", colour,
                      shape);
    if (s->extra)
        buffer_printf(out, "，还有一个很小的%s%s", colour_names[CHINESE][s->extra_colour],
                      shape_names[CHINESE][s->extra_shape]);
}

void scene_caption(const Scene *s, Language l, Buffer *out) {
    if (l == ENGLISH)
        caption_english(s, out);
    else
        caption_chinese(s, out);
}

static void question_english(const Scene *s, Buffer *out) {
    const char *shape = shape_names[ENGLISH][s->shape], *colour = colour_names[ENGLISH][s->colour];
    const char *asked = colour_names[ENGLISH][s->asked_colour];
    bool one = s->count == 1;
    switch (s->question) {
    case ASK_COLOUR:
        buffer_printf(out, "what colour %s the %s?", one ? "is" : "are", one ? shape : shapes_plural[s->shape]);
        break;
    case ASK_SHAPE:
        buffer_printf(out, "what shape is %s?", colour);
        break;
    case ASK_COUNT:
        buffer_printf(out, "how many %s are there?", shapes_plural[s->shape]);
        break;
    case ASK_POSITION:
        buffer_printf(out, "where is the %s?", shape);
        break;
    case ASK_SIZE:
        buffer_printf(out, "is the %s big or small?", shape);
        break;
    default:
        buffer_printf(out, "is there %s %s %s?", article(asked), asked, shape_names[ENGLISH][s->asked_shape]);
    }
}

static void question_chinese(const Scene *s, Buffer *out) {
    const char *shape = shape_names[CHINESE][s->shape], *colour = colour_names[CHINESE][s->colour];
    switch (s->question) {
    case ASK_COLOUR:
        buffer_printf(out, "%s是什么颜色？", shape);
        break;
    case ASK_SHAPE:
        buffer_printf(out, "%s的是什么形状？", colour);
        break;
    case ASK_COUNT:
        buffer_printf(out, "有几个%s？", shape);
        break;
    case ASK_POSITION:
        buffer_printf(out, "%s在哪里？", shape);
        break;
    case ASK_SIZE:
        buffer_printf(out, "%s是大的还是小的？", shape);
        break;
    default:
        buffer_printf(out, "有%s%s吗？", colour_names[CHINESE][s->asked_colour], shape_names[CHINESE][s->asked_shape]);
    }
}

void scene_question(const Scene *s, Language l, Buffer *out) {
    if (l == ENGLISH)
        question_english(s, out);
    else
        question_chinese(s, out);
}

void scene_answer(const Scene *s, Language l, Buffer *out) {
    static const char *const sizes[LANGUAGES][2] = {{"small", "big"}, {"小的", "大的"}};
    static const char *const yes_no[LANGUAGES][2] = {{"no", "yes"}, {"没有", "有"}};
    switch (s->question) {
    case ASK_COLOUR:
        buffer_text(out, colour_names[l][s->colour]);
        break;
    case ASK_SHAPE:
        buffer_text(out, shape_names[l][s->shape]);
        break;
    case ASK_COUNT:
        buffer_text(out, count_names[l][s->count - 1]);
        break;
    case ASK_POSITION:
        buffer_text(out, position_names[l][s->position]);
        break;
    case ASK_SIZE:
        buffer_text(out, sizes[l][s->large]);
        break;
    default:
        buffer_text(out, yes_no[l][s->asked_colour == s->colour && s->asked_shape == s->shape]);
    }
}

void scene_story(const Scene *s, Language l, Buffer *out) {
    bool english = l == ENGLISH;
    buffer_text(out, english ? "the picture shows " : "图中");
    scene_caption(s, l, out);
    if (english)
        buffer_printf(out, ". the background is %s. ", background_names[ENGLISH][s->background]);
    else
        buffer_printf(out, "，背景是%s。", background_names[CHINESE][s->background]);
    scene_question(s, l, out);
    buffer_text(out, english ? " " : "");
    scene_answer(s, l, out);
    buffer_text(out, english ? ".\n" : "。\n");
}

// None of the words needs an escape in JSON.
static void add_pair(Buffer *out, const char *name, void (*say)(const Scene *, Language, Buffer *), const Scene *s) {
    for (int l = 0; l < LANGUAGES; l++) {
        buffer_printf(out, ", \"%s%s\": \"", name, l == CHINESE ? "_zh" : "");
        say(s, (Language)l, out);
        buffer_text(out, "\"");
    }
}

void scene_row(const Scene *s, const char *image, Buffer *out) {
    buffer_printf(out, "{\"image\": \"%s\"", image);
    add_pair(out, "caption", scene_caption, s);
    add_pair(out, "question", scene_question, s);
    add_pair(out, "answer", scene_answer, s);
    add_pair(out, "class", scene_class, s);
    buffer_printf(out,
                  ", \"kind\": \"%s\", \"colour\": \"%s\", \"shape\": \"%s\", \"count\": %d, \"background\": \"%s\"}\n",
                  question_kinds[s->question], colour_names[ENGLISH][s->colour], shape_names[ENGLISH][s->shape],
                  s->count, background_names[ENGLISH][s->background]);
}
