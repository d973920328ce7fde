/* The models that `bifocal bench` measures: published sizes and small ones, with the batch of a step. */
#pragma once
#include "fusion/joint.h"

typedef enum BenchKind { BENCH_LANGUAGE, BENCH_CLASSIFIER, BENCH_AUTOENCODER, BENCH_PAIRS, BENCH_JOINT } BenchKind;

typedef struct BenchPreset {
    const char *name;
    BenchKind kind;
    int64_t batch;   // rows of text, or pictures, of a step; joint: pictures
    int64_t pieces;  // that a step is cut into, whose gradients add up; 0: 1
    int64_t classes; // of a classifier
    int64_t embedding;
    TextConfig text;
    VitConfig vision;
    MaeConfig mae;
    double weight[OBJECTIVES]; // joint
    int64_t lm_rows;           // joint: rows of plain text beside the pictures
    int64_t caption_length;    // joint: tokens, the picture's slots counted
} BenchPreset;

extern const char *const bench_presets[];                    // names, NULL at the end
bool bench_preset(BenchPreset *, const char *name, Error *); // a copy; false: there is none of that name
// The same kind of model and step, so small that any machine runs it at once: for tests.
void bench_preset_shrink(BenchPreset *);
// "tokens" or "images", and how many of them a step takes.
const char *bench_preset_unit(const BenchPreset *);
double bench_preset_units(const BenchPreset *);
// Model FLOP of a step, forward and backward: matrix products and attention, a multiply and an add counted as two, the
// backward pass as twice the forward pass, causal attention as the pairs it lets through. With the 6 N of the products
// of N weights a token this is what MFU is commonly counted by (Chowdhery et al. 2022). Joint: see joint_flop.
double bench_preset_flop(const BenchPreset *);
