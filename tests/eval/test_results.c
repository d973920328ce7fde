/* Metrics, task files, and the file that results go to. */
#include "base/files.h"
#include "eval/results.h"
#include "tests/support/test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void expect_near(double value, double expected) {
    assert_true(fabs(value - expected) < 1e-12 * fmax(1, fabs(expected)));
}

static void the_error_of_a_mean_is_the_sample_deviation_over_root_n(void **state) {
    (void)state;
    Metric m = metric_mean("acc", (double[]){1, 0, 1, 1}, 4, 0.25);
    expect_near(m.value, 0.75);
    expect_near(m.error, 0.25); // sqrt(0.75 / 3) / 2
    assert_true(isnan(metric_mean("acc", (double[]){1}, 1, 0).error));
    assert_true(isnan(metric_mean("acc", NULL, 0, 0).value));
}

static void classes_weigh_the_same(void **state) {
    (void)state;
    double x[] = {1, 1, 1, 0, 0, 1};
    int32_t label[] = {0, 0, 0, 0, 2, 2};
    Metric m = metric_class_mean("recall", x, label, 6, 3, 0); // class 1 has no samples
    expect_near(m.value, (0.75 + 0.5) / 2);
    expect_near(m.error, sqrt(0.25 * 0.25 + 0.5 * 0.5) / 2);
    m = metric_class_mean("recall", (double[]){1, 0, 1}, (int32_t[]){0, 0, 1}, 3, 2, 0);
    expect_near(m.value, 0.75);
    expect_near(m.error, sqrt(0.25 + 0.5) / 2); // the class of one takes the pooled variance, 1/2
}

static void a_ratio_has_its_linearised_error(void **state) {
    (void)state;
    double ratio, error, a[] = {2, 3, 7}, b[] = {1, 2, 3};
    ratio_with_error(a, b, 3, &ratio, &error);
    expect_near(ratio, 2);
    expect_near(error, sqrt(1.5 * (0 + 1 + 1)) / 6);
    ratio_with_error(a, b, 1, &ratio, &error);
    assert_true(isnan(error));
}

static void chance_counts_draws_without_return(void **state) {
    (void)state;
    expect_near(chance_within(1, 1, 100), 0.01);
    expect_near(chance_within(5, 1, 100), 0.05);
    expect_near(chance_within(2, 2, 4), 1 - 2.0 / 4 * 1 / 3);
    expect_near(chance_within(10, 1, 5), 1);
}

static void every_shipped_task_can_be_read(void **state) {
    (void)state;
    Arena *memory = arena_new(1 << 14);
    StringList list = task_list(memory);
    assert_true(list.count >= 10);
    for (int i = 0; i < list.count; i++) {
        Task task;
        Error error = {0};
        assert_done(task_read(&task, list.items[i], memory, &error), &error);
        assert_string_equal(task.name, list.items[i]);
        assert_true(*task.description);
    }
    arena_free(memory);
}

static void expect_bad_task(const char *yaml, const char *part) {
    Arena *memory = arena_new(1 << 14);
    char *folder = temporary_new(), *path = temporary_path(folder, "task.yaml");
    Task task;
    Error error = {0};
    assert_done(file_write(path, yaml, strlen(yaml), &error), &error);
    assert_false(task_read(&task, path, memory, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, part);
    free(path);
    temporary_free(folder);
    arena_free(memory);
}

static void a_wrong_task_file_is_explained(void **state) {
    (void)state;
    expect_bad_task("type: retrieval\nclas_field: x\n", "class_field");
    expect_bad_task("version: 1\n", "type");
    expect_bad_task("type: poetry\n", "poetry");
    expect_bad_task("type: vqa\nbackground: white\n", "#rrggbb");
}

static json_t *results_of(const char *task, double value) {
    Score score = {.original = 10, .effective = 8};
    json_t *results = results_new("runs/first", 0xabc, 400, 32);
    score_add(&score, (Metric){"acc", value, 0.01, 0.25, true});
    score_add(&score, (Metric){"loss", 1.5, NAN, NAN, false});
    results_add(results, &(Task){.name = task, .version = 2, .description = "", .text = "", .type = TASK_CAPTION},
                &score, "data.jsonl", NULL);
    return results;
}

static void results_have_the_known_layout(void **state) {
    (void)state;
    json_t *results = results_of("one", 0.5), *one = json_object_get(json_object_get(results, "results"), "one");
    expect_near(json_get_number(one, "acc,none", NAN), 0.5);
    expect_near(json_get_number(one, "acc_stderr,none", NAN), 0.01);
    expect_near(json_get_number(one, "acc_chance,none", NAN), 0.25);
    assert_string_equal(json_get_string(one, "loss_stderr,none", ""), "N/A");
    assert_null(json_object_get(one, "loss_chance,none"));
    assert_string_equal(json_get_string(one, "alias", ""), "one");
    assert_true(
        json_is_false(json_object_get(json_object_get(json_object_get(results, "higher_is_better"), "one"), "loss")));
    assert_int_equal(json_get_int(json_object_get(json_object_get(results, "n-samples"), "one"), "effective", 0), 8);
    assert_int_equal(json_get_int(json_object_get(results, "versions"), "one", 0), 2);
    static const char *const keys[] = {"configs", "n-shot", "config", "date"};
    for (int i = 0; i < 4; i++) assert_non_null(json_object_get(results, keys[i]));
    Buffer table = {0};
    results_table(results, &table);
    assert_non_null(strstr(table.data, "|Tasks"));
    assert_non_null(strstr(table.data, "|acc                   |↑|  0.5000|±|  0.0100|  0.2500|"));
    assert_non_null(strstr(table.data, "|loss                  |↓|  1.5000|±|     N/A|        |"));
    buffer_free(&table);
    json_decref(results);
}

static void later_results_join_earlier_ones(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "results.json");
    json_t *runs[] = {results_of("one", 0.5), results_of("two", 0.75), results_of("one", 0.25)};
    Error error = {0};
    for (int i = 0; i < 3; i++) assert_done(results_write(path, runs[i], &error), &error);
    json_t *all = json_read_file(path, &error), *results = json_object_get(all, "results");
    assert_int_equal(json_object_size(results), 2);
    expect_near(json_get_number(json_object_get(results, "one"), "acc,none", NAN), 0.25);
    expect_near(json_get_number(json_object_get(results, "two"), "acc,none", NAN), 0.75);
    assert_int_equal(json_object_size(json_object_get(all, "configs")), 2);
    assert_done(file_write(path, "{\"name\": 1}", 11, &error), &error);
    assert_false(results_write(path, runs[0], &error));
    assert_message_has(&error, "not a results file");
    for (int i = 0; i < 3; i++) json_decref(runs[i]);
    json_decref(all);
    free(path);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_error_of_a_mean_is_the_sample_deviation_over_root_n),
        cmocka_unit_test(classes_weigh_the_same),
        cmocka_unit_test(a_ratio_has_its_linearised_error),
        cmocka_unit_test(chance_counts_draws_without_return),
        cmocka_unit_test(every_shipped_task_can_be_read),
        cmocka_unit_test(a_wrong_task_file_is_explained),
        cmocka_unit_test(results_have_the_known_layout),
        cmocka_unit_test(later_results_join_earlier_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
