/* The pipeline of a run: its table, and which units of the model are in which of its parts. */
#pragma once
#include "train/layout.h"
#include "train/split_plan.h"

typedef struct Stages {
    PipelineTable table;
    JointUnit *units;
    int count, parts; // units of the model; parts of the pipeline
    int *first;       // (parts + 1): part p has units [first[p], first[p + 1])
    double *tapes; // (stages) bytes of activations and their gradients at the most, as a run without arithmetic has it
} Stages;

// Collective over `world`: as parallel.split asks for; what rank 0 finds counts. memory: bytes that a stage may
// take. In the arena.
bool stages_resolve(const TrainConfig *, const Layout *, double memory, Comm *world, Arena *, Stages *, Error *);
// What rank 0 does of it, for who starts nothing: also what it plans by.
bool stages_plan(const TrainConfig *, const Layout *, MachineRates, double memory, Arena *, Stages *, SplitPlan *,
                 Error *);
// Of each unit its chunk on `stage`, -1: it is on another one. (count) in the arena.
int *stages_chunks(const Stages *, int stage, Arena *);
// A line a stage: "stage 0: vision.patches .. vision.blocks.6 (8 units)"
void stages_describe(const Stages *, Buffer *out);
