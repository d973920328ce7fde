/* Inside parameters*.c, buckets.c and gather.c: what a Parameters is made of. */
#pragma once
#include "kernels/nn/buckets.h"

typedef struct Memory { // one allocation of the backend
    void *data;
    size_t bytes;
} Memory;

typedef struct Gather Gather; // which values are here, at stage 3: gather.c

struct Parameters {
    Backend *backend;
    Parallel parallel;
    int stage;
    Comm *sharing; // the data ranks, to gather values: these calls must not wait for others; NULL at stage 0
    Arena *memory;
    Parameter **items; // (count) in the order of declaration
    int count, capacity;
    bool finished;
    Bucket *buckets;
    int bucket_count;
    OwnedRange *owned;
    int owned_count;
    Gather *gather;                          // NULL before stage 3
    bool fp8;
    int scaled;                              // weights with a scaling
    Memory most;                             // (scaled, FP8_SIDES) largest numbers of a step, device
    int64_t blocks, states;                  // of all buckets; elements of a moment
    Memory values, masters, gradients, sums; // device; empty where buckets hold theirs otherwise
};

// Cuts the declared parameters into buckets and shares them out.
void parameters_lay_out(Parameters *, Dtype compute);
bool parameters_allocate(Parameters *, Error *);
void parameters_release(Parameters *);
void parameters_open_scaling(Parameters *); // parameters_fp8.c: gives weights their scaling

Gather *gather_new(Backend *, Comm *sharing, int buckets); // all borrowed
void gather_free(Gather *);                                // NULL is allowed
size_t gather_bytes(const Gather *);                       // of buckets that are here, at the most; 0 for NULL
