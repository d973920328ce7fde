/* The pipeline of a run read back from its timeline: what was drawn is what comes out, and what is damaged, foreign or
 * of another schedule is refused. The timelines are made up: simulations, drawn as the ranks of a run draw their rows.
 */
#include "train/schedule_trace.h"
#include "base/files.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS_HERE = 16, STEPS = 3 };

typedef struct MadeUp { // a run whose steps last a second each, from the hundredth on
    PipelineShape shape;
    int data, tensor;
    double send, delay; // seconds: to send; between the rows of a stage
    bool features;      // a pass for features before the rows
    int leave_out;      // a rank whose file is missing; -1: none
    int swap;           // a stage two of whose rows are swapped in step 2; -1: none
    const char *note;   // what rank 0 notes; NULL: what is true
    int claims;         // microbatches that all ranks note; 0: as many as there are
} MadeUp;

static const MadeUp usual = {.shape = {PIPELINE_1F1B, 3, 6, 1}, .data = 1, .tensor = 1, .leave_out = -1, .swap = -1};

typedef struct Folder {
    char *folder, *path;
    Arena *arena;
} Folder;

static int open_folder(void **state) {
    Folder *f = calloc(1, sizeof *f);
    check(f);
    f->folder = temporary_new();
    f->path = temporary_path(f->folder, "trace.json");
    f->arena = arena_new(1 << 18);
    *state = f;
    return 0;
}

static int close_folder(void **state) {
    Folder *f = *state;
    arena_free(f->arena);
    free(f->path);
    temporary_free(f->folder);
    free(f);
    return 0;
}

// ---- what ranks draw ----

// Seconds of a row: a forward of a part, 1 to 3 of them for gradients; odd microbatches have less to do.
static double cost(int part, int microbatch, double times) {
    return 1e-4 * times * (1 + part) * (microbatch % 2 ? 0.5 : 1);
}

static Timeline simulated(const MadeUp *m, const PipelineTable *t, double times, Arena *arena) {
    int parts = m->shape.stages * m->shape.chunks, pieces = m->shape.microbatches;
    double *c[3];
    for (int k = 0; k < 3; k++) {
        c[k] = arena_array(arena, double, parts *pieces);
        for (int i = 0; i < parts * pieces; i++) c[k][i] = cost(i / pieces, i % pieces, times * (k + 1));
    }
    return timeline_simulate(t, &(PipelineCosts){c[0], c[1], c[2], .send = m->send, .each = true}, arena);
}

static void draw_step(Trace *trace, const MadeUp *m, const PipelineTable *t, int stage, int step, int data,
                      Arena *arena) {
    double start = 100 + step, times = 1 + step + data;
    Timeline line = simulated(m, t, times, arena);
    char name[32];
    snprintf(name, sizeof name, "step %d", step);
    if (m->features)
        for (int i = 0; i < m->shape.microbatches; i++)
            trace_slice(trace, "stage", "features 0.0", start + 0.01 * i, start + 0.01 * (i + 1));
    double first = start + (m->features ? 0.01 * m->shape.microbatches : 0) + 1e-3;
    for (int k = 0; k < t->counts[stage]; k++) {
        int shown = m->swap == stage && step == 2 && k < 2 ? 1 - k : k;
        Span span = line.spans[stage][k];
        schedule_trace_row(trace, &t->rows[stage][shown], first + span.begin + m->delay * k,
                           first + span.end + m->delay * k);
    }
    trace_slice(trace, "compute", name, start, start + 0.9);
    trace_slice(trace, "stage", "losses 0.0", start + 0.92, start + 0.93); // validation
}

static void draw_rank(const MadeUp *m, const PipelineTable *t, int rank, const char *path, Arena *arena) {
    Error error = {0};
    int size[MESH_AXES] = {m->data, m->shape.stages, 1, m->tensor}, place[MESH_AXES];
    PipelineShape noted = m->shape;
    if (m->claims) noted.microbatches = m->claims;
    Trace *trace = trace_new(rank);
    mesh_place(size, rank, place);
    if (!rank && m->note)
        trace_note(trace, "pipeline", m->note);
    else
        schedule_trace_note(trace, &noted, size, place);
    for (int step = 1; step <= STEPS; step++)
        draw_step(trace, m, t, place[MESH_PIPELINE], step, place[MESH_DATA], arena);
    assert_done(trace_write(trace, path, &error), &error);
    trace_free(trace);
}

static void draw_run(const Folder *f, const MadeUp *m) {
    Error error = {0};
    PipelineTable t;
    char *parts[MOST_RANKS_HERE];
    int ranks = m->data * m->shape.stages * m->tensor, count = 0;
    assert_true(ranks <= MOST_RANKS_HERE);
    assert_done(pipeline_make(&m->shape, f->arena, &t, &error), &error);
    for (int rank = 0; rank < ranks; rank++) {
        char name[32];
        if (rank == m->leave_out) continue;
        snprintf(name, sizeof name, "rank-%d", rank);
        draw_rank(m, &t, rank, parts[count++] = temporary_path(f->folder, name), f->arena);
    }
    assert_done(trace_join((const char *const *)parts, count, f->path, &error), &error);
    for (int i = 0; i < count; i++) free(parts[i]);
}

