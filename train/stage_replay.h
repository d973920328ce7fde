/* What the stages of a pipeline hold: each stage's rows run, in the order of its table, on a backend that computes
 * nothing, with one tape for each microbatch and chunk under way in one memory, as pipeline.c has them. The peak is
 * that of the run, to the byte. */
#pragma once
#include "train/unit_costs.h"

// first: (parts + 1) units. The table's microbatches are the pieces from first_piece on. peaks: (stages) bytes, the
// most that the tapes of a stage hold at once. The config is one that unit costs were made of.
void stage_replay(const TrainConfig *, const UnitCosts *, const PipelineTable *, const int *first, int first_piece,
                  double *peaks);
