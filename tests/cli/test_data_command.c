/* `bifocal data` and `bifocal tokenizer`: from files to shards and ids, damage told, kills survived. */
#include "base/files.h"
#include "tests/cli/command.h"
#include "tests/cli/tiny_project.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUILD(...)                                                                                                     \
    "data", "build", "raw/train/captions.jsonl", "--image-field", "image", "--text-field", "caption", __VA_ARGS__

static void a_dataset_is_listed_and_verified(void **state) {
    (void)state;
    assert_prints("60 in 1 shards", project, "data", "ls", "data");
    assert_prints("data: whole", project, "data", "verify", "data");
    json_t *listed = command_json(0, project, WORDS("data", "ls", "data", "--json"));
    assert_int_equal(json_get_int(listed, "samples", -1), 60);
    json_t *verified = command_json(0, project, WORDS("data", "verify", "data", "--json"));
    assert_int_equal(json_get_int(verified, "findings", -1), 0);
    json_t *built = command_json(0, project, WORDS(BUILD("--out", "again", "--json")));
    assert_string_equal(json_get_string(built, "root", "?"), json_get_string(listed, "root", "!"));
    json_t *drawn = command_json(0, project, WORDS("data", "synth", "--out", "raw2", "--samples", "3", "--json"));
    assert_int_equal(json_get_int(drawn, "train", -1), 3);
    json_decref(listed);
    json_decref(verified);
    json_decref(built);
    json_decref(drawn);
}

static void damage_is_exit_status_1_and_named(void **state) {
    (void)state;
    Error error = {0};
    Buffer bytes = {0};
    assert_status(0, project, BUILD("--out", "damaged"));
    char *shard = temporary_path(project, "damaged/shard-000000.tar");
    assert_done(file_read(shard, &bytes, &error), &error);
    bytes.data[bytes.size / 2] ^= 1;
    temporary_write(shard, bytes.data, bytes.size);
    assert_refuses(1, "shard-000000.tar", project, "data", "verify", "damaged");
    json_t *verified = command_json(1, project, WORDS("data", "verify", "damaged", "--json"));
    assert_true(json_get_int(verified, "findings", 0) > 0);
    json_decref(verified);
    buffer_free(&bytes);
    free(shard);
}

static void what_cannot_be_built_is_refused_or_left_out(void **state) {
    (void)state;
    assert_refuses(2, "--force", project, BUILD("--out", "data"));
    assert_refuses(2, "nowhere.jsonl", project, "data", "build", "nowhere.jsonl", "--out", "x");
    assert_refuses(1, "60 image_field_missing", project, "data", "build", "raw/train/captions.jsonl", "--image-field",
                   "imagee", "--out", "empty");
    assert_refuses(1, "dataset.json", project, "data", "ls", "raw");
    assert_refuses(1, "nowhere", project, "data", "verify", "nowhere");
}

// Kills builds at many moments. Each leaves a whole dataset or none that opens, and the next build is not in its way.
static void a_killed_build_leaves_nothing_half_written(void **state) {
    (void)state;
    Error error = {0};
    char *folder = temporary_path(project, "killed");
    for (int i = 0; i < 8; i++) {
        assert_done(folder_remove(folder, &error), &error);
        pid_t child = command_start(project, WORDS(BUILD("--out", "killed")));
        usleep(1000u << i);
        kill(child, SIGKILL);
        command_end(child);
        Answer a = command_run(project, NULL, WORDS("data", "ls", "killed"));
        if (a.status == 0)
            assert_status(0, project, "data", "verify", "killed");
        else
            assert_int_equal(a.status, 1);
        answer_free(&a);
    }
    assert_status(0, project, BUILD("--out", "killed", "--force"));
    assert_prints("killed: whole", project, "data", "verify", "killed");
    free(folder);
}

static void a_killed_rebuild_leaves_the_dataset_that_was_there(void **state) {
    (void)state;
    assert_status(0, project, BUILD("--out", "rebuilt"));
    for (int i = 0; i < 8; i++) {
        pid_t child = command_start(project, WORDS(BUILD("--limit", "50", "--out", "rebuilt", "--force")));
        usleep(1000u << i);
        kill(child, SIGKILL);
        command_end(child);
        assert_prints("rebuilt: whole", project, "data", "verify", "rebuilt");
    }
    assert_prints("rebuilt: 50 samples", project, BUILD("--limit", "50", "--out", "rebuilt", "--force"));
    char *aside = temporary_path(project, "rebuilt.building");
    assert_false(folder_exists(aside));
    free(aside);
}

static void texts_come_back_through_ids(void **state) {
    (void)state;
    static const char texts[] = "a big red ring\n\n右边有一个大的红色圆环\ntwo blue squares\n";
    Answer ids = command_run(project, texts, WORDS("tokenizer", "encode", "--model", "words.model"));
    assert_int_equal(ids.status, 0);
    assert_int_equal(ids.err.size, 0);
    Answer back = command_run(project, ids.out.data, WORDS("tokenizer", "decode", "--model", "words.model"));
    assert_int_equal(back.status, 0);
    assert_string_equal(back.out.data, texts);
    answer_free(&ids);
    answer_free(&back);
    Answer wrong = command_run(project, "3 4\n5 x\n", WORDS("tokenizer", "decode", "--model", "words.model"));
    assert_int_equal(wrong.status, 1);
    assert_non_null(strstr(wrong.err.data, "line 2"));
    answer_free(&wrong);
    Answer beyond = command_run(project, "400\n", WORDS("tokenizer", "decode", "--model", "words.model"));
    assert_int_equal(beyond.status, 1);
    assert_non_null(strstr(beyond.err.data, "400"));
    answer_free(&beyond);
}

static void tokenizers_say_what_they_need(void **state) {
    (void)state;
    assert_refuses(2, "--vocab-size", project, "tokenizer", "train", "raw/text.txt", "--out", "x.model");
    assert_refuses(2, "--out", project, "tokenizer", "train", "raw/text.txt", "--vocab-size", "400");
    assert_refuses(2, "at least", project, "tokenizer", "train", "raw/text.txt", "--vocab-size", "270", "--out", "x");
    assert_refuses(2, "no.txt", project, "tokenizer", "train", "no.txt", "--vocab-size", "400", "--out", "x.model");
    assert_refuses(1, "no.model", project, "tokenizer", "encode", "--model", "no.model");
    assert_refuses(1, "config.yaml", project, "tokenizer", "encode", "--model", "config.yaml");
    json_t *made = command_json(
        0, project, WORDS("tokenizer", "train", "raw/text.txt", "--vocab-size", "400", "--out", "y.model", "--json"));
    assert_int_equal(json_get_int(made, "vocabulary", -1), 400);
    json_decref(made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dataset_is_listed_and_verified),
        cmocka_unit_test(damage_is_exit_status_1_and_named),
        cmocka_unit_test(what_cannot_be_built_is_refused_or_left_out),
        cmocka_unit_test(a_killed_build_leaves_nothing_half_written),
        cmocka_unit_test(a_killed_rebuild_leaves_the_dataset_that_was_there),
        cmocka_unit_test(texts_come_back_through_ids),
        cmocka_unit_test(tokenizers_say_what_they_need),
    };
    return cmocka_run_group_tests(tests, open_project, close_project);
}
