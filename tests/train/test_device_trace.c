/* The device in a run's timeline: when it was busy and when not, what the host did meanwhile, and layers as ranges. The
 * device is one made for the test, whose work lies in its own streams. */
#include "base/json.h"
#include "base/trace_read.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/test.h"
#include "train/bench_model.h"
#include "train/device_timeline.h"
#include "train/device_trace.h"
#include "train/trace_summary.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void work_that_touches_is_one_and_gaps_come_longest_first(void **state) {
    (void)state;
    DeviceTimeline t = {0};
    const TimeSpan spans[] = {{1, 3}, {2, 2.5}, {3, 4}, {6, 7}, {6.5, 9}, {9.5, 10}, {20, 21}};
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) device_timeline_add(&t, spans[i]);
    assert_int_equal(t.count, 4);
    assert_true(device_timeline_busy(&t, (TimeSpan){0, 30}) == 3 + 3 + 0.5 + 1);
    assert_true(device_timeline_busy(&t, (TimeSpan){2, 6.5}) == 2 + 0.5);
    assert_true(device_timeline_busy(&t, (TimeSpan){4, 6}) == 0);
    TimeSpan gaps[3];
    assert_int_equal(device_timeline_gaps(&t, (TimeSpan){0, 10}, gaps, 3), 3);
    assert_true(gaps[0].begin == 4 && gaps[0].end == 6);
    assert_true(gaps[1].begin == 0 && gaps[1].end == 1);
    assert_true(gaps[2].begin == 9 && gaps[2].end == 9.5);
    assert_int_equal(device_timeline_gaps(&t, (TimeSpan){4.5, 5}, gaps, 3), 1);
    assert_true(gaps[0].begin == 4.5 && gaps[0].end == 5);
    assert_int_equal(device_timeline_gaps(&t, (TimeSpan){2, 3}, gaps, 3), 0);
    device_timeline_free(&t);
    assert_int_equal(device_timeline_gaps(&t, (TimeSpan){2, 3}, gaps, 3), 1);
}

static double beginning; // of the device's work: Backend gives no room for a test's own

static bool watch_begin(Backend *b) { return (void)b, true; }

static void watch_end(Backend *b, void *context, void (*slice)(void *context, const DeviceSlice *)) {
    static const DeviceSlice work[] = {
        {"gemm", 0, 0.000, 0.004}, {"copy", 1, 0.003, 0.005}, {"adamw", 0, 0.007, 0.010}, {"gemm", 0, 0.010, 0.020}};
    (void)b;
    for (size_t i = 0; i < sizeof work / sizeof *work; i++) {
        DeviceSlice s = work[i];
        s.begin += beginning, s.end += beginning;
        slice(context, &s);
    }
}

static int count_of(const char *path, const char *ph, const char *track, const char *name, double *value) {
    Error error = {0};
    int count = 0;
    TraceReader *r = trace_open(path, &error);
    assert_done(r != NULL, &error);
    for (json_t *e; trace_next(r, &e, &error) && e; json_decref(e)) {
        const char *on = trace_track(r, e);
        if (strcmp(json_get_string(e, "ph", ""), ph) != 0 || strcmp(json_get_string(e, "name", ""), name) != 0)
            continue;
        if (track && (!on || strcmp(on, track) != 0)) continue;
        if (value) *value = json_get_number(json_object_get(e, "args"), "value", NAN);
        count++;
    }
    trace_close(r);
    return count;
}

static void a_step_shows_what_share_of_it_the_device_worked(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "trace.json"), *said = temporary_path(folder, "log");
    Error error = {0};
    FILE *out = fopen(said, "w");
    Log *log = log_new(LOG_INFO, out);
    Trace *trace = trace_new(0);
    Backend *b = cpu_backend_new(1, NULL, NULL);
    b->watch_begin = watch_begin, b->watch_end = watch_end;
    beginning = trace_now();
    DeviceTrace *d = device_trace_begin(b, trace);
    trace_slice(trace, "loader", "wait for data", beginning + 0.0051, beginning + 0.0069);
    trace_slice(trace, "compute", "step 1", beginning, beginning + 0.010);
    trace_slice(trace, "compute", "step 2", beginning + 0.010, beginning + 0.020);
    device_trace_end(d, log);
    assert_true(!b->range_push && !b->listener);
    assert_done(trace_write(trace, path, &error), &error);
    double share = 0;
    assert_int_equal(count_of(path, "C", NULL, "device busy, percent", &share), 2);
    assert_true(fabs(share - 100) < 1e-3); // of the second
    assert_int_equal(count_of(path, "X", "device stream 0", "gemm", NULL), 2);
    assert_int_equal(count_of(path, "X", "device stream 1", "copy", NULL), 1);
    log_free(log);
    fclose(out);
    char text[2048] = "";
    out = fopen(said, "r");
    assert_true(fread(text, 1, sizeof text - 1, out) > 0);
    fclose(out);
    assert_non_null(strstr(text, "the device worked 90.0 % of 2 steps, 2 pieces of work each"));
    assert_non_null(strstr(text, "no work for 2 ms, 0.005 s into the steps: the host was at 'wait for data'"));
    backend_free(b);
    trace_free(trace);
    assert_null(device_trace_begin(NULL, NULL));
    device_trace_end(NULL, NULL);
    free(path);
    free(said);
    temporary_free(folder);
}

