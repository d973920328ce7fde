/* A pipeline in the timeline of a run (base/trace.h): what its ranks note of it, and how a file of them is read back as
 * timelines of single steps, each beside the simulation of the same table with the row's measured times. */
#pragma once
#include "base/trace.h"
#include "train/mesh.h"
#include "train/schedule_time.h"

// ---- of the run ----

// Once a rank, before its first step. The shape's microbatches are those of a data rank.
void schedule_trace_note(Trace *, const PipelineShape *, const int size[MESH_AXES], const int place[MESH_AXES]);
// A row that has run: on track "stage", as "forward 3.0" (of microbatch 3 in chunk 0), "input", "weight" or "both".
void schedule_trace_row(Trace *, const Slot *, double begin, double end);
void schedule_trace_name(const Slot *, char name[48]);
bool schedule_trace_slot(const char *name, Slot *); // and back; false: no row's name

// ---- of the file ----

typedef struct TraceChoice {
    int data, tensor; // places whose pipeline is looked at
    int64_t step;     // 0: all that are there
} TraceChoice;

typedef struct TracedStep {
    int64_t number;
    Timeline measured, simulated; // seconds; the simulation takes each row's time as measured, and `send`
    Timeline averaged;            // a simulation whose rows take what those of their part take on average
    double send;                  // from the end of a row to the start of one that waited for it; the median
    double features;              // of a pass before the rows: slices "features 3.0" of the pairs; 0: none
    double early;                 // the most by which a row begins before what it reads is done: clocks that differ
} TracedStep;

typedef struct ScheduleTrace {
    PipelineTable table;
    int data, tensor; // ranks along these axes
    TracedStep *steps;
    int count, cut; // cut: steps left aside, of which the trace has not all (its slices are limited)
} ScheduleTrace;

// All in the arena; *out must stay where it is. Refused with what is wrong where the file is no trace of a pipeline,
// lacks a stage, or has rows other than those of its schedule.
bool schedule_trace_read(const char *path, const TraceChoice *, Arena *, ScheduleTrace *, Error *);
double schedule_trace_median(double *values, int count); // sorts them; 0 where there are none
