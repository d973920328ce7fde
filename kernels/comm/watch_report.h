/* What the watch knows of each rank, and the sentences that it makes of it. */
#pragma once
#include "base/buffer.h"
#include "kernels/comm/comm.h"
#include <sys/types.h>

typedef struct WatchIdentity {  // of a rank; travels between equal programs as it is
    char host[64], machine[96]; // machine: the same for processes that reach one another over the loopback interface
    int32_t process;
} WatchIdentity;
void watch_identity(WatchIdentity *out); // of this process

// What a rank is doing; travels as it is.
typedef struct WatchState {
    int64_t step;
    int64_t number; // of the call; 0: it waits in none, it computes
    double waiting; // seconds in that call
    char group[32], call[32], what[48];
} WatchState;

typedef struct WatchReport { // zero-initialise; watch_report_free
    WatchState state;
    Buffer members; // int32_t each: world ranks of the group; empty where it waits in none
    bool silent;    // it has not reported for a while
} WatchReport;
void watch_report_free(WatchReport *);

// awake: when this process last came back from being stopped, if ever; what was before does not count as waiting.
void watch_observe(WatchReport *out, const Comm *world, int64_t step, double awake);

// "rank 2 (node7, process 4711)"
void watch_name(Buffer *out, int rank, const WatchIdentity *);
// "computing" or "waiting in all-reduce #1234 'gradients' of group data for 3.2 s"; "GPU all-reduce #1234 ..." where it
// is the device that waits, "GPU send (rank 3) #12 ..." for another one
void watch_doing(Buffer *out, const WatchState *);
// The rank whose call has waited longest, or -1.
int watch_longest(const WatchReport *reports, int count);
// Of the call that `rank` waits in: "all-reduce #1234 'gradients' of group data has waited 61.0 s; there: rank 0,
// rank 1; not there: rank 2 (computing)"
void watch_account(Buffer *out, const WatchReport *reports, int rank);
