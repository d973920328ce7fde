/* Resampling equals Pillow's, with plain loops and with vectors; random crops are torchvision's. */
#include "base/json.h"
#include "data/resize_lines.h"
#include "tests/data/image_files.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void resampling_is_pillows_to_the_byte(void **state) {
    Image source;
    Error error;
    json_t *cases = json_read_file(IMAGES_FOLDER "resizes.json", &error);
    (void)state;
    assert_done(cases != NULL, &error);
    assert_true(json_array_size(cases) >= 12);
    read_picture(IMAGES_FOLDER, "source.png", &source);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *item = json_array_get(cases, i), *box = json_object_get(item, "box");
        const json_t *size = json_object_get(item, "size");
        const char *wanted = json_get_string(item, "wanted", "");
        double at[4];
        Image right, out = {0};
        for (size_t k = 0; k < 4; k++) at[k] = json_number_value(json_array_get(box, k));
        out.width = (int)json_integer_value(json_array_get(size, 0));
        out.height = (int)json_integer_value(json_array_get(size, 1));
        out.pixels = malloc((size_t)out.width * (size_t)out.height * 3);
        image_resize(&source, (Crop){at[0], at[1], at[2] - at[0], at[3] - at[1]}, out.pixels, out.width, out.height,
                     false);
        read_picture(IMAGES_FOLDER, wanted, &right);
        int differ = pictures_differ(&out, &right, wanted);
        if (differ != 0) fail_msg("%s differs by %d", wanted, differ);
        image_free(&right);
        image_free(&out);
    }
    image_free(&source);
    json_decref(cases);
}

static void a_flip_is_the_mirror_image(void **state) {
    Image source;
    uint8_t straight[15 * 9 * 3], flipped[15 * 9 * 3];
    (void)state;
    read_picture(IMAGES_FOLDER, "source.png", &source);
    image_resize(&source, (Crop){3, 4, 30, 20}, straight, 15, 9, false);
    image_resize(&source, (Crop){3, 4, 30, 20}, flipped, 15, 9, true);
    for (int y = 0; y < 9; y++)
        for (int x = 0; x < 15; x++)
            assert_memory_equal(straight + (y * 15 + x) * 3, flipped + (y * 15 + 14 - x) * 3, 3);
    image_free(&source);
}

// Weights of any size up to the sum of the real ones, on random bytes.
static void vectors_and_plain_loops_give_the_same_bytes(void **state) {
    enum { MOST = 37, COUNT = 50, BYTES = 197 };
    static uint8_t lines[MOST * BYTES + LINE_PADDING], plain[BYTES], best[BYTES];
    static int32_t weight[COUNT * MOST];
    int first[COUNT], number[COUNT];
    Taps taps = {MOST, first, number, weight};
    Rng rng = rng_for(1, PURPOSE_TEST, 0);
    const ResizeLines *vectors = resize_lines_best();
    (void)state;
    for (size_t i = 0; i < sizeof lines; i++) lines[i] = (uint8_t)rng_u32(&rng);
    for (int i = 0; i < COUNT * MOST; i++) weight[i] = (int32_t)(rng_normal(&rng) * (1 << (WEIGHT_BITS - 3)));
    for (int i = 0; i < COUNT; i++) {
        number[i] = (int)rng_below(&rng, MOST + 1);
        first[i] = (int)rng_below(&rng, (uint64_t)BYTES / 3 - (uint64_t)number[i] + 1);
    }
    resize_lines_plain.over_x(lines, &taps, COUNT, plain);
    vectors->over_x(lines, &taps, COUNT, best);
    assert_memory_equal(plain, best, COUNT * 3);
    for (int count = 0; count <= MOST; count++) {
        resize_lines_plain.over_y(lines, BYTES, weight, count, BYTES, plain);
        vectors->over_y(lines, BYTES, weight, count, BYTES, best);
        assert_memory_equal(plain, best, BYTES);
    }
}

