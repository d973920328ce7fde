/* When each row of a pipeline schedule begins and ends, what a step takes and how much of it the stages wait. The times
 * come from the simulator, or from a real run that notes them; all else here and the drawing take either. */
#pragma once
#include "train/schedules.h"

typedef struct PipelineCosts {
    const double *forward, *input, *weight; // (parts), in the order of the model: of one microbatch; any unit of time
    double send;                            // from the end of a row to the start of what reads it on another stage
    bool each;                              // (parts, microbatches) instead: they differ, as pictures and texts do
} PipelineCosts;

typedef struct Span {
    double begin, end;
} Span;

typedef struct Timeline {
    const PipelineTable *table;
    Span **spans; // [stage][row]
} Timeline;

// Every row begins as soon as its stage is free and what it reads is there; sending costs a stage nothing. The table
// must be complete and free of deadlock (schedule_check.h). In the arena.
Timeline timeline_simulate(const PipelineTable *, const PipelineCosts *, Arena *);

typedef struct StageTime {
    Span span;     // from its first row to the end of its last
    double busy;   // sum of its rows
    double bubble; // share of the step (PipelineTime.total) in which it waits
} StageTime;

typedef struct PipelineTime {
    double begin;  // of the first row of all stages: 0 in a simulation
    double total;  // from the first row of all stages to the end of the last
    double cycle;  // longest span of a stage: what a step takes where steps follow one another without a barrier
    double work;   // of the busiest stage
    double bubble; // share of the stages' time in which they wait, of `total`
    double rate;   // (cycle - work) / cycle: the bubble rate as papers on zero-bubble schedules state it
} PipelineTime;

// stages: (stages), or NULL.
PipelineTime timeline_measure(const Timeline *, StageTime *stages);
