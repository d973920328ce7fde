/* See report.h. */
#include "train/report.h"
#include "base/files.h"
#include "base/json.h"
#include "train/svg_chart.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SERIES = 16, MOST_KERNELS = 40 };

// One column of the metrics: the value of a key against the step.
typedef struct Column {
    char name[48];
    double *x, *y;
    int count, capacity;
} Column;

typedef struct Table {
    Column columns[3 * MOST_SERIES];
    int count;
} Table;

static Column *column(Table *t, const char *name) {
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->columns[i].name, name)) return &t->columns[i];
    if (t->count == 3 * MOST_SERIES) return NULL;
    Column *c = &t->columns[t->count++];
    snprintf(c->name, sizeof c->name, "%s", name);
    return c;
}

static void column_add(Table *t, const char *name, double x, double y) {
    Column *c = column(t, name);
    if (!c) return;
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 256;
        c->x = realloc(c->x, (size_t)c->capacity * sizeof *c->x);
        c->y = realloc(c->y, (size_t)c->capacity * sizeof *c->y);
        check(c->x && c->y);
    }
    c->x[c->count] = x;
    c->y[c->count++] = y;
}

static void add_record(Table *t, json_t *record) {
    const char *key;
    json_t *value;
    double step = json_get_number(record, "step", NAN), seconds = json_get_number(record, "seconds", 0);
    json_object_foreach(record, key, value) if (json_is_number(value) && strcmp(key, "step") != 0)
        column_add(t, key, step, json_number_value(value));
    if (seconds <= 0) return;
    column_add(t, "rate/tokens", step, json_get_number(record, "tokens", 0) / seconds);
    column_add(t, "rate/images", step, json_get_number(record, "images", 0) / seconds);
    column_add(t, "rate/gflops", step, json_get_number(record, "flop", 0) / seconds / 1e9);
    if (json_object_get(record, "mfu")) {
        column_add(t, "rate/mfu", step, 100 * json_get_number(record, "mfu", 0));
        column_add(t, "rate/mfu_6n", step, 100 * json_get_number(record, "mfu_6n", 0));
    }
}

static bool read_metrics(const char *run, Table *t, Error *error) {
    char path[4096];
    json_t *record;
    snprintf(path, sizeof path, "%s/metrics.jsonl", run);
    JsonLines *lines = json_lines_open(path, error);
    if (!lines) return error_prefix(error, "%s is not a run", run);
    bool ok;
    while ((ok = json_lines_next(lines, &record, error)) && record) {
        add_record(t, record);
        json_decref(record);
    }
    json_lines_close(lines);
    return ok;
}

static void table_free(Table *t) {
    for (int i = 0; i < t->count; i++) {
        free(t->columns[i].x);
        free(t->columns[i].y);
    }
}

// ---- drawing ----

static const char STYLE[] =
    "<style>:root{--ink:#1c2330;--soft:#5d6778;--line:#d9dee7;--page:#fff;--card:#f6f8fb;--c0:#2563eb;--c1:#d9480f;--"
    "c2:#2b8a3e;"
    "--c3:#862e9c;--c4:#0b7285;--c5:#a61e4d}@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa5b5;--"
    "line:#333b48;--page:#14181f;"
    "--card:#1c222c;--c0:#74a7ff;--c1:#ff9a62;--c2:#69d58c;--c3:#d08bf0;--c4:#4fc9dd;--c5:#f783ac}}"
    "body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1360px;margin:2rem "
    "auto;padding:0 1rem}"
    "h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .6rem}.soft{color:var(--soft)}"
    ".grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}.chart{background:var(--"
    "card);border-radius:8px;width:100%}"
    ".chart .title{font-weight:600;fill:var(--ink);font-size:14px}.chart .tick,.chart "
    ".legend{fill:var(--soft);font-size:12px}"
    ".chart "
    ".grid{stroke:var(--line)}polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}.series0{stroke:var(--c0)}."
    "series1{stroke:var(--c1)}"
    ".series2{stroke:var(--c2)}.series3{stroke:var(--c3)}.series4{stroke:var(--c4)}.series5{stroke:var(--c5)}line["
    "class^=series]{stroke-width:3}"
    "table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid "
    "var(--line);text-align:left}td.n{text-align:right;"
    "font-variant-numeric:tabular-nums}.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));"
    "gap:1rem}"
    ".sample{background:var(--card);border-radius:8px;padding:.8rem}.sample "
    "img{width:128px;height:128px;object-fit:contain;image-rendering:pixelated;"
    "border-radius:4px}.sample p{margin:.3rem "
    "0}.right{color:var(--c2)}.wrong{color:var(--c1)}pre{background:var(--card);padding:1rem;"
    "border-radius:8px;overflow:auto;font-size:13px}</style>";

