/* bifocal report: one HTML page about a run. */
#include "base/files.h"
#include "cli/commands.h"
#include "train/report_samples.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: bifocal report RUN [--samples N]\n\n"
    "Writes RUN/report.html: loss curves, throughput, evaluation results and, where the model was trained to speak,\n"
    "N pictures (default 12; held-out ones where the config names a validation set) with what it says of them.\n";

int report_main(int argc, char **argv) {
    const char *run = NULL;
    long most = 12;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return fputs(USAGE, stdout), 0;
        if (!strcmp(argv[i], "--samples") && i + 1 < argc)
            most = strtol(argv[++i], NULL, 10);
        else if (argv[i][0] != '-' && !run)
            run = argv[i];
        else
            return fputs(USAGE, stderr), 2;
    }
    if (!run || most < 0 || most > 1000) return fputs(USAGE, stderr), 2;

    Error error = {0};
    ReportSample *samples = NULL;
    int count = 0;
    Log *log = log_new(LOG_INFO, stderr);
    bool ok =
        report_samples(run, (int)most, &samples, &count, log, &error) && report_write(run, samples, count, &error);
    if (ok)
        printf("%s/report.html\n", run);
    else
        log_error(log, "%s", error.message);
    report_samples_free(samples, count);
    log_free(log);
    return ok ? 0 : (int)error.kind;
}
