/* Configuration: values and their ranges, overrides, lists, suggestions, and the way back to YAML. */
#include "base/config.h"
#include "base/files.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

typedef struct Source {
    const char *path;
    double weight;
    unsigned objectives;
} Source;

typedef struct Settings {
    int64_t steps;
    double learning_rate;
    bool save;
    const char *name;
    int style;
    StringList prompts;
    ConfigList data;
    int64_t width;
} Settings;

#define SOURCE(name, type, field, fallback, choices)                                                                   \
    { name, type, offsetof(Source, field), fallback, 0, 0, choices, NULL, "", "help of " name }
static const ConfigKey source_keys[] = {
    SOURCE("path", CONFIG_STRING, path, NULL, NULL),
    SOURCE("weight", CONFIG_FLOAT, weight, "1", NULL),
    SOURCE("objectives", CONFIG_CHOICES, objectives, "lm,mae", "lm|caption|mae"),
};
static const ConfigSchema source_schema = {source_keys, 3, sizeof(Source)};

static const ConfigKey keys[] = {
    {"train.steps", CONFIG_INT, offsetof(Settings, steps), "100", 1, 1000000, NULL, NULL, "steps", "length of the run"},
    {"train.learning_rate", CONFIG_FLOAT, offsetof(Settings, learning_rate), "1e-3", 0, 1, NULL, NULL, "", "peak"},
    {"train.save", CONFIG_BOOL, offsetof(Settings, save), "true", 0, 0, NULL, NULL, "", "keep checkpoints"},
    {"model.name", CONFIG_STRING, offsetof(Settings, name), "small", 0, 0, NULL, NULL, "", "of the model"},
    {"model.text.style", CONFIG_CHOICE, offsetof(Settings, style), "gpt2", 0, 0, "gpt2|llama", NULL, "", "blocks"},
    {"prompts", CONFIG_STRINGS, offsetof(Settings, prompts), "", 0, 0, NULL, NULL, "", "templates"},
    {"data", CONFIG_LIST, offsetof(Settings, data), NULL, 0, 0, NULL, &source_schema, "", "datasets"},
    {"model.text.width", CONFIG_INT, offsetof(Settings, width), "64", 0, 0, NULL, NULL, "channels", "of the text"},
};
static const ConfigSchema schema = {keys, sizeof keys / sizeof *keys, sizeof(Settings)};

typedef struct Fixture {
    char *folder, *path;
    Arena *arena;
    Settings settings;
    Error error;
} Fixture;

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    f->folder = temporary_new();
    f->path = temporary_path(f->folder, "run.yaml");
    f->arena = arena_new(0);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    temporary_free(f->folder);
    arena_free(f->arena);
    free(f->path);
    free(f);
    return 0;
}

// The file (NULL: none), then one override (NULL: none).
static bool reads(Fixture *f, const char *yaml, const char *override) {
    if (yaml) temporary_write(f->path, yaml, strlen(yaml));
    f->error = (Error){0};
    return config_read(&schema, yaml ? f->path : NULL, &override, override != NULL, &f->settings, f->arena, &f->error);
}

#define DATA "data: [{path: a}]\n"

static void a_file_sets_what_it_names_and_leaves_the_rest(void **state) {
    Fixture *f = *state;
    Settings *s = &f->settings;
    assert_done(reads(f,
                      "train: {steps: 7, save: false}\n"
                      "model:\n  text.style: llama # a dotted name\n  text:\n    width: -3\n"
                      "prompts: ['a photo of {}, big', \"\\u98df\"]\n"
                      "data:\n  - path: /one\n  - {path: 'two, too', weight: 2.5, objectives: [caption]}\n",
                      NULL),
                &f->error);
    assert_int_equal(s->steps, 7);
    assert_false(s->save);
    assert_true(s->learning_rate == 1e-3);
    assert_string_equal(s->name, "small");
    assert_int_equal(s->style, 1);
    assert_int_equal(s->width, -3);
    assert_int_equal(s->prompts.count, 2);
    assert_string_equal(s->prompts.items[0], "a photo of {}, big");
    assert_string_equal(s->prompts.items[1], "\xE9\xA3\x9F");
    const Source *sources = s->data.items;
    assert_int_equal(s->data.count, 2);
    assert_string_equal(sources[0].path, "/one");
    assert_int_equal(sources[0].objectives, 5);
    assert_string_equal(sources[1].path, "two, too");
    assert_true(sources[1].weight == 2.5);
    assert_int_equal(sources[1].objectives, 2);
}

