/* The pipeline of a plan: which units are on which stage, what the fullest one holds, how long stages wait, and what
 * goes from stage to stage in a step. */
#pragma once
#include "train/stages.h"

typedef struct PipelinePlan {
    Stages stages;
    int fullest;              // the stage that takes most memory:
    double parameters, tapes; // bytes: values, gradients, moments; the most of activations and their gradients
    double part_of_model;     // largest share of a stage in the memory of all parameters
    double bubble;            // share of the stages' time in which they wait, modelled
    double forward, back;     // bytes that a rank of any stage sends at the most: streams and features; gradients
    double words;             // gradients of tied words, from the stage that embeds them to the head's and back
} PipelinePlan;

// In the arena. False where the config's split is wrong, or does not fit into parallel.stage_memory. Measured splits
// are modelled: nothing is computed.
bool pipeline_plan(const TrainConfig *, const Layout *, Arena *, PipelinePlan *, Error *);
