/* Costs of units, and the split of a run's model by them: what is modelled adds up to what the model takes, a stage's
 * memory is what its tapes will hold, and limits are kept. */
#include "tests/train/tiny_run.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/ranks.h"
#include "train/pipeline.h"
#include "train/split_plan.h"
#include "train/stage_replay.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static Arena *memory;

static int open_both(void **state) {
    memory = arena_new(1 << 20);
    return open_shared(state);
}
static int close_both(void **state) {
    arena_free(memory);
    return close_shared(state);
}

static const MachineRates rates = {1e11, 1e10};

typedef struct Case {
    TrainConfig config;
    Layout layout;
    UnitCosts costs;
} Case;

static Case make(const char *const *settings, int ranks) {
    Case c = {0};
    Error error = {0};
    tiny_config(&shared, settings, memory, &c.config);
    assert_done(layout_resolve(&c.config, ranks, &c.layout, &error), &error);
    assert_done(unit_costs_model(&c.config, &c.layout, rates, memory, &c.costs, &error), &error);
    return c;
}

static int unit_named(const UnitCosts *c, const char *name) {
    for (int u = 0; u < c->units; u++)
        if (!strcmp(c->list[u].name, name)) return u;
    fail_msg("no unit %s", name);
    return -1;
}

static void pieces_without_pictures_cost_nothing_in_the_vision_units(void **state) {
    (void)state;
    Case c = make((const char *[]){"train.microbatches=10", NULL}, 1);
    const UnitCosts *k = &c.costs;
    int block = unit_named(k, "vision.blocks.0"), embed = unit_named(k, "text.embed"), without = 0;
    for (int i = 0; i < k->pieces; i++) {
        const Batch *b = &k->batches[k->shape[i]];
        UnitTime vision = unit_time(k, block, i), text = unit_time(k, embed, i);
        bool rows = b->lm.rows + b->caption.rows + b->contrastive.rows > 0;
        assert_true((vision.forward > 0) == (b->images > 0));
        assert_true((vision.input > 0) == (b->images > 0) && (vision.weight > 0) == (b->images > 0));
        assert_true((text.forward > 0) == rows);
        without += !b->images;
    }
    assert_true(without > 0);
}

static UnitTime sum_of(const UnitCosts *c) {
    UnitTime sum = {0};
    for (int u = 0; u < c->units; u++)
        for (int i = 0; i < c->pieces; i++) {
            UnitTime t = unit_time(c, u, i);
            sum = (UnitTime){sum.forward + t.forward, sum.input + t.input, sum.weight + t.weight,
                             sum.features + t.features};
        }
    return sum;
}

// With memory that costs nothing, seconds are FLOP.
static void products_add_up_to_those_of_the_whole_model(void **state) {
    (void)state;
    TrainConfig config;
    Layout layout;
    UnitCosts costs;
    Error error = {0};
    tiny_config(&shared, NULL, memory, &config);
    assert_done(layout_resolve(&config, 1, &layout, &error), &error);
    assert_done(unit_costs_model(&config, &layout, (MachineRates){1, 1e30}, memory, &costs, &error), &error);
    UnitTime sum = sum_of(&costs);
    double flop = joint_flop(&config.model, &costs.batches[0]), modelled = sum.forward + sum.input + sum.weight;
    assert_true(sum.features == 0); // of one piece
    assert_true(fabs(3 * sum.forward / flop - 1) <= 0.1);
    assert_true(modelled / flop >= 1 && modelled / flop <= 1.35); // backward, scores and logits are formed again
    assert_true(sum.weight < sum.input);                          // attention has no weights
}

static void in_pieces_features_of_pairs_come_first(void **state) {
    (void)state;
    Case c = make((const char *[]){"train.microbatches=5", NULL}, 1);
    int block = unit_named(&c.costs, "vision.blocks.0"), decoder = unit_named(&c.costs, "mae.blocks.0");
    for (int i = 0; i < c.costs.pieces; i++) {
        bool pairs = c.costs.batches[c.costs.shape[i]].contrastive.rows > 0;
        UnitTime t = unit_time(&c.costs, block, i);
        assert_true((t.features > 0) == pairs && t.features <= t.forward);
        assert_true(unit_time(&c.costs, decoder, i).features == 0);
    }
}

