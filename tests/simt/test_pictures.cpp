/* Pixels, patches and the masked patch loss against the CPU backend. */
#include "tests/simt/support.h"

struct Shape {
    int64_t batch, height, width;
    int patch;
    int64_t kept;
};
static const Shape SHAPES[] = {
    {1, 2, 2, 2, 1}, {2, 6, 9, 3, 4}, {3, 16, 32, 8, 5}, {2, 48, 16, 16, 3}, {1, 28, 28, 14, 4}};

static void pixels(const Case &c) {
    const double mean[] = {0.48, 0.45, 0.4}, deviation[] = {0.27, 0.26, 0.28};
    for (Shape s : SHAPES) {
        int64_t n = s.batch * s.height * s.width * 3;
        Array x = Array(U8, n, c.shift).integers(c.rng, 0, 256), y(c.t, n, c.shift), want(y);
        Array mirrored = Array(U8, s.batch).integers(c.rng, 0, 2);
        for (const uint8_t *turned : {static_cast<const uint8_t *>(nullptr), mirrored.as<const uint8_t>()}) {
            cuda_pixels(QUEUE, y, x.as<uint8_t>(), turned, s.batch, s.height, s.width, mean, deviation, c.t);
            cpu()->pixels(cpu(), want, x.as<uint8_t>(), turned, s.batch, s.height, s.width, mean, deviation, c.t);
            expect_near(y, want, c.relative(), 1e-6, c.name);
        }
    }
}
static void pixels_agree(void **) { for_cases("pixels", pixels); }

static void patches(const Case &c) {
    for (Shape s : SHAPES) {
        const int64_t all = s.height / s.patch * (s.width / s.patch), size = 3 * s.patch * s.patch;
        Array images = Array(c.t, s.batch * 3 * s.height * s.width, c.shift).normal(c.rng);
        Array keep = Array(I32, s.batch * s.kept).integers(c.rng, 0, all); // some of them twice
        for (const int32_t *chosen :
             {static_cast<const int32_t *>(nullptr), static_cast<const int32_t *>(keep.i32())}) {
            const int64_t kept = chosen ? s.kept : all;
            Array y(c.t, s.batch * kept * size, c.shift), want(y),
                dy = Array(c.t, s.batch * kept * size, c.shift).normal(c.rng);
            cuda_patches_forward(QUEUE, y, images, chosen, s.batch, s.height, s.width, s.patch, kept, c.t);
            cpu()->patches_forward(cpu(), want, images, chosen, s.batch, s.height, s.width, s.patch, kept, c.t);
            expect_bits(y, want, c.name);
            Array dx = Array(c.t, images.count(), c.shift).normal(c.rng), want_dx(dx);
            cuda_patches_backward(QUEUE, dx, dy, chosen, s.batch, s.height, s.width, s.patch, kept, c.t, c.add);
            cpu()->patches_backward(cpu(), want_dx, dy, chosen, s.batch, s.height, s.width, s.patch, kept, c.t, c.add);
            expect_near(dx, want_dx, c.relative(), c.t == BF16 ? 0.06 : 1e-6,
                        c.name); // the CPU rounds each of two sums
        }
    }
}
static void patches_agree_forward_to_the_bit(void **) { for_cases("patches", patches); }

static void losses(const Case &c) {
    for (Shape s : SHAPES) {
        const int64_t m = 5, n = 3 * s.patch * s.patch, all = s.batch * (s.height / s.patch) * (s.width / s.patch);
        Array images = Array(c.t, s.batch * 3 * s.height * s.width, c.shift).normal(c.rng),
              x = Array(c.t, m * n, c.shift).normal(c.rng);
        Array chosen = Array(I32, m).integers(c.rng, 0, all), out(F32, 1), want(F32, 1),
              factor = Array(F32, 1).normal(c.rng);
        for (bool normalize : {false, true}) {
            cuda_masked_patch_mse_forward(QUEUE, out.f32(), x, images, chosen.i32(), m, s.batch, s.height, s.width,
                                          s.patch, normalize, c.t);
            cpu()->masked_patch_mse_forward(cpu(), want.f32(), x, images, chosen.i32(), m, s.batch, s.height, s.width,
                                            s.patch, normalize, c.t);
            expect_near(out, want, 4e-6, 0, c.name);
            Array dx = Array(c.t, m * n, c.shift).normal(c.rng), want_dx(dx);
            cuda_masked_patch_mse_backward(QUEUE, dx, factor.f32(), x, images, chosen.i32(), m, s.batch, s.height,
                                           s.width, s.patch, normalize, c.t, c.add);
            cpu()->masked_patch_mse_backward(cpu(), want_dx, factor.f32(), x, images, chosen.i32(), m, s.batch,
                                             s.height, s.width, s.patch, normalize, c.t, c.add);
            expect_near(dx, want_dx, c.relative(4e-6), 4e-6, c.name);
        }
    }
}
static void masked_patch_losses_agree(void **) { for_cases("masked patch mse", losses); }

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(pixels_agree),
        cmocka_unit_test(patches_agree_forward_to_the_bit),
        cmocka_unit_test(masked_patch_losses_agree),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
