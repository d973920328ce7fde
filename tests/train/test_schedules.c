/* Every pipeline schedule for up to 8 stages, 32 microbatches and 4 chunks: complete, free of deadlock, the memory and
 * the bubbles of the papers; and that the checker finds what is wrong with a table. */
#include "tests/support/test.h"
#include "train/schedule_check.h"
#include "train/schedule_time.h"
#include <math.h>
#include <string.h>

enum { P = 8, M = 32, V = 4 };

static Arena *arena;

static int open_arena(void **state) {
    (void)state;
    arena = arena_new(1 << 18);
    return 0;
}
static int close_arena(void **state) {
    (void)state;
    arena_free(arena);
    return 0;
}

static bool next_shape(PipelineShape *s) {
    if (++s->chunks > V) s->chunks = 1, s->microbatches++;
    if (s->microbatches > M) s->microbatches = 1, s->stages++;
    if (s->stages > P) s->stages = 1, s->kind++;
    return s->kind < PIPELINES;
}

// The next valid one of all shapes, its table in the arena, which is emptied first. Begin with a zeroed shape.
static bool next_table(PipelineShape *s, PipelineTable *t) {
    Error error = {0};
    if (!s->stages) *s = (PipelineShape){.stages = 1, .microbatches = 1, .chunks = 0};
    while (next_shape(s)) {
        arena_reset(arena);
        if (pipeline_make(s, arena, t, &error)) return true;
        assert_int_equal(error.kind, ERROR_USAGE);
    }
    return false;
}

static PipelineTable table_of(PipelineKind kind, int stages, int microbatches) {
    PipelineTable t;
    Error error = {0};
    PipelineShape s = {kind, stages, microbatches, pipeline_chunks(kind, 0)};
    assert_done(pipeline_make(&s, arena, &t, &error), &error);
    return t;
}

static PipelineTime simulate(const PipelineTable *t, double f, double b, double w, double send, StageTime *stages) {
    double forward[P * V], input[P * V], weight[P * V];
    for (int i = 0; i < t->shape.stages * t->shape.chunks; i++) {
        forward[i] = f / t->shape.chunks;
        input[i] = b / t->shape.chunks;
        weight[i] = w / t->shape.chunks;
    }
    Timeline line = timeline_simulate(t, &(PipelineCosts){forward, input, weight, .send = send}, arena);
    return timeline_measure(&line, stages);
}

static int least(int a, int b) { return a < b ? a : b; }

// ---- what every table holds ----

static void every_table_is_complete_and_free_of_deadlock(void **state) {
    (void)state;
    PipelineShape s = {0};
    PipelineTable t;
    Error error = {0};
    int tables = 0;
    for (; next_table(&s, &t); tables++)
        if (!pipeline_check(&t, NULL, &error))
            fail_msg("%s, %d stages, %d microbatches, %d chunks: %s", pipeline_names[s.kind], s.stages, s.microbatches,
                     s.chunks, error.message);
    int interleaved = 0;
    for (int p = 1; p <= P; p++) interleaved += M / p * (V - 1);
    assert_int_equal(tables, (PIPELINES - 1) * P * M + interleaved);
}

static void parts_and_places_are_each_others_inverse(void **state) {
    (void)state;
    PipelineShape s = {0};
    PipelineTable t;
    while (next_table(&s, &t))
        for (int part = 0; part < s.stages * s.chunks; part++) {
            int stage = -1, chunk = -1;
            pipeline_place(&s, part, &stage, &chunk);
            assert_true(stage >= 0 && stage < s.stages && chunk >= 0 && chunk < s.chunks);
            assert_int_equal(pipeline_part(&s, stage, chunk), part);
        }
}

// Chunks of microbatches held at once by stage i, as the papers state it.
static int peak_of(const PipelineShape *s, int i) {
    int p = s->stages, m = s->microbatches, v = s->chunks;
    switch (s->kind) {
    case PIPELINE_GPIPE:
        return m;
    case PIPELINE_1F1B:
        return least(p - i, m);
    case PIPELINE_INTERLEAVED:
        return least(2 * (p - i - 1) + (v - 1) * p + 1, m * v);
    case PIPELINE_ZB_H1:
        return least(p, m);
    case PIPELINE_ZB_H2:
        return least(2 * p - 1, m);
    default:
        return 2 * least(p, m);
    }
}

