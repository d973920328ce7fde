/* Trace: what a viewer reads is valid JSON with named tracks, slices that nest, and one process track a rank. */
#include "base/json.h"
#include "base/trace.h"
#include "base/trace_read.h"
#include "tests/support/test.h"
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *events_of(const char *path) {
    Error error = {0};
    json_t *all = json_read_file(path, &error);
    if (!all) fail_msg("%s", error.message);
    json_t *events = json_incref(json_object_get(all, "traceEvents"));
    assert_true(json_is_array(events));
    json_decref(all);
    return events;
}

// The name that metadata `what` gives to a process (tid -1) or to one of its tracks, or NULL.
static const char *name_of(const json_t *events, const char *what, int pid, int tid) {
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) {
        if (strcmp(json_get_string(e, "ph", ""), "M") || strcmp(json_get_string(e, "name", ""), what)) continue;
        if (json_get_int(e, "pid", -1) != pid || (tid >= 0 && json_get_int(e, "tid", -1) != tid)) continue;
        return json_get_string(json_object_get(e, "args"), "name", NULL);
    }
    return NULL;
}

static const json_t *slice_of(const json_t *events, const char *name, int pid) {
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) if (!strcmp(json_get_string(e, "ph", ""), "X") &&
                                         !strcmp(json_get_string(e, "name", ""), name) &&
                                         json_get_int(e, "pid", -1) == pid) return e;
    fail_msg("no slice '%s' of rank %d", name, pid);
    return NULL;
}

static double begin_of(const json_t *slice) { return json_get_number(slice, "ts", NAN); }
static double end_of(const json_t *slice) { return begin_of(slice) + json_get_number(slice, "dur", NAN); }

// A step of a rank: forward inside it, a reduction beside it, and a name that must be escaped.
static void one_rank(int rank, const char *path) {
    Error error = {0};
    Trace *t = trace_new(rank);
    double start = 1000 + rank;
    trace_slice(t, "compute", "forward \"lm\"\n", start + 0.001, start + 0.002);
    trace_slice(t, "compute", "step", start, start + 0.003);
    trace_slice(t, "communication", "reduce", start + 0.0015, start + 0.0035);
    trace_slice(NULL, "compute", "nothing", 0, 1);
    assert_done(trace_write(t, path, &error), &error);
    trace_free(t);
}

static void a_trace_is_json_with_named_tracks_and_slices_that_nest(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "trace.json");
    one_rank(3, path);
    json_t *events = events_of(path);
    const json_t *outer = slice_of(events, "step", 3), *inner = slice_of(events, "forward \"lm\"\n", 3);
    const json_t *reduce = slice_of(events, "reduce", 3);
    assert_string_equal(name_of(events, "process_name", 3, -1), "rank 3");
    assert_string_equal(name_of(events, "thread_name", 3, (int)json_get_int(outer, "tid", -1)), "compute");
    assert_string_equal(name_of(events, "thread_name", 3, (int)json_get_int(reduce, "tid", -1)), "communication");
    assert_int_equal(json_get_int(outer, "tid", -1), json_get_int(inner, "tid", -2));
    assert_int_not_equal(json_get_int(outer, "tid", -1), json_get_int(reduce, "tid", -1));
    assert_true(begin_of(outer) <= begin_of(inner) && end_of(inner) <= end_of(outer));
    assert_true(begin_of(outer) == 1003e6 && json_get_number(outer, "dur", NAN) == 3000);
    assert_null(name_of(events, "thread_name", 3, (int)json_get_int(reduce, "tid", -1) + 1)); // no empty track
    json_decref(events);
    free(path);
    temporary_free(folder);
}

