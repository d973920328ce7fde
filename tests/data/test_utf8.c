/* UTF-8 and lines: what is valid, blank and which script; lines come as they are in flat memory. */
#include "data/lines.h"
#include "data/utf8.h"
#include "tests/data/samples.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

static void overlong_surrogate_and_cut_sequences_are_not_valid(void **state) {
    (void)state;
    static const char *const good[] = {"",
                                       "abc",
                                       "\xC2\x80",
                                       "\xE0\xA0\x80",
                                       "\xED\x9F\xBF",
                                       "\xEF\xBF\xBF",
                                       "\xF0\x90\x80\x80",
                                       "\xF4\x8F\xBF\xBF",
                                       "图中有三个圆形"};
    static const char *const bad[] = {"\x80",
                                      "\xC0\xAF",
                                      "\xC1\xBF",
                                      "\xC3",
                                      "\xE0\x9F\xBF",
                                      "\xE2\x82",
                                      "\xED\xA0\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "ok\xE2\x82x"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(utf8_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (utf8_valid(bad[i], strlen(bad[i]))) fail_msg("bad text %zu passed", i);
}

static void white_space_of_any_kind_is_blank(void **state) {
    (void)state;
    static const char *const blank[] = {"", " \t\r\n", "\u3000\u00A0\u2003", "\uFEFF", "\u200B"};
    static const char *const not_blank[] = {".", " \u3000x", "图"};
    for (size_t i = 0; i < sizeof blank / sizeof *blank; i++) assert_true(utf8_blank(blank[i], strlen(blank[i])));
    for (size_t i = 0; i < sizeof not_blank / sizeof *not_blank; i++)
        assert_false(utf8_blank(not_blank[i], strlen(not_blank[i])));
}

static void characters_and_scripts_are_told(void **state) {
    (void)state;
    static const struct {
        const char *text, *script;
        size_t characters;
    } texts[] = {
        {"a red circle", "latin", 12}, {"一个红色圆形。", "zh", 7},      {"これは円です", "ja", 6},
        {"日本語の文字", "ja", 6},     {"красный круг", "cyrillic", 12}, {"빨간 원", "ko", 4},
        {"12 345 !?", "none", 9},      {"déjà vu", "latin", 7},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t n = strlen(texts[i].text);
        assert_string_equal(utf8_script(texts[i].text, n), texts[i].script);
        assert_int_equal(utf8_count(texts[i].text, n), texts[i].characters);
    }
}

static void lines_come_as_they_are(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "t");
    Buffer line = {0};
    Error error = {0};
    bool found, too_long;
    int64_t count;
    put_bytes(folder, "t", "one\n\r\n\0two", 10);
    Lines *lines = lines_open(path, 100, &error);
    assert_done(lines != NULL, &error);
    static const struct {
        const char *bytes;
        size_t size;
    } expected[] = {{"one\n", 4}, {"\r\n", 2}, {"\0two", 4}};
    for (int i = 0; i < 3; i++) {
        assert_done(lines_next(lines, &line, &found, &too_long, &error), &error);
        assert_true(found && !too_long);
        assert_int_equal(line.size, expected[i].size);
        assert_memory_equal(line.data, expected[i].bytes, line.size);
        assert_int_equal(lines_number(lines), i + 1);
    }
    assert_true(lines_next(lines, &line, &found, &too_long, &error) && !found);
    assert_true(lines_count(path, &count, &error));
    assert_int_equal(count, 3);
    buffer_free(&line);
    lines_close(lines);
    free(path);
    temporary_free(folder);
}

static void a_line_that_is_too_long_is_passed_over_in_flat_memory(void **state) {
    (void)state;
    enum { LONG = 3 << 20 };
    char *folder = temporary_new(), *path = temporary_path(folder, "t"), *text = malloc(LONG + 6);
    Buffer line = {0};
    Error error = {0};
    bool found, too_long;
    memset(text, 'x', LONG);
    memcpy(text + LONG, "\nnext\n", 6);
    put_bytes(folder, "t", text, LONG + 6);
    Lines *lines = lines_open(path, 1000, &error);
    assert_done(lines_next(lines, &line, &found, &too_long, &error), &error);
    assert_true(found && too_long);
    assert_int_equal(line.size, 1000);
    assert_true(line.capacity < 1 << 18);
    assert_done(lines_next(lines, &line, &found, &too_long, &error), &error);
    assert_true(found && !too_long);
    assert_string_equal(line.data, "next\n");
    buffer_free(&line);
    lines_close(lines);
    free(text);
    free(path);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overlong_surrogate_and_cut_sequences_are_not_valid),
        cmocka_unit_test(white_space_of_any_kind_is_blank),
        cmocka_unit_test(characters_and_scripts_are_told),
        cmocka_unit_test(lines_come_as_they_are),
        cmocka_unit_test(a_line_that_is_too_long_is_passed_over_in_flat_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
