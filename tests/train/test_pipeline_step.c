/* A step on the stages of a pipeline: the losses, the norm and the parameters of one process, bit for bit, whatever the
 * schedule, the split of the model and what the microbatches hold. */
#include "base/philox.h"
#include "tests/train/staged.h"
#include <stdio.h>
#include <string.h>

static const StagedBatch usual = {.lm = 9, .caption = 10, .pairs = 13, .mae = 11};

static Staged usual_run(void) {
    return (Staged){.config = staged_config(), .rows = usual, .pieces = 8, .ordered = true};
}

// Runs `how` on one process and as it is, and holds them against each other.
static void check_same(const Staged *how, const char *what) {
    Staged alone = *how;
    alone.data = alone.stages = alone.tensor = alone.zero = 0;
    StagedOutcome *one = staged_run(&alone), *many = staged_run(how);
    assert_false(one->failed);
    assert_staged_same(one, many, what);
    staged_free(one);
    staged_free(many);
}

// Against an outcome that is there.
static void check_against(const StagedOutcome *one, const Staged *how, const char *what) {
    StagedOutcome *many = staged_run(how);
    assert_staged_same(one, many, what);
    staged_free(many);
}

static void set_split(Staged *how, const char *const *names) {
    int parts = how->stages * (how->chunks > 0 ? how->chunks : 1);
    how->units[0] = 0;
    for (int p = 1; p < parts; p++) how->units[p] = staged_unit(&how->config, names[p - 1]);
    how->units[parts] = joint_units(&how->config, NULL);
}

static int chunks_of(PipelineKind kind) { return kind == PIPELINE_INTERLEAVED || kind == PIPELINE_ZB_V ? 2 : 1; }

// ---- schedules ----

static void every_schedule_gives_the_step_of_one_process_on_two_and_four_stages(void **state) {
    (void)state;
    Staged how = usual_run();
    char what[64];
    StagedOutcome *one = staged_run(&how);
    for (int stages = 2; stages <= 4; stages += 2)
        for (int kind = 0; kind < PIPELINES; kind++) {
            how.stages = stages, how.kind = (PipelineKind)kind, how.chunks = chunks_of(how.kind);
            snprintf(what, sizeof what, "%s on %d stages", pipeline_names[kind], stages);
            check_against(one, &how, what);
        }
    staged_free(one);
}

// Pieces that are no power of two are added up in their order, which is that of a chunk.
static void three_stages_give_the_step_of_one_process(void **state) {
    (void)state;
    Staged how = usual_run();
    char what[64];
    how.config.text.tied = false;
    how.ordered = false, how.pieces = 6;
    StagedOutcome *one = staged_run(&how);
    how.stages = 3;
    for (int kind = 0; kind < PIPELINES; kind++) {
        how.kind = (PipelineKind)kind, how.chunks = chunks_of(how.kind);
        snprintf(what, sizeof what, "%s on 3 stages", pipeline_names[kind]);
        check_against(one, &how, what);
    }
    staged_free(one);
}

// ---- splits ----

static void the_model_may_be_cut_anywhere(void **state) {
    (void)state;
    Staged how = usual_run();
    char what[64];
    StagedOutcome *one = staged_run(&how);
    int count = joint_units(&how.config, NULL);
    how.stages = 2, how.kind = PIPELINE_ZB_H1;
    for (int cut = 1; cut < count; cut++) {
        how.units[0] = 0, how.units[1] = cut, how.units[2] = count;
        snprintf(what, sizeof what, "cut in front of unit %d", cut);
        check_against(one, &how, what);
    }
    staged_free(one);
}

static void uneven_parts_and_those_of_one_unit_work(void **state) {
    (void)state;
    static const char *const splits[][3] = {{"vision.blocks.1", "connector", "text.blocks.1"},
                                            {"vision.blocks.0", "vision.blocks.1", "vision.norm"},
                                            {"text.embed", "text.blocks.0", "text.blocks.2"},
                                            {"text.blocks.1", "text.blocks.2", "text.head"}};
    Staged how = usual_run();
    char what[64];
    StagedOutcome *one = staged_run(&how);
    how.stages = 4, how.kind = PIPELINE_1F1B;
    for (int i = 0; i < 4; i++) {
        set_split(&how, splits[i]);
        snprintf(what, sizeof what, "split %d", i);
        check_against(one, &how, what);
    }
    staged_free(one);
}

