/* Charts of the report. */
#include "train/svg_chart.h"
#include <math.h>
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void ticks_are_round(void **state) {
    (void)state;
    assert_true(fabs(svg_tick_step(0, 1, 5) - 0.2) < 1e-12);
    assert_true(fabs(svg_tick_step(0, 2000, 7) - 500) < 1e-9);
    assert_true(fabs(svg_tick_step(3.1, 3.17, 5) - 0.02) < 1e-12);
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what)) n++;
    return n;
}

static void a_line_a_series_and_no_point_that_is_not_finite(void **state) {
    (void)state;
    Buffer b = {0};
    const double x[] = {1, 2, 3, 4}, y[] = {4, NAN, 2, 1}, z[] = {1, 2, INFINITY, 4};
    const Series series[] = {{"lm", x, y, 4}, {"mae & more", x, z, 4}};
    svg_chart(&b, &(Chart){"Loss", "step", "nats", series, 2, false});
    assert_int_equal(count(b.data, "<polyline"), 2);
    assert_int_equal(count(b.data, "nan"), 0);
    assert_int_equal(count(b.data, "inf"), 0);
    assert_int_equal(count(b.data, "mae &amp; more"), 1);
    buffer_free(&b);
}

static void an_empty_chart_says_so(void **state) {
    (void)state;
    Buffer b = {0};
    const double nothing[] = {NAN};
    const Series series[] = {{"lm", nothing, nothing, 1}};
    svg_chart(&b, &(Chart){"Loss", "step", "", series, 1, true});
    assert_int_equal(count(b.data, "nothing measured yet"), 1);
    buffer_free(&b);
}

static void a_constant_series_has_an_axis(void **state) {
    (void)state;
    Buffer b = {0};
    const double x[] = {1, 1}, y[] = {5, 5};
    const Series series[] = {{"a", x, y, 2}};
    svg_chart(&b, &(Chart){"t", "x", "y", series, 1, false});
    assert_int_equal(count(b.data, "nan"), 0);
    assert_true(count(b.data, "class=\"grid\"") >= 2);
    buffer_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ticks_are_round),
        cmocka_unit_test(a_line_a_series_and_no_point_that_is_not_finite),
        cmocka_unit_test(an_empty_chart_says_so),
        cmocka_unit_test(a_constant_series_has_an_axis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
