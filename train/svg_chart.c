/* See svg_chart.h. */
#include "train/svg_chart.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 640, HEIGHT = 280, LEFT = 62, RIGHT = 26, TOP = 34, BOTTOM = 44, BUCKETS = 280, COLOURS = 6 };

typedef struct Axis {
    double low, high, step;
} Axis;

void html_text(Buffer *b, const char *text) {
    for (; *text; text++) {
        if (*text == '&')
            buffer_text(b, "&amp;");
        else if (*text == '<')
            buffer_text(b, "&lt;");
        else if (*text == '>')
            buffer_text(b, "&gt;");
        else if (*text == '"')
            buffer_text(b, "&quot;");
        else
            buffer_append(b, text, 1);
    }
}

double svg_tick_step(double low, double high, int most) {
    double rough = (high - low) / most, power = pow(10, floor(log10(rough)));
    const double round[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++)
        if (round[i] * power >= rough * 0.999) return round[i] * power;
    return 10 * power;
}

static bool drawable(const Series *s, int i) { return isfinite(s->x[i]) && isfinite(s->y[i]); }

// The range of x or y over all series, widened to whole ticks. False where nothing can be drawn.
static bool fit(const Chart *c, bool vertical, Axis *axis) {
    double low = INFINITY, high = -INFINITY;
    for (int k = 0; k < c->count; k++)
        for (int i = 0; i < c->series[k].count; i++) {
            if (!drawable(&c->series[k], i)) continue;
            double v = vertical ? c->series[k].y[i] : c->series[k].x[i];
            low = fmin(low, v);
            high = fmax(high, v);
        }
    if (!(low <= high)) return false;
    if (vertical && c->from_zero) low = fmin(low, 0);
    if (high - low <= 1e-12 * fmax(fabs(high), 1)) high = low + fmax(fabs(low) * 0.1, 1e-3);
    axis->step = svg_tick_step(low, high, vertical ? 5 : 7);
    axis->low = vertical ? floor(low / axis->step) * axis->step : low;
    axis->high = vertical ? ceil(high / axis->step) * axis->step : high;
    return true;
}

static double place_x(const Axis *a, double x) {
    return LEFT + (x - a->low) / (a->high - a->low) * (WIDTH - LEFT - RIGHT);
}
static double place_y(const Axis *a, double y) {
    return HEIGHT - BOTTOM - (y - a->low) / (a->high - a->low) * (HEIGHT - TOP - BOTTOM);
}

static void label_number(Buffer *b, double v, double step) {
    if (fabs(v) < step * 1e-6) v = 0;
    if (fabs(v) >= 1e6 || (step < 1e-3 && v != 0))
        buffer_printf(b, "%.2g", v);
    else
        buffer_printf(b, "%.*f", step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9), v);
}

static void draw_axes(Buffer *b, const Chart *c, const Axis *x, const Axis *y) {
    for (double v = ceil(y->low / y->step - 1e-9) * y->step; v <= y->high + 1e-9 * y->step; v += y->step) {
        buffer_printf(b,
                      "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"tick\" x=\"%d\" "
                      "y=\"%.1f\" text-anchor=\"end\">",
                      LEFT, WIDTH - RIGHT, place_y(y, v), place_y(y, v), LEFT - 7, place_y(y, v) + 4);
        label_number(b, v, y->step);
        buffer_text(b, "</text>");
    }
    for (double v = ceil(x->low / x->step - 1e-9) * x->step; v <= x->high + 1e-9 * x->step; v += x->step) {
        buffer_printf(b, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", place_x(x, v),
                      HEIGHT - BOTTOM + 17);
        label_number(b, v, x->step);
        buffer_text(b, "</text>");
    }
    buffer_printf(b, "<text class=\"tick\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">", (LEFT + WIDTH - RIGHT) / 2,
                  HEIGHT - 8);
    html_text(b, c->x_label);
    buffer_text(b, "</text>");
    if (c->y_label && *c->y_label) {
        buffer_printf(b, "<text class=\"tick\" transform=\"translate(13 %d) rotate(-90)\" text-anchor=\"middle\">",
                      (TOP + HEIGHT - BOTTOM) / 2);
        html_text(b, c->y_label);
        buffer_text(b, "</text>");
    }
}

// The mean of each bucket of points: what one pixel or two can show.
static void draw_series(Buffer *b, const Series *s, int colour, const Axis *x, const Axis *y) {
    int per = s->count > BUCKETS ? (s->count + BUCKETS - 1) / BUCKETS : 1, drawn = 0;
    buffer_printf(b, "<polyline class=\"series%d\" points=\"", colour % COLOURS);
    for (int i = 0; i < s->count; i += per) {
        double sum_x = 0, sum_y = 0;
        int n = 0;
        for (int j = i; j < i + per && j < s->count; j++) {
            if (!drawable(s, j)) continue;
            sum_x += s->x[j];
            sum_y += s->y[j];
            n++;
        }
        if (!n) continue;
        buffer_printf(b, "%s%.1f,%.1f", drawn++ ? " " : "", place_x(x, sum_x / n), place_y(y, sum_y / n));
    }
    buffer_text(b, "\"/>");
}

static void draw_legend(Buffer *b, const Chart *c) {
    int at = WIDTH - RIGHT;
    for (int k = c->count - 1; k >= 0 && c->count > 1; k--) { // from the right
        at -= 7 * (int)strlen(c->series[k].name) + 26;
        buffer_printf(b,
                      "<line class=\"series%d\" x1=\"%d\" x2=\"%d\" y1=\"16\" y2=\"16\"/><text class=\"legend\" "
                      "x=\"%d\" y=\"20\">",
                      k % COLOURS, at, at + 14, at + 18);
        html_text(b, c->series[k].name);
        buffer_text(b, "</text>");
    }
}

void svg_chart(Buffer *b, const Chart *c) {
    Axis x, y;
    buffer_printf(b, "<svg class=\"chart\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    html_text(b, c->title);
    buffer_printf(b, "\"><text class=\"title\" x=\"%d\" y=\"20\">", 8);
    html_text(b, c->title);
    buffer_text(b, "</text>");
    if (fit(c, false, &x) && fit(c, true, &y)) {
        draw_axes(b, c, &x, &y);
        for (int k = 0; k < c->count; k++) draw_series(b, &c->series[k], k, &x, &y);
        draw_legend(b, c);
    } else {
        buffer_printf(b, "<text class=\"tick\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">nothing measured yet</text>",
                      WIDTH / 2, HEIGHT / 2);
    }
    buffer_text(b, "</svg>\n");
}
