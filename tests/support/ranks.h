/* Runs a function on several ranks that are threads of the test. */
#pragma once
#include "kernels/comm/comm.h"

typedef void (*RankFunction)(int rank, Comm *world, void *argument);

// Calls function(rank, world, argument) on `size` threads at once, each with its end of one group, which is freed
// afterwards; returns when all have returned. An assertion that fails in it prints its message and ends the program.
void ranks_run(int size, RankFunction function, void *argument);
