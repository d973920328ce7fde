/* Norms, sums over rows and whole buffers, and searches against the CPU backend. */
#include "tests/simt/support.h"
#include <cmath>

static void norms(const Case &c) {
    struct Shape {
        int64_t rows, width;
    };
    for (Shape s : {Shape{1, 1}, Shape{5, 8}, Shape{9, 96}, Shape{3, 257}, Shape{6, 768}, Shape{2, 1024},
                    Shape{2, 2056}, Shape{1, 9000}}) {
        int64_t n = s.rows * s.width;
        Array x = Array(c.t, n, c.shift).normal(c.rng, 2), dy = Array(c.t, n, c.shift).normal(c.rng);
        Array scale = Array(F32, s.width, c.shift).normal(c.rng), shift = Array(F32, s.width).normal(c.rng);
        Array y(c.t, n, c.shift), mean(F32, s.rows), rstd(F32, s.rows), want(y), want_mean(mean), want_rstd(rstd);
        for (int64_t i = 0; i < n; i++) x.put(i, x.at(i) + 3); // a mean that must be taken away
        cuda_layernorm_forward(QUEUE, y, mean.f32(), rstd.f32(), x, scale.f32(), shift.f32(), s.rows, s.width, 1e-5,
                               c.t);
        cpu()->layernorm_forward(cpu(), want, want_mean.f32(), want_rstd.f32(), x, scale.f32(), shift.f32(), s.rows,
                                 s.width, 1e-5, c.t);
        expect_near(y, want, c.relative(), 4e-6, c.name);
        expect_near(mean, want_mean, 1e-6, 1e-7, c.name);
        if (s.width > 1) expect_near(rstd, want_rstd, 2e-6, 0, c.name);
        Array dx = Array(c.t, n, c.shift).normal(c.rng), want_dx(dx), dr(dx), want_dr(dx);
        Array dscale = Array(F32, s.width).normal(c.rng), want_dscale(dscale);
        Array dshift = Array(F32, s.width).normal(c.rng), want_dshift(dshift);
        cuda_layernorm_backward_input(QUEUE, dx, dy, x, mean.f32(), rstd.f32(), scale.f32(), s.rows, s.width, c.t,
                                      c.add);
        cpu()->layernorm_backward_input(cpu(), want_dx, dy, x, mean.f32(), rstd.f32(), scale.f32(), s.rows, s.width,
                                        c.t, c.add);
        expect_near(dx, want_dx, c.relative(), s.width == 1 ? 1e-2 : 1e-5, c.name);
        cuda_layernorm_backward_weight(QUEUE, dscale.f32(), s.width == 96 ? nullptr : dshift.f32(), dy, x, mean.f32(),
                                       rstd.f32(), s.rows, s.width, c.t, c.add, !c.add);
        cpu()->layernorm_backward_weight(cpu(), want_dscale.f32(), s.width == 96 ? nullptr : want_dshift.f32(), dy, x,
                                         mean.f32(), rstd.f32(), s.rows, s.width, c.t, c.add, !c.add);
        expect_near(dscale, want_dscale, 4e-6, 4e-6, c.name);
        expect_near(dshift, want_dshift, 4e-6, 4e-6, c.name);

        cuda_rmsnorm_forward(QUEUE, y, rstd.f32(), x, scale.f32(), s.rows, s.width, 1e-6, c.t);
        cpu()->rmsnorm_forward(cpu(), want, want_rstd.f32(), x, scale.f32(), s.rows, s.width, 1e-6, c.t);
        expect_near(y, want, c.relative(), 4e-6, c.name);
        expect_near(rstd, want_rstd, 2e-6, 0, c.name);
        cuda_rmsnorm_backward_input(QUEUE, dr, dy, x, rstd.f32(), scale.f32(), s.rows, s.width, c.t, c.add);
        cpu()->rmsnorm_backward_input(cpu(), want_dr, dy, x, rstd.f32(), scale.f32(), s.rows, s.width, c.t, c.add);
        expect_near(dr, want_dr, c.relative(), 1e-5, c.name);
        cuda_rmsnorm_backward_weight(QUEUE, dscale.f32(), dy, x, rstd.f32(), s.rows, s.width, c.t, c.add);
        cpu()->rmsnorm_backward_weight(cpu(), want_dscale.f32(), dy, x, rstd.f32(), s.rows, s.width, c.t, c.add);
        expect_near(dscale, want_dscale, 4e-6, 1e-5, c.name);
    }
}
// All gradients of a norm at once, and the sums of dx: what the calls apart give.
static void gradients_at_once(const Case &c) {
    struct Shape {
        int64_t rows, width;
    };
    for (Shape s : {Shape{1, 8}, Shape{5, 96}, Shape{2, 257}, Shape{403, 8}, Shape{9, 768}, Shape{3, 1024},
                    Shape{3, 1600}, Shape{2, 2056}, Shape{1, 4104}}) {
        for (bool centred : {true, false}) {
            int64_t n = s.rows * s.width;
            Array x = Array(c.t, n, c.shift).normal(c.rng, 2), dy = Array(c.t, n, c.shift).normal(c.rng);
            Array scale = Array(F32, s.width, c.shift).normal(c.rng), mean = Array(F32, s.rows).normal(c.rng);
            Array rstd = Array(F32, s.rows).normal(c.rng), dx = Array(c.t, n, c.shift).normal(c.rng), want(dx);
            Array dscale = Array(F32, s.width).normal(c.rng), want_dscale(dscale);
            Array dshift = Array(F32, s.width).normal(c.rng), want_dshift(dshift), sums(F32, s.width), want_sums(sums);
            float *centre = centred ? mean.f32() : nullptr, *to_sums = centred ? sums.f32() : nullptr;
            NormGradients out = {dx, dscale.f32(), centred ? dshift.f32() : nullptr, to_sums, c.add, !c.add, c.add};
            cuda_norm_backward(QUEUE, &out, dy, x, centre, rstd.f32(), scale.f32(), s.rows, s.width, c.t);
            if (centred) {
                cpu()->layernorm_backward_input(cpu(), want, dy, x, centre, rstd.f32(), scale.f32(), s.rows, s.width,
                                                c.t, c.add);
                cpu()->layernorm_backward_weight(cpu(), want_dscale.f32(), want_dshift.f32(), dy, x, centre,
                                                 rstd.f32(), s.rows, s.width, c.t, !c.add, c.add);
                cpu()->sum_columns(cpu(), want_sums.f32(), dx, s.rows, s.width, c.t, false);
                expect_near(dshift, want_dshift, 4e-6, 1e-5, c.name);
                expect_near(sums, want_sums, 4e-6, 2e-5, c.name);
            } else {
                cpu()->rmsnorm_backward_input(cpu(), want, dy, x, rstd.f32(), scale.f32(), s.rows, s.width, c.t, c.add);
                cpu()->rmsnorm_backward_weight(cpu(), want_dscale.f32(), dy, x, rstd.f32(), s.rows, s.width, c.t,
                                               !c.add);
            }
            expect_near(dx, want, c.relative(), 1e-4, c.name);
            expect_near(dscale, want_dscale, 4e-6, 4e-5, c.name);
        }
    }
}
static void gradients_at_once_agree(void **) { for_cases("norm gradients", gradients_at_once); }

