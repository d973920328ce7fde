/* Ranks that do not all have the same to do: some are asked to stop, fail, or have nothing at all. Nobody waits for
 * ever, and all end alike. */
#include "base/files.h"
#include "data/batch.h"
#include "tests/support/ranks.h"
#include "tests/train/tiny_compare.h"
#include "train/agree.h"
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void train(const char *name, int ranks, const char *const *settings, bool resume) {
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train_ranks(&shared, name, settings, resume, ranks, NULL, &result, &error), &error);
}

// ---- agreement ----

enum { VOTERS = 5 };

typedef struct Voter {
    bool ok, agreed;
    Error error;
    Vote sum;
} Voter;

static void vote(int rank, Comm *world, void *voters) {
    Voter *v = (Voter *)voters + rank;
    if (!v->ok) error_set(&v->error, ERROR_USAGE, "no room on %d", rank);
    v->agreed = agree(world, v->ok, &v->error);
    Vote own = {.stop = rank == 3 ? SIGTERM : 0, .draws = 10 + rank, .data_wait = rank};
    v->sum = agree_on(world, &own, rank % 2 == 0);
}

static void the_lowest_rank_that_failed_speaks_for_all(void **state) {
    (void)state;
    Voter some[VOTERS] = {{.ok = true}, {.ok = true}, {.ok = false}, {.ok = true}, {.ok = false}};
    Voter none[VOTERS] = {{.ok = false}, {.ok = false}, {.ok = false}, {.ok = false}, {.ok = false}};
    Voter all[VOTERS] = {{.ok = true}, {.ok = true}, {.ok = true}, {.ok = true}, {.ok = true}};
    ranks_run(VOTERS, vote, some);
    ranks_run(VOTERS, vote, none);
    ranks_run(VOTERS, vote, all);
    for (int r = 0; r < VOTERS; r++) {
        assert_false(some[r].agreed);
        assert_string_equal(some[r].error.message, "rank 2: no room on 2");
        assert_int_equal(some[r].error.kind, ERROR_USAGE);
        assert_false(none[r].agreed);
        assert_string_equal(none[r].error.message, "no room on 0");
        assert_true(all[r].agreed);
    }
}

static void votes_are_added_up_alike_on_every_rank(void **state) {
    (void)state;
    Voter voters[VOTERS] = {{.ok = true}, {.ok = true}, {.ok = true}, {.ok = true}, {.ok = true}};
    ranks_run(VOTERS, vote, voters);
    for (int r = 0; r < VOTERS; r++) {
        assert_int_equal(voters[r].sum.stop, SIGTERM);
        assert_int_equal(voters[r].sum.draws, 10 + 12 + 14);
        assert_true(voters[r].sum.data_wait == 4);
    }
}

// ---- stopping ----

static void a_signal_to_any_one_rank_stops_all_and_the_run_goes_on_from_there(void **state) {
    (void)state;
    static volatile sig_atomic_t stop = SIGTERM, go = 0;
    const volatile sig_atomic_t *const flags[] = {&go, &go, &stop};
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train_ranks(&shared, "stopped", NULL, false, 3, flags, &result, &error), &error);
    assert_int_equal(result.interrupted, SIGTERM);
    assert_int_equal(result.step, 0);
    train("stopped", 3, NULL, true);
    train("not-stopped", 3, NULL, false);
    assert_same_records(&shared, "stopped", "not-stopped");
    assert_same_end(&shared, "stopped", "not-stopped");
}

typedef struct Waiter {
    char *metrics;
    volatile sig_atomic_t stop;
} Waiter;

// Sets the flag when the first record is there.
static void *stop_when_under_way(void *context) {
    Waiter *w = context;
    while (file_size(w->metrics) <= 0) usleep(1000);
    w->stop = SIGUSR1;
    return NULL;
}

