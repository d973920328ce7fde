/* The ViT trunk and MAE: patches, positions, pooling, masks. That both equal the reference is in tests/fusion. */
#include "kernels/cpu/cpu.h"
#include "tests/support/test.h"
#include "vision/mae.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 24, PATCH = 4, PATCHES = 36, KEPT = 9, WIDTH = 32, IMAGES = 2, PIXELS = 3 * SIDE * SIDE };

static VitConfig small(Pooling pooling, bool class_token) {
    return (VitConfig){.image_size = SIDE,
                       .patch = PATCH,
                       .width = WIDTH,
                       .layers = 2,
                       .heads = 4,
                       .pooling = pooling,
                       .mlp = MLP_GELU_ERF,
                       .norm_epsilon = 1e-6,
                       .class_token = class_token,
                       .patch_bias = true};
}

static const MaeConfig decoder = {
    .mask_ratio = 0.75, .decoder_width = 16, .decoder_layers = 1, .decoder_heads = 2, .normalize = true};

typedef struct Eye {
    Backend *backend;
    Arena *memory;
    Parameters *parameters;
    Vit vit;
    Mae mae;
    Tape *tape;
} Eye;

static void eye_open(Eye *e, VitConfig config) {
    Error error = {0};
    *e = (Eye){.backend = cpu_backend_new(2, NULL, NULL), .memory = arena_new(1 << 16)};
    e->parameters = parameters_new(e->backend, NULL);
    e->tape = tape_new(e->backend, true);
    assert_done(vit_declare(&e->vit, e->parameters, e->memory, "vision", &config, &error), &error);
    assert_done(mae_declare(&e->mae, e->parameters, e->memory, "mae", &decoder, &config, &error), &error);
    assert_done(parameters_finish(e->parameters, F32, 3, &error), &error);
    parameters_begin_step(e->parameters);
}

static void eye_close(Eye *e) {
    if (tape_error(e->tape)) fail_msg("%s", tape_error(e->tape));
    tape_free(e->tape);
    parameters_free(e->parameters);
    backend_free(e->backend);
    arena_free(e->memory);
}

static void noise(float *pixels, int64_t n, uint64_t seed) {
    Rng rng = rng_for(seed, PURPOSE_TEST, 0);
    for (int64_t i = 0; i < n; i++) pixels[i] = (float)rng_normal(&rng);
}

static float *values(Eye *e, const Tensor *x) {
    if (!x) fail_msg("%s", tape_error(e->tape));
    float *out = arena_allocate(e->memory, tensor_bytes(x));
    tape_read(e->tape, x, out);
    return out;
}

static void assert_near(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-5f)) fail_msg("%lld: %g, not %g", (long long)i, (double)a[i], (double)b[i]);
}

static Tensor *noise_images(Eye *e) {
    static float pixels[IMAGES * PIXELS];
    noise(pixels, IMAGES * PIXELS, 1);
    return tape_constant(e->tape, F32, SHAPE(IMAGES, 3, SIDE, SIDE), pixels);
}

// ---- the trunk ----

static void keeping_every_patch_equals_keeping_none_back(void **state) {
    (void)state;
    for (int class_token = 0; class_token < 2; class_token++) {
        Eye e;
        int32_t keep[IMAGES * PATCHES];
        eye_open(&e, small(POOL_MEAN, class_token));
        for (int i = 0; i < IMAGES * PATCHES; i++) keep[i] = i % PATCHES;
        Tensor *images = noise_images(&e);
        Tensor *all = vit_forward(e.tape, &e.vit, images, NULL, 0, &(BlockContext){0});
        Tensor *kept = vit_forward(e.tape, &e.vit, images, keep, PATCHES, &(BlockContext){0});
        assert_int_equal(all->shape[1], PATCHES + class_token);
        assert_near(values(&e, kept), values(&e, all), tensor_count(all));
        eye_close(&e);
    }
}

static void each_pooling_gives_one_feature_an_image(void **state) {
    (void)state;
    const Pooling kinds[] = {POOL_CLASS, POOL_MEAN, POOL_ATTENTION};
    for (int k = 0; k < 3; k++) {
        Eye e;
        eye_open(&e, small(kinds[k], true));
        Tensor *tokens = vit_forward(e.tape, &e.vit, noise_images(&e), NULL, 0, &(BlockContext){0});
        Tensor *pooled = vit_pool(e.tape, &e.vit, tokens);
        float *all = values(&e, tokens), *one = values(&e, pooled);
        assert_int_equal(pooled->rank, 2);
        assert_int_equal(pooled->shape[0], IMAGES);
        assert_int_equal(pooled->shape[1], WIDTH);
        float expected[WIDTH] = {0};
        for (int c = 0; c < WIDTH; c++) // of the second image
            for (int n = 1; n <= PATCHES; n++) expected[c] += all[((PATCHES + 1) + n) * WIDTH + c] / PATCHES;
        if (kinds[k] == POOL_MEAN) assert_near(one + WIDTH, expected, WIDTH);
        if (kinds[k] == POOL_CLASS) assert_near(one + WIDTH, all + (PATCHES + 1) * WIDTH, WIDTH);
        eye_close(&e);
    }
}

