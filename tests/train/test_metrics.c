/* metrics.jsonl over a stop and a resume. */
#include "base/files.h"
#include "tests/support/test.h"
#include "train/metrics.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *folder;

static int make_folder(void **state) {
    (void)state;
    folder = temporary_new();
    return 0;
}
static int remove_folder(void **state) {
    (void)state;
    temporary_free(folder);
    return 0;
}

static void write_steps(int64_t keep, int first, int last) {
    Error error = {0};
    Metrics *m = metrics_open(folder, keep, &error);
    assert_non_null(m);
    for (int i = first; i <= last; i++)
        assert_true(metrics_write(m, json_pack("{s:i, s:f}", "step", i, "loss", 1.0 / i), &error));
    metrics_close(m);
}

static int count_steps(void) {
    Error error = {0};
    Buffer text = {0};
    char path[128];
    int lines = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    assert_true(file_read(path, &text, &error));
    for (const char *p = text.data; (p = strchr(p, '\n')); p++) lines++;
    buffer_free(&text);
    return lines;
}

static void records_behind_the_checkpoint_are_dropped_on_resume(void **state) {
    (void)state;
    write_steps(0, 1, 10);
    write_steps(6, 7, 8);
    assert_int_equal(count_steps(), 8);
}

static void a_line_cut_short_is_dropped(void **state) {
    (void)state;
    char path[128];
    write_steps(0, 1, 3);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *f = fopen(path, "a");
    assert_non_null(f);
    fputs("{\"step\": 4, \"lo", f);
    fclose(f);
    write_steps(3, 4, 4);
    assert_int_equal(count_steps(), 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(records_behind_the_checkpoint_are_dropped_on_resume, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_line_cut_short_is_dropped, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