static void joined_traces_show_every_rank_on_one_clock(void **state) {
    (void)state;
    enum { RANKS = 3 };
    Error error = {0};
    char *folder = temporary_new(), *paths[RANKS], *out = temporary_path(folder, "all.json");
    for (int i = 0; i < RANKS; i++) {
        char name[32];
        snprintf(name, sizeof name, "part-%d.json", i);
        one_rank(i, paths[i] = temporary_path(folder, name));
    }
    assert_done(trace_join((const char *const *)paths, RANKS, out, &error), &error);
    json_t *events = events_of(out);
    for (int i = 0; i < RANKS; i++) {
        char name[32];
        snprintf(name, sizeof name, "rank %d", i);
        assert_string_equal(name_of(events, "process_name", i, -1), name);
        double apart = begin_of(slice_of(events, "step", i)) - begin_of(slice_of(events, "step", 0));
        assert_true(apart == 1e6 * i); // one machine: one clock
    }
    assert_int_equal(json_array_size(events), RANKS * (2 + 2 * 2 + 3));
    json_decref(events);
    for (int i = 0; i < RANKS; i++) free(paths[i]);
    free(out);
    temporary_free(folder);
}

// A part of rank `rank`: one slice that begins at 1 s of its clock.
static void write_part(const char *path, int rank, double clock, const char *machine) {
    char text[512];
    int size = snprintf(text, sizeof text,
                        "{\"otherData\": {\"clock\": %g, \"machine\": \"%s\", \"left_out\": 2}, \"traceEvents\": [\n"
                        "{\"ph\": \"X\", \"pid\": %d, \"tid\": 0, \"ts\": 1e6, \"dur\": 5, \"name\": \"step\"}\n]}\n",
                        clock, machine, rank);
    temporary_write(path, text, (size_t)size);
}

static void other_machines_are_placed_by_the_time_of_day(void **state) {
    (void)state;
    enum { RANKS = 4 };
    static const double clocks[RANKS] = {100, 100.25, 107, 99}, later[RANKS] = {0, 0, 7e6, 7e6};
    static const char *const machines[RANKS] = {"here", "here", "there", "there"}; // the time of day was set on both
    Error error = {0};
    char *folder = temporary_new(), *paths[RANKS], *out = temporary_path(folder, "all.json");
    for (int i = 0; i < RANKS; i++) {
        char name[32];
        snprintf(name, sizeof name, "part-%d.json", i);
        write_part(paths[i] = temporary_path(folder, name), i, clocks[i], machines[i]);
    }
    assert_done(trace_join((const char *const *)paths, RANKS, out, &error), &error);
    json_t *all = json_read_file(out, &error);
    assert_int_equal(json_get_int(json_object_get(all, "otherData"), "left_out", -1), 2 * RANKS);
    for (int i = 0; i < RANKS; i++)
        assert_true(begin_of(slice_of(json_object_get(all, "traceEvents"), "step", i)) == 1e6 + later[i]);
    json_decref(all);
    for (int i = 0; i < RANKS; i++) free(paths[i]);
    free(out);
    temporary_free(folder);
}

static void slices_that_overlap_are_drawn_below_one_another(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "trace.json");
    Trace *t = trace_new(0);
    trace_slice(t, "communication", "first", 1, 3);
    trace_slice(t, "communication", "second", 2, 4); // begins in the first, ends after it
    trace_slice(t, "communication", "inside", 2.5, 3);
    trace_slice(t, "communication", "third", 3, 3.5);
    assert_done(trace_write(t, path, &error), &error);
    json_t *events = events_of(path);
    int64_t lane[4];
    const char *const names[] = {"first", "second", "inside", "third"};
    for (int i = 0; i < 4; i++) lane[i] = json_get_int(slice_of(events, names[i], 0), "tid", -1);
    assert_true(lane[0] != lane[1] && lane[2] == lane[0] && lane[3] == lane[0]);
    assert_string_equal(name_of(events, "thread_name", 0, (int)lane[0]), "communication");
    assert_string_equal(name_of(events, "thread_name", 0, (int)lane[1]), "communication 2");
    json_decref(events);
    trace_free(t);
    free(path);
    temporary_free(folder);
}

