/* Decoding: every kind of picture as defined, every kind of damage refused before memory is spent on it. The goldens
 * are made by tests/oracles/make_image_goldens.py. */
#include "base/files.h"
#include "base/json.h"
#include "tests/data/image_files.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <jpeglib.h>

static const DecodeOptions OPTIONS = {.background = {250, 100, 30}};

static void check_case(const json_t *item) {
    const char *file = json_get_string(item, "file", ""), *wanted = json_get_string(item, "wanted", NULL);
    Buffer bytes = {0};
    Image image, right = {0};
    Error error = {0};
    read_bytes(IMAGES_FOLDER, file, &bytes);
    bool ok = image_decode(bytes.data, bytes.size, &OPTIONS, &image, &error);
    if (ok != (wanted != NULL)) fail_msg("%s: %s", file, ok ? "decoded, must be refused" : error.message);
    if (!ok && (error.kind != ERROR_FAILED || strlen(error.message) < 10)) fail_msg("%s: no reason given", file);
    if (ok) {
        ImageInfo info;
        assert_done(image_probe(bytes.data, bytes.size, &info, &error), &error);
        assert_int_equal(info.width, image.width);
        assert_int_equal(info.height, image.height);
        read_picture(IMAGES_FOLDER, wanted, &right);
        int differ = pictures_differ(&image, &right, file);
        if (differ > json_get_int(item, "tolerance", 0)) fail_msg("%s differs from %s by %d", file, wanted, differ);
    }
    image_free(&image);
    image_free(&right);
    buffer_free(&bytes);
}

static void odd_pictures_decode_as_defined_and_damaged_ones_are_refused(void **state) {
    Error error;
    json_t *cases = json_read_file(IMAGES_FOLDER "cases.json", &error);
    (void)state;
    assert_done(cases != NULL, &error);
    assert_true(json_array_size(cases) > 60);
    for (size_t i = 0; i < json_array_size(cases); i++) check_case(json_array_get(cases, i));
    json_decref(cases);
}

static void bombs_are_refused_or_passed_over_in_little_memory(void **state) {
    static const char *const names[] = {"bomb.jpg",      "huge.jpg",         "huge.png",      "pixel_bomb.png",
                                        "text_bomb.png", "profile_bomb.png", "many_scans.jpg"};
    struct rusage before, after;
    (void)state;
    getrusage(RUSAGE_SELF, &before);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Buffer bytes = {0};
        Image image;
        Error error;
        read_bytes(IMAGES_FOLDER, names[i], &bytes);
        image_decode(bytes.data, bytes.size, NULL, &image, &error);
        image_free(&image);
        buffer_free(&bytes);
    }
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 32 * 1024); // KiB
}

static void every_cut_of_a_picture_is_refused(void **state) {
    static const char *const names[] = {"orientation1.jpg", "progressive.jpg", "rgba.png", "interlaced.png"};
    (void)state;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        Buffer bytes = {0};
        read_bytes(IMAGES_FOLDER, names[n], &bytes);
        bool jpeg = strstr(names[n], ".jpg");
        size_t whole = jpeg ? bytes.size - 1 : bytes.size; // the last byte of a JPEG's end marker is not missed
        for (size_t size = 0; size < whole; size++) {
            Image image;
            Error error;
            uint8_t *cut = malloc(size ? size : 1); // its own memory, so that reading past its end is seen
            memcpy(cut, bytes.data, size);
            if (image_decode(cut, size, NULL, &image, &error)) fail_msg("%s cut at %zu is decoded", names[n], size);
            free(cut);
        }
        buffer_free(&bytes);
    }
}

// Bits of the file that may be flipped without its being refused.
static int flips_that_pass(const char *name) {
    Buffer bytes = {0};
    int passed = 0;
    read_bytes(IMAGES_FOLDER, name, &bytes);
    for (size_t bit = 0; bit < bytes.size * 8; bit++) {
        char whole = bytes.data[bit / 8];
        Image image;
        Error error;
        bytes.data[bit / 8] = (char)(whole ^ 1 << bit % 8);
        passed += image_decode(bytes.data, bytes.size, NULL, &image, &error);
        image_free(&image);
        bytes.data[bit / 8] = whole;
    }
    buffer_free(&bytes);
    return passed;
}

