/* See schedule_svg.h. Lengths are in pixels. The scale is chosen so that numbers fit into most boxes. */
#include "train/schedule_svg.h"
#include "train/svg_chart.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    LEFT = 74,
    RIGHT = 150, // what a stage waits and holds
    LEGEND = 40,
    TITLE = 30,
    LANE = 26,
    GAP = 4,
    AXIS = 46, // and the space below it
    LEAST_WIDTH = 760,
    MOST_WIDTH = 8000,
    DIGIT = 7,  // width of one
    WIDTH = 18, // of the shortest box
    MOST_BOXES = 50000
};

// forward, input gradient, weight gradient, both; light enough for dark numbers
static const int colours[WORKS][3] = {{126, 176, 230}, {246, 178, 107}, {143, 204, 143}, {226, 146, 156}};

typedef struct Scale {
    double first, length; // time: where the panel begins, how long all panels are
    double width;         // of the plot
} Scale;

static double place(const Scale *s, double time) { return LEFT + (time - s->first) / s->length * s->width; }

// Chunks of a stage differ in lightness.
static void colour(Buffer *b, Work work, int chunk, int chunks) {
    double white = chunks > 1 ? 0.7 * chunk / (chunks - 1) : 0;
    int c[3];
    for (int i = 0; i < 3; i++) c[i] = (int)(colours[work][i] + white * (255 - colours[work][i]));
    buffer_printf(b, "#%02x%02x%02x", (unsigned)c[0], (unsigned)c[1], (unsigned)c[2]);
}

static bool fit(const TimelinePanel *panels, int count, Scale *s, Error *error) {
    double shortest = INFINITY;
    int64_t boxes = 0;
    *s = (Scale){0};
    for (int n = 0; n < count; n++) {
        const PipelineTable *t = panels[n].line->table;
        s->length = fmax(s->length, timeline_measure(panels[n].line, NULL).total);
        for (int i = 0; i < t->shape.stages; i++)
            for (int k = 0; k < t->counts[i]; k++, boxes++) {
                Span span = panels[n].line->spans[i][k];
                if (span.end > span.begin) shortest = fmin(shortest, span.end - span.begin);
            }
    }
    if (boxes > MOST_BOXES)
        return error_set(error, ERROR_USAGE,
                         "%lld rows are too many to draw (%d at most): fewer microbatches show the same pattern",
                         (long long)boxes, MOST_BOXES);
    if (!(s->length > 0)) s->length = shortest = 1;
    s->width = fmin(fmax(s->length / shortest * WIDTH, LEAST_WIDTH), MOST_WIDTH);
    return true;
}

// ---- parts of a picture ----

static void text(Buffer *b, const char *kind, double x, double y, const char *words) {
    buffer_printf(b, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\">", kind, x, y);
    html_text(b, words);
    buffer_text(b, "</text>\n");
}

static void draw_legend(Buffer *b, const TimelinePanel *panels, int count) {
    bool used[WORKS] = {false};
    int chunks = 1, x = LEFT;
    for (int n = 0; n < count; n++) {
        const PipelineTable *t = panels[n].line->table;
        if (t->shape.chunks > chunks) chunks = t->shape.chunks;
        for (int k = 0; k < t->counts[0]; k++) used[t->rows[0][k].work] = true;
    }
    for (int w = 0; w < WORKS; w++) {
        if (!used[w]) continue;
        buffer_printf(b, "<rect class=\"box\" x=\"%d\" y=\"14\" width=\"18\" height=\"14\" fill=\"", x);
        colour(b, (Work)w, 0, 1);
        buffer_text(b, "\"/>\n");
        text(b, "left", x + 24, 26, work_names[w]);
        x += 24 + DIGIT * (int)strlen(work_names[w]) + 20;
    }
    buffer_printf(b, "<rect class=\"wait\" x=\"%d\" y=\"14\" width=\"18\" height=\"14\"/>\n", x);
    text(b, "left", x + 24, 26, "waiting");
    x += 24 + DIGIT * 7 + 20;
    for (int c = 0; chunks > 1 && c < chunks; c++, x += 18) {
        buffer_printf(b, "<rect class=\"box\" x=\"%d\" y=\"14\" width=\"18\" height=\"14\" fill=\"", x);
        colour(b, WORK_FORWARD, c, chunks);
        buffer_text(b, "\"/>\n");
    }
    if (chunks > 1) text(b, "left", x + 6, 26, "chunk 0, 1, ... of a stage");
}

