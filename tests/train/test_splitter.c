/* The splitter against all splits there are: thousands of small models with random costs, with and without a limit of
 * memory; what it promises where it cannot try everything; and what it says where nothing will do. */
#include "tests/support/test.h"
#include "base/philox.h"
#include "train/splitter.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { UNITS = 12, PARTS = 12, MANY = 300 };

typedef struct Case {
    SplitProblem problem;
    UnitCost costs[MANY];
    int live[MANY];
} Case;

typedef struct Result {
    double time, part, memory; // of the busiest stage, the costliest part, the fullest stage
} Result;

static int below(Rng *rng, int count) { return (int)rng_below(rng, (uint64_t)count); }

static void draw(Case *c, Rng *rng, PipelineKind kind, int stages, int chunks, int units) {
    int most = 1 + below(rng, 9); // few different costs: many equals
    *c = (Case){.problem = {.shape = {kind, stages, 1, chunks}, .units = units}};
    for (int u = 0; u < units; u++) {
        UnitCost *cost = &c->costs[u];
        *cost = (UnitCost){.forward = below(rng, most),
                           .input = below(rng, most),
                           .weight = below(rng, most),
                           .parameters = below(rng, 20),
                           .activations = below(rng, 10),
                           .work = below(rng, 30)};
    }
    for (int i = 0; i < stages * chunks; i++) c->live[i] = 1 + below(rng, 4);
    c->problem.costs = c->costs;
    c->problem.live = c->live;
}

static Result result_of(const SplitProblem *p, const int *first) {
    Result r = {0};
    for (int i = 0; i < p->shape.stages; i++) {
        double time = 0, memory = 0, work = 0;
        for (int k = 0; k < p->shape.chunks; k++) {
            int part = pipeline_part(&p->shape, i, k);
            double own = 0;
            assert_true(first[part] < first[part + 1]);
            for (int u = first[part]; u < first[part + 1]; u++) {
                const UnitCost *c = &p->costs[u];
                own += c->forward + c->input + c->weight;
                memory += c->parameters + (p->live ? p->live[i * p->shape.chunks + k] : 1) * c->activations;
                work = fmax(work, c->work);
            }
            time += own;
            r.part = fmax(r.part, own);
        }
        r.time = fmax(r.time, time);
        r.memory = fmax(r.memory, memory + work);
    }
    return r;
}

// Units of each stage's chunks, stage by stage: which of equal splits is taken.
static bool earlier(const SplitProblem *p, const int *a, const int *b) {
    for (int i = 0; i < p->shape.stages; i++)
        for (int k = 0; k < p->shape.chunks; k++) {
            int part = pipeline_part(&p->shape, i, k);
            int own = a[part + 1] - a[part], other = b[part + 1] - b[part];
            if (own != other) return own < other;
        }
    return false;
}

static bool better(const SplitProblem *p, const int *a, const int *b) {
    Result x = result_of(p, a), y = result_of(p, b);
    if (x.time != y.time) return x.time < y.time;
    if (x.part != y.part) return x.part < y.part;
    return earlier(p, a, b);
}

// The next split in order of its boundaries; begin with 0, 1, 2, ..., units.
static bool next_split(int *first, int parts, int units) {
    for (int i = parts - 1; i > 0; i--) {
        if (first[i] >= units - (parts - i)) continue;
        first[i]++;
        for (int k = i + 1; k < parts; k++) first[k] = first[k - 1] + 1;
        return true;
    }
    return false;
}

// The best of all splits; false where none fits, with the least memory that one needs.
static bool brute_force(const SplitProblem *p, int *best, double *need) {
    int parts = p->shape.stages * p->shape.chunks, first[PARTS + 1];
    bool found = false;
    *need = INFINITY;
    for (int i = 0; i <= parts; i++) first[i] = i < parts ? i : p->units;
    do {
        double memory = result_of(p, first).memory;
        *need = fmin(*need, memory);
        if (p->memory > 0 && !(memory <= p->memory)) continue;
        if (p->part > 0 && !(result_of(p, first).part <= p->part)) continue;
        if (found && !better(p, first, best)) continue;
        found = true;
        memcpy(best, first, sizeof first);
    } while (next_split(first, parts, p->units));
    return found;
}

static void compare(const SplitProblem *p, int *refused) {
    int first[PARTS + 1], best[PARTS + 1], parts = p->shape.stages * p->shape.chunks;
    double need;
    Error error = {0};
    bool ok = split_units(p, first, &error);
    assert_int_equal(ok, brute_force(p, best, &need));
    if (ok) {
        assert_memory_equal(first, best, sizeof(int) * (size_t)(parts + 1));
        return;
    }
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_true(result_of(p, first).memory == need); // what it found is what needs least
    ++*refused;
}

