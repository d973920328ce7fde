/* Buckets: consecutive whole parameters of one type and one chunk whose gradients are reduced together and whose values
 * are gathered together, of about Parallel.bucket_bytes of gradients; a larger parameter is alone in one, and so is one
 * that has a replica, and that. Each is shared out over the data ranks by comm_share of its blocks: both copies alike.
 * For those who move them (train/gradients.c); models see parameters.h. */
#pragma once
#include "kernels/nn/parameters.h"

typedef struct Bucket {
    Parameter **items; // (count) in the order of memory; partial ones (Parameter.partial) stand first
    int count;
    int chunk;              // Parameter.chunk of all of them
    int64_t block, blocks;  // in the flat buffers
    int64_t own, owned;     // this rank's blocks [own, own + owned) of it
    int64_t partial_blocks; // at its start
    bool frozen;
    Dtype dtype;             // of what operators read
    int first_range, ranges; // of parameters_owned
    void *values;            // (blocks) what operators read; NULL while given back
    void *own_values;        // (owned) this rank's part of it: inside `values` where these are kept
    float *masters;          // (owned); f32: own_values
    float *gradients;        // (blocks) where operators write; NULL while there are none
    bool clean;              // what lies there behind each parameter, up to its last block's end, is zero
    float *sums;             // (owned) this rank's part of the summed gradients
    CommRequest *gathering;  // stages 1 and 2: the values of other ranks are on their way
} Bucket;

int parameters_stage(const Parameters *); // Parallel.zero; 0 where there is but one data rank
Backend *parameters_backend(const Parameters *);
int buckets_count(const Parameters *);
Bucket *bucket_at(Parameters *, int index);
static inline size_t bucket_bytes(int64_t blocks, Dtype t) { return (size_t)blocks * PARAMETER_BLOCK * dtype_size(t); }

// Where a bucket's values, gradients and sums lie from now on; its parameters and ranges follow.
void bucket_set_values(Bucket *, void *values);
void bucket_set_gradients(Bucket *, float *gradients);
void bucket_set_sums(Parameters *, Bucket *, float *sums);
// Its gradients hold nothing yet: the first writer overwrites.
void bucket_begin_backward(Bucket *);
// Zeroes the gradients nobody wrote, and what lies behind each parameter up to its last block's end where that may be
// other than zero.
void bucket_end_backward(const Parameters *, const Bucket *);
// Stages 1 and 2 (else nothing happens): sends all data ranks' own values to all of them, beside what follows; and
// waits until those of the others are here. They are waited for before a node reads them, and before own values change.
void bucket_start_gather(const Parameters *, Bucket *);
void bucket_settle(Bucket *);

// Before a node reads its parameters: waits for their values; at stage 3 has them and the next ones gathered.
void parameters_use(Parameters *, const Node *);
// Stage 3 (else nothing happens). When a step's last piece is done: no values are kept, since they are about to change.
void parameters_give_back(Parameters *);
// Stage 3: all ranks have changed their values; has those gathered that the next step uses first.
void parameters_look_ahead(Parameters *);
// How often a bucket was gathered, and how often one was wanted that nobody had foreseen.
void parameters_gathered(const Parameters *, int64_t *gathers, int64_t *unforeseen);