static bool all_zero(const Column *c) {
    for (int i = 0; i < c->count; i++)
        if (c->y[i] != 0) return false;
    return true;
}

// A chart of all columns whose name starts with `prefix`, named by what follows it.
static void chart_of(Buffer *b, const Table *t, const char *prefix, const char *title, const char *y_label,
                     bool from_zero) {
    Series series[MOST_SERIES];
    int n = 0;
    for (int i = 0; i < t->count && n < MOST_SERIES; i++) {
        const Column *c = &t->columns[i];
        if (strncmp(c->name, prefix, strlen(prefix)) != 0 || all_zero(c)) continue;
        const char *name = c->name + strlen(prefix);
        series[n++] = (Series){*name ? name : title, c->x, c->y, c->count};
    }
    Chart chart = {title, "step", y_label, series, n, from_zero};
    if (n) svg_chart(b, &chart);
}

static double last_of(const Table *t, const char *name) {
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->columns[i].name, name)) return t->columns[i].y[t->columns[i].count - 1];
    return NAN;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(const Table *t, const char *name) {
    for (int i = 0; i < t->count; i++) {
        const Column *c = &t->columns[i];
        if (strcmp(c->name, name) != 0) continue;
        double *sorted = malloc((size_t)c->count * sizeof *sorted), median;
        check(sorted);
        memcpy(sorted, c->y, (size_t)c->count * sizeof *sorted);
        qsort(sorted, (size_t)c->count, sizeof *sorted, by_value);
        median = sorted[c->count / 2];
        free(sorted);
        return median;
    }
    return NAN;
}

static double sum_of(const Table *t, const char *name) {
    double sum = 0;
    for (int i = 0; i < t->count; i++)
        for (int j = 0; !strcmp(t->columns[i].name, name) && j < t->columns[i].count; j++) sum += t->columns[i].y[j];
    return sum;
}

static void rate_of(Buffer *b, const Table *t, const char *name, const char *unit) {
    double median = median_of(t, name);
    if (median > 0) buffer_printf(b, ", %.0f %s", median, unit);
}

static void head(Buffer *b, const char *run, const Table *t) {
    const Column *loss = NULL;
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->columns[i].name, "loss")) loss = &t->columns[i];
    buffer_text(b, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
                   "content=\"width=device-width\"><title>");
    html_text(b, path_base(run));
    buffer_printf(b, "</title>%s<h1>", STYLE);
    html_text(b, path_base(run));
    buffer_text(b, "</h1><p class=\"soft\">");
    if (loss) {
        buffer_printf(b, "%.0f steps, last loss %.4f, %.1f s of training steps; median step %.1f ms",
                      loss->x[loss->count - 1], last_of(t, "loss"), sum_of(t, "seconds"),
                      1e3 * median_of(t, "seconds"));
        rate_of(b, t, "rate/tokens", "tokens/s");
        rate_of(b, t, "rate/images", "images/s");
        rate_of(b, t, "rate/gflops", "GFLOP/s");
        rate_of(b, t, "rate/mfu", "% of the devices' peak (MFU: model FLOP)");
        rate_of(b, t, "rate/mfu_6n", "% by 6 N a token and whole attention");
    }
    buffer_text(b, "</p>\n");
}

static void charts(Buffer *b, const Table *t) {
    buffer_text(b, "<h2>Training</h2><div class=\"grid2\">");
    chart_of(b, t, "loss/", "Loss by objective", "mean per target", false);
    chart_of(b, t, "validation/", "Validation loss", "mean per target", false);
    chart_of(b, t, "learning_rate", "Learning rate", "", true);
    chart_of(b, t, "gradient_norm", "Gradient norm before clipping", "", true);
    chart_of(b, t, "rate/tokens", "Text tokens per second", "", true);
    chart_of(b, t, "rate/images", "Pictures per second", "", true);
    buffer_text(b, "</div>\n");
}

