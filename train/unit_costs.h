/* What the units of a model cost on the microbatches of a run, in time and memory. Modelled: every unit runs forward
 * and backward on a backend that computes nothing, over microbatches of the run's own shapes, and what its kernels
 * would do becomes seconds by the rates of a machine. Measured: the same passes, at work. */
#pragma once
#include "train/layout.h"
#include "train/splitter.h"
#include "train/synthetic.h"

typedef struct MachineRates {
    double flops;     // per second, as matrix products reach them; a multiply-add counted as two
    double bandwidth; // bytes per second, read and written
} MachineRates;
// Of the run's device as it is ordinarily: what splits go by where nobody says better; only the ratio matters there.
MachineRates machine_rates(const TrainConfig *);

typedef struct UnitTime {          // seconds, of a microbatch
    double forward, input, weight; // where the schedule takes both gradients in one row, their sum is that row's time
    double features;               // forward, once more: features of pairs come first where a step has several pieces
} UnitTime;

typedef struct UnitCosts {
    int units, pieces; // pieces: microbatches of the step, over all data ranks
    JointUnit *list;   // (units)
    UnitCost *mean;    // (units) what the splitter goes by: forward includes features, parameters those of a copy
    double copy;       // bytes of the head's copy of tied words: taken where these are embedded in another part
    UnitTime *times;   // (units, shapes)
    int shapes;        // how many different ones there are among the pieces
    Batch *batches;    // (shapes) one of each
    int *shape;        // (pieces) which one a piece has
    unsigned *wanted; // (units + 1, shapes) of the streams in front of a unit, bits of those whose gradients are wanted
} UnitCosts;

// In the arena. threads: of the backend that measures; 0: one per core. False where the model's config is wrong, or
// what measures is not there.
bool unit_costs_model(const TrainConfig *, const Layout *, MachineRates, Arena *, UnitCosts *, Error *);
bool unit_costs_measure(const TrainConfig *, const Layout *, int threads, Arena *, UnitCosts *, Error *);
UnitTime unit_time(const UnitCosts *, int unit, int piece);