// ---- what comes out ----

static ScheduleTrace *read_run(const Folder *f, TraceChoice choice) {
    Error error = {0};
    ScheduleTrace *t = arena_array(f->arena, ScheduleTrace, 1);
    assert_done(schedule_trace_read(f->path, &choice, f->arena, t, &error), &error);
    return t;
}

static void assert_same_line(const Timeline *a, const Timeline *b) {
    const PipelineTable *t = a->table;
    double from_a = timeline_measure(a, NULL).begin, from_b = timeline_measure(b, NULL).begin;
    for (int i = 0; i < t->shape.stages; i++)
        for (int k = 0; k < t->counts[i]; k++) {
            Span x = a->spans[i][k], y = b->spans[i][k];
            assert_true(fabs((x.begin - from_a) - (y.begin - from_b)) < 1e-7); // files hold nanoseconds
            assert_true(fabs((x.end - from_a) - (y.end - from_b)) < 1e-7);
        }
}

static void rows_as_they_were_simulated_are_measured_and_simulated_alike(void **state) {
    static const PipelineShape shapes[] = {{PIPELINE_GPIPE, 4, 5, 1},       {PIPELINE_1F1B, 3, 6, 1},
                                           {PIPELINE_INTERLEAVED, 2, 4, 3}, {PIPELINE_ZB_H1, 4, 8, 1},
                                           {PIPELINE_ZB_H2, 3, 7, 1},       {PIPELINE_ZB_V, 3, 7, 2}};
    const Folder *f = *state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        MadeUp m = usual;
        m.shape = shapes[i], m.send = 2e-4;
        draw_run(f, &m);
        const ScheduleTrace *t = read_run(f, (TraceChoice){0});
        assert_true(t->count == STEPS && t->cut == 0 && t->table.shape.kind == m.shape.kind);
        for (int s = 0; s < STEPS; s++) {
            const TracedStep *step = &t->steps[s];
            Timeline want = simulated(&m, &t->table, 2 + s, f->arena);
            assert_int_equal(step->number, s + 1);
            assert_true(fabs(step->send - m.send) < 1e-8 && step->features == 0 && step->early < 1e-8);
            assert_same_line(&step->measured, &want);
            assert_same_line(&step->simulated, &want);
        }
    }
}

static void time_between_rows_shows_in_the_measured_line_alone(void **state) {
    const Folder *f = *state;
    MadeUp m = usual;
    m.delay = 1e-4;
    draw_run(f, &m);
    const TracedStep *step = &read_run(f, (TraceChoice){.step = 2})->steps[0];
    PipelineTime measured = timeline_measure(&step->measured, NULL),
                 simulated = timeline_measure(&step->simulated, NULL);
    assert_int_equal(step->number, 2);
    assert_true(measured.total > simulated.total + 1e-4 && measured.bubble > simulated.bubble);
    assert_true(fabs(measured.work - simulated.work) < 1e-7);
}

static void rows_of_a_part_share_its_time_where_it_is_averaged(void **state) {
    const Folder *f = *state;
    draw_run(f, &usual);
    const TracedStep *step = &read_run(f, (TraceChoice){0})->steps[0];
    StageTime measured[3], averaged[3];
    timeline_measure(&step->measured, measured);
    timeline_measure(&step->averaged, averaged);
    for (int i = 0; i < 3; i++) {
        const Span *rows = step->averaged.spans[i];
        assert_true(fabs(measured[i].busy - averaged[i].busy) < 1e-7);
        assert_true(fabs((rows[0].end - rows[0].begin) - 0.75 * cost(i, 0, 2)) < 1e-8); // odd ones have half to do
    }
}

static void one_place_of_data_and_tensor_ranks_is_taken(void **state) {
    const Folder *f = *state;
    MadeUp m = usual;
    m.data = 2, m.tensor = 2;
    draw_run(f, &m);
    const ScheduleTrace *t = read_run(f, (TraceChoice){.data = 1, .tensor = 1});
    Timeline want = simulated(&m, &t->table, 3, f->arena); // data place 1 has more to do
    assert_true(t->data == 2 && t->tensor == 2 && t->count == STEPS);
    assert_same_line(&t->steps[0].measured, &want);
}

static void a_pass_for_features_is_told_apart_from_the_rows(void **state) {
    const Folder *f = *state;
    MadeUp m = usual;
    m.features = true;
    draw_run(f, &m);
    const TracedStep *step = &read_run(f, (TraceChoice){0})->steps[0];
    Timeline want = simulated(&m, step->measured.table, 2, f->arena);
    assert_true(fabs(step->features - 0.01 * m.shape.microbatches) < 1e-7);
    assert_same_line(&step->measured, &want);
}

// ---- refusals ----

