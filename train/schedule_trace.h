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
