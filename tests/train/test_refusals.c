/* Runs that must not begin, or not go on: by their numbers in the list of bad inputs where they have one. */
#include "base/files.h"
#include "tests/train/tiny_run.h"
#include "train/train_config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void assert_refused_on(int ranks, const char *const *settings, const char *part) {
    TrainResult result;
    Error error = {0};
    assert_false(tiny_train_ranks(&shared, "refused", settings, false, ranks, NULL, &result, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, part);
}

// What is seen in the config alone is refused before the run has a folder.
static void assert_nothing_begun(void) {
    char *run = temporary_path(shared.folder, "refused");
    assert_false(folder_exists(run));
    free(run);
}

static void assert_refused(const char *setting, const char *part) {
    assert_refused_on(1, (const char *[]){setting, NULL}, part);
}

// A config with this text.
static void assert_file_refused(const char *text, const char *part) {
    TrainResult result;
    Error error = {0};
    char *config = temporary_path(shared.folder, "bad.yaml"), *run = temporary_path(shared.folder, "refused");
    temporary_write(config, text, strlen(text));
    TrainOptions options = {.config = config, .run = run};
    assert_false(train_run(&options, &result, NULL, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, part);
    free(config);
    free(run);
}

// Whether the run `own` goes on to step 4 with other data under the old names.
static bool goes_on(const TinyRun *own, bool allow, Error *error) {
    static const char *const settings[] = {"train.steps=4", "optimizer.warmup_steps=0"};
    TrainResult result;
    char *run = temporary_path(own->folder, "run");
    TrainOptions options = {
        .overrides = settings, .n_overrides = 2, .run = run, .resume = true, .allow_changed_data = allow};
    Log *log = log_new(LOG_ERROR, stderr);
    bool ok = train_run(&options, &result, log, error);
    log_free(log);
    free(run);
    return ok;
}

static void other_data_is_refused_unless_allowed_68(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    TinyRun own;
    tiny_run_open(&own, 2);
    assert_done(tiny_train(&own, "run", (const char *[]){"train.steps=2", "optimizer.warmup_steps=0", NULL}, false,
                           NULL, &result, &error),
                &error);
    tiny_run_remake_data(&own, 3);
    assert_false(goes_on(&own, false, &error));
    assert_message_has(&error, "--allow-changed-data");
    assert_message_has(&error, "data.0.path");
    assert_done(goes_on(&own, true, &error), &error);
    tiny_run_close(&own);
}

static void an_unknown_key_is_refused_with_a_suggestion_69(void **state) {
    (void)state;
    assert_refused("optimizer.learning_rat=1", "did you mean 'optimizer.learning_rate'");
    assert_refused("checkpoint.keep_evry=1", "did you mean 'checkpoint.keep_every'");
    assert_file_refused("train:\n  stesp: 4\n", "bad.yaml:2:3: unknown key 'train.stesp'; did you mean 'train.steps'");
    assert_nothing_begun();
}

static void a_wrong_type_or_value_is_refused_with_its_line_70(void **state) {
    (void)state;
    assert_file_refused("train:\n  steps: many\n", "bad.yaml:2:10: train.steps is 'many'");
    assert_file_refused("checkpoint:\n  every: 1\n  keep: 0\n", "bad.yaml:3:9: checkpoint.keep is 0");
    assert_refused("checkpoint.keep_every=-1", "allowed is 0 to");
    assert_nothing_begun();
}

static void sizes_that_do_not_divide_are_refused_71(void **state) {
    (void)state;
    assert_refused("model.text.heads=3", "heads");
    assert_refused("model.vision.heads=5", "heads");
    assert_refused("model.vision.patch=7", "patch");
    assert_refused_on(3, (const char *[]){"parallel.tensor=2", NULL}, "parallel.tensor");
    assert_refused_on(4, (const char *[]){"parallel.tensor=4", NULL}, "parallel.tensor");
    assert_nothing_begun();
}

static void a_model_that_does_not_fit_is_refused_with_the_estimate_72(void **state) {
    (void)state;
    assert_refused("model.text.width=1048576", "GiB");
    assert_refused("model.vision.width=1048576", "make model.* or the batches smaller");
    assert_refused("data.0.batch=1048576", "train.microbatches");
    assert_nothing_begun();
}

static void missing_files_are_refused_73(void **state) {
    (void)state;
    TrainResult result;
    Error error = {0};
    assert_refused("data.0.path=/nowhere", "bifocal data build");
    assert_refused("data.2.validation=/nowhere", "data.2.validation: /nowhere");
    assert_refused("tokenizer=/nowhere.model", "/nowhere.model");
    TrainOptions options = {.config = "/nowhere.yaml", .run = "/nowhere"};
    assert_false(train_run(&options, &result, NULL, &error));
    assert_message_has(&error, "/nowhere.yaml");
    assert_nothing_begun();
}

static void settings_that_contradict_each_other_are_refused(void **state) {
    (void)state;
    assert_refused("optimizer.warmup_steps=6", "warmup_steps");
    assert_refused("sequence.caption=17", "sequence.caption");
    assert_refused("model.weight.mae=0", "mae");
    assert_refused("model.freeze=vision,text,mae,connector,contrastive", "nothing to train");
    assert_refused("data.1.answer=", "go together");
    assert_refused("data.1.question={quest", "question of the dataset");
    assert_refused("data.1.objectives=mae", "add caption");
    assert_refused("data.2.one_per=class", "one_per");
    assert_refused("data.0.one_per=class", "set batch to");
    assert_refused("data.0.text={name}", "none of its first samples");
    assert_refused("data.1.answer={name}", "field \"name\"");
    assert_refused("loader.background=#-1-1-1", "#rrggbb");
    assert_refused("model.text.vocabulary=20", "model.text.vocabulary");
}

static void more_datasets_than_a_checkpoint_names_are_refused(void **state) {
    (void)state;
    char settings[2 * MOST_SOURCES][512];
    const char *list[2 * MOST_SOURCES + 1] = {0};
    int n = 0;
    for (int i = 3; i <= MOST_SOURCES; i++) {
        list[n] = settings[n];
        snprintf(settings[n++], sizeof *settings, "data.%d.path=%s/text", i, shared.folder);
        list[n] = settings[n];
        snprintf(settings[n++], sizeof *settings, "data.%d.objectives=lm", i);
    }
    assert_refused_on(1, list, "64 at the most");
}

static void pipelines_that_cannot_be_are_refused_with_what_would_work(void **state) {
    (void)state;
    static const struct {
        int ranks;
        const char *settings[6], *part;
    } cases[] = {
        {3,
         {"parallel.pipeline=2"},
         "3 processes cannot be shared out with parallel.pipeline 2: start a multiple of 2"},
        {2, {"parallel.pipeline=2", "parallel.schedule=zbh1"}, "perhaps zb-h1, one of gpipe"},
        {2, {"parallel.pipeline=2", "parallel.schedule=interleaved", "train.microbatches=5"}, "4 or 6 instead of 5"},
        {2, {"parallel.pipeline=2", "parallel.schedule=1f1b", "parallel.chunks=2"}, "for more take interleaved"},
        {4, {"parallel.pipeline=2", "parallel.zero=2"}, "take parallel.zero 1"},
        {4, {"parallel.pipeline=2", "parallel.zero=3"}, "gathered again for each of its passes"},
        {2, {"parallel.pipeline=2", "parallel.split=vision.blocks.9"}, "the model has no unit 'vision.blocks.9'"},
        {2, {"parallel.pipeline=2", "parallel.split=text.embed,text.head"}, "names 2 units, but 2 parts want 1"},
        {3,
         {"parallel.pipeline=3", "parallel.split=text.head,text.embed"},
         "text.embed does not come behind text.head"},
        {12,
         {"parallel.pipeline=12", "parallel.schedule=interleaved", "train.microbatches=12"},
         "too few for 24 parts; at most"},
        {2, {"parallel.pipeline=2", "parallel.split=cost", "parallel.stage_memory=100000"}, "GiB"},
        {2, {"parallel.pipeline=2", "parallel.split=blocks", "parallel.stage_memory=100000"}, "stage 0 needs"},
        {1, {"train.recompute_units=text.block"}, "no block that is called or lies under 'text.block'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_refused_on(cases[i].ranks, cases[i].settings, cases[i].part);
        assert_nothing_begun();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_data_is_refused_unless_allowed_68),
        cmocka_unit_test(an_unknown_key_is_refused_with_a_suggestion_69),
        cmocka_unit_test(a_wrong_type_or_value_is_refused_with_its_line_70),
        cmocka_unit_test(sizes_that_do_not_divide_are_refused_71),
        cmocka_unit_test(a_model_that_does_not_fit_is_refused_with_the_estimate_72),
        cmocka_unit_test(pipelines_that_cannot_be_are_refused_with_what_would_work),
        cmocka_unit_test(missing_files_are_refused_73),
        cmocka_unit_test(settings_that_contradict_each_other_are_refused),
        cmocka_unit_test(more_datasets_than_a_checkpoint_names_are_refused),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