static void memory_is_that_of_the_papers(void **state) {
    (void)state;
    PipelineShape s = {0};
    PipelineTable t;
    Error error = {0};
    StagePeak peaks[P];
    while (next_table(&s, &t)) {
        assert_done(pipeline_check(&t, peaks, &error), &error);
        bool few = s.kind == PIPELINE_ZB_V && s.microbatches < 2 * s.stages - 1; // too few to get that far
        for (int i = 0; i < s.stages; i++)
            if (peaks[i].live > peak_of(&s, i) || (!few && peaks[i].live < peak_of(&s, i)) ||
                peaks[i].whole > peaks[i].live || peaks[i].whole < 1)
                fail_msg("%s, %d stages, %d microbatches, %d chunks: stage %d holds %d (%d whole), not %d",
                         pipeline_names[s.kind], s.stages, s.microbatches, s.chunks, i, peaks[i].live, peaks[i].whole,
                         peak_of(&s, i));
    }
}

// ---- time ----

// The bubble of a step, of stages that all take f, b, w; NaN where no formula is known.
static double bubble_of(const PipelineShape *s, double f, double b, double w) {
    int p = s->stages, enough = s->kind >= PIPELINE_ZB_H2 ? 2 * p - 1 : p;
    if (s->microbatches < enough) return NAN;
    switch (s->kind) {
    case PIPELINE_GPIPE:
    case PIPELINE_1F1B:
        return (p - 1) * (f + b + w);
    case PIPELINE_INTERLEAVED:
        return (p - 1) * (f + b + w) / s->chunks;
    case PIPELINE_ZB_H1:
        return (p - 1) * fmax(f + b - w, b); // stage 0 waits for its first gradient whatever w
    case PIPELINE_ZB_H2:
        return (p - 1) * fmax(fmax(f + b - 2 * w, b - f), 0);
    default:
        return f == b && b == w ? 0 : NAN;
    }
}

static void bubbles_are_those_of_the_formulas(void **state) {
    (void)state;
    static const double costs[][3] = {{12, 12, 12}, {12, 24, 12}, {24, 24, 12},
                                      {12, 12, 24}, {24, 36, 12}, {36, 24, 24}};
    PipelineShape s = {0};
    PipelineTable t;
    while (next_table(&s, &t))
        for (size_t k = 0; k < sizeof costs / sizeof *costs; k++) {
            const double *c = costs[k];
            PipelineTime time = simulate(&t, c[0], c[1], c[2], 0, NULL);
            double want = bubble_of(&s, c[0], c[1], c[2]), work = s.microbatches * (c[0] + c[1] + c[2]);
            assert_true(time.work == work && time.total >= time.cycle);
            if (!isnan(want) && !(time.cycle - work == want))
                fail_msg("%s, %d stages, %d microbatches, %d chunks, costs %g %g %g: bubble %g, not %g",
                         pipeline_names[s.kind], s.stages, s.microbatches, s.chunks, c[0], c[1], c[2],
                         time.cycle - work, want);
        }
}

static void published_rates_of_zero_bubble_schedules_come_out(void **state) {
    (void)state;
    static const struct {
        PipelineKind kind;
        double rate;
    } published[] = {{PIPELINE_1F1B, 0.2431}, {PIPELINE_ZB_H1, 0.1585}, {PIPELINE_ZB_H2, 0.1083}};
    for (int k = 0; k < 3; k++) {
        PipelineTable t = table_of(published[k].kind, 8, 24);
        PipelineTime time = simulate(&t, 18.522, 18.086, 9.337, 0.601, NULL);
        assert_true(fabs(time.rate - published[k].rate) <= 0.00005);
    }
}

