/* What a plan says of a rank, against the formulas and against what the layout changes. */
#include "tests/support/test.h"
#include "train/plan.h"
#include <math.h>
#include <string.h>

static Arena *arena;

static int open_arena(void **state) {
    (void)state;
    arena = arena_new(1 << 16);
    return 0;
}
static int close_arena(void **state) {
    (void)state;
    arena_free(arena);
    return 0;
}

static TrainConfig config(SourceConfig sources[2]) {
    TrainConfig c = {.microbatches = 8, .lm_length = 64, .caption_length = 64, .contrastive_length = 32};
    for (int a = 0; a < MESH_AXES; a++) c.parallel.size[a] = a != MESH_DATA;
    c.model.text = (TextConfig){.vocabulary = 1024, .context = 64, .width = 128, .heads = 4, .layers = 4};
    c.model.vision = (VitConfig){.image_size = 32, .patch = 8, .width = 64, .heads = 4, .layers = 2};
    c.model.has_vision = true;
    c.model.embedding = 32;
    c.model.weight[OBJECTIVE_LM] = c.model.weight[OBJECTIVE_CONTRASTIVE] = 1;
    sources[0] = (SourceConfig){.objectives = 1 << OBJECTIVE_LM, .batch = 16, .one_per = ""};
    sources[1] = (SourceConfig){.objectives = 1 << OBJECTIVE_CONTRASTIVE, .batch = 24, .one_per = ""};
    c.data = (ConfigList){sources, 2};
    return c;
}

static Plan plan_of(const TrainConfig *c, int ranks) {
    Plan p;
    Error error = {0};
    assert_done(plan_make(c, ranks, arena, &p, &error), &error);
    return p;
}

static void assert_near(double a, double b) { assert_true(fabs(a - b) <= 1e-9 * fabs(b)); }

static void stages_divide_memory_as_the_formula_says(void **state) {
    (void)state;
    static const double bytes[] = {16, 8 + 8.0 / 4, 4 + 12.0 / 4, 16.0 / 4}; // of a weight, over 4 ranks
    SourceConfig sources[2];
    TrainConfig c = config(sources);
    for (int stage = 0; stage < 4; stage++) {
        c.parallel.zero = stage;
        assert_near(plan_of(&c, 4).model, bytes[stage] * joint_weights(&c.model));
    }
}

static void ranks_are_those_that_the_config_asks_for(void **state) {
    (void)state;
    SourceConfig sources[2];
    TrainConfig c = config(sources);
    assert_int_equal(plan_of(&c, 0).layout.ranks, 1);
    c.parallel.size[MESH_TENSOR] = 2;
    assert_int_equal(plan_of(&c, 0).layout.ranks, 2);
    c.parallel.size[MESH_DATA] = 3;
    assert_int_equal(plan_of(&c, 0).layout.ranks, 6);
}

static void one_process_tells_nobody_anything(void **state) {
    (void)state;
    SourceConfig sources[2];
    TrainConfig c = config(sources);
    Plan p = plan_of(&c, 1);
    assert_true(p.gradients == 0 && p.parameters == 0 && p.tensor == 0 && p.features == 0);
}

static void what_is_sent_follows_from_the_stage(void **state) {
    (void)state;
    SourceConfig sources[2];
    TrainConfig c = config(sources);
    double once = 4 * joint_weights(&c.model) * 3 / 4; // around a ring of 4
    c.reproducible = REPRODUCIBLE_LAYOUT;
    assert_near(plan_of(&c, 4).gradients, 2 * once); // an all-reduce
    c.parallel.zero = 2;
    assert_near(plan_of(&c, 4).gradients, once);
    assert_near(plan_of(&c, 4).parameters, once);
    c.reproducible = REPRODUCIBLE_RUN; // 2 pieces a rank
    assert_near(plan_of(&c, 4).gradients, 2 * once);
    c.parallel.zero = 3; // features, forward, backward of each piece
    assert_near(plan_of(&c, 4).parameters, 6 * once);
    assert_true(plan_of(&c, 4).tensor == 0 && plan_of(&c, 4).features > 0);
}

