/* The speed of a whole training step (forward, backward, clip, AdamW) of published and small models on random data,
 * with a peer's command run in turn on the same cores. */
#pragma once
#include "base/log.h"
#include "kernels/device.h"
#include "train/bench_presets.h"

typedef struct BenchTrainOptions {
    const char *preset; // see bench_presets
    bool shrink;        // bench_preset_shrink
    Dtype precision;    // F32 or BF16
    Device device;
    int threads;    // 0: one per core
    int iterations; // measured steps, behind a few that are not
    double seconds; // no more steps are begun behind this; 0: no limit
    Recompute recompute;
    double memory; // bytes; above 0: recompute as little as fits into so much, instead of `recompute`
} BenchTrainOptions;

typedef struct BenchMemory { // bytes
    double tensors;          // and work space
    double others;           // CUDA's own, its libraries', and of other processes
} BenchMemory;
typedef struct BenchTrainResult {
    const char *unit;           // "tokens" or "images"
    double units;               // of a step
    double median, best, worst; // seconds of a step
    double flop;                // of the model in a step: bench_preset_flop
    double peak_flops; // FLOP/s that the device could do at most (bench_most_flops); INFINITY: shrunken, not measured
    double computed;   // FLOP of forward and backward (once each) as operators tell them
    double peak_bytes; // of parameters, states, activations and work space; of the CPU: of the process
    double activation_bytes;   // of activations, their gradients and scratch: the most at once
    BenchMemory planned, held; // of a GPU: before the first step, by the same code, and in the end; all 0: of no GPU
    double parameters;
    Recompute recompute;
    double loss;       // of the last step: finite, or the figure means nothing
    double first_loss; // the same on every device but for roundings
} BenchTrainResult;

// By how much more is held than was planned, of that: 0.03 for 3 %.
double bench_memory_off(const BenchTrainResult *);

// The least recomputation with which a step fits into `memory` bytes; false: none does.
bool bench_train_fit(const BenchPreset *, Dtype, double memory, Recompute *, Error *);
bool bench_train(const BenchTrainOptions *, BenchTrainResult *, Log *, Error *);