static void refuses(const Folder *f, TraceChoice choice, ErrorKind kind, const char *part) {
    ScheduleTrace t;
    Error error = {0};
    assert_false(schedule_trace_read(f->path, &choice, f->arena, &t, &error));
    assert_message_has(&error, part);
    assert_message_has(&error, "trace.json");
    assert_int_equal(error.kind, kind);
}

static void a_trace_without_a_stage_or_with_other_rows_is_refused(void **state) {
    const Folder *f = *state;
    MadeUp m = usual;
    m.leave_out = 1;
    draw_run(f, &m);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "stage 1 is not in it");
    m.leave_out = -1, m.swap = 2;
    draw_run(f, &m);
    refuses(f, (TraceChoice){0}, ERROR_FAILED,
            "step 2, stage 2, row 0 is 'both 0.0', but 1f1b has 'forward 0.0' there");
    assert_int_equal(read_run(f, (TraceChoice){.step = 1})->count, 1);
}

static void what_was_not_there_is_refused_with_what_was(void **state) {
    const Folder *f = *state;
    draw_run(f, &usual);
    refuses(f, (TraceChoice){.step = 7}, ERROR_USAGE, "step 7 is not in it; 1 to 3 are");
    refuses(f, (TraceChoice){.data = 1}, ERROR_USAGE, "there is no data place 1, tensor place 0: the run had 1 x 1");
}

static void damaged_notes_are_refused(void **state) {
    static const char *const notes[] = {
        "{\"schedule\": \"1f1b\"}",
        "[]",
        "{}",
        "{\"schedule\": \"1f1b\", \"stages\": 3, \"microbatches\": 6, \"chunks\": 1, \"stage\": 3, \"data\": [0, 1], "
        "\"tensor\": [0, 1]}",
        "{\"schedule\": \"1f2b\", \"stages\": 3, \"microbatches\": 6, \"chunks\": 1, \"stage\": 0, \"data\": [0, 1], "
        "\"tensor\": [0, 1]}",
        "{\"schedule\": \"1f1b\", \"stages\": 3, \"microbatches\": 6, \"chunks\": 1, \"stage\": 0, \"data\": [0, 1e9], "
        "\"tensor\": [0, 1]}"};
    const Folder *f = *state;
    MadeUp m = usual;
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++) {
        m.note = notes[i];
        draw_run(f, &m);
        refuses(f, (TraceChoice){0}, ERROR_FAILED, "what rank 0 noted of its pipeline is damaged");
    }
    m.note = "{\"schedule\": \"zb-h1\", \"stages\": 3, \"microbatches\": 6, \"chunks\": 1, \"stage\": 0, \"data\": "
             "[0, 1], \"tensor\": [0, 1]}";
    draw_run(f, &m);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "rank 1 noted another pipeline than the first rank");
    m = usual;
    m.claims = 4096;
    draw_run(f, &m);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "stage 0 has 36 rows in all, but a step of 1f1b has 8192");
    m = usual;
    m.note = "{\"schedule\": \"1f1b\", \"stages\": 3, \"microbatches\": 6, \"chunks\": 1, \"stage\": 1, \"data\": "
             "[0, 1], \"tensor\": [0, 1]}";
    draw_run(f, &m);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "ranks 0 and 1 are both stage 1");
}

static void foreign_and_cut_files_are_refused(void **state) {
    const Folder *f = *state;
    Error error = {0};
    Buffer whole = {0};
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "cannot open");
    temporary_write(f->path, "", 0);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "not a whole trace");
    static const char foreign[] = "[\n{\"ph\": \"X\", \"name\": \"GPU\"}\n]\n";
    temporary_write(f->path, foreign, sizeof foreign - 1);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "not a whole trace");
    Trace *alone = trace_new(0); // of a run without a pipeline
    trace_slice(alone, "compute", "step 1", 1, 2);
    assert_done(trace_write(alone, f->path, &error), &error);
    trace_free(alone);
    refuses(f, (TraceChoice){0}, ERROR_FAILED, "no rank noted a pipeline");
    draw_run(f, &usual);
    assert_done(file_read(f->path, &whole, &error), &error);
    for (size_t cut = 1; cut < whole.size; cut += whole.size / 37) {
        ScheduleTrace t;
        temporary_write(f->path, whole.data, whole.size - cut);
        assert_false(cut > 1 && schedule_trace_read(f->path, &(TraceChoice){0}, f->arena, &t, &error));
    }
    buffer_free(&whole);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, open_folder, close_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(rows_as_they_were_simulated_are_measured_and_simulated_alike),
        WITH_FOLDER(time_between_rows_shows_in_the_measured_line_alone),
        WITH_FOLDER(rows_of_a_part_share_its_time_where_it_is_averaged),
        WITH_FOLDER(one_place_of_data_and_tensor_ranks_is_taken),
        WITH_FOLDER(a_pass_for_features_is_told_apart_from_the_rows),
        WITH_FOLDER(a_trace_without_a_stage_or_with_other_rows_is_refused),
        WITH_FOLDER(what_was_not_there_is_refused_with_what_was),
        WITH_FOLDER(damaged_notes_are_refused),
        WITH_FOLDER(foreign_and_cut_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
