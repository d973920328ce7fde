/* data synth: the same seed gives the same bytes on any number of threads, and what is said of a scene is true. */
#include "data/synth.h"
#include "base/files.h"
#include "base/json.h"
#include "data/digest.h"
#include "data/scene.h"
#include "tests/support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void hash_tree(const char *path, Digest *digest) {
    char **names;
    int count;
    Error error = {0};
    check(folder_list(path, &names, &count, &error));
    for (int i = 0; i < count; i++) {
        char *below = temporary_path(path, names[i]);
        Buffer bytes = {0};
        digest_update(digest, names[i], strlen(names[i]));
        if (folder_exists(below))
            hash_tree(below, digest);
        else
            check(file_read(below, &bytes, &error));
        digest_update(digest, bytes.data, bytes.size);
        buffer_free(&bytes);
        free(below);
    }
    names_free(names, count);
}

static void make(uint64_t seed, int threads, char hex[SHA256_HEX + 1]) {
    char *folder = temporary_new(), *out = temporary_path(folder, "s");
    SynthOptions o = {.out = out, .samples = 40, .seed = seed, .threads = threads};
    SynthResult result;
    Error error = {0};
    uint8_t hash[SHA256_SIZE];
    assert_done(synth_write(&o, NULL, &result, &error), &error);
    assert_int_equal(result.train, 40);
    assert_int_equal(result.test, 100);
    Digest *digest = digest_new();
    hash_tree(out, digest);
    digest_sha256(digest, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    digest_free(digest);
    free(out);
    temporary_free(folder);
}

static void the_same_seed_gives_the_same_bytes_on_any_number_of_threads(void **state) {
    (void)state;
    char one[SHA256_HEX + 1], three[SHA256_HEX + 1], other[SHA256_HEX + 1];
    make(1, 1, one);
    make(1, 3, three);
    make(2, 1, other);
    assert_string_equal(one, three);
    assert_string_not_equal(one, other);
}

// Pixels and words are ours alone, so their hash is the same with every version of the JPEG and PNG libraries.
static void scenes_are_what_they_always_were(void **state) {
    (void)state;
    Digest *digest = digest_new();
    Buffer row = {0};
    uint8_t hash[SHA256_SIZE];
    char hex[SHA256_HEX + 1];
    for (uint64_t i = 0; i < 200; i++) {
        Scene scene = scene_make(0, i);
        Image image = scene_draw(&scene);
        digest_update(digest, image.pixels, (size_t)(image.width * image.height * 3));
        scene_row(&scene, "x", &row);
        image_free(&image);
    }
    digest_update(digest, row.data, row.size);
    digest_sha256(digest, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    assert_string_equal(hex, "081d7f3ad8650a4910d0769834302e6d512994091316aa4f879fdae38e498e59");
    digest_free(digest);
    buffer_free(&row);
}

static void every_row_is_json_with_all_its_fields(void **state) {
    (void)state;
    static const char *const fields[] = {"image",  "caption",   "caption_zh", "question", "question_zh",
                                         "answer", "answer_zh", "class",      "class_zh", "kind"};
    Error error = {0};
    Buffer row = {0};
    for (uint64_t i = 0; i < 500; i++) {
        Scene scene = scene_make(3, i);
        buffer_clear(&row);
        scene_row(&scene, "images/0.png", &row);
        json_t *json = json_parse(row.data, row.size, "row", &error);
        assert_done(json != NULL, &error);
        for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
            assert_true(strlen(json_get_string(json, fields[k], "")) > 0);
        assert_non_null(strstr(json_get_string(json, "caption", ""), json_get_string(json, "colour", "?")));
        assert_non_null(strstr(json_get_string(json, "class", ""), json_get_string(json, "shape", "?")));
        json_decref(json);
    }
    buffer_free(&row);
}

static void answers_are_true_of_the_scene(void **state) {
    (void)state;
    int yes = 0, no = 0;
    for (uint64_t i = 0; i < 4000; i++) {
        Scene s = scene_make(5, i);
        assert_in_range(s.count, 1, 3);
        assert_int_equal(s.figure_count, s.count + s.extra);
        assert_true(!s.extra || (s.extra_colour != s.colour && s.extra_shape != s.shape));
        assert_true(s.count == 1 || (s.question != ASK_POSITION && s.question != ASK_SIZE));
        if (s.question != ASK_YES_NO) continue;
        bool main_is = s.asked_colour == s.colour && s.asked_shape == s.shape;
        bool extra_is = s.extra && s.asked_colour == s.extra_colour && s.asked_shape == s.extra_shape;
        assert_false(extra_is); // else "no" would be false
        yes += main_is;
        no += !main_is;
    }
    assert_in_range(yes * 100 / (yes + no), 40, 60);
}

static void questions_and_classes_are_spread_evenly(void **state) {
    (void)state;
    int kinds[QUESTIONS] = {0}, classes[SCENE_COLOURS * SHAPES] = {0};
    enum { COUNT = 9600 };
    for (uint64_t i = 0; i < COUNT; i++) {
        Scene s = scene_make(6, i);
        kinds[s.question]++;
        classes[s.colour * SHAPES + (int)s.shape]++;
    }
    for (int i = 0; i < QUESTIONS; i++) assert_in_range(kinds[i], COUNT / 30, COUNT / 3);
    for (int i = 0; i < SCENE_COLOURS * SHAPES; i++) assert_in_range(classes[i], 130, 270);
}

// The figure in the middle of a plain canvas: its colour inside, the canvas outside, something between at the edge.
static void figures_are_filled_and_their_edges_are_soft(void **state) {
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        Colour grey = {100, 100, 100};
        Image image = draw_canvas(64, grey, grey);
        draw_figure(&image, &(Figure){(Shape)shape, 32, 32, 20, 0.05, {200, 10, 10}});
        int inside = 0, outside = 0, edge = 0;
        for (int i = 0; i < 64 * 64; i++) {
            uint8_t red = image.pixels[3 * i];
            inside += red == 200;
            outside += red == 100;
            edge += red > 100 && red < 200;
        }
        assert_in_range(inside, 300, 1400);
        assert_true(outside > 2000);
        assert_in_range(edge, 40, 400);
        image_free(&image);
    }
}

static void figures_beyond_the_border_are_cut_there(void **state) {
    (void)state;
    Colour grey = {100, 100, 100};
    for (int shape = 0; shape < SHAPES; shape++) {
        Image image = draw_canvas(16, grey, grey);
        draw_figure(&image, &(Figure){(Shape)shape, -3, 15, 12, -0.13, {0, 0, 255}});
        draw_figure(&image, &(Figure){(Shape)shape, 400, 400, 12, 0, {0, 255, 0}});
        image_free(&image);
    }
}

static void a_folder_in_use_is_not_overwritten(void **state) {
    (void)state;
    char *folder = temporary_new();
    SynthOptions o = {.out = folder, .samples = 2};
    SynthResult result;
    Error error = {0};
    assert_done(synth_write(&o, NULL, &result, &error), &error);
    assert_false(synth_write(&o, NULL, &result, &error));
    assert_message_has(&error, "--force");
    o.force = true;
    assert_done(synth_write(&o, NULL, &result, &error), &error);
    char *mine = temporary_path(folder, "mine.txt");
    assert_done(file_write(mine, "x", 1, &error), &error);
    assert_false(synth_write(&o, NULL, &result, &error));
    assert_message_has(&error, "mine.txt");
    free(mine);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_seed_gives_the_same_bytes_on_any_number_of_threads),
        cmocka_unit_test(scenes_are_what_they_always_were),
        cmocka_unit_test(every_row_is_json_with_all_its_fields),
        cmocka_unit_test(answers_are_true_of_the_scene),
        cmocka_unit_test(questions_and_classes_are_spread_evenly),
        cmocka_unit_test(figures_are_filled_and_their_edges_are_soft),
        cmocka_unit_test(figures_beyond_the_border_are_cut_there),
        cmocka_unit_test(a_folder_in_use_is_not_overwritten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