static int pushes, pops;
static void profiler_push(Backend *b, const char *name) { (void)b, (void)name, pushes++; }
static void profiler_pop(Backend *b) { (void)b, pops++; }

static void layers_are_ranges_forward_and_backward(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "trace.json");
    Error error = {0};
    BenchPreset p;
    assert_done(bench_preset(&p, "joint_b", &error), &error);
    bench_preset_shrink(&p);
    Backend *b = cpu_backend_new(1, NULL, NULL);
    BenchModel *m = bench_model_new(b, &p, F32, RECOMPUTE_NONE, &error);
    assert_done(m != NULL, &error);
    Trace *trace = trace_new(0);
    double loss = NAN, other = NAN;
    assert_true(bench_model_start(m, NULL, 1, 1, &error) && bench_model_finish(m, &loss, &error));
    b->range_push = profiler_push, b->range_pop = profiler_pop;
    DeviceTrace *d = device_trace_begin(b, trace);
    assert_true(bench_model_start(m, NULL, 1, 1, &error) && bench_model_finish(m, &other, &error));
    assert_true(loss == other); // it changes nothing
    device_trace_end(d, NULL);
    assert_true(b->range_push == profiler_push && pushes == pops && pushes > 20);
    assert_done(trace_write(trace, path, &error), &error);
    static const char *const names[] = {"vision.blocks.0", "vision.blocks.1", "text.blocks.1", "mae.blocks.0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char backward[64];
        snprintf(backward, sizeof backward, "%s backward", names[i]);
        assert_int_equal(count_of(path, "X", "layers", names[i], NULL), 1);
        assert_true(count_of(path, "X", "layers", backward, NULL) >= 1);
    }
    trace_free(trace);
    bench_model_free(m);
    backend_free(b);
    free(path);
    temporary_free(folder);
}

// Two streams in four steps, of which the first two are left out: 10 ms each.
static char *timeline_of(const char *folder) {
    char *path = temporary_path(folder, "streams.json"), name[32];
    Trace *t = trace_new(0);
    Error error = {0};
    double start = trace_now();
    for (int i = 0; i < 4; i++) {
        double at = start + 0.010 * i;
        trace_slice(t, "device stream 0", "gemm", at, at + 0.004);
        trace_slice(t, "device stream 1", "copy to device, 4.0 MiB", at + 0.003, at + 0.005);
        trace_slice(t, "device stream 0", "adamw <b>", at + 0.0050015, at + 0.009);
        trace_slice(t, "device stream 1", "copy to device, 2.0 MiB", at + 0.007, at + 0.008);
        snprintf(name, sizeof name, "step %d", i + 1);
        trace_slice(t, "compute", name, at, at + 0.010);
    }
    assert_done(trace_write(t, path, &error), &error);
    trace_free(t);
    return path;
}

static bool near(double x, double wanted) { return fabs(x - wanted) < 2e-8; }

static void a_summary_tells_kernels_by_time_and_gaps_by_length(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = timeline_of(folder);
    Arena *memory = arena_new(1 << 16);
    Buffer text = {0}, page = {0};
    TraceSummary s;
    Error error = {0};
    assert_done(trace_summary_read(path, 0, memory, &s, &error), &error);
    assert_true(s.steps == 2 && s.count == 3 && s.streams == 2 && s.work_count == 8);
    assert_true(near(s.seconds, 0.020) && near(s.busy, 2 * (0.009 - 0.0000015)));
    assert_string_equal(s.of[0].name, "gemm");
    assert_string_equal(s.of[1].name, "adamw <b>");
    assert_string_equal(s.of[2].name, "copy to device"); // whatever their size
    assert_true(s.of[2].count == 4 && near(s.of[2].seconds, 0.006) && near(s.of[2].longest, 0.002));
    assert_true(s.gaps_in[0] == 2 && s.gaps_in[GAP_CLASSES - 2] + s.gaps_in[GAP_CLASSES - 1] == 2);
    assert_true(s.gap_count == 4 && near(s.gaps[0].seconds, 0.001) && near(s.gaps[2].seconds, 0.0000015));
    bool first = s.gaps[0].begin < s.gaps[1].begin; // equally long
    assert_string_equal(s.gaps[first ? 0 : 1].before, "adamw <b>");
    assert_string_equal(s.gaps[first ? 0 : 1].after, "gemm");
    assert_null(s.gaps[first ? 1 : 0].after);
    trace_summary_text(&s, 2, &text);
    assert_non_null(strstr(text.data, "2 steps of 10.000 ms: the device worked 90.0 % of them"));
    assert_non_null(strstr(text.data, "... and 1 more"));
    trace_summary_html(&s, 9, &page);
    assert_non_null(strstr(page.data, "adamw &lt;b&gt;</td>"));
    assert_null(strstr(page.data, "<b>"));
    assert_non_null(strstr(page.data, "<svg class=\"chart\""));
    assert_false(trace_summary_read(path, 1, memory, &s, &error)); // no such rank
    assert_message_has(&error, "no work of a GPU is in it");
    buffer_free(&text);
    buffer_free(&page);
    arena_free(memory);
    free(path);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_that_touches_is_one_and_gaps_come_longest_first),
        cmocka_unit_test(a_step_shows_what_share_of_it_the_device_worked),
        cmocka_unit_test(layers_are_ranges_forward_and_backward),
        cmocka_unit_test(a_summary_tells_kernels_by_time_and_gaps_by_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
