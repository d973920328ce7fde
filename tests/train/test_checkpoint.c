/* Checkpoints: the same whatever the layout that wrote them, read by every layout, written beside the training. */
#include "base/files.h"
#include "base/json.h"
#include "tests/support/ranks.h"
#include "tests/train/spread.h"
#include "train/checkpoint_layout.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIX "checkpoints/step-00000006"

// ---- layouts ----

typedef struct Case {
    const char *run;
    Spread how;
    Dtype compute;
    uint64_t salt;
} Case;

static void save_spread(int rank, Comm *world, void *argument) {
    (void)rank;
    const Case *c = argument;
    SpreadModel m;
    Error error = {0};
    spread_open(&m, world, c->how, c->compute);
    spread_fill(&m, c->salt);
    assert_done(spread_save(&m, c->run, 6, &error), &error);
    spread_close(&m);
}

static void load_spread(int rank, Comm *world, void *argument) {
    (void)rank;
    const Case *c = argument;
    SpreadModel m;
    TrainState state = {0};
    Error error = {0};
    char *folder = temporary_path(c->run, SIX);
    spread_open(&m, world, c->how, c->compute);
    spread_fill(&m, c->salt + 1);
    assert_done(spread_load(&m, folder, &state, &error), &error);
    assert_spread_holds(&m, c->salt);
    assert_int_equal(state.step, 6);
    assert_int_equal(state.seed, 7);
    assert_int_equal(state.root_count, 1);
    assert_string_equal(state.roots[0], "root");
    spread_close(&m);
    free(folder);
}

static void run_case(RankFunction function, Case *c) { ranks_run(spread_ranks(&c->how), function, c); }

static const Spread alone = {1, 1, 0, 0, false};
static const Spread layouts[] = { // data, tensor, zero, pipeline, ordered
    {1, 1, 0, 0, false}, {2, 1, 0, 0, false}, {2, 1, 1, 0, false}, {3, 1, 2, 0, false}, {4, 1, 3, 0, false},
    {1, 2, 0, 0, false}, {1, 4, 0, 0, false}, {2, 2, 3, 0, false}, {2, 4, 1, 0, false}, {1, 1, 0, 0, true},
    {1, 1, 0, 3, false}, {2, 1, 1, 2, true},  {2, 1, 0, 3, false}, {2, 2, 1, 2, false}};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

// Another world size works, and another stage, and another split of the layers.
static void every_layout_reads_every_checkpoint_67(void **state) {
    (void)state;
    for (int i = 0; i < LAYOUTS; i++) {
        char *run = temporary_new();
        Case c = {run, layouts[i], i % 2 ? BF16 : F32, (uint64_t)i};
        run_case(save_spread, &c);
        for (int k = 0; k < LAYOUTS; k++) {
            c.how = layouts[k];
            c.compute = k % 2 ? F32 : BF16;
            run_case(load_spread, &c);
        }
        temporary_free(run);
    }
}

static void expect_same_tensors(Spread how) {
    char *run = temporary_new(), *folder = temporary_path(run, SIX);
    char *other = temporary_new(), *other_folder = temporary_path(other, SIX);
    run_case(save_spread, &(Case){run, alone, F32, 5});
    run_case(save_spread, &(Case){other, how, F32, 5});
    for (int part = 0; part < CHECKPOINT_PARTS; part++) {
        SafeTensorsSet a, b;
        Error error = {0};
        assert_done(safetensors_set_open(&a, folder, checkpoint_part_names[part], &error), &error);
        assert_done(safetensors_set_open(&b, other_folder, checkpoint_part_names[part], &error), &error);
        assert_int_equal(a.count, 1);
        assert_int_equal(b.count, spread_ranks(&how));
        assert_int_equal(a.all.count, b.all.count);
        for (int i = 0; i < a.all.count; i++) {
            assert_string_equal(a.all.tensors[i].name, b.all.tensors[i].name);
            assert_int_equal(a.all.tensors[i].bytes, b.all.tensors[i].bytes);
            assert_memory_equal(a.all.tensors[i].data, b.all.tensors[i].data, (size_t)a.all.tensors[i].bytes);
        }
        safetensors_set_close(&a);
        safetensors_set_close(&b);
    }
    free(folder);
    free(other_folder);
    temporary_free(run);
    temporary_free(other);
}

