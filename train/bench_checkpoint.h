/* How long a save holds the training, beside how long it takes: real steps of a text model on random tokens, with
 * checkpoints written meanwhile. */
#pragma once
#include "base/error.h"
#include "base/log.h"

typedef struct BenchCheckpointOptions {
    const char *out;              // folder for the checkpoints, which stay there
    const char *const *overrides; // "model.text.width=256"; without any: GPT-2 of 124M parameters
    int override_count;
    int threads; // 0: one per core
    int tokens;  // of a step
    int saves;   // that are measured, behind a first one
} BenchCheckpointOptions;

typedef struct BenchCheckpointResult {
    double parameters, bytes; // bytes: of one checkpoint's tensors
    double held, written;     // seconds of the save with the median share of held / written
    double worst;             // the largest share
    double first;             // seconds that the first save held: it may wait for the memory of its copies
    double step, step_beside; // seconds, medians: without a save under way, and with one
} BenchCheckpointResult;

bool bench_checkpoint(const BenchCheckpointOptions *, BenchCheckpointResult *, Log *, Error *);
