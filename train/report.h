/* The report of a run: one HTML file with everything in it (inline SVG and pictures), made from metrics.jsonl,
 * config.yaml, eval/results.json and, where the model can be asked, pictures with what it says of them; and of a traced
 * run what its GPU did. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "train/trace_summary.h"

typedef struct ReportSample {               // owned by whoever made it; see report_samples.h
    char *picture;                          // a data: URL
    char *truth, *says;                     // caption as given, and by the model
    char *question, *answer, *model_answer; // NULL where the data has no questions
} ReportSample;

// Writes RUN/report.html (atomically). samples may be NULL, and so may trace: of a timeline of the run.
bool report_write(const char *run, const ReportSample *samples, int count, const TraceSummary *trace, Error *);
