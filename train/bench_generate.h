/* The speed of generation beside what memory allows: each token reads every weight once, and the keys and values of
 * what came before it. */
#pragma once
#include "kernels/device.h"
#include "train/bench_presets.h"

typedef struct BenchGenerateOptions {
    const char *preset; // of a language model: see bench_presets
    bool shrink;        // bench_preset_shrink; the memory is then taken for one of 1 GB/s
    Dtype precision;
    Device device;
    int threads;            // 0: one per core
    int batch;              // texts at a time
    int64_t prompt, tokens; // of each text: given, and made
    double temperature;     // 0: the likeliest word
    int rounds;             // whole generations that are measured, behind one that is not; the median counts
} BenchGenerateOptions;

typedef struct BenchGenerateResult {
    double seconds;     // of all tokens of the batch, the prompt's pass included
    double per_second;  // tokens, over the batch
    double bytes;       // of weights and cache that one token of each text reads, on average
    double copy_gbytes; // GB/s that the device copies, read and written bytes counted
    double share;       // of the speed at which it could read so many bytes
    double parameters;
} BenchGenerateResult;

bool bench_generate(const BenchGenerateOptions *, BenchGenerateResult *, Log *, Error *);
