/* Which blocks are computed again in the backward pass, of a run that leaves that open (train.recompute: auto): those that
 * cost the least time for what they free, no more than the device's memory asks for. Nothing of it changes a number. */
#pragma once
#include "train/device_memory.h"

typedef struct RecomputePlan {
    DeviceMemory memory;  // of the step as it will be
    double without;       // seconds of a step without recomputation, modelled
    int chosen, blocks;   // blocks that are computed again; that there are
} RecomputePlan;

// Puts the choice in the place of RECOMPUTE_AUTO: none where that fits; else selective or full, of the first blocks of
// each stack (train.recompute_units, in the arena; where the config names units already, of these alone); all blocks full
// where nothing fits. By exact peaks of dry runs, so the same wherever it is asked.
bool recompute_plan(TrainConfig *, const Layout *, DeviceLimit, Arena *, RecomputePlan *, Error *);
// "full of 7 of 48 blocks"
void recompute_plan_write(const RecomputePlan *, const TrainConfig *, Buffer *out);
