/* bifocal report: one HTML page about a run. */
#include "base/files.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/report_samples.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: bifocal report RUN [--samples N]\n\n"
    "Writes RUN/report.html: loss curves, throughput, evaluation results and, where the model was trained to speak,\n"
    "N pictures (default 12; held-out ones where the config names a validation set) with what it says of them.\n"
    "A run without a checkpoint, or whose data are gone, gets a page without pictures.\n";

static bool parse(int argc, char **argv, const char **run, double *most, bool *help, Error *error) {
    static const struct option options[] = {{"samples", required_argument, 0, 's'}, {"help", no_argument, 0, 'h'}, {0}};
    for (int c; (c = option_next(argc, argv, options, "report", error)) != -1;) {
        if ((*help = c == 'h')) return true;
        if (c == '?' || !option_number(optarg, 0, 1000, "--samples", most, error)) return false;
    }
    if (argc - optind != 1) return error_set(error, ERROR_USAGE, "one RUN is wanted; see `bifocal report --help`");
    *run = argv[optind];
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

int report_main(int argc, char **argv) {
    const char *run = NULL;
    double most = 12;
    bool help = false;
    Error error = {0};
    ReportSample *samples = NULL;
    int count = 0;
    Log *log = log_new(LOG_INFO, stderr);
    bool ok = parse(argc, argv, &run, &most, &help, &error);
    if (ok && help)
        fputs(USAGE, stdout);
    else
        ok = ok && add_samples(run, (int)most, &samples, &count, log, &error) &&
             report_write(run, samples, count, &error);
    if (ok && !help) printf("%s/report.html\n", run);
    if (!ok) log_error(log, "%s", error.message);
    report_samples_free(samples, count);
    log_free(log);
    return ok ? 0 : (int)error.kind;
}
