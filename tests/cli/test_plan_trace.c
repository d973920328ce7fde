/* `bifocal plan schedule --trace`: what it prints and draws of a run's pipeline, and what it refuses. */
#include "base/files.h"
#include "base/trace.h"
#include "tests/cli/command.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = 2, STEPS = 3 };

// Two stages, one microbatch: forward 0.1 s, backward 0.2 s; 0.05 s to send. One rank a stage.
static void draw_rank(int stage, const char *path) {
    Error error = {0};
    char text[160];
    Trace *t = trace_new(stage);
    snprintf(
        text, sizeof text,
        "{\"schedule\": \"1f1b\", \"stages\": %d, \"microbatches\": 1, \"chunks\": 1, \"stage\": %d, \"data\": [0, 1], "
        "\"tensor\": [0, 1]}",
        STAGES, stage);
    trace_note(t, "pipeline", text);
    for (int step = 1; step <= STEPS; step++) {
        double forward = step + (stage ? 0.15 : 0), backward = step + (stage ? 0.25 : 0.5);
        snprintf(text, sizeof text, "step %d", step);
        trace_slice(t, "compute", text, step, step + 0.9);
        trace_slice(t, "stage", "forward 0.0", forward, forward + 0.1);
        trace_slice(t, "stage", "both 0.0", backward, backward + 0.2);
    }
    assert_done(trace_write(t, path, &error), &error);
    trace_free(t);
}

static char *drawn_run(void) {
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "trace.json"), *parts[STAGES];
    for (int i = 0; i < STAGES; i++) {
        char name[32];
        snprintf(name, sizeof name, "rank-%d", i);
        draw_rank(i, parts[i] = temporary_path(folder, name));
    }
    assert_done(trace_join((const char *const *)parts, STAGES, path, &error), &error);
    for (int i = 0; i < STAGES; i++) free(parts[i]);
    free(path);
    return folder;
}

#define TRACED "plan", "schedule", "--trace", "trace.json"

static void a_run_stands_beside_its_simulation(void **state) {
    (void)state;
    char *folder = drawn_run();
    assert_prints("1f1b, 2 stages, 1 microbatch", folder, TRACED);
    assert_prints("time of the rows          700ms        700ms  1.000 x        700ms  1.000 x", folder, TRACED,
                  "--step", "2");
    json_t *all = command_json(0, folder, WORDS(TRACED, "--json")), *median = json_object_get(all, "median");
    json_t *time = json_object_get(median, "time"), *bubble = json_object_get(median, "bubble");
    assert_int_equal(json_array_size(json_object_get(all, "steps")), STEPS);
    assert_int_equal(json_array_size(json_object_get(median, "stages")), STAGES);
    assert_true(fabs(json_get_number(time, "measured", NAN) - 0.7) < 1e-6);
    assert_true(fabs(json_get_number(time, "simulated", NAN) - 0.7) < 1e-6);
    assert_true(fabs(json_get_number(time, "averaged", NAN) - 0.7) < 1e-6);
    assert_true(fabs(json_get_number(bubble, "measured", NAN) - (1 - 0.6 / 1.4)) < 1e-6);
    assert_true(fabs(json_get_number(all, "send", NAN) - 0.05) < 1e-6);
    json_decref(all);
    temporary_free(folder);
}

static void both_are_drawn_on_one_scale(void **state) {
    (void)state;
    char *folder = drawn_run(), *path = temporary_path(folder, "beside.svg");
    Buffer svg = {0};
    Error error = {0};
    assert_prints("bubble", folder, TRACED, "--svg", "beside.svg");
    assert_done(file_read(path, &svg, &error), &error);
    assert_non_null(strstr(svg.data, " as it ran: 0.7 s"));
    assert_non_null(strstr(svg.data, "simulated with the same rows"));
    assert_refuses(1, "nowhere", folder, TRACED, "--svg", "nowhere/beside.svg");
    buffer_free(&svg);
    free(path);
    temporary_free(folder);
}

static void what_is_not_there_is_refused(void **state) {
    (void)state;
    char *folder = drawn_run();
    assert_refuses(1, "absent.json: cannot open", folder, "plan", "schedule", "--trace", "absent.json");
    assert_refuses(2, "step 9 is not in it", folder, TRACED, "--step", "9");
    assert_refuses(2, "--step '0'", folder, TRACED, "--step", "0");
    assert_refuses(2, "no data place 1", folder, TRACED, "--data-place", "1");
    assert_refuses(2, "--tensor-place '0.5' is not a whole number", folder, TRACED, "--tensor-place", "0.5");
    assert_refuses(2, "--stages", folder, TRACED, "--stages", "2"); // the trace says
    assert_refuses(2, "no argument is expected", folder, TRACED, "more");
    assert_prints("--data-place", folder, TRACED, "--help");
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_stands_beside_its_simulation),
        cmocka_unit_test(both_are_drawn_on_one_scale),
        cmocka_unit_test(what_is_not_there_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