static void every_flipped_bit_of_a_png_is_found(void **state) {
    (void)state;
    assert_int_equal(flips_that_pass("palette_alpha.png"), 0);
    assert_int_equal(flips_that_pass("rgb16.png"), 0);
}

static void a_flipped_bit_of_a_jpeg_does_no_harm(void **state) {
    (void)state;
    assert_true(flips_that_pass("orientation6.jpg") > 0); // a JPEG has no checksum
    assert_true(flips_that_pass("progressive.jpg") > 0);
}

static Image gradient(int width, int height) {
    Image image = {width, height, malloc((size_t)width * (size_t)height * 3)};
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = image.pixels + ((size_t)y * (size_t)width + (size_t)x) * 3;
            p[0] = (uint8_t)(x * 255 / width);
            p[1] = (uint8_t)(y * 255 / height);
            p[2] = (uint8_t)((x + y) * 255 / (width + height));
        }
    return image;
}

static void png_comes_back_to_the_bit_and_jpeg_closely(void **state) {
    static const int sizes[][2] = {{1, 1}, {2, 3}, {17, 16}, {64, 48}, {255, 7}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Image image = gradient(sizes[i][0], sizes[i][1]), back;
        Buffer bytes = {0};
        Error error;
        assert_done(image_encode_png(&image, &bytes, &error), &error);
        assert_done(image_decode(bytes.data, bytes.size, NULL, &back, &error), &error);
        assert_int_equal(pictures_differ(&image, &back, "png"), 0);
        image_free(&back);
        buffer_clear(&bytes);
        assert_done(image_encode_jpeg(&image, 95, &bytes, &error), &error);
        assert_done(image_decode(bytes.data, bytes.size, NULL, &back, &error), &error);
        int differ = pictures_differ(&image, &back, "jpeg");
        assert_true(differ <= 12 || image.width < 17 || image.height < 16); // colours are stored at half the size
        image_free(&back);
        image_free(&image);
        buffer_free(&bytes);
    }
}

static void a_picture_that_is_wanted_small_is_decoded_small(void **state) {
    static const struct {
        int least, width, height;
    } cases[] = {{0, 200, 120}, {121, 200, 120}, {120, 200, 120}, {60, 100, 60}, {59, 100, 60},
                 {30, 50, 30},  {16, 50, 30},    {15, 25, 15},    {1, 25, 15}};
    Image image = gradient(200, 120), decoded;
    Buffer bytes = {0};
    Error error;
    (void)state;
    assert_done(image_encode_jpeg(&image, 95, &bytes, &error), &error);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        DecodeOptions options = {.least_side = cases[i].least};
        assert_done(image_decode(bytes.data, bytes.size, &options, &decoded, &error), &error);
        assert_int_equal(decoded.width, cases[i].width);
        assert_int_equal(decoded.height, cases[i].height);
        Image small = {cases[i].width, cases[i].height, malloc((size_t)cases[i].width * (size_t)cases[i].height * 3)};
        image_resize(&image, (Crop){0, 0, 200, 120}, small.pixels, small.width, small.height, false);
        assert_true(pictures_differ(&decoded, &small, "scaled") <= 12);
        image_free(&small);
        image_free(&decoded);
    }
    image_free(&image);
    buffer_free(&bytes);
}

static void more_pixels_than_allowed_are_refused(void **state) {
    Image image = gradient(20, 10), back;
    DecodeOptions options = {.most_pixels = 199};
    Buffer bytes = {0};
    Error error;
    (void)state;
    for (int jpeg = 0; jpeg < 2; jpeg++) {
        buffer_clear(&bytes);
        assert_done(jpeg ? image_encode_jpeg(&image, 90, &bytes, &error) : image_encode_png(&image, &bytes, &error),
                    &error);
        assert_false(image_decode(bytes.data, bytes.size, &options, &back, &error));
        assert_message_has(&error, "20 x 10");
    }
    image_free(&image);
    buffer_free(&bytes);
}

