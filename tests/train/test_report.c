/* The page about a run: what comes from files and models is text in it, never HTML. */
#include "train/report.h"
#include "base/buffer.h"
#include "base/files.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

static void put(const char *folder, const char *name, const char *text) {
    char *path = temporary_path(folder, name);
    temporary_write(path, text, strlen(text));
    free(path);
}

static Buffer page_of(const char *run, const ReportSample *samples, int count) {
    Error error = {0};
    Buffer page = {0};
    char *path = temporary_path(run, "report.html");
    assert_done(report_write(run, samples, count, NULL, &error), &error);
    assert_done(file_read(path, &page, &error), &error);
    free(path);
    return page;
}

static void nothing_from_outside_becomes_html(void **state) {
    (void)state;
    Error error = {0};
    char *run = temporary_new(), *eval = temporary_path(run, "eval");
    char picture[] = "data:image/png;base64,AAAA", evil[] = "<script>\"&x</script>";
    assert_done(folder_create(eval, &error), &error);
    put(run, "metrics.jsonl", "{\"step\":1,\"loss\":2.5,\"loss/<script>\":1,\"loss/lm\":1,\"seconds\":0.5}\n");
    put(run, "config.yaml", "tokenizer: '<script>'\n");
    put(run, "eval/results.json", "{\"results\":{\"<script>\":{\"<script>,none\":0.5,\"<script>_stderr,none\":0.1}}}");
    ReportSample sample = {picture, evil, evil, evil, evil, evil};
    Buffer page = page_of(run, &sample, 1);
    assert_null(strstr(page.data, "<script"));
    assert_non_null(strstr(page.data, "&lt;script&gt;&quot;&amp;x&lt;/script&gt;"));
    assert_non_null(strstr(page.data, "0.1000")); // the standard error is found beside its metric
    assert_non_null(strstr(page.data, "last loss 2.5000"));
    buffer_free(&page);
    free(eval);
    temporary_free(run);
}

static void a_run_without_a_step_has_a_page(void **state) {
    (void)state;
    char *run = temporary_new();
    put(run, "metrics.jsonl", "");
    Buffer page = page_of(run, NULL, 0);
    assert_non_null(strstr(page.data, "</html>"));
    buffer_free(&page);
    temporary_free(run);
}

static void a_folder_that_is_no_run_is_refused(void **state) {
    (void)state;
    Error error = {0};
    char *run = temporary_new();
    assert_false(report_write(run, NULL, 0, NULL, &error));
    assert_message_has(&error, "not a run");
    temporary_free(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_from_outside_becomes_html),
        cmocka_unit_test(a_run_without_a_step_has_a_page),
        cmocka_unit_test(a_folder_that_is_no_run_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
