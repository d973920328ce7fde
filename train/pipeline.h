/* A pipeline stage at work: it executes the rows of its table (schedules.h) with the units of the model it holds
 * (fusion/joint_units.h), one tape for each microbatch and chunk under way. What crosses a boundary goes from stage to
 * stage as one message a microbatch and direction, with a header that is checked; sends and receives are started early
 * and run beside the arithmetic. Huang et al. 2019; Narayanan et al. 2019, 2021; Qi et al. 2024. */
#pragma once
#include "fusion/joint_units.h"
#include "train/gradients.h"
#include "train/schedules.h"

typedef struct Pipeline Pipeline;

typedef struct PipelineSetup {  // all borrowed for the pipeline's life
    const PipelineTable *table; // microbatches: those of a data rank
    const int *units;           // (parts + 1): part p has units [units[p], units[p + 1])
    Comm *group;                // its rank is the stage
    Joint *joint;               // joint_new_part with this stage's chunks
    Gradients *gradients;       // NULL: it never learns
    Trace *trace;               // may be NULL: every row is drawn on track "stage", as "forward 3.0": microbatch, chunk
} PipelineSetup;

// Collective over the group. NULL where devices of neighbour stages could not be linked.
Pipeline *pipeline_new(const PipelineSetup *, Error *);
void pipeline_free(Pipeline *); // collective; before the gradients and the group; NULL is allowed

typedef struct PipelineMicrobatch {
    Batch batch;
    JointPass pass;
} PipelineMicrobatch;

typedef enum PipelineMode {
    PIPELINE_TRAIN,    // all rows of the table: gradients are formed
    PIPELINE_LOSSES,   // its forward rows alone
    PIPELINE_FEATURES, // forward alone, with JointPass.features_only: features of the pairs, on the last part's stage
} PipelineMode;

typedef struct PipelineResult { // of a microbatch; what is formed on other stages stays 0
    double mean[OBJECTIVES];    // its part of each mean
} PipelineResult;

// Collective over the group: every stage brings the same microbatches (as many as the table has). images, texts: in
// mode FEATURES on the stage of the last part, device, (all pairs, E) each, where microbatch m's rows start at row
// first_pair[m]; else NULL. False where something is wrong here, with the tape's message; the stage has done its part
// of all messages all the same.
bool pipeline_run(Pipeline *, PipelineMode, const PipelineMicrobatch *, PipelineResult *, const int64_t *first_pair,
                  float *images, float *texts, Error *);

// From now on losses stay where they are formed: each is given to `leave`, which starts a copy, and PipelineResult.mean
// stays 0. NULL: they are read again.
typedef void PipelineLeave(void *context, int microbatch, Objective, const Tensor *mean);
void pipeline_leave_losses(Pipeline *, PipelineLeave *leave, void *context);
bool pipeline_has_last(const Pipeline *);     // whether the model's last part is on this stage
void pipeline_check_finite(Pipeline *, bool); // tape_check_finite of all its tapes
const char *pipeline_not_finite(const Pipeline *);
typedef struct PipelineMemory {
    double tapes, messages; // bytes, the most at once: of activations and their gradients; of messages, both ways
    int held;               // microbatches in a chunk, the most at once between forward and weight gradient
    int64_t allocations;    // of memory for tapes, ever: none in a step of the same shapes as one before
} PipelineMemory;
PipelineMemory pipeline_memory(const Pipeline *);
