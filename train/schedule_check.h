/* Proves a pipeline schedule: complete, in a legal order, free of deadlock; and counts what its stages must hold. */
#pragma once
#include "train/schedules.h"

typedef struct StagePeak { // activations of a microbatch in a chunk, the most at once
    int live;              // between forward and weight gradient
    int whole;             // between forward and input gradient; the others hold what weight gradients read alone.
                           // So many forwards at the most lie unread at the stages behind, gradients at this one.
} StagePeak;

// Of every stage: each microbatch and chunk has its forward once, then its input gradient, then its weight gradient (or
// both at once), and each of these comes in the order of microbatches. Over all stages: when every row waits
// for what it reads, and nobody waits to send, all rows run. The message names stage and row.
// peaks: (stages), or NULL.
bool pipeline_check(const PipelineTable *, StagePeak *peaks, Error *);