static void overrides_win_in_order(void **state) {
    static const char *const overrides[] = {
        "train.steps=5",         "data.0.path=first", "data.1.path=second",  "train.steps=6",
        "data.1.objectives=mae", "data.0.path=third", "prompts=one,two b=c", "model.name=",
    };
    Fixture *f = *state;
    assert_done(file_write(f->path, "train:\n  steps: 4\n", 18, &f->error), &f->error);
    assert_done(config_read(&schema, f->path, overrides, 8, &f->settings, f->arena, &f->error), &f->error);
    const Source *sources = f->settings.data.items;
    assert_int_equal(f->settings.steps, 6);
    assert_int_equal(f->settings.data.count, 2);
    assert_string_equal(sources[0].path, "third");
    assert_string_equal(sources[1].path, "second");
    assert_int_equal(sources[1].objectives, 4);
    assert_int_equal(f->settings.prompts.count, 2);
    assert_string_equal(f->settings.prompts.items[1], "two b=c");
    assert_string_equal(f->settings.name, "");
    assert_done(reads(f, DATA, "prompts=[\"a, b\", c]"), &f->error);
    assert_string_equal(f->settings.prompts.items[0], "a, b");
    assert_done(reads(f, NULL, "data=[{path: x}, {path: y}]"), &f->error);
    assert_int_equal(f->settings.data.count, 2);
}

static void refused(Fixture *f, const char *yaml, const char *override, const char *where, const char *what) {
    if (reads(f, yaml, override)) fail_msg("accepted: %s %s", yaml ? yaml : "", override ? override : "");
    assert_int_equal(f->error.kind, ERROR_USAGE);
    assert_message_has(&f->error, where);
    assert_message_has(&f->error, what);
}

static void an_unknown_key_is_an_error_with_a_suggestion(void **state) {
    Fixture *f = *state;
    refused(f, "train:\n  stesp: 4\n", NULL, "run.yaml:2:3", "unknown key 'train.stesp'; did you mean 'train.steps'?");
    refused(f, "trian:\n  steps: 4\n", NULL, "run.yaml:1:1", "did you mean 'train'?");
    refused(f, "data:\n  - path: a\n    wieght: 1\n", NULL, "run.yaml:3:5", "did you mean 'data.0.weight'?");
    refused(f, DATA, "learning_rate=1", "override 'learning_rate=1'", "did you mean 'train.learning_rate'?");
    refused(f, DATA, "elephant=1", "override 'elephant=1'", "unknown key 'elephant'; --help lists all keys");
}

static void a_wrong_type_or_range_is_an_error_with_the_line(void **state) {
    Fixture *f = *state;
    refused(f, "train:\n  steps: many\n", NULL, "run.yaml:2:10", "train.steps is 'many', a whole number was expected");
    refused(f, "train:\n  steps: 1.5\n", NULL, "run.yaml:2:10", "whole number");
    refused(f, "train:\n  steps: 99999999999999999999\n", NULL, "run.yaml:2:10", "whole number");
    refused(f, "train:\n  steps: 0\n", NULL, "run.yaml:2:10", "allowed is 1 to 1000000 steps");
    refused(f, "train:\n  steps:\n", NULL, "run.yaml:2", "whole number");
    refused(f, "train:\n  steps: [1]\n", NULL, "run.yaml:2:10", "single value");
    refused(f, "train: {learning_rate: .nan}\n", NULL, "run.yaml:1:24", "a number was expected");
    refused(f, "train: {learning_rate: inf}\n", NULL, "run.yaml:1:24", "a number was expected");
    refused(f, "train: {learning_rate: 1.5}\n", NULL, "run.yaml:1:24", "allowed is 0 to 1");
    refused(f, "train: {save: yes}\n", NULL, "run.yaml:1:15", "true or false");
    refused(f, "model: {text: {style: lama}}\n", NULL, "run.yaml:1:23", "perhaps llama, one of gpt2|llama");
    refused(f, "train: 4\n", NULL, "run.yaml:1:8", "'train' is a section");
    refused(f, "prompts: {a: b}\n", NULL, "run.yaml:1:10", "prompts must be a list");
    refused(f, "data: {path: a}\n", NULL, "run.yaml:1:7", "list of maps");
    refused(f, "data: [a]\n", NULL, "run.yaml:1:8", "data.0 must be a map");
    refused(f, "- a\n", NULL, "run.yaml:1:1", "keys were expected");
    refused(f, DATA, "train.steps=x", "override 'train.steps=x'", "whole number");
    refused(f, DATA, "data.2.path=x", "override 'data.2.path=x'", "data has 1 items, the next is data.1");
    refused(f, DATA, "train.steps", "override 'train.steps'", "section.key=value was expected");
    refused(f, DATA, "prompts=[a", "override 'prompts=[a'", "");
}