// Attention from one query does not know the order of what it looks at, and every parameter of the pool learns.
static void attention_pooling_ignores_the_order_of_tokens(void **state) {
    (void)state;
    Eye e;
    float tokens[IMAGES * PATCHES * WIDTH], reversed[IMAGES * PATCHES * WIDTH];
    eye_open(&e, small(POOL_ATTENTION, false));
    noise(tokens, IMAGES * PATCHES * WIDTH, 2);
    for (int i = 0; i < IMAGES * PATCHES; i++) {
        int b = i / PATCHES, other = b * PATCHES + PATCHES - 1 - i % PATCHES;
        memcpy(reversed + i * WIDTH, tokens + other * WIDTH, WIDTH * sizeof *tokens);
    }
    Tensor *a = vit_pool(e.tape, &e.vit, tape_constant(e.tape, F32, SHAPE(IMAGES, PATCHES, WIDTH), tokens));
    Tensor *b = vit_pool(e.tape, &e.vit, tape_constant(e.tape, F32, SHAPE(IMAGES, PATCHES, WIDTH), reversed));
    assert_near(values(&e, a), values(&e, b), IMAGES * WIDTH);
    tape_backward(e.tape, sum(e.tape, mul(e.tape, a, a), 1), ALL_GRADIENTS);
    for (int i = 0; i < parameters_count(e.parameters); i++) {
        const Tensor *p = &parameters_at(e.parameters, i)->tensor;
        if (!strncmp(p->name, "vision.pool.", 12)) assert_true(p->grad_written);
    }
    eye_close(&e);
}

static void fixed_positions_are_sines_and_cosines_of_x_then_y(void **state) {
    (void)state;
    float table[10 * 8];
    vit_sincos(table, 3, 8, true);
    const float *at = table + (1 + 2 * 3 + 1) * 8; // x 1, y 2
    const double expected[8] = {sin(1), sin(0.01), cos(1), cos(0.01), sin(2), sin(0.02), cos(2), cos(0.02)};
    for (int i = 0; i < 8; i++) {
        assert_true(table[i] == 0); // the class token
        assert_true(fabs(at[i] - expected[i]) < 1e-7);
    }
}

static void fixed_positions_are_frozen(void **state) {
    (void)state;
    Eye e;
    VitConfig config = small(POOL_MEAN, true);
    config.positions = POSITIONS_SINCOS;
    eye_open(&e, config);
    assert_true(parameters_find(e.parameters, "vision.positions")->frozen);
    assert_true(parameters_find(e.parameters, "mae.positions")->frozen);
    assert_false(parameters_find(e.parameters, "vision.class_token")->frozen);
    eye_close(&e);
}

// ---- masks ----

static void a_mask_is_a_pure_function_of_seed_and_image(void **state) {
    (void)state;
    int32_t keep[2][KEPT], masked[2][PATCHES - KEPT];
    mae_mask(5, 77, PATCHES, KEPT, keep[0], masked[0]);
    mae_mask(6, 77, PATCHES, KEPT, keep[1], masked[1]);
    assert_memory_not_equal(keep[0], keep[1], sizeof keep[0]);
    mae_mask(5, 78, PATCHES, KEPT, keep[1], masked[1]);
    assert_memory_not_equal(keep[0], keep[1], sizeof keep[0]);
    mae_mask(5, 77, PATCHES, KEPT, keep[1], masked[1]);
    assert_memory_equal(keep[0], keep[1], sizeof keep[0]);
    assert_memory_equal(masked[0], masked[1], sizeof masked[0]);
}

static void every_patch_is_seen_equally_often(void **state) {
    (void)state;
    enum { DRAWS = 4000 };
    int32_t keep[KEPT], masked[PATCHES - KEPT];
    int seen[PATCHES] = {0}, together = 0;
    for (int i = 0; i < DRAWS; i++) {
        bool there[PATCHES] = {false};
        mae_mask(1, (uint64_t)i, PATCHES, KEPT, keep, masked);
        for (int k = 0; k < KEPT; k++) seen[keep[k]]++, there[keep[k]] = true;
        for (int k = 0; k < PATCHES - KEPT; k++) assert_false(there[masked[k]]); // and so a partition
        together += there[7] && there[8];
    }
    double each = (double)DRAWS * KEPT / PATCHES, deviation = sqrt(each * (1 - (double)KEPT / PATCHES));
    for (int p = 0; p < PATCHES; p++) assert_true(fabs(seen[p] - each) < 5 * deviation);
    double pair = (double)DRAWS * KEPT * (KEPT - 1) / (PATCHES * (PATCHES - 1.0)); // drawn without replacement
    assert_true(fabs(together - pair) < 5 * sqrt(pair));
}

