/* `bifocal plan schedule`: what it prints, draws and refuses. */
#include "base/files.h"
#include "tests/cli/command.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SCHEDULE(kind, stages, microbatches)                                                                           \
    "plan", "schedule", "--schedule", kind, "--stages", stages, "--microbatches", microbatches

static void time_and_memory_are_printed(void **state) {
    (void)state;
    assert_prints("zb-h2: 4 stages, 8 microbatches, 1 chunk a stage", "/", SCHEDULE("zb-h2", "4", "8"));
    assert_prints("24.31%", "/", SCHEDULE("1f1b", "8", "24"), "--forward", "18.522", "--input-gradient", "18.086",
                  "--weight-gradient", "9.337", "--send", "0.601");
}

static void json_has_every_row(void **state) {
    (void)state;
    json_t *all = command_json(0, "/", WORDS(SCHEDULE("zb-v", "2", "5"), "--forward", "1,2,3,4", "--json"));
    json_t *stages = json_object_get(all, "stages"), *first = json_array_get(stages, 0);
    assert_int_equal(json_array_size(stages), 2);
    assert_int_equal(json_array_size(json_object_get(first, "rows")), 5 * 2 * 3);
    assert_int_equal(json_get_int(first, "live_chunks", -1), 4);
    assert_true(json_get_number(first, "work", NAN) == 5 * (1 + 4 + 2 * (0.5 + 0.5))); // parts 0 and 3
    assert_string_equal(json_get_string(all, "schedule", ""), "zb-v");
    json_decref(all);
}

static void the_timeline_is_drawn_into_a_file(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "line.svg");
    Buffer svg = {0};
    Error error = {0};
    assert_prints("bubble", folder, SCHEDULE("interleaved", "2", "4"), "--chunks", "3", "--svg", "line.svg");
    assert_done(file_read(path, &svg, &error), &error);
    assert_true(!strncmp(svg.data, "<svg xmlns", 10) && strstr(svg.data, "backward of microbatch 3, chunk 2"));
    assert_refuses(1, "nowhere", folder, SCHEDULE("gpipe", "2", "4"), "--svg", "nowhere/line.svg");
    buffer_free(&svg);
    free(path);
    temporary_free(folder);
}

static void what_does_not_fit_is_refused_with_what_would(void **state) {
    (void)state;
    assert_refuses(2, "4 or 8 instead of 6", "/", SCHEDULE("interleaved", "4", "6"));
    assert_refuses(2, "did you mean 'zb-h2'?", "/", SCHEDULE("zbh2", "4", "6"));
    assert_refuses(2, "zb-v has 2 chunks", "/", SCHEDULE("zb-v", "4", "6"), "--chunks", "4");
    assert_refuses(2, "give 1, or 4", "/", SCHEDULE("1f1b", "4", "6"), "--forward", "1,2");
    assert_refuses(2, "--weight-gradient '-1'", "/", SCHEDULE("1f1b", "2", "6"), "--weight-gradient", "1,-1");
    assert_refuses(2, "not a whole number", "/", SCHEDULE("1f1b", "4", "6.5"));
    assert_refuses(2, "--stages '0'", "/", SCHEDULE("1f1b", "0", "6"));
    assert_refuses(2, "--schedule is missing", "/", "plan", "schedule", "--stages", "2", "--microbatches", "2");
    assert_refuses(2, "no argument is expected", "/", SCHEDULE("1f1b", "2", "6"), "config.yaml");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_and_memory_are_printed),
        cmocka_unit_test(json_has_every_row),
        cmocka_unit_test(the_timeline_is_drawn_into_a_file),
        cmocka_unit_test(what_does_not_fit_is_refused_with_what_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
