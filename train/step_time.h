/* How long a step of a run takes on a cluster of accelerators, without one: the modelled times of the parts of the
 * model (split_plan.h), and what tensor ranks, stages and data ranks send one another, in the run's own pipeline table;
 * the update. Nothing of what ranks send counts as hidden behind arithmetic, though some of it is: with these rates a
 * real step is no slower. */
#pragma once
#include "train/schedule_check.h"
#include "train/split_plan.h"

typedef struct Cluster {
    MachineRates rates;     // of a device, as its kernels reach them
    double peak, memory;    // FLOP/s that a device could do at most; bytes of it
    double taken;           // bytes of it for CUDA, its libraries and kernels' work space
    double inside, outside; // bytes/s that a device sends within its node, and out of it
    double host;            // bytes/s between a device and its host's memory, each way
    double latency;         // seconds of a message
    int node;               // devices of a node
} Cluster;
extern const Cluster h100_cluster; // nodes of 8 H100 SXM, NVLink, 400 Gbit/s a device; what is reached is assumed

typedef struct StageLoad { // of a rank; seconds of a step but for the first
    double trained;        // parameters it trains
    double rows, tensor;   // its rows, and what of them are sums over tensor ranks
    double gradients;      // gradients and values between data ranks
    double update;
} StageLoad;

typedef struct StepTime {
    SplitPlan plan;              // which units are where, and what stages hold; its times know nothing of messages
    Timeline line;               // of the rows, seconds; of the first data rank
    PipelineTime rows;           // its figures
    StageTime *waits;            // (stages)
    StagePeak *peaks;            // (stages)
    StageLoad *loads;            // (stages)
    double features;             // seconds: the pass for the features of all pairs
    double exchange;             // seconds: gradients, values, update; the slowest stage's
    double total;                // seconds of a step: all of these
    double memory;               // bytes of the fullest stage
    double message;              // bytes of the largest boundary, each way, for a microbatch
    double sent;                 // bytes that a rank of the busiest stage sends in a step
    double flop, tokens, images; // of a step: model FLOP, positions of text, pictures
} StepTime;

// In the arena; *out must stay where it is. False where no split fits into the memory.
bool step_time(const TrainConfig *, const Layout *, const Cluster *, Arena *, StepTime *out, Error *);
double step_utilisation(const StepTime *, const Layout *, const Cluster *); // MFU: FLOP / (time x peak of all devices)
