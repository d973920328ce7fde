/* The thread pool: every task once, the same results on any number of threads, many short calls. */
#include "base/threads.h"
#include "tests/support/test.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { TASKS = 1000 };

typedef struct Counts {
    _Atomic int runs[TASKS];
    _Atomic int wrong_worker;
    int workers;
} Counts;

static void count_task(void *context, int64_t task, int worker) {
    Counts *counts = context;
    atomic_fetch_add(&counts->runs[task], 1);
    if (worker < 0 || worker >= counts->workers) atomic_fetch_add(&counts->wrong_worker, 1);
}

static void every_task_runs_once(void **state) {
    (void)state;
    for (int n = 1; n <= 5; n++) {
        Threads *pool = threads_new(n);
        assert_int_equal(threads_count(pool), n);
        for (int64_t tasks = 0; tasks <= TASKS; tasks = tasks * 3 + 1) {
            Counts *counts = calloc(1, sizeof *counts);
            counts->workers = n;
            threads_run(pool, tasks, count_task, counts);
            for (int64_t i = 0; i < TASKS; i++) assert_int_equal(counts->runs[i], i < tasks);
            assert_int_equal(counts->wrong_worker, 0);
            free(counts);
        }
        threads_free(pool);
    }
}

typedef struct Sum {
    double in[TASKS], out[TASKS];
} Sum;

static void smooth(void *context, int64_t task, int worker) {
    (void)worker;
    Sum *sum = context;
    for (int64_t i = 0; i <= task; i++) sum->out[task] += sum->in[i] / (double)(task - i + 1);
}

static void results_are_the_same_on_any_number_of_threads(void **state) {
    (void)state;
    Sum *sums[4];
    for (int n = 0; n < 4; n++) {
        Threads *pool = threads_new(n + 1);
        sums[n] = calloc(1, sizeof **sums);
        for (int i = 0; i < TASKS; i++) sums[n]->in[i] = 1.0 / (i + 3);
        threads_run(pool, TASKS, smooth, sums[n]);
        threads_free(pool);
        assert_memory_equal(sums[n], sums[0], sizeof **sums);
    }
    for (int n = 0; n < 4; n++) free(sums[n]);
}

static void add_one(void *context, int64_t task, int worker) {
    (void)worker;
    ((int64_t *)context)[task]++;
}

static void calls_in_a_row_see_what_the_last_wrote(void **state) {
    (void)state;
    int64_t values[8] = {0};
    Threads *pool = threads_new(3);
    for (int i = 0; i < 20000; i++) {
        if (i % 4000 == 0) usleep(2000); // long enough for workers to fall asleep
        threads_run(pool, 2 + i % 7, add_one, values);
    }
    int64_t total = 0, expected = 0;
    for (int i = 0; i < 8; i++) total += values[i];
    for (int i = 0; i < 20000; i++) expected += 2 + i % 7;
    assert_int_equal(total, expected);
    threads_free(pool);
}

static void pools_come_and_go(void **state) {
    (void)state;
    int64_t values[4] = {0};
    for (int i = 0; i < 200; i++) {
        Threads *pool = threads_new(1 + i % 4);
        if (i % 3) threads_run(pool, 4, add_one, values);
        threads_free(pool);
    }
    threads_free(NULL);
    Threads *pool = threads_new(0);
    assert_int_equal(threads_count(pool), threads_available());
    threads_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(results_are_the_same_on_any_number_of_threads),
        cmocka_unit_test(calls_in_a_row_see_what_the_last_wrote),
        cmocka_unit_test(pools_come_and_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
