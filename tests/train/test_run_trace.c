/* The timeline of a run over several ranks: one file, a process track each, slices that nest, and nothing left aside.
 */
#include "base/files.h"
#include "base/json.h"
#include "data/batch.h"
#include "tests/train/tiny_compare.h"
#include "tests/train/tiny_run.h"
#include "train/schedule_trace.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RANKS = 2, STEPS = 3 };

static json_t *events_of(const char *path) {
    Error error = {0};
    json_t *all = json_read_file(path, &error);
    if (!all) fail_msg("%s", error.message);
    json_t *events = json_incref(json_object_get(all, "traceEvents"));
    json_decref(all);
    return events;
}

// The track of a rank, by its name, or -1.
static int64_t track_of(const json_t *events, int rank, const char *name) {
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) if (!strcmp(json_get_string(e, "name", ""), "thread_name") &&
                                         json_get_int(e, "pid", -1) == rank &&
                                         !strcmp(json_get_string(json_object_get(e, "args"), "name", ""),
                                                 name)) return json_get_int(e, "tid", -1);
    return -1;
}

static int count_of(const json_t *events, int rank, const char *track, const char *begins) {
    size_t i;
    int count = 0;
    json_t *e;
    int64_t tid = track_of(events, rank, track);
    json_array_foreach(events, i, e) count += !strcmp(json_get_string(e, "ph", ""), "X") &&
                                              json_get_int(e, "pid", -1) == rank && json_get_int(e, "tid", -1) == tid &&
                                              !strncmp(json_get_string(e, "name", ""), begins, strlen(begins));
    return count;
}

// Every slice lies inside those that are open when it begins.
static void expect_nested(const json_t *events) {
    double end[RANKS][256][64];
    int depth[RANKS][256] = {0};
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) { // within a track they stand in the order of their beginnings
        if (strcmp(json_get_string(e, "ph", ""), "X")) continue;
        int64_t rank = json_get_int(e, "pid", -1), tid = json_get_int(e, "tid", -1);
        double ts = json_get_number(e, "ts", NAN), until = ts + json_get_number(e, "dur", NAN);
        assert_true(rank >= 0 && rank < RANKS && tid >= 0 && tid < 256);
        int *d = &depth[rank][tid];
        while (*d && end[rank][tid][*d - 1] <= ts + 0.01) --*d; // microseconds: times are rounded to 0.001
        assert_true(*d == 0 || until <= end[rank][tid][*d - 1] + 0.01);
        assert_true(*d < 64);
        end[rank][tid][(*d)++] = until;
    }
}

// Slices of a rank whose name holds `part` and that begin inside one of a backward pass.
static int begun_in_backward(const json_t *events, int rank, const char *part) {
    size_t i, k;
    int count = 0;
    json_t *call, *pass;
    json_array_foreach(events, i, call) {
        double begin = json_get_number(call, "ts", NAN);
        bool meant = json_get_int(call, "pid", -1) == rank && strstr(json_get_string(call, "name", ""), part);
        json_array_foreach(events, k, pass) {
            if (!meant || json_get_int(pass, "pid", -1) != rank ||
                strcmp(json_get_string(pass, "name", ""), "backward"))
                continue;
            double from = json_get_number(pass, "ts", NAN), end = from + json_get_number(pass, "dur", NAN);
            count += begin > from && begin < end;
        }
    }
    return count;
}

static void every_rank_has_its_tracks_in_one_file(void **state) {
    (void)state;
    TinyRun r;
    TrainResult result;
    Error error = {0};
    tiny_run_open(&r, 1);
    char *path = temporary_path(r.folder, "trace.json"), *part = temporary_path(r.folder, "trace.json.rank-00001");
    const char *const settings[] = {"threads=1",
                                    "train.steps=3",
                                    "checkpoint.every=2",
                                    "parallel.data=2",
                                    "parallel.bucket=65536",
                                    "optimizer.warmup_steps=0",
                                    "parallel.zero=1",
                                    NULL};
    r.trace = path;
    assert_done(tiny_train_ranks(&r, "traced", settings, false, RANKS, NULL, &result, &error), &error);
    assert_false(file_exists(part));
    json_t *events = events_of(path);
    expect_nested(events);
    for (int rank = 0; rank < RANKS; rank++) {
        assert_int_equal(count_of(events, rank, "compute", "step "), STEPS);
        assert_int_equal(count_of(events, rank, "compute", "optimizer"), STEPS);
        assert_in_range(count_of(events, rank, "compute", "forward"), STEPS, 4 * STEPS);
        assert_in_range(count_of(events, rank, "compute", "backward"), STEPS, 4 * STEPS);
        const char *const parts[] = {"vision trunk", "pooling", "connector", "mae decoder", "text", "text head"};
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            assert_true(count_of(events, rank, "compute", parts[i]) >= STEPS);
        assert_int_equal(count_of(events, rank, "loader", "wait for data"), STEPS);
        assert_int_equal(count_of(events, rank, "save", "copy"), 2);
        assert_true(count_of(events, rank, "communication", "") >= STEPS);
        assert_true(begun_in_backward(events, rank, "gradients") >= STEPS); // beside what they are reduced from
    }
    json_decref(events);
    free(path);
    free(part);
    tiny_run_close(&r);
}

