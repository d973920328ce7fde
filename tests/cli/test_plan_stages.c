/* `bifocal plan stages`: what it prints, draws and refuses, for a run whose data is not there. */
#include "base/files.h"
#include "tests/cli/command.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static char *folder;

static const char CONFIG[] = "tokenizer: none.model\n"
                             "data:\n"
                             "  - {path: pictures, objectives: [caption, contrastive], batch: 8}\n"
                             "  - {path: text, objectives: [lm], batch: 10}\n"
                             "sequence: {lm: 32, caption: 64, contrastive: 16}\n"
                             "model:\n"
                             "  weight: {lm: 1, caption: 1, contrastive: 1}\n"
                             "  embedding: 32\n"
                             "  vision: {enabled: true, image_size: 32, patch: 8, width: 64, layers: 12, heads: 2}\n"
                             "  text: {vocabulary: 300, context: 64, width: 64, layers: 6, heads: 2}\n"
                             "train: {microbatches: 10}\n";

static int open_folder(void **state) {
    Error error = {0};
    (void)state;
    folder = temporary_new();
    char *path = temporary_path(folder, "run.yaml");
    bool ok = file_write(path, CONFIG, strlen(CONFIG), &error);
    free(path);
    return ok ? 0 : -1;
}
static int close_folder(void **state) {
    (void)state;
    temporary_free(folder);
    return 0;
}

static void units_stages_and_what_they_give_are_printed(void **state) {
    (void)state;
    assert_prints("24 units in 2 parts on 2 stages, 1f1b, 10 microbatches", folder, "plan", "stages", "run.yaml",
                  "--stages", "2", "--schedule", "1f1b");
    assert_prints("vision.blocks.0 .. 11", folder, "plan", "stages", "run.yaml", "parallel.pipeline=2");
    assert_prints("80%", folder, "plan", "stages", "run.yaml", "--stages", "2"); // of the microbatches have pictures
    assert_prints("by equal numbers of blocks", folder, "plan", "stages", "run.yaml", "--stages", "3");
    assert_prints("modelled at 1.5 TFLOP/s and 300 GB/s", folder, "plan", "stages", "run.yaml", "--stages", "2",
                  "--flops", "1.5", "--bandwidth", "300");
}

static json_t *plan(const char *first, const char *second, const char *third) {
    return command_json(0, folder,
                        WORDS("plan", "stages", "run.yaml", "--stages", "3", "--json", first, second, third));
}

static double number(const json_t *plan, const char *name) { return json_get_number(plan, name, NAN); }

static void json_has_units_and_both_splits(void **state) {
    (void)state;
    json_t *all = plan("--schedule=zb-h1", "--flops=0.01", "--send=0.001"), *units = json_object_get(all, "units");
    json_t *by_cost = json_object_get(all, "by_cost"), *by_blocks = json_object_get(all, "by_blocks");
    assert_int_equal(json_array_size(units), 24);
    assert_true(number(json_array_get(units, 1), "microbatches") == 0.8);
    assert_true(number(by_cost, "time") <= number(by_blocks, "time"));
    double work = 0;
    for (size_t i = 0; i < 3; i++) {
        const json_t *stage = json_array_get(json_object_get(by_cost, "stages"), i);
        work += number(stage, "work");
        assert_true(number(stage, "bubble") >= 0 && number(stage, "bubble") < 1 && number(stage, "activations") > 0);
    }
    assert_true(fabs(work / number(all, "alone") - 1) <= 1e-9);
    assert_true(fabs(number(by_cost, "bubble") - (1 - work / (3 * number(by_cost, "time")))) <= 1e-9);
    assert_int_equal(json_array_size(json_object_get(by_cost, "first")), 4);
    json_decref(all);
}

static void the_split_it_prints_is_one_that_a_run_takes(void **state) {
    (void)state;
    json_t *all = plan("--schedule=zb-v", "--microbatches=20", "--measure");
    const char *split = json_get_string(json_object_get(all, "by_cost"), "split", "");
    int commas = 0;
    for (const char *c = split; *c; c++) commas += *c == ',';
    assert_int_equal(commas, 4); // names of all parts but the first, of six
    json_decref(all);
}

static void both_timelines_are_drawn_into_a_file(void **state) {
    (void)state;
    char *path = temporary_path(folder, "split.svg");
    Buffer svg = {0};
    Error error = {0};
    assert_prints("by cost", folder, "plan", "stages", "run.yaml", "--stages", "2", "--svg", "split.svg");
    assert_done(file_read(path, &svg, &error), &error);
    buffer_append(&svg, "", 1);
    assert_true(strstr(svg.data, "split by cost") && strstr(svg.data, "split by equal numbers of blocks"));
    buffer_free(&svg);
    free(path);
}

static void what_does_not_fit_is_refused_with_what_would(void **state) {
    (void)state;
#define PLAN "plan", "stages", "run.yaml"
    assert_refuses(2, "one stage is no pipeline", folder, PLAN);
    assert_refuses(2, "at most 24 stages would do", folder, PLAN, "--stages", "25");
    assert_refuses(2, "wants microbatches in groups of 4", folder, PLAN, "--stages", "4", "--schedule", "interleaved");
    assert_refuses(2, "the best has", folder, PLAN, "--stages", "2", "--memory", "0.0001");
    assert_refuses(2, "no parameter is called", folder, PLAN, "--stages", "2", "model.freeze=[eye]");
    assert_refuses(2, "zb-h2", folder, PLAN, "--stages", "2", "--schedule", "zbh2");
    assert_refuses(2, "--memory '-1'", folder, PLAN, "--stages", "2", "--memory", "-1");
    assert_refuses(2, "CONFIG is missing", folder, "plan", "stages", "--stages", "2");
    assert_refuses(2, "a second CONFIG", folder, PLAN, "other.yaml");
    assert_refuses(2, "did you mean '--stages'", folder, PLAN, "--stage_", "2");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_stages_and_what_they_give_are_printed),
        cmocka_unit_test(json_has_units_and_both_splits),
        cmocka_unit_test(the_split_it_prints_is_one_that_a_run_takes),
        cmocka_unit_test(both_timelines_are_drawn_into_a_file),
        cmocka_unit_test(what_does_not_fit_is_refused_with_what_would),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
