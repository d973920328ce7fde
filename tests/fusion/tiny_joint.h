/* A joint model small enough to train in a test, and a batch for it that holds all four objectives. */
#pragma once
#include "fusion/joint.h"
#include "kernels/cpu/cpu.h"

enum {
    TINY_SIDE = 16,  // pixels
    TINY_SLOTS = 16, // image tokens
    TINY_IMAGES = 4,
    TINY_VOCABULARY = 23,
    TINY_LENGTH = 40, // positions of a caption row: two images and eight tokens
};

typedef struct Tiny {
    Backend *backend;
    Arena *memory;
    Joint *joint;
    Tape *tape;
    float *moments; // AdamW's m and v of every parameter
    int64_t step;
} Tiny;

JointConfig tiny_config(void);                      // all four objectives, weight 1 each
void tiny_open(Tiny *, const JointConfig *, Dtype); // two threads
void tiny_open_threads(Tiny *, const JointConfig *, Dtype, int threads);
void tiny_close(Tiny *); // fails the test where the tape holds an error
// The same every time. Images of noise, each of its own mean; captions of one image, but for the last: two.
Batch tiny_batch(Arena *);
// Rows of `length` causal positions; targets are the next tokens.
Sequences tiny_rows(Arena *, int rows, int length, uint64_t seed);
float tiny_value(Tiny *, const Tensor *); // one f32 number
// One AdamW step at this learning rate; the means of the objectives go to mean (0 where absent).
void tiny_step(Tiny *, const Batch *, double learning_rate, float mean[OBJECTIVES]);