static void rows_of_a_simulation_wait_for_what_they_read(void **state) {
    (void)state;
    enum { STAGES = 3, PIECES = 6 };
    PipelineTable t = table_of(PIPELINE_ZB_V, STAGES, PIECES);
    double f[] = {1, 2, 3, 4, 5, 6}, b[] = {2, 1, 2, 1, 2, 1}, w[] = {1, 1, 3, 3, 1, 1}, send = 0.5;
    Timeline line = timeline_simulate(&t, &(PipelineCosts){f, b, w, .send = send}, arena);
    double forward[2 * STAGES][PIECES], gradient[2 * STAGES][PIECES];
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < STAGES; i++)
            for (int k = 0; k < t.counts[i]; k++) {
                Slot row = t.rows[i][k];
                Span span = line.spans[i][k];
                int part = pipeline_part(&t.shape, i, row.chunk), from = pipeline_source(&t.shape, row.work, part);
                if (row.work == WORK_FORWARD) forward[part][row.microbatch] = span.end;
                if (row.work == WORK_INPUT_GRADIENT) gradient[part][row.microbatch] = span.end;
                if (!pass) continue;
                double at = row.work == WORK_FORWARD ? 0 : forward[part][row.microbatch], wait = 0;
                if (from >= 0) wait = (row.work == WORK_FORWARD ? forward : gradient)[from][row.microbatch];
                if (from >= 0 && from + part != 2 * STAGES - 1) wait += send; // the two parts of the turn share a stage
                assert_true(span.begin >= at && span.begin >= wait);
                double before = k ? line.spans[i][k - 1].end : 0;
                assert_true(span.begin == fmax(before, wait)); // and no longer
            }
}

// A small generator of its own: numbers in [0, 1).
static double draw(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) / 16777216.0;
}

static void h1_is_never_slower_than_1f1b_whatever_the_stages_cost(void **state) {
    (void)state;
    uint32_t seed = 1;
    for (int trial = 0; trial < 500; trial++) {
        int stages = 2 + trial % (P - 1), microbatches = 1 + trial % M;
        double f[P], b[P], w[P], send = draw(&seed) / 10, total[2];
        for (int i = 0; i < stages; i++) {
            f[i] = 0.2 + draw(&seed);
            b[i] = f[i] * (0.5 + draw(&seed));
            w[i] = f[i] * (0.5 + draw(&seed));
        }
        for (int k = 0; k < 2; k++) {
            arena_reset(arena);
            PipelineTable t = table_of(k ? PIPELINE_ZB_H1 : PIPELINE_1F1B, stages, microbatches);
            Timeline line = timeline_simulate(&t, &(PipelineCosts){f, b, w, .send = send}, arena);
            total[k] = timeline_measure(&line, NULL).total;
        }
        assert_true(total[1] <= total[0] * (1 + 1e-12));
    }
}

static void unequal_stages_are_bound_by_the_slowest(void **state) {
    (void)state;
    PipelineTable t = table_of(PIPELINE_1F1B, 3, 32);
    double f[] = {1, 4, 1}, b[] = {2, 4, 1}, w[] = {1, 2, 1};
    StageTime stages[3];
    Timeline line = timeline_simulate(&t, &(PipelineCosts){f, b, w, .send = 0}, arena);
    PipelineTime time = timeline_measure(&line, stages);
    assert_true(time.work == 320 && stages[1].busy == 320 && stages[0].busy == 128 && stages[2].busy == 96);
    assert_true(time.total >= 320 + 1 + 2 + 1 && time.total <= 320 + 12);
    assert_true(fabs(time.bubble - (1 - (320 + 128 + 96) / (3 * time.total))) <= 1e-12);
}

static void microbatches_may_cost_differently(void **state) {
    (void)state;
    PipelineTable t = table_of(PIPELINE_1F1B, 2, 2);
    double f[] = {1, 0, 2, 3}, b[] = {1, 0, 1, 1}, w[] = {0, 0, 1, 1}; // stage 0 has nothing to do for microbatch 1
    StageTime stages[2];
    Timeline line = timeline_simulate(&t, &(PipelineCosts){f, b, w, .each = true}, arena);
    PipelineTime time = timeline_measure(&line, stages);
    assert_true(line.spans[1][0].begin == 1 && line.spans[1][1].end == 5 && line.spans[1][2].end == 8);
    assert_true(stages[0].busy == 2 && stages[1].busy == 9 && time.total == 10);
}

// ---- refusals ----

