/* Log and progress: what reaches a plain stream, a file, and a terminal. */
#include "base/clock.h"
#include "base/log.h"
#include "base/progress.h"
#include "tests/support/test.h"
#include "base/files.h"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void lines_reach_stream_and_file_by_level(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "run.log"), *text = NULL;
    size_t size = 0;
    Error error = {0};
    Buffer kept = {0};
    FILE *stream = tmpfile();
    Log *log = log_new(LOG_INFO, stream);
    assert_done(log_open_file(log, path, &error), &error);
    log_write(log, LOG_DEBUG, "hidden");
    log_info(log, "step %d", 3);
    log_warning(log, "slow");
    log_status(log, "never on a plain stream");
    log_info(NULL, "silent");
    rewind(stream);
    assert_true(getdelim(&text, &size, 0, stream) > 0);
    assert_string_equal(text, "step 3\nwarning: slow\n");
    assert_false(log_is_terminal(log));
    log_free(log);
    assert_done(file_read(path, &kept, &error), &error);
    assert_non_null(strstr(kept.data, " info step 3\n"));
    assert_non_null(strstr(kept.data, " warning slow\n"));
    fclose(stream);
    buffer_free(&kept);
    free(text);
    free(path);
    temporary_free(folder);
}

static void short_work_prints_one_plain_line(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *stream = tmpfile();
    Log *log = log_new(LOG_INFO, stream);
    Progress *progress = progress_start(log, "building", "images", 1000);
    for (int i = 1; i <= 1000; i++) progress_update(progress, i, "disk");
    progress_end(progress);
    rewind(stream);
    assert_true(getdelim(&text, &size, 0, stream) > 0);
    assert_int_equal(strncmp(text, "building: 1000 images in 0s", 27), 0);
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_null(strchr(text, '\r'));
    assert_null(progress_start(NULL, "silent", "", 0));
    progress_update(NULL, 1, NULL);
    progress_end(NULL);
    free(text);
    log_free(log);
    fclose(stream);
}

// The first of two steps after nine earlier ones: the rate and the count are of this call.
static void resumed_work_counts_from_where_it_went_on(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    double rate = 0, start = clock_seconds();
    FILE *stream = tmpfile();
    Log *log = log_new(LOG_INFO, stream);
    Progress *progress = progress_start(log, "training", "steps", 1000002);
    progress_resume(progress, 1000000);
    while (clock_seconds() - start < 0.02) continue;
    progress_update(progress, 1000001, NULL);
    progress_end(progress);
    rewind(stream);
    assert_true(getdelim(&text, &size, 0, stream) > 0);
    assert_int_equal(sscanf(text, "training: 1 steps in 0s, %lf steps/s", &rate), 1);
    assert_true(rate > 0 && rate < 1000);
    progress_resume(NULL, 1);
    free(text);
    log_free(log);
    fclose(stream);
}

// What comes from a pseudo-terminal, in one piece or in several, up to the end of the line that holds `last`.
static void read_until(int master, char *text, size_t size, const char *last) {
    size_t n = 0;
    struct pollfd ready = {.fd = master, .events = POLLIN};
    for (const char *found = NULL; !found || !strchr(found, '\n'); found = strstr(text, last)) {
        assert_true(n + 1 < size && poll(&ready, 1, 10000) == 1);
        ssize_t more = read(master, text + n, size - 1 - n);
        assert_true(more > 0);
        n += (size_t)more;
    }
}

// A pseudo-terminal shows what a person would see.
static void a_terminal_shows_one_line_that_is_redrawn(void **state) {
    (void)state;
    char text[4096] = {0};
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) skip();
    FILE *stream = fopen(ptsname(master), "r+");
    assert_non_null(stream);
    Log *log = log_new(LOG_INFO, stream);
    Progress *progress = progress_start(log, "training", "steps", 10);
    assert_true(log_is_terminal(log));
    progress_update(progress, 5, "waits for data");
    log_info(log, "a line in between");
    progress_end(progress);
    read_until(master, text, sizeof text, "training: 5 steps in");
    assert_non_null(strstr(text, "\r\033[Ktraining: 5/10 steps (50%); waits for data"));
    assert_non_null(strstr(text, "\r\033[Ka line in between"));
    assert_non_null(strstr(text, "training: 5 steps in 0s"));
    log_free(log);
    fclose(stream);
    close(master);
}

static void dates_are_utc(void **state) {
    (void)state;
    char date[32];
    int year, month, day, hour, minute, second;
    double before = clock_seconds();
    clock_date(date);
    assert_int_equal(sscanf(date, "%d-%d-%dT%d:%d:%dZ", &year, &month, &day, &hour, &minute, &second), 6);
    assert_int_equal(strlen(date), 20);
    assert_true(clock_seconds() >= before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_reach_stream_and_file_by_level),
        cmocka_unit_test(short_work_prints_one_plain_line),
        cmocka_unit_test(resumed_work_counts_from_where_it_went_on),
        cmocka_unit_test(a_terminal_shows_one_line_that_is_redrawn),
        cmocka_unit_test(dates_are_utc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