// The tensors of one part, whole and in one list, say nothing of who wrote them.
static void the_tensors_do_not_depend_on_the_layout(void **state) {
    (void)state;
    expect_same_tensors((Spread){2, 2, 2, 0, false});
    expect_same_tensors((Spread){1, 1, 0, 4, false});
    expect_same_tensors((Spread){2, 1, 1, 2, false});
}

// Neither do the files of a model with a copy of its words tell of it.
static void a_copy_of_the_words_is_in_no_file(void **state) {
    (void)state;
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors", "model.json"};
    char *runs[2], *folders[2];
    Error error = {0};
    for (int i = 0; i < 2; i++) {
        runs[i] = temporary_new();
        folders[i] = temporary_path(runs[i], SIX);
        run_case(save_spread, &(Case){runs[i], {1, 1, 0, 0, i}, F32, 5});
    }
    for (int k = 0; k < 3; k++) {
        Buffer bytes[2] = {{0}, {0}};
        for (int i = 0; i < 2; i++) {
            char *path = temporary_path(folders[i], names[k]);
            assert_done(file_read(path, &bytes[i], &error), &error);
            free(path);
        }
        assert_int_equal(bytes[0].size, bytes[1].size);
        assert_memory_equal(bytes[0].data, bytes[1].data, bytes[0].size);
        for (int i = 0; i < 2; i++) buffer_free(&bytes[i]);
    }
    for (int i = 0; i < 2; i++) {
        free(folders[i]);
        temporary_free(runs[i]);
    }
}

static void expect_read_by_one_process(Spread how) {
    LoadedModel loaded;
    Error error = {0};
    char *run = temporary_new(), *folder = temporary_path(run, SIX);
    run_case(save_spread, &(Case){run, how, F32, 3});
    SpreadModel m;
    spread_open(&m, NULL, alone, F32);
    spread_fill(&m, 3);
    assert_done(model_load(&loaded, m.backend, run, F32, NULL, &error), &error);
    assert_string_equal(loaded.path, folder);
    assert_int_equal(loaded.step, 6);
    Parameters *before = joint_parameters(m.joint), *after = joint_parameters(loaded.joint);
    assert_int_equal(parameters_count(before), parameters_count(after));
    for (int i = 0; i < parameters_count(before); i++) {
        const Parameter *a = parameters_at(before, i), *b = parameters_find(after, a->tensor.name);
        assert_memory_equal(a->master, b->master, (size_t)tensor_count(&a->tensor) * sizeof(float));
    }
    model_unload(&loaded);
    spread_close(&m);
    free(folder);
    temporary_free(run);
}

static void a_model_of_many_ranks_is_read_by_one_process(void **state) {
    (void)state;
    expect_read_by_one_process((Spread){2, 2, 3, 0, false});
    expect_read_by_one_process((Spread){2, 1, 1, 3, true});
}

static void ranks_write_about_as_much_each(void **state) {
    (void)state;
    SpreadModel m;
    Arena *memory = arena_new(1 << 14);
    spread_open(&m, NULL, alone, F32);
    int64_t all = checkpoint_layout_bytes(checkpoint_layout_new(joint_parameters(m.joint), 1, memory), 0);
    for (int writers = 2; writers <= 8; writers++) {
        CheckpointLayout *l = checkpoint_layout_new(joint_parameters(m.joint), writers, memory);
        int64_t sum = 0, largest = 0;
        for (int i = 0; i < l->count; i++)
            if (l->tensors[i].bytes > largest) largest = l->tensors[i].bytes;
        for (int w = 0; w < writers; w++) {
            int64_t bytes = checkpoint_layout_bytes(l, w);
            assert_true(bytes <= all / writers + largest);
            sum += bytes;
        }
        assert_int_equal(sum, all);
        checkpoint_layout_free(l);
    }
    spread_close(&m);
    arena_free(memory);
}

// ---- beside the training ----

static TrainState at_step(int64_t step) { return (TrainState){.step = step, .seed = 7}; }

