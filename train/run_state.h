/* The inside of a run, shared by the files that make it up: run_open.c builds it up and takes it down, run.c works. */
#pragma once
#include "base/progress.h"
#include "train/agree.h"
#include "train/checkpoint.h"
#include "train/device_memory.h"
#include "train/hosts.h"
#include "train/layout.h"
#include "train/metrics.h"
#include "train/run.h"
#include "train/run_trace.h"
#include "train/stages.h"
#include "train/step.h"
#include "train/utilisation.h"

typedef struct Traffic { // of this rank's steps in this call
    int64_t steps;
    double sent, waited, seconds; // bytes to other ranks; seconds for other ranks, and in all
} Traffic;

typedef struct LateStep { // a step whose numbers the host does not have yet
    StepUnderWay *work;   // NULL: none
    int64_t number;       // counted from 1
    Vote sum;
} LateStep;

typedef struct Run {
    const TrainOptions *options;
    Log *log;
    Arena *memory; // strings of the config
    TrainConfig config;
    Hosts hosts;
    DeviceSeat seat; // this rank's GPU
    DeviceMemory planned; // of that GPU; all zero: nothing was
    int node;        // NUMA node of which it keeps to processors; -1: to none
    Layout layout;
    Mesh mesh;
    Stages stages;      // of a pipeline of several stages
    Pipeline *pipeline; // this rank's stage; NULL: the model is whole here
    Parallel parallel;
    bool leads; // rank 0 of the world: writes what a run has once
    Tokenizer *tokenizer;
    Backend *backend;
    Joint *joint;
    Gradients *gradients;
    Optimizer *optimizer;
    Loader *loader, *validation; // validation: NULL where no source has any
    Tape *tape, *inference;
    Trace *trace;           // NULL where none is asked for
    Metrics *metrics;       // NULL where another rank leads
    Progress *progress;     // likewise
    Error unwritten;        // a record that could not be written here: the next vote ends the run
    Traffic traffic, begin; // of all steps; when the one under way began
    Utilisation utilisation;
    StepPairs *pairs;
    StepGate *gate;         // where the device judges steps, so that the host may be ahead; else NULL
    LateStep late;
    TrainState state;
    Saver *saver;
    int64_t saved; // step of the newest checkpoint that was begun; -1: none yet
} Run;

// Both collective over the options' world; an error is the same on every rank.
bool run_open(Run *, const TrainOptions *, Log *, Error *);
void run_close(Run *);