static void what_must_be_given_is_missed_by_name(void **state) {
    Fixture *f = *state;
    refused(f, "", NULL, "run.yaml", "'data' must be given: datasets");
    refused(f, NULL, NULL, "configuration", "'data' must be given");
    refused(f, "data:\n  - weight: 2\n", NULL, "run.yaml:2:5", "'data.0.path' must be given");
    assert_false(config_read(&schema, "no/such.yaml", NULL, 0, &f->settings, f->arena, &f->error));
    assert_int_equal(f->error.kind, ERROR_USAGE);
    assert_message_has(&f->error, "no/such.yaml: cannot open: No such file");
}

static void damaged_yaml_is_named_with_its_place(void **state) {
    Fixture *f = *state;
    refused(f, "train:\n  steps: 1\n  steps: 2\n", NULL, "run.yaml:3:3", "'steps' is already given at");
    refused(f, "train: &x\n  steps: 1\n", NULL, "run.yaml:1:", "anchors");
    refused(f, "model: {name: *x}\n", NULL, "run.yaml:1:", "aliases");
    refused(f, "train:\n\tsteps: 1\n", NULL, "run.yaml:2:1", "tab");
    refused(f, "prompts: [a\n", NULL, "run.yaml:2:1", "");
    refused(f, "---\ntrain:\n---\ntrain:\n", NULL, "run.yaml", "more than one");
    refused(f, "? [a]\n: b\n", NULL, "run.yaml:1:3", "key must be a word");
    refused(f, "model: {name: \"\\0\"}\n", NULL, "run.yaml:1:", "zero byte");
    refused(f, "train:\n%YAML 1.2", NULL, "run.yaml:2:", "directive");
    refused(f, "model:\n  name: \xFF\n", NULL, "run.yaml:2:", "not UTF-8");
    Buffer deep = {0};
    for (int i = 0; i < 200; i++) buffer_text(&deep, "[");
    refused(f, deep.data, NULL, "run.yaml", "");
    buffer_free(&deep);
}

static void what_is_written_reads_back(void **state) {
    Fixture *f = *state;
    Buffer first = {0}, second = {0};
    assert_done(reads(f,
                      "train: {steps: 12, learning_rate: 0.1234567890123456, save: false}\n"
                      "model: {name: \"null: - #\\\"\\\\ \\n\\t \\u2603\", text: {style: llama}}\n"
                      "prompts: ['', ' ', 'true', '- a', '~', '{}', '[x]', 'a: b', '1']\n"
                      "data: [{path: a/b.c, weight: 1e-30, objectives: []}, {path: ''}]\n",
                      NULL),
                &f->error);
    Settings before = f->settings;
    config_write(&schema, &before, &first);
    assert_done(reads(f, first.data, NULL), &f->error);
    config_write(&schema, &f->settings, &second);
    assert_string_equal(first.data, second.data);
    assert_true(f->settings.learning_rate == before.learning_rate);
    assert_string_equal(f->settings.name, before.name);
    for (int i = 0; i < before.prompts.count; i++)
        assert_string_equal(f->settings.prompts.items[i], before.prompts.items[i]);
    assert_true(((Source *)f->settings.data.items)[0].weight == 1e-30);
    assert_int_equal(((Source *)f->settings.data.items)[0].objectives, 0);
    buffer_free(&first);
    buffer_free(&second);
}

static void defaults_and_help_come_from_the_table(void **state) {
    Fixture *f = *state;
    Buffer help = {0};
    config_defaults(&schema, &f->settings, f->arena);
    assert_int_equal(f->settings.steps, 100);
    assert_int_equal(f->settings.data.count, 0);
    config_help(&schema, &help);
    for (int i = 0; i < schema.count; i++) {
        assert_non_null(strstr(help.data, keys[i].name));
        assert_non_null(strstr(help.data, keys[i].help));
    }
    assert_non_null(strstr(help.data, "data.N.weight=1"));
    assert_non_null(strstr(help.data, "from 1 to 1000000, steps"));
    buffer_free(&help);
}

static void the_nearest_word_is_near(void **state) {
    (void)state;
    static const char *const words[] = {"learning_rate", "steps", "warmup_steps", "seed"};
    assert_string_equal(nearest_word("step", words, 4), "steps");
    assert_string_equal(nearest_word("sede", words, 4), "seed");
    assert_string_equal(nearest_word("lerning_rate", words, 4), "learning_rate");
    assert_null(nearest_word("elephant", words, 4));
    assert_null(nearest_word("", words, 4));
    char longest[5000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_null(nearest_word(longest, words, 4));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_file_sets_what_it_names_and_leaves_the_rest),
        TEST(overrides_win_in_order),
        TEST(an_unknown_key_is_an_error_with_a_suggestion),
        TEST(a_wrong_type_or_range_is_an_error_with_the_line),
        TEST(what_must_be_given_is_missed_by_name),
        TEST(damaged_yaml_is_named_with_its_place),
        TEST(what_is_written_reads_back),
        TEST(defaults_and_help_come_from_the_table),
        TEST(the_nearest_word_is_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