// One colour in four inks: C, M, Y, K as a printer counts them, 255 is full.
static void encode_inks(const uint8_t inks[4], J_COLOR_SPACE stored, bool adobe, bool arithmetic, Buffer *out) {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long size = 0;
    JSAMPLE line[4 * 19];
    JSAMPROW row = line;
    for (int i = 0; i < 4 * 19; i++) line[i] = (JSAMPLE)(adobe ? 255 - inks[i % 4] : inks[i % 4]);
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &bytes, &size);
    jpeg.image_width = 19;
    jpeg.image_height = 11;
    jpeg.input_components = 4;
    jpeg.in_color_space = JCS_CMYK;
    jpeg_set_defaults(&jpeg);
    jpeg_set_colorspace(&jpeg, stored);
    jpeg_set_quality(&jpeg, 100, TRUE);
    jpeg.write_Adobe_marker = adobe;
    jpeg.arith_code = arithmetic;
    jpeg_start_compress(&jpeg, TRUE);
    while (jpeg.next_scanline < jpeg.image_height) jpeg_write_scanlines(&jpeg, &row, 1);
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    buffer_clear(out);
    buffer_append(out, bytes, size);
    free(bytes);
}

static void inks_become_light_inverted_or_not(void **state) {
    static const struct {
        J_COLOR_SPACE stored;
        bool adobe, arithmetic;
    } kinds[] = {{JCS_CMYK, true, false}, {JCS_CMYK, false, false}, {JCS_YCCK, true, false}, {JCS_CMYK, true, true}};
    static const uint8_t inks[][4] = {
        {0, 0, 0, 0}, {255, 0, 0, 0}, {0, 255, 255, 0}, {0, 0, 0, 255}, {40, 80, 120, 60}};
    Buffer bytes = {0};
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t i = 0; i < sizeof inks / sizeof *inks; i++) {
            Image image;
            Error error;
            encode_inks(inks[i], kinds[k].stored, kinds[k].adobe, kinds[k].arithmetic, &bytes);
            assert_done(image_decode(bytes.data, bytes.size, NULL, &image, &error), &error);
            assert_int_equal(image.width, 19);
            for (int c = 0; c < 3; c++) {
                double wanted = (255 - inks[i][c]) * (255 - inks[i][3]) / 255.0;
                assert_true(fabs(image.pixels[c] - wanted) <= 3);
            }
            image_free(&image);
        }
    buffer_free(&bytes);
}

// A correct progressive picture of one colour, each coefficient sent in `bits` + 1 steps.
static int encode_scans(int bits, Buffer *out) {
    static jpeg_scan_info scans[1 + 63 * 10];
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long size = 0;
    JSAMPLE line[16] = {0, 200, 30, 90};
    JSAMPROW row = line;
    int count = 0;
    scans[count++] = (jpeg_scan_info){.comps_in_scan = 1};
    for (int k = 1; k < 64; k++)
        for (int low = bits; low >= 0; low--)
            scans[count++] = (jpeg_scan_info){1, {0}, k, k, low == bits ? 0 : low + 1, low};
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &bytes, &size);
    jpeg.image_width = jpeg.image_height = 16;
    jpeg.input_components = 1;
    jpeg.in_color_space = JCS_GRAYSCALE;
    jpeg_set_defaults(&jpeg);
    jpeg.scan_info = scans;
    jpeg.num_scans = count;
    jpeg_start_compress(&jpeg, TRUE);
    while (jpeg.next_scanline < 16) jpeg_write_scanlines(&jpeg, &row, 1);
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    buffer_clear(out);
    buffer_append(out, bytes, size);
    free(bytes);
    return count;
}

