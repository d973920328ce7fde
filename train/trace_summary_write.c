/* See trace_summary.h. Colours come from the page's CSS (series0, series1, ...), as charts' do. */
#include "train/svg_chart.h"
#include "train/trace_summary.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static const double MILLI = 1e3, MICRO = 1e6; // of a second

// "2 to 5 us"
static void class_name(int class, char out[32]) {
    double from = class ? gap_classes[class - 1] * MICRO : 0;
    if (class == GAP_CLASSES - 1)
        snprintf(out, 32, "over %g us", from);
    else
        snprintf(out, 32, "%g to %g us", from, gap_classes[class] * MICRO);
}

static double idle(const TraceSummary *s) { return s->seconds - s->busy; }

// ---- text ----

static void text_kernels(const TraceSummary *s, int most, Buffer *out) {
    buffer_printf(out, "\n%-44s %9s %10s %10s %8s\n", "work", "a step", "ms a step", "us each", "share");
    for (int i = 0; i < s->count && i < most; i++) {
        const WorkTotal *t = &s->of[i];
        buffer_printf(out, "%-44s %9.1f %10.3f %10.1f %6.1f %%\n", t->name, (double)t->count / (double)s->steps,
                      MILLI * t->seconds / (double)s->steps, MICRO * t->seconds / (double)t->count,
                      100 * t->seconds / s->seconds);
    }
    if (s->count > most) buffer_printf(out, "... and %d more\n", s->count - most);
}

static void text_gaps(const TraceSummary *s, Buffer *out) {
    buffer_printf(out, "\nwithout work %.3f ms a step, in stretches of\n", MILLI * idle(s) / (double)s->steps);
    for (int i = 0; i < GAP_CLASSES; i++) {
        char name[32];
        class_name(i, name);
        if (s->gaps_in[i])
            buffer_printf(out, "  %-16s %9.1f a step, %8.3f ms\n", name, (double)s->gaps_in[i] / (double)s->steps,
                          MILLI * s->idle_in[i] / (double)s->steps);
    }
    buffer_text(out, "the longest:\n");
    for (int i = 0; i < s->gap_count; i++) {
        const WorkGap *g = &s->gaps[i];
        buffer_printf(out, "  %10.1f us at %9.3f ms, between %s and %s\n", MICRO * g->seconds, MILLI * g->begin,
                      g->before ? g->before : "the beginning", g->after ? g->after : "the end");
    }
}

void trace_summary_text(const TraceSummary *s, int most, Buffer *out) {
    buffer_printf(out, "%" PRId64 " step%s of %.3f ms: the device worked %.1f %% of them\n", s->steps,
                  s->steps > 1 ? "s" : "", MILLI * s->seconds / (double)s->steps, 100 * s->busy / s->seconds);
    text_kernels(s, most, out);
    text_gaps(s, out);
}

// ---- a page ----

enum { WIDTH = 1280, ROW = 26, COLOURS = 6, LEFT = 70 };

// One step, a row for each stream: what shorter than a dot lies together is one bar.
static void draw_stream(const TraceSummary *s, int stream, double scale, Buffer *out) {
    double from = 0, to = -1;
    int name = -1;
    for (int64_t i = 0; i <= s->work_count; i++) {
        const DeviceWork *w = i < s->work_count ? &s->work[i] : NULL;
        if (w && (w->stream != stream || w->end < s->drawn[0] || w->begin > s->drawn[1])) continue;
        double begin = w ? (fmax(w->begin, s->drawn[0]) - s->drawn[0]) * scale : 0;
        double end = w ? (fmin(w->end, s->drawn[1]) - s->drawn[0]) * scale : 0;
        if (w && name >= 0 && begin - to < 0.25 && (w->name == name || end - from < 1)) {
            to = fmax(to, end);
            continue;
        }
        if (name >= 0) {
            buffer_printf(out, "<rect class=\"bar%d\" x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\"><title>",
                          name < COLOURS - 1 ? name : COLOURS - 1, LEFT + from, stream * ROW + 4, fmax(to - from, 0.2),
                          ROW - 8);
            html_text(out, s->of[name].name);
            buffer_text(out, "</title></rect>");
        }
        if (w) from = begin, to = end, name = w->name;
    }
}

