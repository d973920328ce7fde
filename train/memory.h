/* Whether a run fits into this machine's memory, before anything of it is allocated. */
#pragma once
#include "train/gradients.h"
#include "train/layout.h"

// Bytes that each of so many processes of this machine may still take: of the machine, its control group, its limits.
double memory_available(int processes);
JointMemory memory_estimate(const TrainConfig *, const Layout *); // the least that a rank of the run needs
// The same of the copy from which checkpoints are written.
double memory_copy(const TrainConfig *, const Layout *);
// An error with the estimate where even the least that a rank of the run needs is more than `available` bytes.
bool memory_check(const TrainConfig *, const Layout *, double available, Error *);
// Tells the log what parameters, gradients and moments take on this rank, beside what the formula says they should.
void memory_report(const Parameters *, Dtype compute, const Gradients *, Log *);
