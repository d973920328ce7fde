/* The picture of a timeline: every row has its box and number, and what is beside it. */
#include "tests/support/test.h"
#include "train/schedule_svg.h"
#include <string.h>

static int occurrences(const Buffer *b, const char *word) {
    int count = 0;
    for (const char *at = b->data; (at = strstr(at, word)); at++) count++;
    return count;
}

// All parts cost `cost`; in the arena.
static TimelinePanel panel_of(Arena *arena, PipelineShape shape, double cost, const char *title) {
    Error error = {0};
    PipelineTable *t = arena_array(arena, PipelineTable, 1);
    Timeline *line = arena_array(arena, Timeline, 1);
    StagePeak *peaks = arena_array(arena, StagePeak, shape.stages);
    double *costs = arena_array(arena, double, shape.stages *shape.chunks);
    for (int i = 0; i < shape.stages * shape.chunks; i++) costs[i] = cost;
    assert_done(pipeline_make(&shape, arena, t, &error), &error);
    assert_done(pipeline_check(t, peaks, &error), &error);
    *line = timeline_simulate(t, &(PipelineCosts){costs, costs, costs, .send = 0}, arena);
    return (TimelinePanel){title, line, peaks};
}

static void every_row_has_a_box_with_its_number(void **state) {
    (void)state;
    Arena *arena = arena_new(1 << 14);
    Error error = {0};
    Buffer svg = {0};
    TimelinePanel panel = panel_of(arena, (PipelineShape){PIPELINE_ZB_H1, 3, 4, 1}, 2, "three <stages>");
    assert_done(timeline_svg(&svg, &panel, 1, &error), &error);
    assert_int_equal(occurrences(&svg, "</title></rect>"), 3 * 4 * 3);
    assert_int_equal(occurrences(&svg, "class=\"middle\""), 3 * 4 * 3);
    assert_int_equal(occurrences(&svg, ">3</text>"), 3 * 3);
    assert_int_equal(occurrences(&svg, "weight gradient of microbatch 2, chunk 0"), 3);
    assert_int_equal(occurrences(&svg, "three &lt;stages&gt;"), 1);
    assert_int_equal(occurrences(&svg, ">stage 2</text>"), 1);
    assert_int_equal(occurrences(&svg, "waits 14.3 %, holds 3"), 3); // 24 of 28
    assert_int_equal(occurrences(&svg, "nan"), 0);
    buffer_free(&svg);
    arena_free(arena);
}

// The second takes twice as long: its last row ends where the plot ends, that of the first in the middle.
static void panels_share_a_scale_of_time(void **state) {
    (void)state;
    Arena *arena = arena_new(1 << 14);
    Error error = {0};
    Buffer one = {0}, two = {0};
    PipelineShape shape = {PIPELINE_GPIPE, 1, 2, 1}; // 6 and 12 long
    TimelinePanel panels[] = {panel_of(arena, shape, 1, "planned"), panel_of(arena, shape, 2, "run")};
    assert_done(timeline_svg(&one, panels, 1, &error), &error);
    assert_done(timeline_svg(&two, panels, 2, &error), &error);
    const char *wide = "x=\"74.00\" y=\"70.0\" width=\"126.67\"", *narrow = "x=\"74.00\" y=\"70.0\" width=\"63.33\"";
    assert_true(strstr(one.data, wide) && !strstr(one.data, narrow)); // 760 pixels / 6
    assert_true(strstr(two.data, narrow) && !strstr(two.data, wide));
    assert_int_equal(occurrences(&two, "class=\"title\""), 2);
    buffer_free(&one);
    buffer_free(&two);
    arena_free(arena);
}

static void panels_begin_with_their_first_row(void **state) {
    (void)state;
    Arena *arena = arena_new(1 << 14);
    Error error = {0};
    Buffer planned = {0}, run = {0};
    TimelinePanel panel = panel_of(arena, (PipelineShape){PIPELINE_ZB_V, 2, 3, 2}, 1, "same");
    assert_done(timeline_svg(&planned, &panel, 1, &error), &error);
    for (int i = 0; i < 2; i++) // as by the clock of a machine
        for (int k = 0; k < panel.line->table->counts[i]; k++) {
            panel.line->spans[i][k].begin += 1024;
            panel.line->spans[i][k].end += 1024;
        }
    assert_done(timeline_svg(&run, &panel, 1, &error), &error);
    assert_string_equal(planned.data, run.data);
    buffer_free(&planned);
    buffer_free(&run);
    arena_free(arena);
}

static void rows_that_take_no_time_are_drawn_too(void **state) {
    (void)state;
    Arena *arena = arena_new(1 << 14);
    Error error = {0};
    Buffer svg = {0};
    TimelinePanel panel = panel_of(arena, (PipelineShape){PIPELINE_1F1B, 2, 2, 1}, 0, "nothing");
    assert_done(timeline_svg(&svg, &panel, 1, &error), &error);
    assert_int_equal(occurrences(&svg, "</title></rect>"), 8);
    assert_int_equal(occurrences(&svg, "nan") + occurrences(&svg, "inf"), 0);
    buffer_free(&svg);
    arena_free(arena);
}

static void what_nobody_can_look_at_is_refused(void **state) {
    (void)state;
    Arena *arena = arena_new(1 << 20);
    Error error = {0};
    Buffer svg = {0};
    TimelinePanel panel = panel_of(arena, (PipelineShape){PIPELINE_1F1B, 8, 4000, 1}, 1, "long");
    assert_false(timeline_svg(&svg, &panel, 1, &error));
    assert_message_has(&error, "64000 rows are too many");
    assert_int_equal(svg.size, 0);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_has_a_box_with_its_number), cmocka_unit_test(panels_share_a_scale_of_time),
        cmocka_unit_test(panels_begin_with_their_first_row),   cmocka_unit_test(rows_that_take_no_time_are_drawn_too),
        cmocka_unit_test(what_nobody_can_look_at_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
