/* A pool of threads that runs tasks numbered 0..count-1. Which thread runs which task is not fixed; what a task
 * computes must not depend on it. Work is cut by problem size, never by the number of threads, so that results have
 * the same bits on any number. */
#pragma once
#include <stdint.h>

typedef struct Threads Threads;
// `worker` is in [0, threads_count): an index for scratch memory only.
typedef void (*ThreadTask)(void *context, int64_t task, int worker);

Threads *threads_new(int count);  // count >= 1, the caller's thread counted; count == 0: one per available core
void     threads_free(Threads *); // NULL is allowed
int      threads_count(const Threads *);
// Runs all tasks and returns when the last is done. The calling thread works too. Not reentrant: a task must not call
// it. Idle workers spin for some microseconds before they sleep, so that short calls in a row stay cheap.
void     threads_run(Threads *, int64_t tasks, ThreadTask, void *context);
int      threads_available(void); // cores this process may run on (affinity counted)
