/* See threads.h. A call publishes a job under a new number; workers see the number change, take tasks from an atomic
 * counter and report that they have left. The caller works too, then waits until every worker that took the job is out
 * of it, so nothing of a job outlives its call. Workers that have waited for SPIN_SECONDS sleep until they are woken.
 */
#include "base/threads.h"
#include "base/clock.h"
#include "base/error.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define relax() _mm_pause()
#else
#define relax() ((void)0)
#endif

#define SPIN_SECONDS 40e-6
enum { SPINS_A_LOOK = 32, CACHE_LINE = 64 };

static const uint64_t GATE_OPEN = (uint64_t)1 << 31;

typedef struct Worker {
    Threads *pool;
    int index;
    pthread_t thread;
} Worker;

struct Threads {
    int count;       // the caller counted
    Worker *workers; // count - 1
    // The job. Written by the caller while nobody is inside the gate, read by workers that are.
    ThreadTask function;
    void *context;
    int64_t tasks;
    bool stopping;                              // set for the last job
    _Alignas(CACHE_LINE) _Atomic int64_t next;  // the next task nobody has taken
    _Alignas(CACHE_LINE) _Atomic uint64_t gate; // number of the job << 32 | GATE_OPEN | workers inside
    _Alignas(CACHE_LINE) _Atomic int sleepers;  // workers that sleep or are about to
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

static void work(Threads *pool, int worker) {
    int64_t task;
    while ((task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->tasks)
        pool->function(pool->context, task, worker);
}

static uint32_t job_number(uint64_t gate) { return (uint32_t)(gate >> 32); }

static bool spin_for_job(Threads *pool, uint32_t seen) {
    double until = clock_seconds() + SPIN_SECONDS;
    do {
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            if (job_number(atomic_load_explicit(&pool->gate, memory_order_acquire)) != seen) return true;
            relax();
        }
    } while (clock_seconds() < until);
    return false;
}

// The sleeper counts itself before it looks at the job number, the caller changes the number before it looks at the
// count (all in one total order): one of the two sees the other.
static void sleep_for_job(Threads *pool, uint32_t seen) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (job_number(atomic_load(&pool->gate)) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

// True where the worker got in before the gate closed. *job: the number of the job it saw.
static bool enter(Threads *pool, uint32_t *job) {
    uint64_t gate = atomic_load_explicit(&pool->gate, memory_order_acquire);
    while (gate & GATE_OPEN) {
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1, memory_order_acquire,
                                                  memory_order_acquire))
            break;
    }
    *job = job_number(gate);
    return gate & GATE_OPEN;
}

static void *worker_main(void *argument) {
    Worker *worker = argument;
    Threads *pool = worker->pool;
    uint32_t seen = 0;
    for (;;) {
        if (!spin_for_job(pool, seen)) sleep_for_job(pool, seen);
        if (!enter(pool, &seen)) continue;
        bool stop = pool->stopping;
        if (!stop) work(pool, worker->index);
        atomic_fetch_sub_explicit(&pool->gate, 1, memory_order_release);
        if (stop) return NULL;
    }
}

// Nobody else changes the gate while it is closed and empty.
static void publish(Threads *pool) {
    uint64_t gate = atomic_load_explicit(&pool->gate, memory_order_relaxed);
    atomic_store(&pool->gate, (uint64_t)(job_number(gate) + 1) << 32 | GATE_OPEN);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->lock); // a sleeper between its look and its wait holds the lock
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

// Spins at first; where cores are shared with others, gives the core to the workers that are waited for.
static void close_and_wait(Threads *pool) {
    uint64_t inside = atomic_fetch_and_explicit(&pool->gate, ~GATE_OPEN, memory_order_acquire) & (GATE_OPEN - 1);
    for (int spins = 0; inside > 0; spins++) {
        if (spins < 4096)
            relax();
        else
            sched_yield();
        inside = atomic_load_explicit(&pool->gate, memory_order_acquire) & (GATE_OPEN - 1);
    }
}

int threads_available(void) {
    cpu_set_t set;
    bool fits = sched_getaffinity(0, sizeof set, &set) == 0; // not on a machine of more than CPU_SETSIZE processors
    int count = fits ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? count : 1;
}

Threads *threads_new(int count) {
    check(count >= 0);
    if (count == 0) count = threads_available();
    size_t size = (sizeof(Threads) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    Threads *pool = aligned_alloc(CACHE_LINE, size);
    check(pool);
    *pool = (Threads){.count = count};
    pool->workers = calloc((size_t)count, sizeof *pool->workers);
    check(pool->workers);
    check(pthread_mutex_init(&pool->lock, NULL) == 0);
    check(pthread_cond_init(&pool->wake, NULL) == 0);
    for (int i = 0; i < count - 1; i++) {
        pool->workers[i] = (Worker){.pool = pool, .index = i + 1};
        check(pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]) == 0);
    }
    return pool;
}

void threads_free(Threads *pool) {
    if (!pool) return;
    pool->stopping = true;
    publish(pool); // the gate stays open until the last has gone through
    for (int i = 0; i < pool->count - 1; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

int threads_count(const Threads *pool) { return pool->count; }

void threads_run(Threads *pool, int64_t tasks, ThreadTask function, void *context) {
    if (tasks == 1 || pool->count == 1) { // nothing to share
        for (int64_t task = 0; task < tasks; task++) function(context, task, 0);
        return;
    }
    if (tasks <= 0) return;
    pool->function = function;
    pool->context = context;
    pool->tasks = tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    publish(pool);
    work(pool, 0);
    close_and_wait(pool);
}