static void a_signal_in_the_middle_stops_all_ranks_at_the_same_step(void **state) {
    (void)state;
    static Waiter w;
    static volatile sig_atomic_t go = 0;
    const volatile sig_atomic_t *const flags[] = {&go, &w.stop};
    char checkpoint[64];
    pthread_t thread;
    TrainResult result;
    Error error = {0};
    w.metrics = tiny_run_path(&shared, "middle", "metrics.jsonl");
    assert_int_equal(pthread_create(&thread, NULL, stop_when_under_way, &w), 0);
    assert_done(tiny_train_ranks(&shared, "middle", (const char *[]){"train.steps=1000000", "checkpoint.every=0", NULL},
                                 false, 2, flags, &result, &error),
                &error); // fails where a rank's step is another
    pthread_join(thread, NULL);
    assert_int_equal(result.interrupted, SIGUSR1);
    assert_in_range(result.step, 1, 999999);
    snprintf(checkpoint, sizeof checkpoint, "checkpoints/step-%08lld/state.json", result.step);
    char *path = tiny_run_path(&shared, "middle", checkpoint);
    assert_true(file_exists(path));
    free(path);
    free(w.metrics);
}

// ---- uneven ranks ----

static void ranks_without_pictures_texts_pairs_or_anything_wait_for_nobody(void **state) {
    (void)state;
    static const char *const sources[][4] = {
        {"data.0.batch=1", "data.1.batch=1", "data.2.batch=1", "data.0.objectives=caption,contrastive,mae"},
        {"data.0.batch=1", "data.1.batch=1", "data.2.batch=7", "data.0.objectives=mae"},
        {"data.0.batch=6", "data.1.batch=1", "data.2.batch=1", "data.0.objectives=contrastive"},
    };
    static const char *const stages[] = {"parallel.zero=0", "parallel.zero=1", "parallel.zero=2", "parallel.zero=3"};
    for (int i = 0; i < 3; i++) {
        char one[32], many[32];
        snprintf(one, sizeof one, "uneven-one-%d", i);
        for (int k = 0; k < 4; k++) { // on 1, 2, 4, 8 ranks
            const char *const *s = sources[i];
            const char *const settings[] = {s[0],
                                            s[1],
                                            s[2],
                                            s[3],
                                            "train.microbatches=8",
                                            "train.reproducible=layout",
                                            stages[k],
                                            "parallel.bucket=8192",
                                            "threads=1",
                                            NULL};
            snprintf(many, sizeof many, k ? "uneven-%d-%d" : "uneven-one-%d", i, k);
            train(many, 1 << k, settings, false);
            assert_same_records(&shared, one, many);
        }
    }
}

static void more_ranks_than_rows_of_text_alone_work(void **state) {
    (void)state;
    const char *const settings[] = {"data.0.objectives=lm", "data.0.batch=1", "data.1.objectives=lm",
                                    "data.1.question=",     "data.1.answer=", "data.1.batch=1",
                                    "data.2.batch=1",       "threads=1",      NULL};
    train("text-one", 1, settings, false);
    train("text-five", 5, settings, false);
    assert_close_records(&shared, "text-one", "text-five", 1e-3);
}

static void validation_is_shared_out_with_the_same_result(void **state) {
    (void)state;
    static const char *const stages[] = {"parallel.zero=0", "parallel.zero=1", "parallel.zero=3",
                                         "parallel.pipeline=2"};
    static const int ranks[] = {1, 2, 4, 4};
    char pictures[512], text[512], name[32];
    snprintf(pictures, sizeof pictures, "data.0.validation=%s/train", shared.folder);
    snprintf(text, sizeof text, "data.2.validation=%s/text", shared.folder);
    for (int i = 0; i < 4; i++) {
        const char *const settings[] = {pictures,    text,      "validation.every=3",   "train.reproducible=layout",
                                        "threads=1", stages[i], "train.microbatches=4", NULL};
        snprintf(name, sizeof name, "validated-%d", i);
        train(name, ranks[i], settings, false);
        assert_same_records(&shared, "validated-0", name);
    }
    json_t *records = tiny_records(&shared, "validated-0");
    assert_int_equal(json_array_size(records), 6 + 2);
    json_t *last = json_array_get(records, 7);
    for (int o = 0; o < OBJECTIVES; o++) {
        snprintf(name, sizeof name, "validation/%s", objective_names[o]);
        assert_true(json_get_number(last, name, 0) > 0);
    }
    json_decref(records);
}

