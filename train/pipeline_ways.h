/* Which stages of a pipeline send messages to which, and how many messages on a way between two must have room with
 * who sends them, so that a stage which waits for room waits for nobody that waits for it. Any table. */
#pragma once
#include "train/schedules.h"

typedef struct PipelineWay { // from one stage to another: streams and gradients of all boundaries, in the order of rows
    int from, to, room;      // room: messages that are sent and not yet taken, at the most
} PipelineWay;

enum { LEAST_ROOM = 2 }; // one that is on its way, while the next is made

// The ways of a valid table, in an order in which each stage can open those that are its own one after the other: no
// two ranks wait for each other for long. *ways is in the arena.
int pipeline_ways(const PipelineTable *, Arena *, PipelineWay **ways);
