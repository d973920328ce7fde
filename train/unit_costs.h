/* What the units of a model cost on the microbatches of a run, in time and memory. Modelled: every unit runs forward
 * and backward on a tape whose backend computes nothing, over microbatches of the run's own shapes; the operators' FLOP
 * and bytes become seconds by the rates of a machine. Measured: the same passes on the backend that will train. */
#pragma once
#include "train/layout.h"
#include "train/splitter.h"

// first: (parts + 1) of the layout's pipeline: the split that parallel.split `cost` (modelled) or `measured` (on this
// rank, with its own threads) asks for. memory: bytes that a stage may take, 0: no limit.
bool stages_plan(const TrainConfig *, const Layout *, bool measured, double memory, int *first, Error *);
