/* Pictures of a run's data, held-out ones where the config names a validation set, and what the trained model says of
 * them: for the report. */
#pragma once
#include "train/report.h"

// Up to `most` samples, owned by the caller (report_samples_free). A run without pictures gives none.
bool report_samples(const char *run, int most, ReportSample **out, int *count, Log *, Error *);
void report_samples_free(ReportSample *, int count);
