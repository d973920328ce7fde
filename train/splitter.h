/* Which units of the model go to which part of a pipeline: by cost, under a limit of memory for each stage. A dynamic
 * programme over the boundaries between consecutive units; where a stage has two parts, over the boundaries of both at
 * once, stage by stage. */
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
    const int *live;       // (stages, chunks): microbatches that a part holds at once (schedule_check.h); NULL: 1
    double memory;         // bytes of a stage; 0: no limit
    double part;           // time of a part; 0: no limit
} SplitProblem;

// Up to so many units two chunks a stage are split exactly; beyond, and with more chunks, the work is bounded.
enum { EXACT_UNITS = 256 };

// first: (parts + 1), ascending, at least one unit in each part. A stage takes the time of all its units, and the
// memory of their parameters, of live x activations and of the largest work. Minimises the time of the busiest stage,
// then that of the costliest part; of equals it takes the one that gives the first stage fewest units (of its first
// chunk, then of its second), then the second stage, and so on: one answer. Times count to the 2^-29th of their sum.
//
// This is exact for one chunk a stage, and for two up to EXACT_UNITS units. Otherwise it begins with the split whose
// costliest part is least and cuts two chunks (beyond EXACT_UNITS, one) anew as long as that makes it better: no worse
// than the beginning where that fits into memory, and no two neighbouring chunks could be cut better alone.
//
// False where there are too few units, or nothing (found) keeps the limits, with what would.
bool split_units(const SplitProblem *, int *first, Error *);
// The same number of blocks in each part, as far as it goes: what is done without costs. What begins a stack (patches,
// embeddings) goes with the block behind it, all else with the one before. Fewer blocks than parts: the same number of
// units in each. There must be as many units as parts.
void split_evenly(const JointUnit *, int units, int parts, int *first); // first: (parts + 1)
