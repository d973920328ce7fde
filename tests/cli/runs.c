/* See runs.h. */
#include "tests/cli/runs.h"
#include "base/files.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *run_path(const char *project, const char *run, const char *name) {
    char *folder = temporary_path(project, run), *path = temporary_path(folder, name);
    free(folder);
    return path;
}

int run_lines(const char *project, const char *run) {
    Buffer text = {0};
    Error ignored = {0};
    char *path = run_path(project, run, "metrics.jsonl");
    int lines = 0;
    if (file_read(path, &text, &ignored))
        for (size_t i = 0; i < text.size; i++) lines += text.data[i] == '\n';
    buffer_free(&text);
    free(path);
    return lines;
}

void run_wait_for_lines(const char *project, const char *run, int lines) {
    for (int i = 0; i < 60000 && run_lines(project, run) < lines; i++) usleep(1000);
    assert_true(run_lines(project, run) >= lines);
}

int run_records(const char *project, const char *run, json_t *records[MOST_RECORDS]) {
    Error error = {0};
    char *path = run_path(project, run, "metrics.jsonl");
    int count = 0;
    JsonLines *lines = json_lines_open(path, &error);
    assert_done(lines != NULL, &error);
    while (count < MOST_RECORDS && json_lines_next(lines, &records[count], &error) && records[count]) {
        json_object_del(records[count], "seconds");
        json_object_del(records[count], "waited");
        json_object_del(records[count], "communication");
        count++;
    }
    json_lines_close(lines);
    free(path);
    return count;
}

void assert_same_runs(const char *project, const char *a, const char *b, int steps) {
    json_t *x[MOST_RECORDS], *y[MOST_RECORDS];
    int n = run_records(project, a, x), m = run_records(project, b, y);
    assert_int_equal(n, steps);
    assert_int_equal(m, steps);
    for (int i = 0; i < n; i++) {
        assert_int_equal(json_get_int(x[i], "step", -1), i + 1);
        assert_true(json_equal(x[i], y[i]));
        json_decref(x[i]);
        json_decref(y[i]);
    }
}

void assert_same_files(const char *project, const char *a, const char *b) {
    Buffer x = {0}, y = {0};
    Error error = {0};
    char *first = temporary_path(project, a), *second = temporary_path(project, b);
    assert_done(file_read(first, &x, &error) && file_read(second, &y, &error), &error);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    buffer_free(&x);
    buffer_free(&y);
    free(first);
    free(second);
}

void assert_same_checkpoints(const char *project, const char *a, const char *b) {
    Error error = {0};
    char *folder = temporary_path(project, a), **names;
    int count, compared = 0;
    assert_done(folder_list(folder, &names, &count, &error), &error);
    for (int i = 0; i < count; i++) {
        if (strcmp(path_extension(names[i]), "safetensors") != 0) continue;
        char *first = temporary_path(a, names[i]), *second = temporary_path(b, names[i]);
        assert_same_files(project, first, second);
        compared++;
        free(first);
        free(second);
    }
    assert_true(compared >= 2); // weights and the optimizer's states
    names_free(names, count);
    free(folder);
}
