/* The speed table: rows for what was asked, with figures that can be. */
#include "kernels/bench_ops.h"
#include "tests/support/test.h"
#include <math.h>
#include <string.h>

typedef struct Seen {
    int forward, backward;
} Seen;

static void look(void *context, const BenchRow *r) {
    Seen *seen = context;
    if (!strcmp(r->pass, "forward")) seen->forward++;
    else seen->backward++;
    assert_true(r->seconds > 0 && isfinite(r->seconds) && r->fastest <= r->seconds && r->seconds <= r->slowest);
    assert_true(r->peak_gflops > 0 && r->peak_gbytes > 0);
    assert_true(bench_floor_seconds(r) > 0 && isfinite(bench_floor_seconds(r)));
}

static void operators_and_products_get_rows_of_both_passes(void **state) {
    (void)state;
    Seen seen = {0};
    Backend *b = cpu_backend_new(1, NULL, NULL);
    BenchOps o = {.only = "scale", .size = EXAMPLE_LARGE, .seconds = 0, .row = look, .context = &seen, .peak = {1, 1, 1, 1}};
    bench_operators(b, &o, F32, NULL);
    assert_int_equal(seen.forward, 1);
    assert_int_equal(seen.backward, 1);
    o.only = "64 cubed";
    bench_products(b, &o, BF16);
    assert_int_equal(seen.forward, 2);
    assert_int_equal(seen.backward, 3); // input and weight gradient
    backend_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(operators_and_products_get_rows_of_both_passes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