static void more_scans_than_any_camera_writes_are_refused(void **state) {
    Buffer bytes = {0};
    Image image;
    Error error;
    (void)state;
    assert_true(encode_scans(1, &bytes) < 200);
    assert_done(image_decode(bytes.data, bytes.size, NULL, &image, &error), &error);
    image_free(&image);
    assert_true(encode_scans(9, &bytes) > 600);
    assert_false(image_decode(bytes.data, bytes.size, NULL, &image, &error));
    assert_message_has(&error, "scans");
    buffer_free(&bytes);
}

typedef struct Tally {
    int decoded, refused, compared, worst;
} Tally;

// Where NAME.png lies beside NAME.jpg, it is what must come out, but for the rounding of another decoder.
static void compare_reference(const char *folder, const char *name, const Image *image, Tally *tally) {
    Buffer beside = {0}, path = {0};
    size_t stem = strlen(name) - strlen(path_extension(name));
    buffer_printf(&beside, "%.*spng", (int)stem, name);
    buffer_printf(&path, "%s%s", folder, beside.data);
    if (!strcmp(path_extension(name), "jpg") && file_exists(path.data)) {
        Image right;
        read_picture(folder, beside.data, &right);
        int differ = pictures_differ(image, &right, name);
        if (differ > tally->worst) tally->worst = differ;
        tally->compared++;
        image_free(&right);
    }
    buffer_free(&beside);
    buffer_free(&path);
}

static void torture(const char *folder, Tally *tally) {
    char **names;
    int count;
    Error error;
    assert_done(folder_list(folder, &names, &count, &error), &error);
    for (int i = 0; i < count; i++) {
        Buffer path = {0}, bytes = {0};
        Image image;
        buffer_printf(&path, "%s%s/", folder, names[i]);
        if (folder_exists(path.data)) {
            torture(path.data, tally);
        } else {
            read_bytes(folder, names[i], &bytes);
            bool ok = image_decode(bytes.data, bytes.size, &OPTIONS, &image, &error);
            if (ok) compare_reference(folder, names[i], &image, tally);
            tally->decoded += ok;
            tally->refused += !ok;
            image_free(&image);
        }
        buffer_free(&path);
        buffer_free(&bytes);
    }
    names_free(names, count);
}

static void all_known_odd_pictures_decode_or_are_refused(void **state) {
    const char *data = getenv("BIFOCAL_DATA");
    Buffer folder = {0};
    Tally tally = {0};
    (void)state;
    buffer_printf(&folder, "%s/images_torture/", data ? data : SOURCE_FOLDER "/../shared/data");
    if (!folder_exists(folder.data)) {
        print_message("SKIPPED: %s is not there; set BIFOCAL_DATA to the folder of real data\n", folder.data);
        buffer_free(&folder);
        skip();
    }
    torture(folder.data, &tally);
    print_message("%d decoded, %d refused, %d compared with their reference: differ by %d at the most\n", tally.decoded,
                  tally.refused, tally.compared, tally.worst);
    assert_true(tally.decoded > 200 && tally.refused > 200);
    assert_true(tally.compared >= 30);
    assert_true(tally.worst <= 2);
    buffer_free(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bombs_are_refused_or_passed_over_in_little_memory),
        cmocka_unit_test(odd_pictures_decode_as_defined_and_damaged_ones_are_refused),
        cmocka_unit_test(every_cut_of_a_picture_is_refused),
        cmocka_unit_test(every_flipped_bit_of_a_png_is_found),
        cmocka_unit_test(a_flipped_bit_of_a_jpeg_does_no_harm),
        cmocka_unit_test(png_comes_back_to_the_bit_and_jpeg_closely),
        cmocka_unit_test(a_picture_that_is_wanted_small_is_decoded_small),
        cmocka_unit_test(more_pixels_than_allowed_are_refused),
        cmocka_unit_test(more_scans_than_any_camera_writes_are_refused),
        cmocka_unit_test(inks_become_light_inverted_or_not),
        cmocka_unit_test(all_known_odd_pictures_decode_or_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
