/* bifocal report: one HTML page about a run. */
#include "base/files.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/report.h"
#include "train/report_samples.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_KERNELS = 40 };

static const char USAGE[] =
    "usage: bifocal report RUN [--samples N] [--trace FILE [--rank R]]\n"
    "       bifocal report --trace FILE [--rank R]\n\n"
    "Writes RUN/report.html: loss curves, throughput, evaluation results and, where the model was trained to speak,\n"
    "N pictures (default 12; held-out ones where the config names a validation set) with what it says of them.\n"
    "A run without a checkpoint, or whose data are gone, gets a page without pictures.\n"
    "With the timeline of a run on a GPU (`bifocal train --trace FILE`): its kernels and copies by time, one step as\n"
    "it went, and when the GPU of rank R (0) had nothing to do, between which kernels. Without RUN that is printed.\n";

typedef struct Arguments {
    const char *run, *trace;
    double samples, rank;
    bool help;
} Arguments;

static bool parse(int argc, char **argv, Arguments *a, Error *error) {
    static const struct option options[] = {{"samples", required_argument, 0, 's'},
                                            {"trace", required_argument, 0, 't'},
                                            {"rank", required_argument, 0, 'r'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){.samples = 12};
    for (int c; (c = option_next(argc, argv, options, "report", error)) != -1;) {
        if ((a->help = c == 'h')) return true;
        if (c == 't')
            a->trace = optarg;
        else if (c == '?' || !(c == 's' ? option_number(optarg, 0, 1000, "--samples", &a->samples, error)
                                        : option_number(optarg, 0, 1 << 20, "--rank", &a->rank, error)))
            return false;
    }
    if (argc - optind > 1 || (argc == optind && !a->trace))
        return error_set(error, ERROR_USAGE, "one RUN is wanted; see `bifocal report --help`");
    a->run = argc > optind ? argv[optind] : NULL;
    return true;
}

// Pictures where they can be had: a young run has no checkpoint yet, the data of an old one may be gone.
static bool add_samples(const char *run, int most, ReportSample **samples, int *count, Log *log, Error *error) {
    Buffer metrics = {0};
    if (!most || report_samples(run, most, samples, count, log, error)) return true;
    buffer_printf(&metrics, "%s/metrics.jsonl", run);
    bool has_curves = file_exists(metrics.data);
    buffer_free(&metrics);
    if (has_curves) log_warning(log, "a page without pictures: %s", error->message);
    return has_curves;
}

static void print_trace(const TraceSummary *trace) {
    Buffer text = {0};
    trace_summary_text(trace, MOST_KERNELS, &text);
    fwrite(text.data, 1, text.size, stdout);
    buffer_free(&text);
}

static bool write_page(const Arguments *a, const TraceSummary *trace, Log *log, Error *error) {
    ReportSample *samples = NULL;
    int count = 0;
    bool ok = add_samples(a->run, (int)a->samples, &samples, &count, log, error) &&
              report_write(a->run, samples, count, trace, error);
    if (ok) printf("%s/report.html\n", a->run);
    report_samples_free(samples, count);
    return ok;
}

static bool report(const Arguments *a, Log *log, Error *error) {
    Arena *memory = arena_new(1 << 18);
    TraceSummary trace;
    bool ok = !a->trace || trace_summary_read(a->trace, (int)a->rank, memory, &trace, error);
    if (ok && a->run)
        ok = write_page(a, a->trace ? &trace : NULL, log, error);
    else if (ok)
        print_trace(&trace);
    arena_free(memory);
    return ok;
}

int report_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    Log *log = log_new(LOG_INFO, stderr);
    bool ok = parse(argc, argv, &a, &error);
    if (ok && a.help)
        fputs(USAGE, stdout);
    else
        ok = ok && report(&a, log, &error);
    if (!ok) log_error(log, "%s", error.message);
    log_free(log);
    return ok ? 0 : (int)error.kind;
}
