/* A training run: config and data in, a run folder out.
 *
 * RUN/config.yaml (resolved), metrics.jsonl (one object a step), log.txt, checkpoints/; of several ranks the first
 * writes these, and every other one keeps logs/rank-00001.txt. A run that is resumed continues as if it had never
 * stopped, bit for bit. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "kernels/comm/comm.h"
#include <signal.h>

typedef struct TrainOptions {
    const char *config;           // YAML file; NULL: the run's own (resume), or defaults and overrides alone
    const char *const *overrides; // "section.key=value"
    int n_overrides;
    const char *run;         // folder, created where absent
    bool resume;             // go on from the newest checkpoint; false: the run must hold none
    bool allow_changed_data; // resume although a dataset is not the one the run was trained on
    // Becomes non-zero (a signal's number) when the run shall save and stop: on any one rank. May be NULL
    const volatile sig_atomic_t *stop;
    const char *trace;       // file for a timeline of all ranks (Chrome's trace format); NULL: none
    Comm *world;         // all ranks of the run; NULL: alone
    struct Watch *watch; // over the world; may be NULL
} TrainOptions;

typedef struct TrainResult {
    int interrupted; // what `stop` was on the rank where it was set: the run stopped after saving; else 0
    long long step;  // updates done
    double seconds;  // of this call
} TrainResult;

// Collective over the world: every rank gets the same result, and the same error.
bool train_run(const TrainOptions *, TrainResult *, Log *, Error *);
