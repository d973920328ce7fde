/* UTF-8: every character there is, and nothing else. */
#include "base/unicode.h"
#include "tests/support/test.h"
#include <string.h>

static int encode(uint32_t code, char out[4]) {
    if (code < 0x80) return out[0] = (char)code, 1;
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)(0xF00 >> length | code);
    return length;
}

static void every_character_is_read_back(void **state) {
    (void)state;
    for (uint32_t code = 0; code < 0x120000; code++) {
        char text[4];
        uint32_t found = 0;
        int length = encode(code, text);
        bool valid = code < 0x110000 && (code < 0xD800 || code > 0xDFFF);
        assert_int_equal(utf8_decode(text, 4, &found), valid ? length : 0);
        if (valid) assert_int_equal(found, code);
        assert_int_equal(utf8_decode(text, (size_t)length - 1, &found), 0);
    }
}

static void damaged_text_is_refused(void **state) {
    (void)state;
    static const char *const damaged[] = {
        "\x80",      "\xC0\x80",  "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF8\x88\x80\x80\x80",
        "a\xE9\xA3", "\xE9\xA3z", "\xFF",     "\xED\xA0\x80"};
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++)
        assert_false(utf8_valid(damaged[i], strlen(damaged[i])));
    assert_true(utf8_valid("a\0\xE9\xA3\x9F\xF0\x9F\x98\x80", 9));
    assert_true(utf8_valid("", 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_character_is_read_back),
        cmocka_unit_test(damaged_text_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