static void frozen_parts_have_no_backward(void **state) {
    (void)state;
    Case c = make((const char *[]){"train.microbatches=2", "model.freeze=[vision]", NULL}, 1);
    Case all = make((const char *[]){"train.microbatches=2", NULL}, 1);
    int vision = unit_named(&c.costs, "vision.blocks.0"), text = unit_named(&c.costs, "text.blocks.0");
    const UnitCost *frozen = &c.costs.mean[vision], *trained = &all.costs.mean[vision];
    assert_true(frozen->input == 0 && frozen->weight == 0 && fabs(frozen->forward / trained->forward - 1) <= 1e-9);
    assert_true(frozen->parameters == trained->parameters / 4); // values alone, of values, gradients and two moments
    assert_true(c.costs.mean[text].weight == all.costs.mean[text].weight);
    assert_int_equal(c.costs.wanted[vision * c.costs.shapes], 0);
}

static void recomputation_costs_time_and_saves_memory(void **state) {
    (void)state;
    Case none = make((const char *[]){"train.microbatches=2", NULL}, 1);
    Case full = make((const char *[]){"train.microbatches=2", "train.recompute=full", NULL}, 1);
    int text = unit_named(&none.costs, "text.blocks.0");
    const UnitCost *a = &none.costs.mean[text], *b = &full.costs.mean[text];
    assert_true(b->activations < 0.3 * a->activations && b->input > a->input &&
                fabs(b->forward / a->forward - 1) <= 1e-9);
}

static void tied_words_count_twice_where_they_may_be_apart(void **state) {
    (void)state;
    Case c = make((const char *[]){"train.microbatches=2", NULL}, 1);
    const TextConfig *text = &c.config.model.text;
    double words = 16.0 * (double)(text->vocabulary * text->width);
    assert_true(text->tied);
    assert_true(c.costs.copy == words && c.costs.mean[unit_named(&c.costs, "text.head")].parameters > words);
    assert_true(c.costs.mean[unit_named(&c.costs, "text.embed")].parameters > words);
}

static void what_is_measured_has_the_shape_of_what_is_modelled(void **state) {
    (void)state;
    const char *const settings[] = {"train.microbatches=3", "model.vision.layers=2", NULL};
    Case c = make(settings, 1);
    UnitCosts measured;
    Error error = {0};
    assert_done(unit_costs_measure(&c.config, &c.layout, 1, memory, &measured, &error), &error);
    assert_int_equal(measured.units, c.costs.units);
    for (int u = 0; u < measured.units; u++) {
        assert_true(measured.mean[u].forward > 0 && measured.mean[u].forward < 10);
        assert_true(measured.mean[u].activations == c.costs.mean[u].activations);
        assert_true(measured.mean[u].parameters == c.costs.mean[u].parameters);
    }
    int block = unit_named(&measured, "vision.blocks.0");
    assert_memory_equal(&measured.mean[block], &measured.mean[block + 1], sizeof *measured.mean); // measured once
}

// ---- stages ----

typedef struct Rank {
    const Case *c;
    const SplitPlan *plan;
    double *tapes; // (stages)
} Rank;

// A stage at work on microbatches of the run's shapes; of its tensor ranks the last one is looked at.
static void run_stage(int rank, Comm *world, void *argument) {
    Rank *r = argument;
    const ParallelConfig *asked = &r->c->config.parallel;
    int tensors = (int)asked->size[MESH_TENSOR], own_stage = rank / tensors, place = rank % tensors;
    Comm *group = comm_split(world, place, rank, "pipeline"), *tensor = comm_split(world, own_stage, rank, "tensor");
    const PipelineTable *table = &r->plan->table;
    int own = table->shape.microbatches, units = r->plan->costs.units;
    Arena *arena = arena_new(1 << 16);
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    PipelineMicrobatch *work = arena_array(arena, PipelineMicrobatch, own);
    PipelineResult *results = arena_array(arena, PipelineResult, own);
    float *zeros = arena_array(arena, float, 64 * r->c->config.model.embedding);
    int *chunk = arena_array(arena, int, units);
    Error error = {0};
    for (int part = 0; part < table->shape.stages * table->shape.chunks; part++) {
        int stage, number;
        pipeline_place(&table->shape, part, &stage, &number);
        for (int u = r->plan->first[part]; u < r->plan->first[part + 1]; u++)
            chunk[u] = stage == own_stage ? number : -1;
    }
    for (int m = 0; m < own; m++)
        work[m] = (PipelineMicrobatch){synthetic_batch(&r->c->config, m, own, arena),
                                       {.seed = 3,
                                        .training = true,
                                        .image_gradient = zeros,
                                        .text_gradient = zeros,
                                        .scale_gradient = zeros,
                                        .bias_gradient = zeros}};
    Parallel parallel = {
        .tensor = tensors > 1 ? tensor : NULL, .sequence = asked->sequence, .pipeline = group, .bucket_bytes = 8 << 10};
    Joint *joint =
        joint_new_part(backend, &r->c->config.model, &parallel, chunk, r->c->config.precision ? BF16 : F32, 1, &error);
    assert_done(joint != NULL, &error);
    Gradients *gradients = gradients_new(joint_parameters(joint), NULL, NULL);
    Pipeline *p = pipeline_new(
        &(PipelineSetup){
            .table = table, .units = r->plan->first, .group = group, .joint = joint, .gradients = gradients},
        &error);
    gradients_begin_step(gradients, own);
    assert_done(pipeline_run(p, PIPELINE_TRAIN, work, results, NULL, NULL, NULL, &error), &error);
    gradients_norm(gradients);
    if (place == tensors - 1) r->tapes[own_stage] = pipeline_memory(p).tapes;
    pipeline_free(p);
    gradients_free(gradients);
    joint_free(joint);
    backend_free(backend);
    comm_free(tensor);
    comm_free(group);
    arena_free(arena);
}

