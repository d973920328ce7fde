/* What a run on so many processes would look like, without starting it: who does what, what each takes in memory, has
 * to do, and tells the others in a step. From shapes alone: at least so much memory, about so much communication. */
#pragma once
#include "train/plan_pipeline.h"

typedef struct Plan {
    Layout layout;
    PipelinePlan pipeline;            // where the layout has one
    double model, activations, pairs; // bytes of a rank: weights, gradients and moments; a piece; the contrastive loss
    int64_t rows[OBJECTIVES];         // of a step, over all ranks
    double gradients, parameters, tensor, features; // bytes that a rank sends in a step, for what
} Plan; // with a pipeline model and activations are those of the fullest stage

// In the arena. ranks 0: as few as the config's sizes ask for.
bool plan_make(const TrainConfig *, int ranks, Arena *, Plan *, Error *);
void plan_write(const TrainConfig *, const Plan *, Buffer *out);