static void random_crops_have_the_drawn_area_and_aspect(void **state) {
    static const double scale[2] = {0.1, 0.9}, ratio[2] = {0.75, 4.0 / 3};
    enum { DRAWS = 4000 };
    double area = 0, logs = 0;
    Rng rng = rng_for(3, PURPOSE_TEST, 1);
    (void)state;
    for (int i = 0; i < DRAWS; i++) {
        Crop c = crop_random(400, 400, scale, ratio, &rng);
        assert_true(c.x >= 0 && c.y >= 0 && c.x + c.width <= 400 && c.y + c.height <= 400);
        double share = c.width * c.height / 160000, aspect = c.width / c.height;
        assert_true(share > 0.09 && share < 0.91);
        assert_true(aspect > 0.73 && aspect < 1.37);
        area += share / DRAWS;
        logs += log(aspect) / DRAWS;
    }
    assert_true(fabs(area - 0.49) < 0.02); // a little below 0.5: large areas of odd aspect do not fit
    assert_true(fabs(logs) < 0.02);
}

static void a_crop_that_cannot_fit_becomes_the_centre(void **state) {
    static const double whole[2] = {1, 1}, ratio[2] = {0.75, 4.0 / 3};
    Rng rng = rng_for(3, PURPOSE_TEST, 2);
    (void)state;
    Crop wide = crop_random(1000, 10, whole, ratio, &rng), tall = crop_random(9, 900, whole, ratio, &rng);
    assert_true(wide.height == 10 && wide.width == 13 && wide.y == 0 && wide.x == 493);
    assert_true(tall.width == 9 && tall.height == 12 && tall.x == 0 && tall.y == 444);
}

static void the_centre_is_the_largest_square(void **state) {
    Crop c = crop_center(30, 21);
    (void)state;
    assert_true(c.x == 4.5 && c.y == 0 && c.width == 21 && c.height == 21);
}

// A grey ramp and a colour: brightness moves the mean, contrast the spread, saturation alone the distance from grey.
static void jitter_changes_colours_within_its_range(void **state) {
    enum { PIXELS = 64, DRAWS = 500 };
    uint8_t picture[PIXELS * 3], out[PIXELS * 3];
    double brightest = 0, darkest = 255, mean = 0;
    Rng rng = rng_for(5, PURPOSE_TEST, 4);
    (void)state;
    for (int i = 0; i < PIXELS * 3; i++) picture[i] = (uint8_t)(96 + i / 3);
    for (int draw = 0; draw < DRAWS; draw++) {
        double level = 0;
        memcpy(out, picture, sizeof out);
        colour_jitter(out, PIXELS, 0.25, &rng);
        for (int i = 0; i < PIXELS; i++) {
            assert_true(out[3 * i] == out[3 * i + 1] && out[3 * i] == out[3 * i + 2]); // grey has no saturation
            assert_true(i == 0 || out[3 * i] >= out[3 * i - 3]);
            level += out[3 * i] / (double)PIXELS;
        }
        brightest = fmax(brightest, level);
        darkest = fmin(darkest, level);
        mean += level / DRAWS;
    }
    assert_true(fabs(mean - 127.5) < 3); // factors are 1 in the mean
    assert_true(brightest > 150 && brightest < 127.5 * 1.25 + 1);
    assert_true(darkest < 105 && darkest > 127.5 * 0.75 - 1);
    uint8_t colour[3] = {200, 100, 50};
    colour_jitter(colour, 1, 0, &rng);
    assert_memory_equal(colour, ((uint8_t[]){200, 100, 50}), 3); // factors of 1
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resampling_is_pillows_to_the_byte),
        cmocka_unit_test(a_flip_is_the_mirror_image),
        cmocka_unit_test(vectors_and_plain_loops_give_the_same_bytes),
        cmocka_unit_test(random_crops_have_the_drawn_area_and_aspect),
        cmocka_unit_test(a_crop_that_cannot_fit_becomes_the_centre),
        cmocka_unit_test(the_centre_is_the_largest_square),
        cmocka_unit_test(jitter_changes_colours_within_its_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