// What changes behind checkpoint_hold is not in the checkpoint; the calls go on until every rank has written.
static void save_beside(int rank, Comm *world, void *argument) {
    (void)rank;
    const Case *c = argument;
    SpreadModel m;
    Error error = {0};
    TrainState state = at_step(6);
    spread_open(&m, world, c->how, F32);
    Saver *saver = spread_saver(&m, c->run, 2, 0);
    checkpoint_prepare(saver);
    assert_false(checkpoint_under_way(saver));
    assert_false(checkpoint_written(saver));
    spread_fill(&m, 1);
    assert_done(checkpoint_start(saver, &state, &error), &error);
    checkpoint_hold(saver);
    spread_fill(&m, 2);
    while (checkpoint_under_way(saver)) {
        int64_t all = checkpoint_written(saver);
        comm_all_reduce(world, &all, 1, COMM_I64, COMM_MIN, COMM_FAST, "test");
        if (all) assert_done(checkpoint_commit(saver, &error), &error);
        usleep(1000);
    }
    assert_int_equal(checkpoint_saved(saver), 6);
    assert_true(checkpoint_times(saver).written > 0);
    char *folder = temporary_path(c->run, SIX);
    assert_done(spread_load(&m, folder, &state, &error), &error);
    assert_spread_holds(&m, 1);
    free(folder);
    saver_free(saver);
    spread_close(&m);
}

static void training_goes_on_while_a_checkpoint_is_written(void **state) {
    (void)state;
    static const Spread some[] = {
        {1, 1, 0, 0, false}, {2, 1, 3, 0, false}, {1, 2, 0, 0, false}, {2, 1, 0, 0, false}, {2, 1, 1, 2, false}};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        char *run = temporary_new();
        run_case(save_beside, &(Case){.run = run, .how = some[i]});
        temporary_free(run);
    }
}

static bool has_step(const char *run, int64_t step) {
    char name[64];
    snprintf(name, sizeof name, "checkpoints/step-%08lld", (long long)step);
    char *folder = temporary_path(run, name);
    bool there = folder_exists(folder);
    free(folder);
    return there;
}

static void the_newest_and_every_so_manieth_stay(void **state) {
    (void)state;
    char *run = temporary_new(), *aside = temporary_path(run, "checkpoints/.step-00000001.tmp");
    Error error = {0};
    SpreadModel m;
    spread_open(&m, NULL, alone, F32);
    assert_done(folder_create(aside, &error), &error);
    Saver *saver = spread_saver(&m, run, 2, 4);
    for (int64_t step = 1; step <= 11; step++) { // the next save waits for the one before
        TrainState at = at_step(step);
        assert_done(checkpoint_start(saver, &at, &error), &error);
    }
    assert_done(checkpoint_finish(saver, &error), &error);
    for (int64_t step = 1; step <= 11; step++)
        assert_int_equal(has_step(run, step), step == 4 || step == 8 || step == 10 || step == 11);
    assert_false(folder_exists(aside));
    saver_free(saver);
    spread_close(&m);
    free(aside);
    temporary_free(run);
}

static void a_saver_that_is_freed_ends_what_it_began(void **state) {
    (void)state;
    char *run = temporary_new();
    Error error = {0};
    SpreadModel m;
    spread_open(&m, NULL, alone, F32);
    Saver *saver = spread_saver(&m, run, 2, 0);
    TrainState at = at_step(3);
    assert_done(checkpoint_start(saver, &at, &error), &error);
    saver_free(saver);
    assert_true(has_step(run, 3));
    saver = spread_saver(&m, run, 2, 0);
    checkpoint_prepare(saver);
    saver_free(saver);
    saver_free(NULL);
    spread_close(&m);
    temporary_free(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_reads_every_checkpoint_67),
        cmocka_unit_test(the_tensors_do_not_depend_on_the_layout),
        cmocka_unit_test(a_copy_of_the_words_is_in_no_file),
        cmocka_unit_test(a_model_of_many_ranks_is_read_by_one_process),
        cmocka_unit_test(ranks_write_about_as_much_each),
        cmocka_unit_test(training_goes_on_while_a_checkpoint_is_written),
        cmocka_unit_test(the_newest_and_every_so_manieth_stay),
        cmocka_unit_test(a_saver_that_is_freed_ends_what_it_began),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
