/* Drawing lots for a scene, and its picture. See scene.h; scene_text.c has the words. */
#include "data/scene.h"

enum { BACKGROUNDS = 4, POSITIONS = 5 };

static const Colour colours[SCENE_COLOURS] = {
    {220, 40, 40}, {250, 140, 20}, {240, 220, 40},  {40, 165, 70},
    {40, 90, 220}, {135, 60, 185}, {245, 140, 190}, {30, 30, 30},
};
static const Colour backgrounds[BACKGROUNDS] = {{245, 245, 245}, {190, 190, 190}, {200, 220, 245}, {205, 240, 205}};
// Of the centre, right and down, for the positions of scene_text.c.
static const int directions[POSITIONS][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}};

static int draw_below(Rng *rng, int bound) { return (int)rng_below(rng, (uint64_t)bound); }
static double draw_between(Rng *rng, double least, double most) { return least + (most - least) * rng_uniform(rng); }

// Another number below `bound` than `not`.
static int draw_other(Rng *rng, int bound, int except) { return (except + 1 + draw_below(rng, bound - 1)) % bound; }

// The index that a draw of `shares` (they sum to 100) falls on.
static int draw_share(Rng *rng, const int *shares, int count) {
    int at = draw_below(rng, 100), i = 0;
    while (i < count - 1 && at >= shares[i]) at -= shares[i++];
    return i;
}

static uint8_t shift(uint8_t value, int by) {
    int v = value + by;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

// A colour is never quite the same twice.
static Colour vary(Rng *rng, Colour c, int most) {
    int by[3];
    for (int i = 0; i < 3; i++) by[i] = draw_below(rng, 2 * most + 1) - most;
    return (Colour){shift(c.red, by[0]), shift(c.green, by[1]), shift(c.blue, by[2])};
}

static void add_figure(Scene *s, Rng *rng, int colour, Shape shape, double x, double y, double radius) {
    double side = s->side, tilt = draw_between(rng, -0.035, 0.035); // up to 4 degrees
    s->figures[s->figure_count++] =
        (Figure){shape, x * side, y * side, radius * side, tilt, vary(rng, colours[colour], 14)};
}

// One figure in its place and, sometimes, a tiny other one in the corner that is farthest from it.
static void place_one(Scene *s, Rng *rng) {
    const int *to = directions[s->position];
    double radius = s->large ? draw_between(rng, 0.30, 0.33) : draw_between(rng, 0.19, 0.21);
    double away = s->large ? 0.15 : 0.26, jitter = 0.015;
    double x = 0.5 + to[0] * away + draw_between(rng, -jitter, jitter);
    double y = 0.5 + to[1] * away + draw_between(rng, -jitter, jitter);
    add_figure(s, rng, s->colour, s->shape, x, y, radius);
    if (!s->extra) return;
    double right = to[0] ? -to[0] : draw_below(rng, 2) * 2 - 1, down = to[1] ? -to[1] : draw_below(rng, 2) * 2 - 1;
    add_figure(s, rng, s->extra_colour, s->extra_shape, 0.5 + 0.37 * right, 0.5 + 0.37 * down,
               draw_between(rng, 0.10, 0.12));
}

// Two side by side or one above the other; three in a triangle.
static void place_some(Scene *s, Rng *rng) {
    static const double two[2][2][2] = {{{.27, .5}, {.73, .5}}, {{.5, .27}, {.5, .73}}};
    static const double three[2][3][2] = {{{.26, .28}, {.74, .28}, {.5, .73}}, {{.26, .72}, {.74, .72}, {.5, .27}}};
    int variant = draw_below(rng, 2);
    double radius = draw_between(rng, 0.185, 0.2);
    for (int i = 0; i < s->count; i++) {
        const double *at = s->count == 2 ? two[variant][i] : three[variant][i];
        double x = at[0] + draw_between(rng, -0.012, 0.012); // one draw a statement: arguments have no order
        double y = at[1] + draw_between(rng, -0.012, 0.012);
        add_figure(s, rng, s->colour, s->shape, x, y, radius);
    }
}

// Half the answers are yes; a no differs in colour or in shape, and is not the tiny figure either.
static void choose_yes_no(Scene *s, Rng *rng) {
    s->asked_colour = s->colour;
    s->asked_shape = s->shape;
    if (draw_below(rng, 2)) return;
    do {
        bool other_shape = draw_below(rng, 2);
        s->asked_colour = other_shape ? s->colour : draw_other(rng, SCENE_COLOURS, s->colour);
        s->asked_shape = other_shape ? (Shape)draw_other(rng, SHAPES, (int)s->shape) : s->shape;
    } while (s->extra && s->asked_colour == s->extra_colour && s->asked_shape == s->extra_shape);
}

static void choose_question(Scene *s, Rng *rng) {
    static const int one[QUESTIONS] = {25, 25, 15, 13, 8, 14}, some[QUESTIONS] = {29, 29, 26, 0, 0, 16};
    s->question = (Question)draw_share(rng, s->count == 1 ? one : some, QUESTIONS);
    if (s->question == ASK_YES_NO) choose_yes_no(s, rng);
}

Scene scene_make(uint64_t seed, uint64_t number) {
    static const int sides[] = {64, 72, 80, 96}, counts[] = {64, 20, 16};
    Rng stream = rng_for(seed, PURPOSE_SYNTH, number), *rng = &stream;
    Scene s = {.side = sides[draw_below(rng, 4)]};
    s.colour = draw_below(rng, SCENE_COLOURS);
    s.shape = (Shape)draw_below(rng, SHAPES);
    s.count = 1 + draw_share(rng, counts, SCENE_COUNT_MOST);
    s.background = draw_below(rng, BACKGROUNDS);
    s.position = draw_below(rng, POSITIONS);
    s.large = draw_below(rng, 100) < 65;
    s.extra = s.count == 1 && draw_below(rng, 100) < 30;
    s.extra_colour = draw_other(rng, SCENE_COLOURS, s.colour);
    s.extra_shape = (Shape)draw_other(rng, SHAPES, (int)s.shape);
    s.top = vary(rng, backgrounds[s.background], 5);
    int lighter = draw_below(rng, 17) - 8;
    s.bottom = (Colour){shift(s.top.red, lighter), shift(s.top.green, lighter), shift(s.top.blue, lighter)};
    if (s.count == 1)
        place_one(&s, rng);
    else
        place_some(&s, rng);
    choose_question(&s, rng);
    return s;
}

Image scene_draw(const Scene *s) {
    Image image = draw_canvas(s->side, s->top, s->bottom);
    for (int i = 0; i < s->figure_count; i++) draw_figure(&image, &s->figures[i]);
    return image;
}