static void draw_box(Buffer *b, const Scale *s, const Timeline *line, int stage, int row, double y) {
    const Slot *slot = &line->table->rows[stage][row];
    Span span = line->spans[stage][row];
    double x = place(s, span.begin), width = place(s, span.end) - x;
    char number[16];
    int digits = snprintf(number, sizeof number, "%d", slot->microbatch);
    buffer_printf(b, "<rect class=\"box\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" fill=\"", x, y, width,
                  LANE);
    colour(b, slot->work, slot->chunk, line->table->shape.chunks);
    buffer_printf(b, "\"><title>%s of microbatch %d, chunk %d: %.6g to %.6g</title></rect>\n", work_names[slot->work],
                  slot->microbatch, slot->chunk, span.begin - s->first, span.end - s->first);
    if (width >= DIGIT * digits + 2) text(b, "middle", x + width / 2, y + LANE / 2.0 + 4, number);
}

static void draw_axis(Buffer *b, const Scale *s, double top, double bottom) {
    double step = svg_tick_step(0, s->length, (int)(s->width / 90));
    for (int k = 0; k * step <= s->length * (1 + 1e-9); k++) {
        char number[32];
        double x = LEFT + k * step / s->length * s->width;
        snprintf(number, sizeof number, "%.6g", k * step);
        buffer_printf(b, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", x, x, top,
                      bottom + 4);
        text(b, "tick", x, bottom + 17, number);
    }
    text(b, "tick", LEFT + s->width / 2, bottom + 33, "time");
}

static void draw_lane_labels(Buffer *b, const Scale *s, const TimelinePanel *p, int stage, const StageTime *own,
                             double y) {
    char words[96], held[48] = "";
    int chunks = p->line->table->shape.chunks;
    if (p->peaks) snprintf(held, sizeof held, ", holds %.3g", (double)p->peaks[stage].live / chunks);
    snprintf(words, sizeof words, "stage %d", stage);
    text(b, "right", LEFT - 8, y + LANE / 2.0 + 4, words);
    snprintf(words, sizeof words, "waits %.1f %%%s", 100 * own->bubble, held);
    text(b, "left", LEFT + s->width + 8, y + LANE / 2.0 + 4, words);
}

// Returns where the next panel begins.
static double draw_panel(Buffer *b, Scale s, const TimelinePanel *p, double y, StageTime *stages) {
    const PipelineTable *t = p->line->table;
    s.first = timeline_measure(p->line, stages).begin;
    text(b, "title", LEFT, y + 18, p->title);
    double top = y + TITLE, bottom = top + t->shape.stages * (LANE + GAP);
    draw_axis(b, &s, top, bottom);
    for (int i = 0; i < t->shape.stages; i++) {
        double at = top + i * (LANE + GAP);
        buffer_printf(b, "<rect class=\"wait\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n", LEFT, at, s.width,
                      LANE);
        draw_lane_labels(b, &s, p, i, &stages[i], at);
        for (int k = 0; k < t->counts[i]; k++) draw_box(b, &s, p->line, i, k, at);
    }
    return bottom + AXIS;
}

bool timeline_svg(Buffer *b, const TimelinePanel *panels, int count, Error *error) {
    Scale scale;
    int height = LEGEND, most = 0;
    if (!fit(panels, count, &scale, error)) return false;
    for (int n = 0; n < count; n++) {
        int stages = panels[n].line->table->shape.stages;
        height += TITLE + stages * (LANE + GAP) + AXIS;
        if (stages > most) most = stages;
    }
    int width = LEFT + (int)ceil(scale.width) + RIGHT;
    buffer_printf(b,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n"
                  "<style>text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
                  ".left{text-anchor:start}.middle,.tick{text-anchor:middle}.right{text-anchor:end}.tick{fill:#666}"
                  ".box{stroke:#fff;stroke-width:1}.wait{fill:#f0f0f0}.grid{stroke:#ddd}</style>\n"
                  "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
                  width, height, width, height);
    Arena *arena = arena_new(sizeof(StageTime) * (size_t)most + 256);
    StageTime *stages = arena_array(arena, StageTime, most);
    double y = LEGEND;
    draw_legend(b, panels, count);
    for (int n = 0; n < count; n++) y = draw_panel(b, scale, &panels[n], y, stages);
    buffer_text(b, "</svg>\n");
    arena_free(arena);
    return true;
}