// ---- what microbatches hold ----

static void microbatches_without_pictures_or_anything_hang_nobody(void **state) {
    (void)state;
    static const StagedBatch rows[] = {
        {.lm = 8, .caption = 1, .mae = 1}, {.lm = 1, .pairs = 2}, {.mae = 1}, {.caption = 3}, {.pairs = 1}, {.lm = 3}};
    Staged how = usual_run();
    char what[64];
    how.chunks = 2;
    for (int i = 0; i < 6; i++) {
        how.rows = rows[i], how.stages = 0;
        StagedOutcome *one = staged_run(&how);
        how.stages = 2;
        for (int kind = PIPELINE_INTERLEAVED; kind < PIPELINES; kind += PIPELINE_ZB_V - PIPELINE_INTERLEAVED) {
            how.kind = (PipelineKind)kind;
            snprintf(what, sizeof what, "rows %d, %s", i, pipeline_names[kind]);
            check_against(one, &how, what);
        }
        staged_free(one);
    }
}

static void each_objective_alone_works(void **state) {
    (void)state;
    for (int o = 0; o < OBJECTIVES; o++) {
        Staged how = usual_run();
        for (int k = 0; k < OBJECTIVES; k++) how.config.weight[k] = k == o ? 0.7 : 0;
        if (o == OBJECTIVE_LM) how.config.has_vision = false;
        how.rows = (StagedBatch){.lm = o == OBJECTIVE_LM ? 9 : 0,
                                 .caption = o == OBJECTIVE_CAPTION ? 9 : 0,
                                 .pairs = o == OBJECTIVE_CONTRASTIVE ? 9 : 0,
                                 .mae = o == OBJECTIVE_MAE ? 9 : 0};
        how.stages = 3, how.kind = PIPELINE_ZB_H2;
        check_same(&how, objective_names[o]);
    }
}

// ---- kinds of models ----

static void recomputation_precision_heads_and_connectors_change_nothing(void **state) {
    (void)state;
    Staged how = usual_run();
    how.stages = 3, how.kind = PIPELINE_ZB_H1;
    Staged full = how, rounded = how, sigmoid = how, untied = how, modern = how;
    full.config.recompute = RECOMPUTE_FULL;
    rounded.compute = BF16;
    sigmoid.config.contrastive = CONTRASTIVE_SIGMOID;
    sigmoid.config.connector = CONNECTOR_LINEAR;
    untied.config.text.tied = false;
    modern.config.text.norm = NORM_RMS, modern.config.text.mlp = MLP_SWIGLU, modern.config.text.rope = true;
    modern.config.recompute = RECOMPUTE_SELECTIVE;
    modern.compute = BF16;
    check_same(&full, "full recomputation");
    check_same(&rounded, "bf16");
    check_same(&sigmoid, "sigmoid loss, linear connector");
    check_same(&untied, "words that are not tied");
    check_same(&modern, "rms, swiglu, rope, bf16, selective recomputation");
}

static void frozen_parts_cost_no_gradients_and_change_nothing(void **state) {
    (void)state;
    static const char *trunk[] = {"vision"}, *text[] = {"text"};
    Staged how = usual_run();
    how.stages = 2, how.kind = PIPELINE_1F1B;
    how.config.freeze = (StringList){.items = trunk, .count = 1};
    check_same(&how, "frozen trunk");
    how.config.freeze = (StringList){.items = text, .count = 1};
    check_same(&how, "frozen text");
}

// ---- with other kinds of ranks ----

static void data_ranks_and_shards_change_nothing(void **state) {
    (void)state;
    Staged how = usual_run();
    how.data = 2, how.stages = 2, how.kind = PIPELINE_1F1B;
    check_same(&how, "data 2");
    how.zero = 1;
    check_same(&how, "data 2, states shared out");
    how.kind = PIPELINE_ZB_V, how.chunks = 2, how.compute = BF16;
    check_same(&how, "data 2, states shared out, zb-v, bf16");
    how.rows = (StagedBatch){.lm = 1, .pairs = 2, .mae = 1}; // the first data rank has next to nothing
    check_same(&how, "data 2, few rows");
}

