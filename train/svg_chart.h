/* Line charts as inline SVG: axes with round ticks, one line a series, a legend. Colours come from the page's CSS
 * (classes series0, series1, ...), so that light and dark pages both work. */
#pragma once
#include "base/buffer.h"
#include <stdbool.h>

typedef struct Series {
    const char *name;
    const double *x, *y; // (count), x ascending; points that are not finite are left out
    int count;
} Series;

typedef struct Chart {
    const char *title, *x_label, *y_label;
    const Series *series;
    int count;
    bool from_zero; // the y axis starts at 0
} Chart;

// Appends an <svg> element. Long series are thinned to the chart's resolution: each drawn point is the mean of its
// bucket. A chart without a finite point says so.
void svg_chart(Buffer *html, const Chart *);
// Round tick positions covering [low, high]: returns the step, at most `most` of them fit.
double svg_tick_step(double low, double high, int most);
// Appends text with &, <, > and " escaped.
void html_text(Buffer *, const char *text);