static void norms_agree_forward_and_backward(void **) { for_cases("norm", norms); }

// A sum has the CPU's bits, and so has the norm of it those of the norm alone.
static void sums(const Case &c) {
    struct Shape {
        int64_t rows, width;
    };
    for (Shape s :
         {Shape{1, 2}, Shape{5, 8}, Shape{9, 96}, Shape{3, 257}, Shape{6, 768}, Shape{2, 2056}, Shape{1, 9000}}) {
        for (int how = 0; how < 8; how++) {
            int64_t n = s.rows * s.width;
            bool centred = how & 1;
            Array numbers = Array(I32, s.rows + 1).integers(c.rng, 0, 1 << 30);
            DropoutDraws draws = {how & 2 ? 0.5 : 0,
                                  77,
                                  5,
                                  how & 4 ? static_cast<uint64_t>(s.width) : 8,
                                  how & 4 ? numbers.i32() : nullptr,
                                  s.width};
            Array x = Array(c.t, n, c.shift).normal(c.rng, 2), f = Array(c.t, n, c.shift).normal(c.rng);
            Array scale = Array(F32, s.width, c.shift).normal(c.rng), shift = Array(F32, s.width).normal(c.rng);
            Array sum(c.t, n, c.shift), y(sum), mean(F32, s.rows), rstd(mean);
            Array want(sum), want_y(sum), want_mean(mean), want_rstd(mean);
            cuda_add_norm_forward(QUEUE, sum, y, centred ? mean.f32() : nullptr, rstd.f32(), x, f, scale.f32(),
                                  centred ? shift.f32() : nullptr, s.rows, s.width, 1e-5, &draws, c.t);
            cpu()->add_norm_forward(cpu(), want, want_y, centred ? want_mean.f32() : nullptr, want_rstd.f32(), x, f,
                                    scale.f32(), centred ? shift.f32() : nullptr, s.rows, s.width, 1e-5, &draws, c.t);
            expect_bits(sum, want, c.name); // the scale of what is kept is 2
            expect_near(y, want_y, c.relative(), 1e-5, c.name);
            Array alone(y);
            if (centred)
                cuda_layernorm_forward(QUEUE, alone, mean.f32(), rstd.f32(), sum, scale.f32(), shift.f32(), s.rows,
                                       s.width, 1e-5, c.t);
            else
                cuda_rmsnorm_forward(QUEUE, alone, rstd.f32(), sum, scale.f32(), s.rows, s.width, 1e-5, c.t);
            expect_bits(y, alone, c.name);

            Array dy = Array(c.t, n, c.shift).normal(c.rng), dsum = Array(c.t, n, c.shift).normal(c.rng);
            Array df = Array(c.t, n, c.shift).normal(c.rng), want_dsum(dsum), want_df(df);
            draws.p = 0.5;
            cuda_add_norm_backward(QUEUE, dsum, df, dy, sum, centred ? mean.f32() : nullptr, rstd.f32(), scale.f32(),
                                   s.rows, s.width, &draws, c.t, c.add, how & 2);
            if (centred)
                cuda_layernorm_backward_input(QUEUE, want_dsum, dy, sum, mean.f32(), rstd.f32(), scale.f32(), s.rows,
                                              s.width, c.t, c.add);
            else
                cuda_rmsnorm_backward_input(QUEUE, want_dsum, dy, sum, rstd.f32(), scale.f32(), s.rows, s.width, c.t,
                                            c.add);
            expect_bits(dsum, want_dsum, c.name);
            cuda_dropout(QUEUE, want_df, dsum, n, &draws, c.t, how & 2);
            expect_bits(df, want_df, c.name);
        }
    }
}
static void sums_with_their_norms_have_the_bits_of_the_kernels_apart(void **) { for_cases("add_norm", sums); }