static void plan_of(const Case *c, double limit, SplitPlan *plan) {
    Error error = {0};
    SplitOptions options = {.shape = c->layout.pipeline, .rates = rates, .memory = limit};
    assert_done(split_plan_find(&c->config, &c->layout, &options, memory, plan, &error), &error);
}

static void stages_hold_to_the_byte_what_was_planned(void **state) {
    (void)state;
    for (int kind = 0; kind < PIPELINES; kind++)
        for (int recompute = 0; recompute < 2; recompute++) {
            const char *settings[] = {"parallel.pipeline=3",
                                      "train.microbatches=6",
                                      "model.text.layers=3",
                                      "model.vision.layers=2",
                                      NULL,
                                      NULL,
                                      NULL};
            char schedule[64];
            snprintf(schedule, sizeof schedule, "parallel.schedule=%s", pipeline_names[kind]);
            settings[4] = schedule;
            settings[5] = recompute ? "train.recompute=full" : "precision=bf16";
            Case c = make(settings, 3);
            SplitPlan plan;
            double tapes[3] = {0};
            plan_of(&c, 0, &plan);
            ranks_run(3, run_stage, &(Rank){&c, &plan, tapes});
            for (int i = 0; i < 3; i++)
                if (!(plan.stages[i].tapes == tapes[i]))
                    fail_msg("%s, stage %d: %.0f bytes planned, %.0f held", pipeline_names[kind], i,
                             plan.stages[i].tapes, tapes[i]);
        }
}

static void tensor_ranks_hold_to_the_byte_what_was_planned(void **state) {
    (void)state;
    for (int sequence = 0; sequence < 2; sequence++) {
        const char *settings[] = {"parallel.pipeline=2",
                                  "parallel.tensor=2",
                                  sequence ? "parallel.sequence=true" : "parallel.sequence=false",
                                  "train.microbatches=4",
                                  "model.vision.heads=2",
                                  "model.text.heads=2",
                                  "model.mae.decoder_heads=2",
                                  NULL};
        Case c = make(settings, 4);
        SplitPlan plan;
        double tapes[2] = {0};
        plan_of(&c, 0, &plan);
        ranks_run(4, run_stage, &(Rank){&c, &plan, tapes});
        for (int i = 0; i < 2; i++)
            if (!(plan.stages[i].tapes == tapes[i]))
                fail_msg("sequence %d, stage %d: %.0f bytes planned, %.0f held", sequence, i, plan.stages[i].tapes,
                         tapes[i]);
    }
}

// Nine pieces of eight captions: data ranks have different ones.
static void stages_are_planned_as_full_as_on_the_fullest_data_rank(void **state) {
    (void)state;
    const char *const settings[] = {"parallel.pipeline=2", "parallel.data=3", "train.microbatches=9", NULL};
    Case c = make(settings, 6);
    SplitPlan plan;
    double most[2] = {0}, least[2] = {INFINITY, INFINITY}, tapes[2];
    plan_of(&c, 0, &plan);
    for (int data = 0; data < 3; data++) {
        stage_replay(&c.config, &plan.costs, &plan.table, plan.first, 3 * data, tapes);
        for (int i = 0; i < 2; i++) most[i] = fmax(most[i], tapes[i]), least[i] = fmin(least[i], tapes[i]);
    }
    assert_true(plan.stages[0].tapes == most[0] && plan.stages[1].tapes == most[1]);
    assert_true(least[0] < most[0] || least[1] < most[1]);
}

static double fullest(const SplitPlan *p) {
    double most = 0;
    for (int i = 0; i < p->table.shape.stages; i++) most = fmax(most, p->stages[i].parameters + p->stages[i].tapes);
    return most;
}

