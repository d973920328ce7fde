/* How the work of a joint step lies in its lanes on a GPU (fusion/joint_units.h): what each has to do, which waits for
 * which, and the batches with which none would. By a rehearsal (device_memory.h) at the speed that good kernels reach
 * (kernel_costs.h); lanes take none of one another's speed. Modelled, never measured. */
#pragma once
#include "kernels/backend.h"
#include "kernels/gpus.h"
#include "train/layout.h"

typedef struct LaneTimes { // seconds, of a rank's step
    int lanes;
    double work[BACKEND_LANES];                  // forward and backward
    double waited[BACKEND_LANES][BACKEND_LANES]; // of the first for the second
    double behind;                               // what lane 0 does when all have met for the last time: the update
    double alone, chain, floor;                  // a step with one lane, with these, and at least (dry_floor)
} LaneTimes;

// With the config's lanes, which are known.
bool lane_times(const TrainConfig *, const Layout *, const GpuKind *, LaneTimes *, Error *);

typedef struct LaneSource { // of samples (data.N)
    unsigned lanes;         // bits of those that its samples are work for
    int64_t batch;          // 0: it cannot change
} LaneSource;
typedef enum LaneBalance {
    LANES_BALANCED, // none has less than 90 % of the longest's work
    LANES_WAIT,     // until the batches are those proposed
    LANES_TIED,     // those that wait have their samples from the sources of others, or batches that cannot change
} LaneBalance;
// Proposes the batch of each source, in multiples of `multiple` where they are as large. Lanes with samples from one
// source grow together; the longest of them comes to the longest of all. None is made smaller.
LaneBalance lane_balance(const double *work, int lanes, const LaneSource *, int sources, int multiple,
                         int64_t *batches);

// All of it in lines; nothing where a step has use for one lane only. Where the config has one, of as many as are of
// use.
bool lane_balance_plan(const TrainConfig *, const Layout *, const GpuKind *, Arena *, Buffer *out, Error *);