// ---- MAE ----

static void set_patch(float *image, int patch, float value) {
    int y = patch / (SIDE / PATCH) * PATCH, x = patch % (SIDE / PATCH) * PATCH;
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < PATCH * PATCH; i++) image[(c * SIDE + y + i / PATCH) * SIDE + x + i % PATCH] = value;
}

static void the_trunk_sees_only_the_patches_kept(void **state) {
    (void)state;
    Eye e;
    static float pixels[PIXELS];
    int32_t keep[KEPT], masked[PATCHES - KEPT];
    eye_open(&e, small(POOL_MEAN, true));
    mae_mask(5, 1, PATCHES, KEPT, keep, masked);
    noise(pixels, PIXELS, 4);
    float *painted[3];
    for (int turn = 0; turn < 3; turn++) {
        if (turn == 1) set_patch(pixels, masked[3], 9);
        if (turn == 2) set_patch(pixels, keep[3], 9);
        Tensor *images = tape_constant(e.tape, F32, SHAPE(1, 3, SIDE, SIDE), pixels);
        Tensor *x = mae_predict(e.tape, &e.mae, &e.vit, images, keep, masked, &(BlockContext){0});
        assert_int_equal(x->shape[0], PATCHES - KEPT);
        assert_int_equal(x->shape[1], 3 * PATCH * PATCH);
        painted[turn] = values(&e, x);
    }
    size_t bytes = (PATCHES - KEPT) * 3 * PATCH * PATCH * sizeof(float);
    assert_memory_equal(painted[0], painted[1], bytes);
    assert_memory_not_equal(painted[0], painted[2], bytes);
    eye_close(&e);
}

static void mae_works_without_a_class_token(void **state) {
    (void)state;
    Eye e;
    int32_t keep[IMAGES * KEPT], masked[IMAGES * (PATCHES - KEPT)];
    eye_open(&e, small(POOL_MEAN, false));
    for (int i = 0; i < IMAGES; i++)
        mae_mask(5, (uint64_t)i, PATCHES, KEPT, keep + i * KEPT, masked + i * (PATCHES - KEPT));
    Tensor *loss = mae_loss(e.tape, &e.mae, &e.vit, noise_images(&e), keep, masked, &(BlockContext){0});
    float mean = values(&e, loss)[0] / (IMAGES * (PATCHES - KEPT));
    assert_true(mean > 0.5f && mean < 3); // targets have variance 1
    tape_backward(e.tape, loss, ALL_GRADIENTS);
    assert_true(parameters_find(e.parameters, "mae.mask_token")->tensor.grad_written);
    eye_close(&e);
}

static void a_quarter_is_kept_rounded_down(void **state) {
    (void)state;
    VitConfig vit = small(POOL_MEAN, true);
    MaeConfig c = decoder;
    assert_int_equal(mae_kept(&c, &vit), 9);
    c.mask_ratio = 0.6;
    assert_int_equal(mae_kept(&c, &vit), 14); // 14.4
}

static void flop_of_the_published_trunks(void **state) {
    (void)state;
    VitConfig b = {.image_size = 224, .patch = 16, .width = 768, .layers = 12, .heads = 12, .class_token = true};
    VitConfig l = {.image_size = 224, .patch = 14, .width = 1024, .layers = 24, .heads = 16, .class_token = true};
    assert_true(fabs(vit_flop(&b, 1, vit_tokens(&b)) / 35.13e9 - 1) < 2e-3);
    b.patch = 32;
    assert_true(fabs(vit_flop(&b, 1, vit_tokens(&b)) / 8.82e9 - 1) < 2e-3);
    assert_true(fabs(vit_flop(&l, 1, vit_tokens(&l)) / 162e9 - 1) < 5e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeping_every_patch_equals_keeping_none_back),
        cmocka_unit_test(each_pooling_gives_one_feature_an_image),
        cmocka_unit_test(attention_pooling_ignores_the_order_of_tokens),
        cmocka_unit_test(fixed_positions_are_sines_and_cosines_of_x_then_y),
        cmocka_unit_test(fixed_positions_are_frozen),
        cmocka_unit_test(a_mask_is_a_pure_function_of_seed_and_image),
        cmocka_unit_test(every_patch_is_seen_equally_often),
        cmocka_unit_test(the_trunk_sees_only_the_patches_kept),
        cmocka_unit_test(mae_works_without_a_class_token),
        cmocka_unit_test(a_quarter_is_kept_rounded_down),
        cmocka_unit_test(flop_of_the_published_trunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
