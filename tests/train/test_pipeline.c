/* What a stage holds, what its rows look like in a timeline, and how it ends where something is wrong on one of them.
 */
#include "tests/train/staged.h"
#include <stdio.h>
#include <string.h>

static Staged usual_run(void) {
    return (Staged){.config = staged_config(),
                    .rows = {.lm = 9, .caption = 10, .pairs = 13, .mae = 11},
                    .pieces = 8,
                    .ordered = true};
}

static int chunks_of(PipelineKind kind) { return kind == PIPELINE_INTERLEAVED || kind == PIPELINE_ZB_V ? 2 : 1; }

// ---- memory ----

static void a_stage_holds_as_many_microbatches_as_its_table_says(void **state) {
    (void)state;
    for (int kind = 0; kind < PIPELINES; kind++) {
        Staged how = usual_run();
        how.stages = 4, how.kind = (PipelineKind)kind, how.chunks = chunks_of(how.kind);
        StagedOutcome *o = staged_run(&how);
        assert_false(o->failed);
        for (int i = 0; i < how.stages; i++) {
            assert_int_equal(o->memory[i].held, o->peaks[i].live);
            assert_true(o->memory[i].tapes > 0 && o->memory[i].messages > 0);
        }
        staged_free(o);
    }
}

static void a_step_like_the_one_before_allocates_nothing(void **state) {
    (void)state;
    for (int kind = 0; kind < PIPELINES; kind++) {
        Staged how = usual_run();
        how.stages = 2, how.kind = (PipelineKind)kind, how.chunks = chunks_of(how.kind);
        StagedOutcome *o = staged_run(&how);
        assert_false(o->failed);
        for (int i = 0; i < how.stages; i++) {
            assert_true(o->allocations[i] > 0);
            assert_int_equal(o->memory[i].allocations, o->allocations[i]);
        }
        staged_free(o);
    }
}

static void holding_fewer_microbatches_takes_less_memory(void **state) {
    (void)state;
    Staged how = usual_run();
    how.stages = 2, how.kind = PIPELINE_GPIPE;
    StagedOutcome *all = staged_run(&how);
    how.kind = PIPELINE_1F1B;
    StagedOutcome *few = staged_run(&how);
    for (int i = 0; i < how.stages; i++) assert_true(2 * few->memory[i].tapes < all->memory[i].tapes);
    staged_free(all);
    staged_free(few);
}

// ---- failing ----

static void a_stage_that_fails_keeps_nobody_waiting_and_names_what_is_wrong(void **state) {
    (void)state;
    static const char *const broken[] = {"vision.blocks.0.up.weight", "connector.0.weight", "text.blocks.1.qkv.weight"};
    for (int i = 0; i < 3; i++)
        for (int kind = PIPELINE_1F1B; kind <= PIPELINE_ZB_V; kind += PIPELINE_ZB_V - PIPELINE_1F1B) {
            Staged how = usual_run();
            how.stages = 3, how.kind = (PipelineKind)kind, how.chunks = chunks_of(how.kind);
            how.broken = broken[i];
            StagedOutcome *o = staged_run(&how);
            assert_true(o->failed);
            assert_message_has(&o->error, "linear: ");
            staged_free(o);
        }
}

static void a_failure_is_known_on_all_data_ranks(void **state) {
    (void)state;
    Staged how = usual_run();
    how.stages = 2, how.data = 2, how.kind = PIPELINE_ZB_H1;
    how.broken = "text.blocks.1.qkv.weight";
    StagedOutcome *o = staged_run(&how);
    assert_true(o->failed && o->norm[0] == 0); // nobody came as far as the norm
    staged_free(o);
}

static void a_number_that_is_not_finite_is_found_where_it_came_up(void **state) {
    (void)state;
    static const char *const poisoned[] = {"vision.blocks.1.up.weight", "mae.blocks.0.up.weight",
                                           "text.blocks.2.down.weight", "contrastive.text.weight"};
    for (int i = 0; i < 4; i++) {
        Staged how = usual_run();
        how.poison = poisoned[i];
        StagedOutcome *one = staged_run(&how);
        how.stages = 3, how.kind = PIPELINE_1F1B;
        StagedOutcome *many = staged_run(&how);
        assert_true(strstr(one->not_finite, poisoned[i]) != NULL);
        assert_string_equal(many->not_finite, one->not_finite); // one stage speaks
        staged_free(one);
        staged_free(many);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stage_holds_as_many_microbatches_as_its_table_says),
        cmocka_unit_test(a_step_like_the_one_before_allocates_nothing),
        cmocka_unit_test(holding_fewer_microbatches_takes_less_memory),
        cmocka_unit_test(a_stage_that_fails_keeps_nobody_waiting_and_names_what_is_wrong),
        cmocka_unit_test(a_failure_is_known_on_all_data_ranks),
        cmocka_unit_test(a_number_that_is_not_finite_is_found_where_it_came_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