static void refuses(PipelineShape s, const char *part) {
    Error error = {0};
    PipelineTable t;
    assert_false(pipeline_make(&s, arena, &t, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, part);
}

static void shapes_without_a_schedule_are_refused_with_what_would_do(void **state) {
    (void)state;
    Error error = {0};
    PipelineKind kind;
    refuses((PipelineShape){PIPELINE_INTERLEAVED, 4, 10, 2}, "8 or 12 instead of 10");
    refuses((PipelineShape){PIPELINE_INTERLEAVED, 4, 3, 2}, "4 instead of 3");
    refuses((PipelineShape){PIPELINE_INTERLEAVED, 4, 8, 1}, "take 1f1b");
    refuses((PipelineShape){PIPELINE_ZB_V, 4, 8, 3}, "zb-v has 2 chunks");
    refuses((PipelineShape){PIPELINE_GPIPE, 4, 8, 2}, "take interleaved");
    refuses((PipelineShape){PIPELINE_1F1B, 0, 8, 1}, "stages 0");
    refuses((PipelineShape){PIPELINE_1F1B, 4, 0, 1}, "microbatches 0");
    refuses((PipelineShape){PIPELINE_ZB_H1, MOST_STAGES, MOST_MICROBATCHES, 1}, "rows");
    assert_false(pipeline_kind("zbh1", &kind, &error));
    assert_message_has(&error, "did you mean 'zb-h1'?");
    for (int k = 0; k < PIPELINES; k++) {
        assert_done(pipeline_kind(pipeline_names[k], &kind, &error), &error);
        assert_int_equal(kind, k);
    }
}

static void finds(const PipelineTable *t, const char *part) {
    Error error = {0};
    assert_false(pipeline_check(t, NULL, &error));
    assert_int_equal(error.kind, ERROR_FAILED);
    assert_message_has(&error, part);
}

static void the_checker_finds_rows_that_are_wrong(void **state) {
    (void)state;
    PipelineTable t = table_of(PIPELINE_ZB_H1, 2, 3);
    Slot *rows = t.rows[1], saved = rows[3]; // F0 B0 F1 B1 W0 F2 B2 W1 W2
    rows[3] = rows[2];
    finds(&t, "stage 1, row 3 (forward of microbatch 1, chunk 0): done before");
    rows[3].microbatch = 3;
    finds(&t, "there is no such thing");
    rows[3] = (Slot){WORK_INPUT_GRADIENT, 2, 0};
    finds(&t, "before its forward");
    rows[3] = (Slot){WORK_WEIGHT_GRADIENT, 1, 0};
    finds(&t, "before its input gradient");
    rows[3] = saved;
    t.counts[1]--;
    finds(&t, "stage 1 never runs the weight gradient of microbatch 2");
    t.counts[1]++;
    rows[7].microbatch = 2;
    rows[8].microbatch = 1;
    finds(&t, "not in the order of microbatches");
}

static void the_checker_finds_messages_out_of_order(void **state) {
    (void)state;
    PipelineTable t = table_of(PIPELINE_GPIPE, 2, 2);
    t.rows[1][0].microbatch = 1;
    t.rows[1][1].microbatch = 0;
    finds(&t, "stage 1, row 0 (forward of microbatch 1, chunk 0): not in the order of microbatches");
}

// Legal for each stage alone: stage 0 wants the gradient of microbatch 0 before it sends microbatch 1 on, stage 1 runs
// both forwards first.
static void the_checker_finds_deadlocks(void **state) {
    (void)state;
    PipelineTable t = table_of(PIPELINE_GPIPE, 2, 2);
    Slot swapped = t.rows[0][1];
    t.rows[0][1] = t.rows[0][2];
    t.rows[0][2] = swapped;
    finds(&t, "stage 0, row 1 (backward of microbatch 0, chunk 0): waits for ever");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_is_complete_and_free_of_deadlock),
        cmocka_unit_test(parts_and_places_are_each_others_inverse),
        cmocka_unit_test(memory_is_that_of_the_papers),
        cmocka_unit_test(bubbles_are_those_of_the_formulas),
        cmocka_unit_test(published_rates_of_zero_bubble_schedules_come_out),
        cmocka_unit_test(rows_of_a_simulation_wait_for_what_they_read),
        cmocka_unit_test(h1_is_never_slower_than_1f1b_whatever_the_stages_cost),
        cmocka_unit_test(unequal_stages_are_bound_by_the_slowest),
        cmocka_unit_test(microbatches_may_cost_differently),
        cmocka_unit_test(shapes_without_a_schedule_are_refused_with_what_would_do),
        cmocka_unit_test(the_checker_finds_rows_that_are_wrong),
        cmocka_unit_test(the_checker_finds_messages_out_of_order),
        cmocka_unit_test(the_checker_finds_deadlocks),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