static void compare_many(PipelineKind kind, int chunks, int cases, uint64_t stream) {
    Rng rng = rng_for(1, PURPOSE_TEST, stream);
    int refused = 0;
    for (int i = 0; i < cases; i++) {
        Case c;
        int units = chunks + below(&rng, UNITS - chunks + 1), stages = 1 + below(&rng, units / chunks);
        draw(&c, &rng, kind, stages, chunks, units);
        compare(&c.problem, &refused);
        c.problem.memory = 20 + below(&rng, 20 + 200 / stages);
        compare(&c.problem, &refused);
        c.problem.part = 1 + below(&rng, 40);
        if (i % 2) c.problem.memory = 0;
        compare(&c.problem, &refused);
    }
    assert_in_range(refused, cases / 20, 2 * cases); // of three for each case
}

static void split_of_one_chunk_a_stage_is_the_best_of_all(void **state) {
    (void)state;
    compare_many(PIPELINE_1F1B, 1, 4000, 1);
}

static void split_of_two_chunks_a_stage_is_the_best_of_all(void **state) {
    (void)state;
    compare_many(PIPELINE_INTERLEAVED, 2, 3000, 2);
}

static void split_of_a_v_is_the_best_of_all(void **state) {
    (void)state;
    compare_many(PIPELINE_ZB_V, 2, 3000, 3);
}

static void split_of_more_chunks_is_no_worse_than_the_one_with_the_least_costliest_part(void **state) {
    (void)state;
    Rng rng = rng_for(1, PURPOSE_TEST, 4);
    Error error = {0};
    int equal = 0, fitting = 0;
    for (int i = 0; i < 1500; i++) {
        Case c;
        int units = 6 + below(&rng, UNITS - 5), chunks = 3, stages = 1 + below(&rng, units / chunks);
        int first[PARTS + 1], parts[PARTS + 1], best[PARTS + 1];
        double need;
        draw(&c, &rng, PIPELINE_INTERLEAVED, stages, chunks, units);
        SplitProblem each = c.problem;
        each.shape = (PipelineShape){PIPELINE_GPIPE, stages * chunks, 1, 1};
        each.live = NULL;
        assert_done(split_units(&c.problem, first, &error), &error);
        assert_done(split_units(&each, parts, &error), &error);
        assert_true(result_of(&c.problem, first).time <= result_of(&c.problem, parts).time);
        assert_true(brute_force(&c.problem, best, &need));
        equal += result_of(&c.problem, first).time == result_of(&c.problem, best).time;
        c.problem.memory = 300; // what it finds fits
        if (split_units(&c.problem, first, &error)) {
            assert_true(result_of(&c.problem, first).memory <= c.problem.memory);
            fitting++;
        }
    }
    assert_in_range(equal, 1350, 1500); // the best of all in nine cases of ten
    assert_in_range(fitting, 1000, 1500);
}

static void long_models_are_split(void **state) {
    (void)state;
    Rng rng = rng_for(1, PURPOSE_TEST, 5);
    Error error = {0};
    const struct {
        PipelineKind kind;
        int stages, chunks, units;
    } shapes[] = {
        {PIPELINE_1F1B, 16, 1, MANY},      {PIPELINE_ZB_V, 8, 2, 100},          {PIPELINE_INTERLEAVED, 8, 2, 100},
        {PIPELINE_INTERLEAVED, 8, 4, 100}, {PIPELINE_ZB_V, 16, 2, EXACT_UNITS}, {PIPELINE_INTERLEAVED, 4, 2, 90},
        {PIPELINE_ZB_V, 2, 2, 90},         {PIPELINE_INTERLEAVED, 4, 2, MANY},  {PIPELINE_INTERLEAVED, 16, 8, MANY}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        Case c;
        int first[MANY + 1];
        double sum = 0, most = 0;
        draw(&c, &rng, shapes[i].kind, shapes[i].stages, shapes[i].chunks, shapes[i].units);
        for (int u = 0; u < shapes[i].units; u++) {
            double time = c.costs[u].forward + c.costs[u].input + c.costs[u].weight;
            sum += time;
            most = fmax(most, time);
        }
        assert_done(split_units(&c.problem, first, &error), &error);
        Result r = result_of(&c.problem, first);
        assert_true(r.time <= sum / shapes[i].stages + shapes[i].chunks * most);
    }
}

// Costs as they are measured: with fractions, and a thousand times apart.
static void fractions_do_not_matter(void **state) {
    (void)state;
    Case c;
    Rng rng = rng_for(1, PURPOSE_TEST, 6);
    Error error = {0};
    for (int i = 0; i < 1000; i++) {
        int first[PARTS + 1], best[PARTS + 1];
        double need;
        draw(&c, &rng, i % 2 ? PIPELINE_ZB_V : PIPELINE_1F1B, 2 + i % 2, 1 + i % 2, UNITS);
        for (int u = 0; u < UNITS; u++) c.costs[u].forward = exp(7 * rng_uniform(&rng)) * 1e-5;
        assert_done(split_units(&c.problem, first, &error), &error);
        assert_true(brute_force(&c.problem, best, &need));
        double got = result_of(&c.problem, first).time, least = result_of(&c.problem, best).time;
        assert_true(got >= least && got <= least * (1 + 1e-7));
    }
}

