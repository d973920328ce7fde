/* Growing runs of bytes. */
#include "base/buffer.h"
#include "tests/support/test.h"

static void bytes_of_any_number_are_kept_in_order(void **state) {
    (void)state;
    Buffer buffer = {0};
    for (int i = 0; i < 5000; i++) buffer_append(&buffer, (char[]){(char)i, (char)(i >> 8)}, 2);
    assert_int_equal(buffer.size, 10000);
    for (int i = 0; i < 5000; i++) assert_int_equal((unsigned char)buffer.data[2 * i], i & 0xFF);
    assert_int_equal(buffer.data[buffer.size], 0);
    buffer_free(&buffer);
    assert_null(buffer.data);
}

static void text_is_a_c_string_at_any_time(void **state) {
    (void)state;
    Buffer buffer = {0};
    buffer_append(&buffer, NULL, 0);
    assert_string_equal(buffer.data, "");
    buffer_text(&buffer, "a");
    buffer_printf(&buffer, "-%0200d", 7);
    assert_int_equal(buffer.size, 202);
    assert_string_equal(buffer.data + 200, "07");
    buffer_clear(&buffer);
    assert_string_equal(buffer.data, "");
    buffer_reserve(&buffer, 100000);
    assert_string_equal(buffer.data, "");
    assert_true(buffer.capacity >= 100000);
    buffer_free(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_of_any_number_are_kept_in_order),
        cmocka_unit_test(text_is_a_c_string_at_any_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
