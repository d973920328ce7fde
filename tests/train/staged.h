/* Steps of a small joint model on any layout of stages, data and tensor ranks, which are threads of the test; what they
 * give is compared with one process to the bit. The split of the model is given by hand. */
#pragma once
#include "tests/support/test.h"
#include "train/schedule_check.h"
#include "train/step.h"

enum { STAGED_STEPS = 2, MOST_STAGED_STEPS = 4, MOST_PARTS = 16 };

typedef struct StagedBatch { // rows of each objective in a step
    int lm, caption, pairs, mae;
} StagedBatch;

typedef struct Staged {
    JointConfig config;
    StagedBatch rows;
    int data, stages, tensor, zero, pieces; // stages 0: no pipeline; data, tensor 0: 1
    PipelineKind kind;
    int chunks;                // 0: 1
    int units[MOST_PARTS + 1]; // first unit of each part; all 0: as even as possible
    bool ordered, inference;   // inference: losses alone
    Dtype compute;
    int steps;                  // 0: STAGED_STEPS
    Backend *(*open)(void);     // for a rank; NULL: the CPU
    const char *poison; // a parameter that gets a NaN on one of its ranks
    const char *broken; // a matrix that does not fit its layer any more
} Staged;

typedef struct StagedOutcome {
    StepLoss loss[MOST_STAGED_STEPS];
    double norm[MOST_STAGED_STEPS];
    int count; // of parameters
    int64_t elements;
    char (*names)[64];
    int64_t *first; // (count) element
    float *values;  // (elements)
    bool failed;
    Error error; // of the lowest rank that has one
    char not_finite[512];
    PipelineMemory memory[MOST_PARTS]; // of the stages of the first data place, and what their table says
    StagePeak peaks[MOST_PARTS];
    int64_t allocations[MOST_PARTS]; // that each made in the first step
} StagedOutcome;

JointConfig staged_config(void); // four objectives, dropout, tied words; two layers of each kind
int staged_units(const JointConfig *, JointUnit units[64]);
int staged_unit(const JointConfig *, const char *name); // its number
// The parameters and losses of STAGED_STEPS steps; end with staged_free.
StagedOutcome *staged_run(const Staged *);
// The same on ranks that are processes, as one of them sees it: values that other ranks hold alone are NaN.
StagedOutcome *staged_join(const Staged *, Comm *world);
void staged_free(StagedOutcome *);
void assert_staged_same(const StagedOutcome *, const StagedOutcome *, const char *what); // bit for bit
// Of what a rank of the world knows (staged_join), against what its rank 0 knows of all.
void assert_staged_part(Comm *world, const StagedOutcome *all, const StagedOutcome *part);
// The largest difference of losses, norms and parameters, relative to the largest of the first.
double staged_apart(const StagedOutcome *, const StagedOutcome *);
