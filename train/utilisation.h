/* Model FLOP utilisation: what of a device's peak a step's arithmetic comes to, by two conventions (joint.h): model
 * FLOP, and 6 N a token with whole attention. The peak is what the maker states for dense products of the run's
 * precision (kernels/gpus.h), for a GPU that is not known what its products were measured to reach; on a CPU none is
 * stated. */
#pragma once
#include "base/json.h"
#include "base/log.h"
#include "fusion/joint.h"

typedef struct Utilisation {
    JointCount count;
    double peak;              // FLOP/s of all devices of the run; 0: not known
    char device[96];          // "2 x 989.4 TFLOP/s (h100, bf16)"; "" where no peak is known
    JointFlop flop, by_count; // of all steps but the first, in which things are set up,
    double seconds;           // and how long these took
    int64_t steps;
} Utilisation;

// devices: of all ranks; fewer than ranks where they share. A GPU that is not known is measured, which takes a second.
void utilisation_open(Utilisation *, const Joint *, Backend *, Dtype compute, int devices);
// A step, by its sums over all ranks. What its record says: "flop", "flop/vision", "flop/text", "flop/heads",
// "flop_6n"; "mfu" and "mfu_6n" where a peak is known.
void utilisation_step(Utilisation *, const JointFlop *, const JointFlop *by_count, double seconds, json_t *record);
double utilisation_share(const Utilisation *, const JointFlop *, double seconds); // MFU of a step; 0: no peak is known
void utilisation_report(const Utilisation *, Log *);                              // all steps, in a line
