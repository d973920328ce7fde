/* JSON and JSON lines: places in messages, and going on behind a damaged line. */
#include "base/files.h"
#include "base/json.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

static void refused(const char *text, size_t size, const char *part) {
    Error error = {0};
    assert_null(json_parse(text, size, "x.json", &error));
    assert_message_has(&error, part);
    assert_message_has(&error, "x.json:");
}

static void damage_is_named_with_its_place(void **state) {
    (void)state;
    refused("{\"a\": 1,\n \"b\" 2}", 16, "x.json:2:");
    refused("{\"a\": 1, \"a\": 2}", 16, "duplicate");
    refused("{\"a\": \"\xFF\"}", 10, "decode byte 0xff");
    refused("{\"a\": \"\xC0\x80\"}", 11, "decode byte 0xc0");
    refused("{\"a\": 1", 7, "x.json:1:");
    refused("{} x", 4, "x.json:1:");
    refused("", 0, "x.json:");
    refused("{\"a\": 99999999999999999999}", 27, "big");
    refused("{\"a\": 1e999}", 12, "overflow");
}

static void nesting_is_bounded(void **state) {
    (void)state;
    Buffer text = {0};
    Error error = {0};
    buffer_printf(&text, "{\"a\": \"[[[[\\\"[[[[\", \"b\": ");
    size_t start = text.size;
    for (int depth = 63; depth <= 64; depth++) {
        text.size = start;
        for (int i = 0; i < depth; i++) buffer_text(&text, "[");
        for (int i = 0; i < depth; i++) buffer_text(&text, "]");
        buffer_text(&text, "}");
        json_t *value = json_parse(text.data, text.size, "deep", &error);
        assert_int_equal(value != NULL, depth == 63);
        json_decref(value);
    }
    assert_message_has(&error, "64 levels");
    buffer_clear(&text);
    for (int i = 0; i < 1000000; i++) buffer_text(&text, "[");
    assert_null(json_parse(text.data, text.size, "bomb", &error));
    buffer_free(&text);
}

static void values_have_fallbacks(void **state) {
    (void)state;
    Error error = {0};
    const char *text = "{\"s\": \"x\", \"i\": 9007199254740993, \"r\": 0.5}";
    json_t *value = json_parse(text, strlen(text), "values", &error);
    assert_non_null(value);
    assert_string_equal(json_get_string(value, "s", "none"), "x");
    assert_string_equal(json_get_string(value, "i", "none"), "none");
    assert_int_equal(json_get_int(value, "i", 0), 9007199254740993);
    assert_int_equal(json_get_int(value, "r", 7), 7);
    assert_true(json_get_number(value, "r", 0) == 0.5);
    assert_true(json_get_number(value, "absent", 0.25) == 0.25);
    json_decref(value);
}

static void a_written_value_reads_back(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "value.json");
    json_t *value = json_pack("{s:f, s:[i, s], s:n}", "third", 1.0 / 3, "list", 1, "\xE9\xA3\x9F\n", "nothing");
    assert_done(json_write_file(path, value, &error), &error);
    json_t *again = json_read_file(path, &error);
    assert_true(again && json_equal(value, again));
    json_decref(again);
    json_decref(value);
    assert_null(json_read_file(folder, &error));
    free(path);
    temporary_free(folder);
}

// Reads all lines; damaged ones are written as the number of the line with a minus.
static void read_numbers(const char *path, int64_t *numbers, int most, int *count) {
    Error error = {0};
    JsonLines *lines = json_lines_open(path, &error);
    json_t *value = NULL;
    assert_non_null(lines);
    for (*count = 0; *count < most; ++*count) {
        bool ok = json_lines_next(lines, &value, &error);
        if (ok && !value) break;
        numbers[*count] = ok ? json_get_int(value, "n", 0) : -json_lines_number(lines);
        if (!ok) assert_message_has(&error, path);
        json_decref(value);
    }
    json_lines_close(lines);
}

static void reading_goes_on_behind_a_damaged_line(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "lines.jsonl");
    Buffer text = {0};
    int64_t numbers[16];
    int count;
    buffer_text(&text, "\xEF\xBB\xBF{\"n\": 1}\r\n\n   \r\n{\"n\": 4}\n{\"n\": 5\n[6]\n{\"n\": 7}\n");
    buffer_append(&text, "{\"n\": \0}\n", 9);
    buffer_printf(&text, "{\"n\": 9, \"pad\": \"%0*d\"}\n{\"n\": 10}", 200000,
                  0); // longer than a block; no end of line
    assert_done(file_write(path, text.data, text.size, &error), &error);
    read_numbers(path, numbers, 16, &count);
    static const int64_t expected[] = {1, 4, -5, -6, 7, -8, 9, 10};
    assert_int_equal(count, 8);
    assert_memory_equal(numbers, expected, sizeof expected);
    buffer_free(&text);
    free(path);
    temporary_free(folder);
}

static void a_line_without_end_is_passed_over(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_new(), *path = temporary_path(folder, "lines.jsonl");
    Buffer text = {0};
    int64_t numbers[4];
    int count;
    buffer_reserve(&text, 70 << 20);
    memset(text.data, 'x', 70 << 20);
    text.size = 70 << 20;
    buffer_text(&text, "\n{\"n\": 2}\n");
    assert_done(file_write(path, text.data, text.size, &error), &error);
    read_numbers(path, numbers, 4, &count);
    assert_int_equal(count, 2);
    assert_int_equal(numbers[0], -1);
    assert_int_equal(numbers[1], 2);
    assert_null(json_lines_open(folder + 1, &error));
    json_lines_close(NULL);
    buffer_free(&text);
    free(path);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_is_named_with_its_place),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(values_have_fallbacks),
        cmocka_unit_test(a_written_value_reads_back),
        cmocka_unit_test(reading_goes_on_behind_a_damaged_line),
        cmocka_unit_test(a_line_without_end_is_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
