/* Whether a run fits: what is known before it begins, and the remedies that a message names. */
#include "tests/support/test.h"
#include "train/memory.h"
#include <string.h>

static SourceConfig source = {.path = "text", .objectives = 1u << OBJECTIVE_LM, .batch = 64, .one_per = ""};

// Text alone, long rows: activations weigh more than weights.
static TrainConfig config_of(Recompute recompute) {
    TrainConfig c = {.lm_length = 1024};
    c.data.items = &source;
    c.data.count = 1;
    c.model.text = (TextConfig){.vocabulary = 1000, .context = 1024, .width = 64, .layers = 8, .heads = 4};
    c.model.weight[OBJECTIVE_LM] = 1;
    c.model.recompute = recompute;
    return c;
}

static double needed(Recompute recompute, int pieces) {
    TrainConfig c = config_of(recompute);
    Layout l = {.ranks = 1, .size = {1, 1, 1, 1}, .pieces = pieces};
    JointMemory m = memory_estimate(&c, &l);
    Error error = {0};
    double all = m.model + m.activations + memory_copy(&c, &l);
    assert_true(memory_check(&c, &l, all, &error));
    assert_false(memory_check(&c, &l, 0.999 * all, &error));
    assert_message_has(&error, "does not fit into memory");
    bool much = m.activations > m.model;
    assert_int_equal(strstr(error.message, "raise train.microbatches") != NULL, much);
    assert_int_equal(strstr(error.message, "set train.recompute: full") != NULL, much && recompute != RECOMPUTE_FULL);
    return m.activations;
}

static void the_need_falls_with_recomputation_and_pieces(void **state) {
    (void)state;
    double none = needed(RECOMPUTE_NONE, 1);
    assert_true(needed(RECOMPUTE_SELECTIVE, 1) < 0.7 * none);
    assert_true(needed(RECOMPUTE_FULL, 1) < 0.1 * none);
    assert_true(needed(RECOMPUTE_NONE, 64) < none / 60);
}

// Twelve bytes a weight over all ranks; four where it is not known how much is trained.
static void the_copy_for_checkpoints_counts(void **state) {
    (void)state;
    TrainConfig c = config_of(RECOMPUTE_FULL);
    Layout l = {.ranks = 4, .size = {4, 1, 1, 1}, .pieces = 4};
    JointMemory m = memory_estimate(&c, &l);
    Error error = {0};
    double copy = memory_copy(&c, &l);
    assert_true(copy == 3 * joint_weights(&c.model));
    assert_true(memory_check(&c, &l, m.model + m.activations + copy, &error));
    assert_false(memory_check(&c, &l, m.model + m.activations + 0.99 * copy, &error));
    assert_message_has(&error, "to write checkpoints from");
    c.model.freeze = (StringList){(const char *[]){"text"}, 1};
    assert_true(memory_copy(&c, &l) == copy / 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_need_falls_with_recomputation_and_pieces),
                                       cmocka_unit_test(the_copy_for_checkpoints_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
