/* A small joint model with its optimizer, spread over ranks that are threads of the test; its masters and moments hold
 * numbers that are functions of their global place, so that any layout can say whether they are what they should be. */
#pragma once
#include "tests/support/test.h"
#include "train/checkpoint.h"

typedef struct Spread {
    int data, tensor, zero;
    int pipeline; // stages of two chunks each, which lie a round apart; 0: none
    bool ordered; // the head has a copy of the words
} Spread;

typedef struct SpreadModel {
    Mesh mesh;
    Parallel parallel;
    Arena *memory;
    Backend *backend;
    Joint *joint;
    Optimizer *optimizer;
} SpreadModel;

int spread_ranks(const Spread *);
void spread_open(SpreadModel *, Comm *world, Spread, Dtype); // world NULL: alone; collective
void spread_close(SpreadModel *);
void spread_fill(SpreadModel *, uint64_t salt);               // collective
void assert_spread_holds(const SpreadModel *, uint64_t salt); // what spread_fill put there, bit for bit
Saver *spread_saver(const SpreadModel *, const char *run, int64_t keep, int64_t keep_every);
// A whole save of `step` into run/checkpoints.
bool spread_save(SpreadModel *, const char *run, int64_t step, Error *);
bool spread_load(SpreadModel *, const char *folder, TrainState *, Error *);