// ---- failing ----

static void wrong_settings_are_refused_on_all_ranks_with_one_message(void **state) {
    (void)state;
    static const char *const settings[][3] = {{"parallel.data=2", NULL, "set parallel.data to 3"},
                                              {"parallel.tensor=2", NULL, "parallel.tensor to one of 1"},
                                              {"train.reproducible=layout", NULL, "power of two"},
                                              {"tokenizer=/nowhere.model", NULL, "/nowhere.model"}};
    TrainResult result;
    for (int i = 0; i < 4; i++) {
        Error error = {0};
        assert_false(tiny_train_ranks(&shared, "refused", settings[i], false, 3, NULL, &result, &error));
        assert_int_equal(error.kind, ERROR_USAGE);
        assert_message_has(&error, settings[i][2]);
        assert_true(strncmp(error.message, "rank ", 5) != 0); // they all say so
    }
}

// Every second byte run of the shard's first half is spoilt, so that many samples are damaged.
static void damage(const TinyRun *r) {
    Error error = {0};
    Buffer bytes = {0};
    char *path = temporary_path(r->folder, "train/shard-000000.tar");
    assert_done(file_read(path, &bytes, &error), &error);
    for (size_t at = 3000; at < bytes.size; at += 12000) bytes.data[at] ^= 1;
    temporary_write(path, bytes.data, bytes.size);
    buffer_free(&bytes);
    free(path);
}

static void the_budget_of_bad_samples_counts_over_all_ranks(void **state) {
    (void)state;
    TinyRun own;
    TrainResult result;
    Error one = {0}, three = {0};
    const char *const settings[] = {"train.steps=100", "threads=1", NULL};
    tiny_run_open(&own, 5);
    damage(&own);
    assert_false(tiny_train_ranks(&own, "one", settings, false, 1, NULL, &result, &one));
    long long step = result.step;
    assert_true(step > 0);
    assert_message_has(&one, "per million that are allowed");
    assert_false(tiny_train_ranks(&own, "three", settings, false, 3, NULL, &result, &three));
    assert_string_equal(one.message, three.message);
    assert_int_equal(result.step, step);
    tiny_run_close(&own);
}

static void a_number_that_is_not_finite_ends_all_ranks_with_its_place(void **state) {
    (void)state;
    static const char *const settings[][4] = {{"train.microbatches=4", NULL},
                                              {"train.microbatches=8", "parallel.zero=3", NULL},
                                              {"parallel.pipeline=2", "parallel.zero=1", "train.microbatches=4", NULL},
                                              {"parallel.tensor=2", "parallel.sequence=true", "parallel.zero=2", NULL}};
    train("poisoned", 1, (const char *[]){"train.steps=3", NULL}, false);
    tiny_poison(&shared, "poisoned", "checkpoints/step-00000003", "mae.blocks.0.up.weight");
    for (int i = 0; i < 4; i++) {
        TrainResult result;
        Error error = {0};
        assert_false(tiny_train_ranks(&shared, "poisoned", settings[i], true, 4, NULL, &result, &error));
        assert_message_has(&error, "step 4: the loss is not a finite number; nothing was updated");
        assert_message_has(&error, "of mae.blocks.0.up.weight");
        assert_int_equal(result.step, 3);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lowest_rank_that_failed_speaks_for_all),
        cmocka_unit_test(votes_are_added_up_alike_on_every_rank),
        cmocka_unit_test(a_signal_to_any_one_rank_stops_all_and_the_run_goes_on_from_there),
        cmocka_unit_test(a_signal_in_the_middle_stops_all_ranks_at_the_same_step),
        cmocka_unit_test(ranks_without_pictures_texts_pairs_or_anything_wait_for_nobody),
        cmocka_unit_test(more_ranks_than_rows_of_text_alone_work),
        cmocka_unit_test(validation_is_shared_out_with_the_same_result),
        cmocka_unit_test(wrong_settings_are_refused_on_all_ranks_with_one_message),
        cmocka_unit_test(the_budget_of_bad_samples_counts_over_all_ranks),
        cmocka_unit_test(a_number_that_is_not_finite_ends_all_ranks_with_its_place),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
