/* On which machines the ranks of a run are, and what of its own machine a rank may take. */
#pragma once
#include "base/arena.h"
#include "kernels/comm/comm.h"

typedef struct Hosts {
    const char **names; // (ranks) of each rank's machine
    int local;          // ranks on this one's machine, itself included
    int threads;        // processors for this rank: those it may run on, shared evenly with all ranks that may; >= 1
} Hosts;

Hosts hosts_gather(Comm *world, Arena *); // collective