static void a_limit_of_memory_is_kept_or_refused(void **state) {
    (void)state;
    const char *const settings[] = {"parallel.pipeline=2", "parallel.schedule=gpipe", "train.microbatches=4",
                                    "model.text.layers=4", NULL};
    Case c = make(settings, 2);
    SplitPlan free_plan, plan;
    Error error = {0};
    plan_of(&c, 0, &free_plan);
    plan_of(&c, fullest(&free_plan), &plan);
    assert_memory_equal(plan.first, free_plan.first, 3 * sizeof(int)); // it fits as it is
    int kept = 0;
    for (double share = 0.98; share > 0.3; share -= 0.04) {
        SplitOptions options = {.shape = c.layout.pipeline, .rates = rates, .memory = share * fullest(&free_plan)};
        if (!split_plan_find(&c.config, &c.layout, &options, memory, &plan, &error)) {
            assert_int_equal(error.kind, ERROR_USAGE);
            assert_message_has(&error, "GiB");
            continue;
        }
        assert_true(fullest(&plan) <= options.memory && plan.total >= free_plan.total);
        kept++;
    }
    assert_in_range(kept, 1, 16);
    assert_int_equal(error.kind, ERROR_USAGE); // the last ones do not fit
}

static void compare_with_blocks(PipelineKind kind, int stages) {
    char pipeline[32], schedule[64];
    snprintf(pipeline, sizeof pipeline, "parallel.pipeline=%d", stages);
    snprintf(schedule, sizeof schedule, "parallel.schedule=%s", pipeline_names[kind]);
    const char *const settings[] = {
        pipeline, schedule, "train.microbatches=12", "model.text.layers=6", "model.vision.layers=6", NULL};
    Case c = make(settings, stages);
    SplitPlan plan, even;
    int first[2 * 4 + 1];
    plan_of(&c, 0, &plan);
    split_evenly(plan.costs.list, plan.costs.units, stages * plan.table.shape.chunks, first);
    split_plan_at(&c.config, &c.layout, &plan, first, memory, &even);
    if (!(plan.total <= even.total))
        fail_msg("%s over %d: %g s by cost, %g s by blocks", pipeline_names[kind], stages, plan.total, even.total);
    assert_true(plan.alone == even.alone && plan.alone / plan.total <= stages * (1 + 1e-9));
    double busy = 0;
    for (int i = 0; i < stages; i++) busy += plan.stages[i].time;
    assert_true(fabs(busy / plan.alone - 1) <= 1e-9);
    assert_true(fabs(plan.bubble - (1 - busy / (stages * plan.total))) <= 1e-9);
}

static void a_given_split_has_the_figures_of_the_same_one_beside_a_found_one(void **state) {
    (void)state;
    const char *const settings[] = {"parallel.pipeline=2", "train.microbatches=12", "model.text.layers=6", NULL};
    Case c = make(settings, 2);
    SplitPlan found, even, given;
    int first[3];
    Error error = {0};
    plan_of(&c, 0, &found);
    split_evenly(found.costs.list, found.costs.units, 2, first);
    split_plan_at(&c.config, &c.layout, &found, first, memory, &even);
    SplitOptions o = {.shape = c.layout.pipeline, .rates = rates, .memory = 1};
    assert_done(split_plan_given(&c.config, &c.layout, &o, first, memory, &given, &error), &error);
    assert_memory_equal(given.first, even.first, sizeof first);
    assert_memory_equal(given.stages, even.stages, 2 * sizeof *even.stages);
    assert_true(given.total == even.total && given.bubble == even.bubble && given.alone == found.alone);
}

static void the_split_is_no_slower_than_equal_numbers_of_blocks(void **state) {
    (void)state;
    for (int kind = 0; kind < PIPELINES; kind++)
        for (int stages = 2; stages <= 4; stages++) compare_with_blocks((PipelineKind)kind, stages);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_without_pictures_cost_nothing_in_the_vision_units),
        cmocka_unit_test(products_add_up_to_those_of_the_whole_model),
        cmocka_unit_test(in_pieces_features_of_pairs_come_first),
        cmocka_unit_test(frozen_parts_have_no_backward),
        cmocka_unit_test(recomputation_costs_time_and_saves_memory),
        cmocka_unit_test(tied_words_count_twice_where_they_may_be_apart),
        cmocka_unit_test(what_is_measured_has_the_shape_of_what_is_modelled),
        cmocka_unit_test(stages_hold_to_the_byte_what_was_planned),
        cmocka_unit_test(tensor_ranks_hold_to_the_byte_what_was_planned),
        cmocka_unit_test(stages_are_planned_as_full_as_on_the_fullest_data_rank),
        cmocka_unit_test(a_limit_of_memory_is_kept_or_refused),
        cmocka_unit_test(a_given_split_has_the_figures_of_the_same_one_beside_a_found_one),
        cmocka_unit_test(the_split_is_no_slower_than_equal_numbers_of_blocks),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