static void parts_without_cost_can_be_split(void **state) {
    (void)state;
    Case c = {.problem = {.shape = {PIPELINE_ZB_V, 2, 1, 2}, .units = 7, .costs = c.costs}};
    int first[PARTS + 1];
    Error error = {0};
    assert_done(split_units(&c.problem, first, &error), &error);
    assert_memory_equal(first, ((int[]){0, 1, 2, 6, 7}), 5 * sizeof(int)); // stage 0 has least, then all is left
}

// ---- refusals ----

static void refused(PipelineKind kind, int stages, int chunks, int units, double memory, const char *says) {
    Case c;
    int first[PARTS + 1];
    Error error = {0};
    Rng rng = rng_for(1, PURPOSE_TEST, 7);
    draw(&c, &rng, kind, stages, chunks, units);
    c.problem.memory = memory;
    assert_false(split_units(&c.problem, first, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_non_null(strstr(error.message, says));
}

static void more_stages_than_units_are_refused_with_what_would_do(void **state) {
    (void)state;
    refused(PIPELINE_1F1B, 6, 1, 5, 0, "5 units cannot make 6 parts; 2, 3, 4 or 5 stages would do");
    refused(PIPELINE_1F1B, 10, 1, 9, 0, "9 units cannot make 10 parts; 2 to 9 stages would do");
    refused(PIPELINE_1F1B, 3, 1, 2, 0, "2 units cannot make 3 parts; 2 stages would do");
    refused(PIPELINE_ZB_V, 4, 2, 7, 0, "7 units cannot make 8 parts (4 stages of 2 chunks); 2 or 3 stages would do");
    refused(PIPELINE_INTERLEAVED, 2, 4, 7, 0,
            "7 units cannot make 8 parts (2 stages of 4 chunks); 1, 2 or 3 chunks on each of 2 stages would do");
}

static void what_does_not_fit_is_refused_with_what_it_needs(void **state) {
    (void)state;
    refused(PIPELINE_GPIPE, 2, 1, 8, 1, "fits into 9.31e-10 GiB each: the best has");
    refused(PIPELINE_GPIPE, 2, 1, 8, 1, "1f1b");
}

// ---- without costs ----

static int make_units(JointUnit *list, const char *kinds) {
    int count = 0;
    for (const char *k = kinds; *k; k++)
        list[count++] = (JointUnit){.kind = *k == 'p'   ? UNIT_PATCHES
                                            : *k == 'v' ? UNIT_VISION_BLOCK
                                            : *k == 'n' ? UNIT_VISION_NORM
                                            : *k == 'c' ? UNIT_CONNECTOR
                                            : *k == 'e' ? UNIT_TEXT_EMBED
                                            : *k == 't' ? UNIT_TEXT_BLOCK
                                                        : UNIT_TEXT_HEAD};
    return count;
}

static void blocks_are_shared_out_evenly(void **state) {
    (void)state;
    JointUnit list[PARTS * 2];
    int first[PARTS + 1], units = make_units(list, "pvvvvncetth"); // 0: patches, 5: norm, 6: connector, 7: embedding
    split_evenly(list, units, 2, first);
    assert_memory_equal(first, ((int[]){0, 4, 11}), 3 * sizeof(int));
    split_evenly(list, units, 3, first);
    assert_memory_equal(first, ((int[]){0, 3, 7, 11}), 4 * sizeof(int)); // the embedding begins the text
    split_evenly(list, units, 8, first);
    assert_memory_equal(first, ((int[]){0, 1, 2, 4, 5, 6, 8, 9, 11}), 9 * sizeof(int)); // 8 parts, 6 blocks: units
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_of_one_chunk_a_stage_is_the_best_of_all),
        cmocka_unit_test(split_of_two_chunks_a_stage_is_the_best_of_all),
        cmocka_unit_test(split_of_a_v_is_the_best_of_all),
        cmocka_unit_test(split_of_more_chunks_is_no_worse_than_the_one_with_the_least_costliest_part),
        cmocka_unit_test(long_models_are_split),
        cmocka_unit_test(fractions_do_not_matter),
        cmocka_unit_test(parts_without_cost_can_be_split),
        cmocka_unit_test(more_stages_than_units_are_refused_with_what_would_do),
        cmocka_unit_test(what_does_not_fit_is_refused_with_what_it_needs),
        cmocka_unit_test(blocks_are_shared_out_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