static void what_is_not_a_whole_trace_is_not_joined(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "part.json");
    char *out = temporary_path(folder, "all.json");
    one_rank(0, path);
    FILE *file = fopen(path, "r+e");
    assert_non_null(file);
    assert_int_equal(fseek(file, -4, SEEK_END), 0);
    fputs("   ", file); // the end is gone
    fclose(file);
    assert_false(trace_join((const char *const[]){path}, 1, out, &error));
    assert_message_has(&error, "part.json");
    temporary_write(path, "{}\n", 3);
    assert_false(trace_join((const char *const[]){path}, 1, out, &error));
    assert_message_has(&error, "not a whole trace");
    free(path);
    free(out);
    temporary_free(folder);
}

static void notes_and_slices_of_all_ranks_are_read_back(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *out = temporary_path(folder, "all.json");
    char *parts[] = {temporary_path(folder, "0.json"), temporary_path(folder, "1.json")};
    int notes = 0, slices = 0, ranks = 0;
    for (int i = 0; i < 2; i++) {
        Trace *t = trace_new(i);
        trace_note(t, "place", i ? "{\"stage\": 1}" : "{\"stage\": 0}");
        trace_slice(t, "stage", "forward 0.0", 1, 2);
        trace_slice(t, "compute", "step 1", 0.5, 3);
        trace_note(NULL, "nothing", "{}");
        assert_done(trace_write(t, parts[i], &error), &error);
        trace_free(t);
    }
    assert_done(trace_join((const char *const *)parts, 2, out, &error), &error);
    TraceReader *r = trace_open(out, &error);
    assert_non_null(r);
    assert_int_equal(json_get_int(trace_head(r), "left_out", -1), 0);
    for (json_t *e; trace_next(r, &e, &error) && e; json_decref(e)) {
        const char *name = json_get_string(e, "name", "");
        int64_t rank = json_get_int(e, "pid", -1);
        if (!strcmp(name, "place")) notes++, ranks += json_get_int(json_object_get(e, "args"), "stage", -1) == rank;
        if (strcmp(json_get_string(e, "ph", ""), "X")) continue;
        assert_string_equal(trace_track(r, e), name[0] == 'f' ? "stage" : "compute");
        slices++;
    }
    assert_int_equal(error.kind, ERROR_NONE);
    assert_true(notes == 2 && ranks == 2 && slices == 4);
    trace_close(r);
    for (int i = 0; i < 2; i++) free(parts[i]);
    free(out);
    temporary_free(folder);
}

enum { THREADS = 4, EACH = 500 };

static void *many_slices(void *trace) {
    for (int i = 0; i < EACH; i++) trace_slice(trace, i % 2 ? "save" : "compute", "work", i, i + 1);
    return NULL;
}

static void threads_may_trace_at_the_same_time(void **state) {
    (void)state;
    Error error = {0};
    pthread_t threads[THREADS];
    char *folder = temporary_new(), *path = temporary_path(folder, "trace.json");
    Trace *t = trace_new(0);
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, many_slices, t), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    assert_done(trace_write(t, path, &error), &error);
    json_t *events = events_of(path);
    assert_int_equal(json_array_size(events), THREADS * EACH + 2 + 2 * 2);
    json_decref(events);
    trace_free(t);
    free(path);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_trace_is_json_with_named_tracks_and_slices_that_nest),
        cmocka_unit_test(joined_traces_show_every_rank_on_one_clock),
        cmocka_unit_test(other_machines_are_placed_by_the_time_of_day),
        cmocka_unit_test(slices_that_overlap_are_drawn_below_one_another),
        cmocka_unit_test(what_is_not_a_whole_trace_is_not_joined),
        cmocka_unit_test(notes_and_slices_of_all_ranks_are_read_back),
        cmocka_unit_test(threads_may_trace_at_the_same_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