static void columns(const Case &c) {
    struct Shape {
        int64_t rows, width;
    };
    for (Shape s :
         {Shape{1, 1}, Shape{3, 8}, Shape{65, 40}, Shape{700, 33}, Shape{129, 264}, Shape{9, 1000}, Shape{0, 7}}) {
        Array x = Array(c.t, s.rows * s.width, c.shift).normal(c.rng);
        Array out = Array(F32, s.width, c.shift).normal(c.rng), want(out);
        cuda_sum_columns(QUEUE, out.f32(), x, s.rows, s.width, c.t, c.add);
        cpu()->sum_columns(cpu(), want.f32(), x, s.rows, s.width, c.t, c.add);
        expect_near(out, want, 2e-6, 2e-5, c.name);
        for (Dtype to : {F32, BF16}) {
            Array db = Array(to, s.width, c.shift).normal(c.rng), want_db(db);
            cuda_fold_add(QUEUE, db, to, x, c.t, s.rows * s.width, s.width, c.add);
            cpu()->fold_add(cpu(), want_db, to, x, c.t, s.rows * s.width, s.width, c.add);
            expect_near(db, want_db, to == BF16 ? 1.0 / 128 : 2e-6, 2e-5, c.name);
        }
    }
}
static void sums_over_rows_agree(void **) { for_cases("columns", columns); }

