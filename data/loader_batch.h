/* One batch, built by one worker from nothing but the sources and the step. */
#pragma once
#include "data/loader_source.h"

typedef struct BadSample { // one that could not be used; in the arena
    int source;
    uint64_t number;
    const char *message;
    struct BadSample *next;
} BadSample;

typedef struct BatchSpace { // memory of a batch, reused from batch to batch
    Arena *arena;
    Buffer pixels;
    Batch batch;
    BadSample *bad; // in the order in which they came
    int64_t draws;  // samples that were tried
} BatchSpace;

typedef struct BatchPlan { // what all batches of a loader have in common
    const LoaderConfig *config;
    const Source *sources; // (config->source_count)
    const Tokenizer *tokenizer;
    SequenceIds ids;
} BatchPlan;

bool batch_build(const BatchPlan *, int64_t step, BatchSpace *, Scratch *, Error *);
void batch_space_free(BatchSpace *);
