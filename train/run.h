/* A training run: config and data in, a run folder out.
 *
 * RUN/config.yaml (resolved), metrics.jsonl (one object a step), log.txt, checkpoints/. A run that is resumed continues
 * as if it had never stopped, bit for bit. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include <signal.h>

typedef struct TrainOptions {
    const char *config;           // YAML file; NULL: the run's own (resume), or defaults and overrides alone
    const char *const *overrides; // "section.key=value"
    int n_overrides;
    const char *run;                   // folder, created where absent
    bool resume;                       // go on from the newest checkpoint; false: the run must hold none
    bool allow_changed_data;           // resume although a dataset is not the one the run was trained on
    const volatile sig_atomic_t *stop; // becomes non-zero when the run shall save and stop; may be NULL
} TrainOptions;

typedef struct TrainResult {
    bool interrupted; // stopped by `stop`, after saving
    long long step;   // updates done
    double seconds;   // of this call
} TrainResult;

bool train_run(const TrainOptions *, TrainResult *, Log *, Error *);