// Tensor ranks add in another order than one process; with them stages change nothing.
static void beside_tensor_ranks_stages_change_nothing(void **state) {
    (void)state;
    Staged how = usual_run();
    how.tensor = 2;
    for (how.data = 1; how.data <= 2; how.data++) {
        how.stages = 0, how.zero = 0;
        StagedOutcome *one = staged_run(&how);
        how.stages = 2, how.kind = PIPELINE_ZB_H1, how.zero = how.data - 1;
        check_against(one, &how, "tensor 2 with shared rows");
        staged_free(one);
    }
}

// ---- anything ----

static int drawn(uint64_t number, int what, int below) {
    Rng rng = rng_for(number, PURPOSE_TEST, (uint64_t)what);
    return (int)rng_below(&rng, (uint64_t)below);
}

// Ascending first units of the parts, drawn.
static void draw_split(Staged *how, uint64_t number) {
    int parts = how->stages * how->chunks, count = joint_units(&how->config, NULL);
    for (int p = 1; p < parts; p++) { // leaving a unit for each part before and behind
        int least = how->units[p - 1] + 1, room = count - (parts - p) - least + 1;
        how->units[p] = least + drawn(number, 100 + p, room < 6 ? room : 6);
    }
    how->units[parts] = count;
}

static Staged draw_run(uint64_t number) {
    Staged how = usual_run();
    how.kind = (PipelineKind)drawn(number, 0, PIPELINES);
    how.stages = 1 << (1 + drawn(number, 1, 2));
    how.chunks = chunks_of(how.kind) + (how.kind == PIPELINE_INTERLEAVED ? drawn(number, 2, 2) : 0);
    how.data = 1 + drawn(number, 3, 2);
    how.zero = drawn(number, 4, 2);
    how.pieces = 8 * (1 + drawn(number, 5, 2));
    how.compute = drawn(number, 6, 3) ? F32 : BF16;
    how.rows =
        (StagedBatch){drawn(number, 7, 20), drawn(number, 8, 20), drawn(number, 9, 20), 1 + drawn(number, 10, 9)};
    how.config.recompute = (Recompute)drawn(number, 11, 3);
    how.config.contrastive = (ContrastiveKind)drawn(number, 12, 2);
    how.config.text.tied = drawn(number, 13, 2);
    how.config.text.layers = 3 + drawn(number, 14, 4);
    draw_split(&how, number);
    return how;
}

static void whatever_is_chosen_the_step_is_that_of_one_process(void **state) {
    (void)state;
    char what[128];
    for (uint64_t number = 0; number < 40; number++) {
        Staged how = draw_run(number);
        snprintf(what, sizeof what, "draw %d: %s, %d stages x %d chunks, data %d", (int)number,
                 pipeline_names[how.kind], how.stages, how.chunks, how.data);
        check_same(&how, what);
    }
}

// ---- without learning ----

static void losses_alone_are_those_of_one_process(void **state) {
    (void)state;
    Staged how = usual_run();
    how.inference = true;
    how.stages = 2, how.kind = PIPELINE_1F1B;
    check_same(&how, "losses");
    how.data = 2, how.kind = PIPELINE_ZB_V, how.chunks = 2;
    check_same(&how, "losses, data 2, zb-v");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_schedule_gives_the_step_of_one_process_on_two_and_four_stages),
        cmocka_unit_test(three_stages_give_the_step_of_one_process),
        cmocka_unit_test(the_model_may_be_cut_anywhere),
        cmocka_unit_test(uneven_parts_and_those_of_one_unit_work),
        cmocka_unit_test(microbatches_without_pictures_or_anything_hang_nobody),
        cmocka_unit_test(each_objective_alone_works),
        cmocka_unit_test(recomputation_precision_heads_and_connectors_change_nothing),
        cmocka_unit_test(frozen_parts_cost_no_gradients_and_change_nothing),
        cmocka_unit_test(data_ranks_and_shards_change_nothing),
        cmocka_unit_test(beside_tensor_ranks_stages_change_nothing),
        cmocka_unit_test(whatever_is_chosen_the_step_is_that_of_one_process),
        cmocka_unit_test(losses_alone_are_those_of_one_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
