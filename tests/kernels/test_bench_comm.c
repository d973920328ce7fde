/* The speed table of collectives: a row for each, with figures that can be. */
#include "kernels/comm/bench_comm.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <math.h>

static void count_row(void *context, const BenchCommRow *r) {
    ++*(int *)context;
    assert_int_equal(r->bytes, 8192);
    assert_true(r->seconds > 0 && isfinite(r->seconds) && r->fastest <= r->seconds && r->seconds <= r->slowest);
    assert_true(r->gbytes > 0 && isfinite(r->gbytes));
}

static void measure(int rank, Comm *world, void *argument) {
    (void)rank;
    BenchComm bench = {.bytes = 8192, .seconds = 0, .row = count_row, .context = argument};
    bench_comm(world, &bench);
}

static void every_collective_gets_a_row_on_the_first_rank(void **state) {
    (void)state;
    int rows = 0;
    ranks_run(2, measure, &rows);
    assert_int_equal(rows, 5); // no MPI beside it
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_collective_gets_a_row_on_the_first_rank)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
