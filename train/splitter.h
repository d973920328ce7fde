/* Which units of the model go to which part of a pipeline: by cost, under a limit of memory for each stage. Dynamic
 * programming over boundaries between consecutive units; the result is optimal. */
#pragma once
#include "fusion/joint_units.h"
#include "train/schedules.h"

typedef struct UnitCost { // of a microbatch on average over those of a step: one without pictures costs nothing there
    double forward, input, weight; // seconds, or any unit of time that is the same for all
    double parameters;             // bytes of values, gradients, states and buckets
    double activations;            // bytes held between forward and backward, of the largest microbatch
    double work;                   // bytes taken beside that while its backward pass runs, and by messages
} UnitCost;

typedef struct SplitProblem {
    PipelineShape shape; // stages x chunks parts
    int units;
    const UnitCost *costs; // (units)
    const int *live;       // (stages, chunks): microbatches that a part holds at once (schedule_check.h)
    double memory;         // bytes of a stage; 0: no limit
} SplitProblem;

// first: (parts + 1), ascending, at least one unit in each part. Minimises the time of the busiest stage, then that of
// the costliest part. False where nothing fits, with what would: fewer stages, more memory, another schedule.
bool split_units(const SplitProblem *, int *first, Error *);
// As many units in each part as possible, and the same number of blocks: what is done without costs.
void split_evenly(const JointUnit *, int units, int parts, int *first);
