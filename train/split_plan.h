/* How a model is cut into the parts of a pipeline, and what that gives: time and memory of every stage. Costs come from
 * unit_costs.h, the cut from splitter.h, times from the simulator of schedules; memory from running each stage's rows
 * on a backend that computes nothing, in the order of its table. */
#pragma once
#include "train/schedule_time.h"
#include "train/unit_costs.h"

typedef struct SplitOptions {
    PipelineShape shape; // its microbatches: those of a data rank
    bool measured;       // costs; else modelled
    int threads;         // of a measurement; 0: one per core
    MachineRates rates;  // of a model
    double memory;       // bytes that a stage may take; 0: no limit
    double send;         // seconds from the end of a row to the start of what reads it on another stage
} SplitOptions;

typedef struct StagePlan {
    double time;       // seconds of a step in which it works
    double bubble;     // share of the step in which it waits
    double parameters; // bytes: values, gradients, states
    double tapes;      // bytes, the most at once: activations, their gradients, work space (TapeMemory)
} StagePlan;

typedef struct SplitPlan {
    UnitCosts costs;
    double send;
    PipelineTable table;
    Timeline line;        // of the costliest data rank
    int *first;           // (parts + 1) units
    StagePlan *stages;    // (stages)
    double features;      // seconds of a step before the table: forward for the features of all pairs
    double total, bubble; // seconds of a step, features included; share of the stages' time in which they wait
    double alone;         // seconds in which one rank would do it all
} SplitPlan;

// Everything in the arena. False where it does not fit, with what would.
bool split_plan_find(const TrainConfig *, const Layout *, const SplitOptions *, Arena *, SplitPlan *, Error *);
// Of a given split, (parts + 1) units: nothing is looked for, and nothing asked of memory.
bool split_plan_given(const TrainConfig *, const Layout *, const SplitOptions *, const int *first, Arena *, SplitPlan *,
                      Error *);
// The same figures of another split of the same units.
void split_plan_at(const TrainConfig *, const Layout *, const SplitPlan *, const int *first, Arena *, SplitPlan *out);
