/* Whether a step fits into a GPU's memory, and what would: found by planning it (device_memory.h) before anything is
 * allocated. */
#pragma once
#include "base/log.h"
#include "kernels/backend.h"
#include "train/device_memory.h"

typedef struct DeviceRoom { // where a rank of a run finds its memory
    Backend *backend;
    int local, gpus;     // ranks on this machine, and GPUs they share; 0: none
    const char *resumed; // folder of a run that goes on; NULL: it starts
    Arena *memory;       // of what is chosen
} DeviceRoom;

// The smallest number of pieces (train.microbatches, over all data ranks), and so the largest microbatch, with which a
// step fits. 0: it fits with none.
bool device_fit_pieces(const TrainConfig *, int ranks, DeviceLimit, int *pieces, Error *);
// An error where the step does not fit, with the largest microbatch that does. found: what it takes; may be NULL.
bool device_fit_check(const TrainConfig *, const Layout *, DeviceLimit, DeviceMemory *found, Error *);
// As many lanes as are of use, whatever they take: 3 to 1.
int device_fit_most_lanes(const TrainConfig *, const Layout *);
// Puts as many lanes as are of use, and as fit, in the place of 0, before anything is computed again: 3 to 1.
bool device_fit_lanes(TrainConfig *, const Layout *, DeviceLimit, Error *);
// All of it at the start of a run, on its backend: what the device has left, the same on all ranks; lanes; recomputation,
// which a resumed run takes from its folder; whether the step fits. The log is told. Collective over the world.
// Pipelines are left as they are: their stages are planned where the model is cut.
// `planned`: what it will take; all zero where it has no memory of its own, or a pipeline.
bool device_fit_start(TrainConfig *, const Layout *, const DeviceRoom *, Comm *world, Log *, DeviceMemory *planned,
                      Error *);