// One row a metric: results are {task: {"acc,none": value, "acc_stderr,none": value, "acc_chance,none": value, ...}}.
static void metric_row(Buffer *b, const char *task, const char *key, json_t *values) {
    char other[128];
    const char *comma = strchr(key, ',');
    int n = comma ? (int)(comma - key) : (int)strlen(key);
    buffer_text(b, "<tr><td>");
    html_text(b, task);
    snprintf(other, sizeof other, "%.*s", n, key);
    buffer_text(b, "</td><td>");
    html_text(b, other);
    buffer_printf(b, "</td><td class=\"n\">%.4f</td>", json_get_number(values, key, NAN));
    const char *const suffixes[] = {"_stderr", "_chance"};
    for (int i = 0; i < 2; i++) {
        snprintf(other, sizeof other, "%.*s%s%s", n, key, suffixes[i], comma ? comma : "");
        double v = json_get_number(values, other, NAN);
        if (isfinite(v))
            buffer_printf(b, "<td class=\"n\">%.4f</td>", v);
        else
            buffer_text(b, "<td></td>");
    }
    buffer_text(b, "</tr>");
}

static void evaluation(Buffer *b, const char *run) {
    char path[4096];
    Error error;
    const char *task, *key;
    json_t *values, *value;
    snprintf(path, sizeof path, "%s/eval/results.json", run);
    json_t *file = file_exists(path) ? json_read_file(path, &error) : NULL;
    if (!file) return;
    buffer_text(b, "<h2>Evaluation</h2><table><tr><th>task<th>metric<th>value<th>standard error<th>chance</tr>");
    json_object_foreach(json_object_get(file, "results"), task, values) {
        json_object_foreach(values, key, value) {
            if (json_is_number(value) && !strstr(key, "_stderr") && !strstr(key, "_chance"))
                metric_row(b, task, key, values);
        }
    }
    buffer_text(b, "</table>\n");
    json_decref(file);
}

static void line_of(Buffer *b, const char *label, const char *class, const char *text) {
    if (!text) return;
    buffer_printf(b, "<p><span class=\"soft\">%s</span> <span class=\"%s\">", label, class);
    html_text(b, text);
    buffer_text(b, "</span></p>");
}

static void samples_of(Buffer *b, const ReportSample *samples, int count) {
    if (!count) return;
    buffer_text(b, "<h2>Held-out pictures, and what the model says of them</h2><div class=\"samples\">");
    for (int i = 0; i < count; i++) {
        const ReportSample *s = &samples[i];
        bool right = s->answer && s->model_answer && !strcmp(s->answer, s->model_answer);
        buffer_printf(b, "<div class=\"sample\"><img alt=\"\" src=\"%s\">", s->picture);
        line_of(b, "given:", "", s->truth);
        line_of(b, "model:", "", s->says);
        line_of(b, "asked:", "", s->question);
        line_of(b, "answer:", "", s->answer);
        line_of(b, "model:", right ? "right" : "wrong", s->model_answer);
        buffer_text(b, "</div>");
    }
    buffer_text(b, "</div>\n");
}

static void config_of(Buffer *b, const char *run) {
    char path[4096];
    Buffer yaml = {0};
    Error error;
    snprintf(path, sizeof path, "%s/config.yaml", run);
    if (file_read(path, &yaml, &error)) {
        buffer_text(b, "<h2>Configuration</h2><details><summary>config.yaml, resolved</summary><pre>");
        html_text(b, yaml.data);
        buffer_text(b, "</pre></details>");
    }
    buffer_free(&yaml);
}

bool report_write(const char *run, const ReportSample *samples, int count, const TraceSummary *trace, Error *error) {
    char path[4096];
    Table table = {0};
    Buffer html = {0};
    bool ok = read_metrics(run, &table, error);
    if (ok) {
        head(&html, run, &table);
        evaluation(&html, run);
        samples_of(&html, samples, count);
        charts(&html, &table);
        if (trace) trace_summary_html(trace, MOST_KERNELS, &html);
        config_of(&html, run);
        buffer_text(&html, "</html>\n");
        snprintf(path, sizeof path, "%s/report.html", run);
        ok = file_write(path, html.data, html.size, error);
    }
    buffer_free(&html);
    table_free(&table);
    return ok;
}
