/* A batch in pieces: every row once, its pictures with it, counts exact. */
#include "train/microbatch.h"
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { ROWS = 5, LENGTH = 6, IMAGES = 7, SIDE = 2, SLOTS = 2 };

typedef struct Fixture {
    Batch batch;
    int32_t tokens[ROWS * LENGTH], targets[ROWS * LENGTH], positions[ROWS * LENGTH], range[2 * ROWS * LENGTH];
    int32_t image_rows[ROWS * LENGTH], ends[ROWS], pair_image[ROWS], mae_image[3];
    uint8_t pixels[IMAGES * SIDE * SIDE * 3];
    uint8_t mirrored[IMAGES];
    uint64_t keys[IMAGES];
} Fixture;

// Caption row r shows image r in its first two places; pair r is image IMAGES - 1 - r; images 0, 3, 6 are repainted.
static void fill(Fixture *f) {
    memset(f, 0, sizeof *f);
    for (int i = 0; i < ROWS * LENGTH; i++) {
        int t = i % LENGTH, r = i / LENGTH;
        f->tokens[i] = t < SLOTS ? TOKEN_NONE : 10 * r + t;
        f->targets[i] = t >= SLOTS && t < 2 + r % 3 + 1 ? 1 : TOKEN_NONE;
        f->range[2 * i + 1] = t + 1;
        f->image_rows[i] = t < SLOTS ? r * SLOTS + t : -1;
    }
    for (int i = 0; i < IMAGES; i++) {
        f->keys[i] = 100 + (uint64_t)i;
        f->mirrored[i] = i % 3 == 1;
        memset(f->pixels + i * SIDE * SIDE * 3, i, SIDE * SIDE * 3);
    }
    for (int i = 0; i < ROWS; i++) f->pair_image[i] = IMAGES - 1 - i;
    for (int i = 0; i < 3; i++) f->mae_image[i] = 3 * i;
    Sequences rows = {ROWS, LENGTH, f->tokens, f->targets, f->positions, f->range, f->image_rows, f->ends, 0, 0};
    for (int i = 0; i < ROWS * LENGTH; i++) rows.target_count += f->targets[i] != TOKEN_NONE;
    f->batch = (Batch){.images = IMAGES,
                       .side = SIDE,
                       .pixels = f->pixels,
                       .mirrored = f->mirrored,
                       .image_keys = f->keys,
                       .caption = rows,
                       .contrastive = rows,
                       .contrastive_image = f->pair_image,
                       .mae_images = 3,
                       .mae_image = f->mae_image};
}

static void every_row_comes_once_and_in_order(void **state) {
    (void)state;
    Fixture f;
    fill(&f);
    Arena *memory = arena_new(4096);
    for (int parts = 1; parts <= 7; parts++) {
        int64_t targets = 0;
        int row = 0, mae = 0;
        for (int part = 0; part < parts; part++) {
            Batch piece = microbatch(&f.batch, part, parts, SLOTS, memory);
            for (int r = 0; r < piece.caption.rows; r++, row++)
                assert_int_equal(piece.caption.tokens[r * LENGTH + SLOTS], 10 * row + SLOTS);
            targets += piece.caption.target_count;
            mae += piece.mae_images;
        }
        assert_int_equal(row, ROWS);
        assert_int_equal(mae, 3);
        assert_int_equal(targets, f.batch.caption.target_count);
    }
    arena_free(memory);
}

static void rows_keep_their_pictures(void **state) {
    (void)state;
    Fixture f;
    fill(&f);
    Arena *memory = arena_new(4096);
    int row = 0, pair = 0, mae = 0;
    for (int part = 0; part < 3; part++) {
        Batch piece = microbatch(&f.batch, part, 3, SLOTS, memory);
        for (int r = 0; r < piece.caption.rows; r++, row++) {
            int image = piece.caption.image_rows[r * LENGTH] / SLOTS;
            assert_int_equal(piece.image_keys[image], 100 + row);
            assert_int_equal(piece.pixels[image * SIDE * SIDE * 3], row);
            assert_int_equal(piece.image_numbers[image], row);
            assert_int_equal(piece.mirrored[image], row % 3 == 1);
            assert_int_equal(piece.caption.image_rows[r * LENGTH + 1], image * SLOTS + 1);
            assert_int_equal(piece.caption.image_rows[r * LENGTH + 2], -1);
        }
        for (int r = 0; r < piece.contrastive.rows; r++, pair++)
            assert_int_equal(piece.image_keys[piece.contrastive_image[r]], 100 + IMAGES - 1 - pair);
        for (int i = 0; i < piece.mae_images; i++, mae++)
            assert_int_equal(piece.image_keys[piece.mae_image[i]], 100 + 3 * mae);
    }
    arena_free(memory);
}

// For a stage that reads none.
static void without_pixels_the_rest_is_the_same(void **state) {
    (void)state;
    Fixture f;
    Arena *memory = arena_new(1 << 16);
    fill(&f);
    Batch seen = microbatch(&f.batch, 1, 3, SLOTS, memory);
    f.batch.pixels = NULL;
    Batch blind = microbatch(&f.batch, 1, 3, SLOTS, memory);
    assert_non_null(seen.pixels);
    assert_null(blind.pixels);
    assert_true(seen.images > 0);
    assert_int_equal(seen.images, blind.images);
    assert_memory_equal(seen.image_keys, blind.image_keys, (size_t)seen.images * sizeof *seen.image_keys);
    assert_memory_equal(seen.contrastive_image, blind.contrastive_image,
                        (size_t)seen.contrastive.rows * sizeof(int32_t));
    arena_free(memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_comes_once_and_in_order),
        cmocka_unit_test(rows_keep_their_pictures),
        cmocka_unit_test(without_pixels_the_rest_is_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