static void totals(const Case &c) {
    for (int64_t n : {1, 5, 8, 1000, 16384, 40003}) {
        Array x = Array(c.t, n, c.shift).normal(c.rng), out(F32, 1), want(out);
        cuda_sum_into(QUEUE, out.f32(), x, n, 0.37, c.t);
        cpu()->sum_into(cpu(), want.f32(), x, n, 0.37, c.t);
        expect_near(out, want, 1e-6, 1e-7, c.name);
        Array again(F32, 1);
        cuda_sum_into(QUEUE, again.f32(), x, n, 0.37, c.t);
        expect_bits(again, out, c.name);

        Array terms(F32, 2 * n), sum = Array(F32, 1).set(0.5), want_sum(sum); // n numbers in f64
        for (int64_t i = 0; i < n; i++) terms.f64()[i] = x.at(i);
        cuda_sum_rows(QUEUE, sum.f32(), c.add, terms.f64(), n);
        cpu()->sum_rows(cpu(), want_sum.f32(), c.add, terms.f64(), n);
        expect_near(sum, want_sum, 1e-6, 1e-7, c.name);
    }
}
static void totals_agree_and_repeat_to_the_bit(void **) { for_cases("totals", totals); }

static void squares(const Case &c) {
    if (c.t != F32) return;
    for (int64_t block : {1, 7, 64, 1024, 5000}) {
        const int64_t blocks = 5;
        Array x = Array(F32, blocks * block, c.shift).normal(c.rng), out(F32, 2 * blocks), want(F32, 2 * blocks);
        cuda_block_squares(QUEUE, out.f64(), x.f32(), blocks, block);
        cpu()->block_squares(cpu(), want.f64(), x.f32(), blocks, block);
        for (int64_t i = 0; i < blocks; i++)
            if (!(std::fabs(out.f64()[i] - want.f64()[i]) <= 1e-13 * want.f64()[i]))
                fail_msg("%.17g, not %.17g", out.f64()[i], want.f64()[i]);
    }
}
static void squares_of_blocks_agree(void **) { for_cases("squares", squares); }

static void searches(const Case &c) {
    for (int64_t n : {1, 9, 1000, 40003}) {
        Array x = Array(c.t, n, c.shift).normal(c.rng), out(F32, 2);
        int64_t *found = out.as<int64_t>();
        cuda_first_nonfinite(QUEUE, found, x, n, c.t);
        assert_int_equal(*found, -1);
        for (int64_t at : {n - 1, n / 2, n / 3, int64_t(0)}) {
            x.put(at, at % 2 ? INFINITY : NAN);
            cuda_first_nonfinite(QUEUE, found, x, n, c.t);
            assert_int_equal(*found, cpu()->first_nonfinite(cpu(), x, n, c.t));
            assert_int_equal(*found, at);
        }
    }
}
static void the_first_number_that_is_not_finite_is_found(void **) { for_cases("search", searches); }

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(norms_agree_forward_and_backward),
        cmocka_unit_test(gradients_at_once_agree),
        cmocka_unit_test(sums_with_their_norms_have_the_bits_of_the_kernels_apart),
        cmocka_unit_test(sums_over_rows_agree),
        cmocka_unit_test(totals_agree_and_repeat_to_the_bit),
        cmocka_unit_test(squares_of_blocks_agree),
        cmocka_unit_test(the_first_number_that_is_not_finite_is_found),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
