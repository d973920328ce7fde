/* Which stages of a pipeline send messages to which. */
#pragma once
#include "train/schedules.h"

typedef struct PipelineWay { // from one stage to another: streams and gradients of all boundaries, in the order of rows
    int from, to;
} PipelineWay;

// Messages that are sent and not yet taken have room for so many on each way; who sends one more waits. No schedule
// comes to a stop by that where the receiving stage, when it waits for a message, takes those in front of it
// (tests/train/test_pipeline_lane.c runs them all).
enum { WAY_ROOM = 2 };

// ways: room for twice as many as the model has parts. Their order is one in which each stage can open those that are
// its own, one after the other: few wait for others.
int pipeline_ways(const PipelineShape *, PipelineWay *ways);
