/* Errors as values. */
#include "tests/support/test.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void a_message_says_what_where_and_why(void **state) {
    (void)state;
    Error error = {0};
    errno = ENOENT;
    assert_false(error_set_errno(&error, ERROR_FAILED, "%s: cannot open", "a.jpg"));
    assert_false(error_prefix(&error, "sample %d", 7));
    assert_string_equal(error.message, "sample 7: a.jpg: cannot open: No such file or directory");
    assert_int_equal(error.kind, ERROR_FAILED);
}

static void a_prefix_keeps_the_kind(void **state) {
    (void)state;
    Error error = {0};
    error_set(&error, ERROR_USAGE, "bad");
    error_prefix(&error, "file");
    assert_int_equal(error.kind, ERROR_USAGE);
}

static void a_message_can_be_made_from_itself(void **state) {
    (void)state;
    Error error = {0};
    error_set(&error, ERROR_FAILED, "inner");
    error_set(&error, ERROR_FAILED, "outer: %s", error.message);
    assert_string_equal(error.message, "outer: inner");
}

static void a_long_message_is_cut_between_characters(void **state) {
    (void)state;
    Error error = {0};
    char text[4 * 1000 + 1] = {0};
    size_t room = sizeof error.message - 1;
    for (size_t shift = 0; shift < 4; shift++) {
        memset(text, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof text - 1; i += 3) memcpy(text + i, "\xE2\x98\x83", 3); // U+2603
        error_set(&error, ERROR_FAILED, "%s", text);
        assert_int_equal(strlen(error.message), room - (room - shift) % 3);
        assert_memory_equal(error.message, text, strlen(error.message));
        error_prefix(&error, "in front");
        assert_true(strlen(error.message) <= room);
        assert_int_equal(error.message[strlen(error.message) - 1], '\x83');
    }
}

static void a_broken_invariant_aborts(void **state) {
    (void)state;
    int status;
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL); // cmocka reports aborts by itself
        check(freopen("/dev/null", "w", stderr) && 1 + 1 == 3);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_says_what_where_and_why), cmocka_unit_test(a_prefix_keeps_the_kind),
        cmocka_unit_test(a_message_can_be_made_from_itself), cmocka_unit_test(a_long_message_is_cut_between_characters),
        cmocka_unit_test(a_broken_invariant_aborts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