static void a_plan_that_does_not_fit_is_refused_and_one_that_does_is_told(void **state) {
    (void)state;
    SourceConfig sources[2];
    TrainConfig c = config(sources);
    Plan p;
    Error error = {0};
    Buffer text = {0};
    c.parallel.size[MESH_TENSOR] = 2;
    assert_false(plan_make(&c, 3, arena, &p, &error));
    assert_message_has(&error, "parallel.tensor");
    p = plan_of(&c, 64);
    plan_write(&c, &p, &text);
    assert_non_null(strstr(text.data, "64 processes: data 32 x tensor 2"));
    assert_non_null(strstr(text.data, "8 data ranks get no sample of any step"));
    buffer_free(&text);
}

// Text alone: rows of the step's tokens go over each boundary, and as many gradients come back.
static TrainConfig text_pipeline(SourceConfig sources[2], int stages) {
    TrainConfig c = config(sources);
    c.model.weight[OBJECTIVE_CONTRASTIVE] = 0;
    c.model.has_vision = false;
    c.model.text.tied = true;
    c.data.count = 1;
    c.parallel.size[MESH_PIPELINE] = stages;
    c.parallel.schedule = PIPELINE_1F1B;
    c.parallel.split = "cost";
    return c;
}

static void a_pipeline_is_told_by_its_stages_and_what_goes_between_them(void **state) {
    (void)state;
    SourceConfig sources[2];
    TrainConfig c = text_pipeline(sources, 3), one = text_pipeline(sources, 1);
    double stream = 16 * 64 * 128 * sizeof(float), words = 1024 * 128 * sizeof(float);
    Plan p = plan_of(&c, 3), alone = plan_of(&one, 1);
    assert_near(p.pipeline.forward, stream);
    assert_near(p.pipeline.back, stream);
    assert_near(p.pipeline.words, words);
    assert_true(p.pipeline.bubble > 0 && p.pipeline.bubble < 1);
    assert_true(p.model > alone.model / 3 && p.model < alone.model);
    assert_true(p.activations > 0 && alone.pipeline.forward == 0);
    p = plan_of(&c, 6); // two data ranks: each sends its half of the rows, and without ZeRO all words
    assert_near(p.pipeline.forward, stream / 2);
    assert_near(p.pipeline.words, words);
    c.parallel.zero = 1;
    assert_near(plan_of(&c, 6).pipeline.words, words / 2);
    c = text_pipeline(sources, 3);
    c.parallel.size[MESH_TENSOR] = 2;
    assert_near(plan_of(&c, 6).pipeline.forward, stream);
    c.parallel.sequence = true; // each tensor rank sends its rows
    assert_near(plan_of(&c, 6).pipeline.forward, stream / 2);
    Buffer text = {0};
    plan_write(&c, &p, &text);
    assert_non_null(strstr(text.data, "stage 0: text.embed"));
    assert_non_null(strstr(text.data, "activations, to the next stage"));
    buffer_free(&text);
}

static void a_pipeline_that_does_not_fit_is_refused(void **state) {
    (void)state;
    SourceConfig sources[2];
    TrainConfig c = text_pipeline(sources, 2);
    Plan p;
    Error error = {0};
    c.parallel.stage_memory = 1 << 20;
    assert_false(plan_make(&c, 2, arena, &p, &error));
    assert_message_has(&error, "fits into");
    c.parallel.split = "text.blocks.9";
    assert_false(plan_make(&c, 2, arena, &p, &error));
    assert_message_has(&error, "no unit 'text.blocks.9'");
    c.parallel.split = "measured"; // modelled: nothing is measured
    c.parallel.stage_memory = 0;
    assert_done(plan_make(&c, 2, arena, &p, &error), &error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stages_divide_memory_as_the_formula_says),
        cmocka_unit_test(ranks_are_those_that_the_config_asks_for),
        cmocka_unit_test(one_process_tells_nobody_anything),
        cmocka_unit_test(what_is_sent_follows_from_the_stage),
        cmocka_unit_test(a_plan_that_does_not_fit_is_refused_and_one_that_does_is_told),
        cmocka_unit_test(a_pipeline_is_told_by_its_stages_and_what_goes_between_them),
        cmocka_unit_test(a_pipeline_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
