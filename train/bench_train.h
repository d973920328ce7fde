/* The speed of a whole training step (forward, backward, clip, AdamW) of published and small models on random data,
 * with a peer's command run in turn on the same cores. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "kernels/device.h"
#include "kernels/nn/block.h"

typedef struct BenchTrainOptions {
    const char *preset; // see bench_train_presets
    Dtype precision;    // F32 or BF16
    Device device;
    int threads;        // 0: one per core
    int iterations;     // measured steps, behind two that are not
    Recompute recompute;
} BenchTrainOptions;

typedef struct BenchTrainResult {
    const char *unit;           // "tokens" or "images"
    double per_second;          // at the median
    double median, best, worst; // seconds of a step
    double gflops;              // model FLOP of forward and backward (once each), at the median
    double peak_bytes;          // of parameters, states, activations and scratch
    double activation_bytes;    // of activations, their gradients and scratch: the most at once
    double parameters;
    double loss; // of the last step: finite, or the figure means nothing
} BenchTrainResult;

extern const char *const bench_train_presets[]; // NULL at the end
bool bench_train(const BenchTrainOptions *, BenchTrainResult *, Log *, Error *);