static void stages_of_a_pipeline_are_read_back_row_by_row(void **state) {
    (void)state;
    TinyRun r;
    TrainResult result;
    ScheduleTrace found;
    Error error = {0};
    Arena *arena = arena_new(1 << 16);
    tiny_run_open(&r, 1);
    char *path = temporary_path(r.folder, "trace.json");
    const char *const settings[] = {"threads=1",
                                    "train.steps=3",
                                    "train.microbatches=4",
                                    "parallel.pipeline=2",
                                    "parallel.schedule=zb-h1",
                                    "parallel.split=blocks",
                                    "optimizer.warmup_steps=0",
                                    NULL};
    r.trace = path;
    assert_done(tiny_train_ranks(&r, "staged", settings, false, 2, NULL, &result, &error), &error);
    assert_done(schedule_trace_read(path, &(TraceChoice){0}, arena, &found, &error), &error);
    assert_true(found.count == STEPS && found.data == 1 && found.tensor == 1);
    assert_true(found.table.shape.kind == PIPELINE_ZB_H1 && found.table.shape.microbatches == 4);
    for (int i = 0; i < STEPS; i++) {
        PipelineTime measured = timeline_measure(&found.steps[i].measured, NULL);
        PipelineTime simulated = timeline_measure(&found.steps[i].simulated, NULL);
        assert_int_equal(found.steps[i].number, i + 1);
        assert_true(fabs(measured.work - simulated.work) < 1e-7 && measured.total > measured.work);
        assert_true(found.steps[i].features > 0); // all pairs of a step are looked at before its rows
    }
    arena_free(arena);
    free(path);
    tiny_run_close(&r);
}

static void a_timeline_that_cannot_be_written_is_refused_before_the_first_step(void **state) {
    (void)state;
    TinyRun r;
    TrainResult result;
    Error error = {0};
    tiny_run_open(&r, 1);
    char *path = temporary_path(r.folder, "nowhere/trace.json");
    const char *const settings[] = {"threads=1", NULL};
    r.trace = path;
    assert_false(tiny_train_ranks(&r, "refused", settings, false, RANKS, NULL, &result, &error));
    assert_message_has(&error, "nowhere/trace.json");
    assert_int_equal(result.step, 0);
    free(path);
    tiny_run_close(&r);
}

static void a_run_that_fails_leaves_the_file_of_each_rank(void **state) {
    (void)state;
    TinyRun r;
    TrainResult result;
    Error error = {0};
    char name[32], *parts[RANKS];
    const char *const settings[] = {"threads=1", "train.steps=3", NULL}, *const longer[] = {"threads=1", NULL};
    tiny_run_open(&r, 1);
    assert_done(tiny_train_ranks(&r, "failed", settings, false, 1, NULL, &result, &error), &error);
    tiny_poison(&r, "failed", "checkpoints/step-00000003", "mae.blocks.0.up.weight");
    char *path = temporary_path(r.folder, "trace.json");
    r.trace = path;
    assert_false(tiny_train_ranks(&r, "failed", longer, true, RANKS, NULL, &result, &error));
    assert_message_has(&error, "not a finite number");
    assert_false(file_exists(path));
    for (int rank = 0; rank < RANKS; rank++) {
        snprintf(name, sizeof name, "trace.json.rank-%05d", rank);
        json_t *events = events_of(parts[rank] = temporary_path(r.folder, name));
        assert_true(count_of(events, rank, "compute", "forward") > 0 &&
                    count_of(events, rank, "communication", "") > 0);
        json_decref(events);
        free(parts[rank]);
    }
    free(path);
    tiny_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rank_has_its_tracks_in_one_file),
        cmocka_unit_test(stages_of_a_pipeline_are_read_back_row_by_row),
        cmocka_unit_test(a_run_that_fails_leaves_the_file_of_each_rank),
        cmocka_unit_test(a_timeline_that_cannot_be_written_is_refused_before_the_first_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
