/* bifocal tokenizer as its users call it. Skips where the program has not been built. */
#include "base/files.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static const char PROGRAM[] = BUILD_FOLDER "/bifocal";

typedef struct Fixture {
    char *folder;
} Fixture;

static int open_fixture(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    Error error = {0};
    f->folder = temporary_new();
    char *play = temporary_path(f->folder, "play.txt"), *rows = temporary_path(f->folder, "rows.jsonl"),
         *bad = temporary_path(f->folder, "bad");
    static const char text[] =
        "First Citizen:\nBefore we proceed  any further,\thear me speak.\n\nAll:\nSpeak, speak.\n";
    static const char lines[] =
        "{\"caption\": \"a red circle\", \"tags\": [\"red\", \"round\"]}\n{\"caption\": \"蓝色的方块\"}\n";
    assert_done(file_write(play, text, sizeof text - 1, &error), &error);
    assert_done(file_write(rows, lines, sizeof lines - 1, &error), &error);
    assert_done(file_write(bad, "5 290\n", 6, &error), &error);
    free(bad);
    free(play);
    free(rows);
    *state = f;
    return 0;
}

static int close_fixture(void **state) {
    Fixture *f = *state;
    temporary_free(f->folder);
    free(f);
    return 0;
}

// Runs `bifocal tokenizer ARGUMENTS` in the folder; both streams go to `output`. Returns the exit status.
static int call(const Fixture *f, const char *arguments, Buffer *output) {
    Buffer line = {0};
    char part[256];
    buffer_printf(&line, "cd '%s' && '%s' tokenizer %s 2>&1", f->folder, PROGRAM, arguments);
    FILE *pipe = popen(line.data, "r");
    assert_non_null(pipe);
    buffer_clear(output);
    for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) buffer_append(output, part, n);
    int status = pclose(pipe);
    buffer_free(&line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(const Fixture *f, const char *arguments, int status, const char *part) {
    Buffer output = {0};
    int got = call(f, arguments, &output);
    const char *text = output.size ? output.data : "";
    if (got != status || !strstr(text, part)) fail_msg("tokenizer %s: status %d, says: %s", arguments, got, text);
    buffer_free(&output);
}

static void text_comes_back_line_by_line(void **state) {
    expect(*state, "train play.txt --out m --vocab-size 300 --keep-whitespace --type bpe", 0,
           "300 pieces from 1 texts");
    expect(*state, "encode --model m < play.txt > ids", 0, "");
    expect(*state, "decode --model m < ids > back; cmp play.txt back && echo same", 0, "same");
}

static void fields_of_rows_are_learned_from(void **state) {
    expect(*state, "train rows.jsonl --text-field caption --text-field tags --out m --vocab-size 300 --json", 2,
           "largest possible is");
    expect(*state, "train rows.jsonl --text-field caption --text-field tags --out m --vocab-size 281 --type bpe --json",
           0, "\"texts\": 4");
}

static void wrong_usage_is_status_2_and_says_what(void **state) {
    expect(*state, "train rows.jsonl --out m --vocab-size 300", 2, "--text-field");
    expect(*state, "train rows.jsonl --text-field nope --out m --vocab-size 300", 2, "no line has text in 'nope'");
    expect(*state, "train absent.txt --out m --vocab-size 300", 2, "absent.txt");
    expect(*state, "train play.txt --vocab-size 300", 2, "--out");
    expect(*state, "train play.txt --out m --vocab-size many", 2, "--vocab-size 'many'");
    expect(*state, "train play.txt --out m --vocab-size 300 --type word", 2, "unigram|bpe|char");
    expect(*state, "learn play.txt", 2, "no act 'learn'");
}

static void damage_is_status_1_and_names_the_place(void **state) {
    expect(*state, "train play.txt --out m --vocab-size 290 --type bpe", 0, "290");
    expect(*state, "encode --model play.txt < play.txt", 1, "play.txt: damaged SentencePiece model");
    expect(*state, "decode --model m < bad", 1, "line 1");
    expect(*state, "decode --model m < play.txt", 1, "not an id");
}

int main(void) {
    if (!file_exists(PROGRAM)) {
        fprintf(stderr, "skipped: %s has not been built\n", PROGRAM);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(text_comes_back_line_by_line, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(fields_of_rows_are_learned_from, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(wrong_usage_is_status_2_and_says_what, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(damage_is_status_1_and_names_the_place, open_fixture, close_fixture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
