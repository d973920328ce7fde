/* On which machines the ranks of a run are, and what of its own machine a rank may take. */
#pragma once
#include "base/arena.h"
#include "kernels/comm/comm.h"
#include "kernels/device.h"

typedef struct Hosts {
    const char **names; // (ranks) of each rank's machine
    int local;          // ranks on this one's machine, itself included
    int local_rank;     // this one's number among them
    int threads;        // processors for this rank: those it may run on, shared evenly with all ranks that may; >= 1
} Hosts;

Hosts hosts_gather(Comm *world, Arena *); // collective
// This process keeps to the processors beside its GPU, where it has one and the system tells which these are, sharing
// them out with the ranks that may run on the same ones; `threads` follows. Collective. Returns the NUMA node, or -1:
// nothing was bound. sys: "/sys".
int hosts_bind(Hosts *, Comm *world, const DeviceSeat *, const char *sys);