static void draw_step(const TraceSummary *s, Buffer *out) {
    double lasts = s->drawn[1] - s->drawn[0], scale = (WIDTH - LEFT) / lasts;
    buffer_printf(out,
                  "<p class=\"soft\">A step in the middle, %.3f ms; the longest kernels have colours of their own.</p>"
                  "<svg class=\"chart\" viewBox=\"0 0 %d %d\" role=\"img\">",
                  MILLI * lasts, WIDTH, s->streams * ROW + 4);
    for (int i = 0; i < s->streams; i++) {
        buffer_printf(out, "<text class=\"tick\" x=\"4\" y=\"%d\">stream %d</text>", i * ROW + ROW / 2 + 4, i);
        draw_stream(s, i, scale, out);
    }
    buffer_text(out, "</svg>\n");
}

static void html_kernels(const TraceSummary *s, int most, Buffer *out) {
    double longest = s->count ? s->of[0].seconds : 1;
    buffer_text(out, "<table><tr><th>work<th>a step<th>ms a step<th>us each<th>longest, us<th>share<th></tr>");
    for (int i = 0; i < s->count && i < most; i++) {
        const WorkTotal *t = &s->of[i];
        buffer_text(out, "<tr><td>");
        html_text(out, t->name);
        buffer_printf(
            out,
            "</td><td class=\"n\">%.1f</td><td class=\"n\">%.3f</td><td class=\"n\">%.1f</td><td class=\"n\">%.1f"
            "</td><td class=\"n\">%.1f %%</td><td><svg width=\"160\" height=\"12\"><rect class=\"bar%d\" "
            "width=\"%.1f\" height=\"12\"/></svg></td></tr>",
            (double)t->count / (double)s->steps, MILLI * t->seconds / (double)s->steps,
            MICRO * t->seconds / (double)t->count, MICRO * t->longest, 100 * t->seconds / s->seconds,
            i < COLOURS - 1 ? i : COLOURS - 1, 160 * t->seconds / longest);
    }
    buffer_text(out, "</table>\n");
}

static void html_gaps(const TraceSummary *s, Buffer *out) {
    buffer_printf(out, "<p>Without work %.3f ms a step:</p><table><tr><th>stretches of<th>a step<th>ms a step</tr>",
                  MILLI * idle(s) / (double)s->steps);
    for (int i = 0; i < GAP_CLASSES; i++) {
        char name[32];
        class_name(i, name);
        buffer_printf(out, "<tr><td>%s</td><td class=\"n\">%.1f</td><td class=\"n\">%.3f</td></tr>", name,
                      (double)s->gaps_in[i] / (double)s->steps, MILLI * s->idle_in[i] / (double)s->steps);
    }
    buffer_text(out, "</table><table><tr><th>the longest, us<th>at, ms<th>behind<th>before</tr>");
    for (int i = 0; i < s->gap_count; i++) {
        const WorkGap *g = &s->gaps[i];
        buffer_printf(out, "<tr><td class=\"n\">%.1f</td><td class=\"n\">%.3f</td><td>", MICRO * g->seconds,
                      MILLI * g->begin);
        html_text(out, g->before ? g->before : "the beginning");
        buffer_text(out, "</td><td>");
        html_text(out, g->after ? g->after : "the end");
        buffer_text(out, "</td></tr>");
    }
    buffer_text(out, "</table>\n");
}

void trace_summary_html(const TraceSummary *s, int most, Buffer *out) {
    buffer_text(out, "<style>");
    for (int i = 0; i < COLOURS; i++) buffer_printf(out, ".bar%d{fill:var(--c%d)}", i, i);
    buffer_printf(out, "</style><h2>The GPU</h2><p>%" PRId64 " step%s of %.3f ms: it worked %.1f %% of them.</p>\n",
                  s->steps, s->steps > 1 ? "s" : "", MILLI * s->seconds / (double)s->steps, 100 * s->busy / s->seconds);
    draw_step(s, out);
    html_kernels(s, most, out);
    html_gaps(s, out);
}
