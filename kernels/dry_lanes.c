/* See dry_lanes.h. Marks of an earlier start are passed: they have another list. */
#include "kernels/dry_lanes.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>

void dry_lanes_start(DryLanes *l) {
    l->here = (LaneMark){.list = l->here.list + 1};
    l->mark_count = 1; // the first is kept back for what comes now
    memset(l->of, 0, sizeof l->of);
}

void dry_lanes_free(DryLanes *l) { free(l->marks); }

void dry_lanes_advance(DryLanes *l, double seconds) {
    l->of[l->here.lane].now += seconds;
    l->of[l->here.lane].busy += seconds;
}

void dry_lanes_set(DryLanes *l, int lane) {
    check(lane >= 0 && lane < BACKEND_LANES);
    if (l->mark_count > l->mark_room) {
        l->mark_room = 2 * l->mark_count;
        l->marks = realloc(l->marks, (size_t)l->mark_room * sizeof *l->marks);
        check(l->marks);
    }
    l->marks[l->here.number] = l->of[l->here.lane].now;
    l->here.number = (uint64_t)l->mark_count++;
    l->here.lane = lane;
}

static void wait_until(DryLanes *l, int lane, double time, int whom) {
    DryLane *own = &l->of[lane];
    if (!(time > own->now)) return;
    own->waited[whom] += time - own->now;
    own->now = time;
}

void dry_lanes_wait(DryLanes *l, int lane, LaneMark until) {
    if (until.list != l->here.list || until.lane == lane) return;
    bool open = until.number == l->here.number;
    wait_until(l, lane, open ? l->of[until.lane].now : l->marks[until.number], until.lane);
}

void dry_lanes_meet(DryLanes *l) {
    int last = 0;
    for (int i = 1; i < BACKEND_LANES; i++)
        if (l->of[i].now > l->of[last].now) last = i;
    for (int i = 0; i < BACKEND_LANES; i++) wait_until(l, i, l->of[last].now, last);
}
