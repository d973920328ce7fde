/* Notices when the processes of a run can no longer work together, says why, and ends them all: a process that died,
 * one that gives no sign of life (stopped, its machine or its network gone), a call that waits for too long for a rank
 * that does not come. A channel of its own over TCP, beside the transport of comm.h: every rank tells ranks 0 and 1
 * once a second what it does. A connection that ends without a goodbye is a death. Two ranks know it all, so that one
 * of them may be the one that is gone.
 *
 * Every rank that is left writes one line to its log: who is gone (rank, host, process), at which step, and what itself
 * was waiting in; then it ends with _exit. */
#pragma once
#include "kernels/comm/comm.h"

typedef struct Watch Watch; // NULL is allowed everywhere: a run of one process

// Collective over `world`; both are borrowed. *watch is NULL for a single rank. False on every rank where any two could
// not be connected.
bool watch_open(Watch **watch, Comm *world, Log *, Error *);
// How long a rank may be silent, and a call may wait: seconds; 0, as at the start: for ever. Deaths are always noticed.
void watch_limit(Watch *, double seconds);
void watch_step(Watch *, int64_t step); // for the messages; 0: before the first
void watch_close(Watch *);              // collective: all are done. Frees it.
