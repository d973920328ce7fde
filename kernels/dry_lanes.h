/* Lanes of a dry backend (Backend.lane), each with a clock of its own that stands where its last kernel ended. Kernels
 * of several lanes take none of one another's speed: what the lanes come to is what their waits for one another cost,
 * and no faster than a device that has to share (dry_floor, dry.h). */
#pragma once
#include "kernels/backend.h"

typedef struct DryLane {
    double now, busy;             // seconds
    double waited[BACKEND_LANES]; // for each of the others
} DryLane;

typedef struct DryLanes {
    LaneMark here;
    DryLane of[BACKEND_LANES];
    double *marks; // (mark_room) when each was passed
    int64_t mark_count, mark_room;
} DryLanes;

void dry_lanes_start(DryLanes *);                   // all clocks at 0; {0} is a start
void dry_lanes_free(DryLanes *);                    // its memory, not the struct
void dry_lanes_advance(DryLanes *, double seconds); // a kernel in the present lane
void dry_lanes_set(DryLanes *, int lane);
void dry_lanes_wait(DryLanes *, int lane, LaneMark until);
void dry_lanes_meet(DryLanes *); // the last to come makes the others wait
