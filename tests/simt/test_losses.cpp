/* Cross-entropy over chunks of logits, and the contrastive losses on tiles. The CPU backend has no passes over logits
 * of its own, so its whole cross-entropy is the reference: logits are made here by plain products. */
#include "tests/simt/support.h"
#include <cmath>

struct Words {
    int64_t rows, width, stride;
    Vocabulary v;
};

// logits[r, c] = x[r] . w[c]; what lies behind the words is not to be read as one
static Array logits_of(const Case &c, const Words &s, const Array &x, const Array &w) {
    Array z(c.t, s.rows * s.stride, c.shift);
    for (int64_t r = 0; r < s.rows; r++) {
        for (int64_t k = 0; k < s.stride; k++) {
            double sum = k < s.v.held ? 0 : 99;
            for (int64_t i = 0; i < s.width && k < s.v.held; i++) sum += x.at(r * s.width + i) * w.at(k * s.width + i);
            z.put(r * s.stride + k, sum);
        }
    }
    return z;
}

static void cross_entropies(const Case &c) {
    const Words shapes[] = {{3, 4, 1, {0, 1, 1, 0}},
                            {5, 8, 37, {0, 37, 37, 0}},
                            {9, 3, 64, {10, 50, 70, 0}},
                            {2, 5, 5008, {0, 5000, 5000, 0}},
                            {4, 6, 1030, {100, 1001, 2000, 0}}};
    for (const Words &s : shapes) {
        // x and w of f32: those of the CPU's f32 path whatever the logits' type
        Array x = Array(F32, s.rows * s.width).normal(c.rng), w = Array(F32, s.v.held * s.width).normal(c.rng);
        Array targets = Array(I32, s.rows).integers(c.rng, 0, s.v.all), weight = Array(F32, s.rows).normal(c.rng);
        if (s.rows > 3) targets.put(2, -1), targets.put(3, static_cast<double>(s.v.first + s.v.held - 1));
        Array z = logits_of(c, s, x, w), lse(F32, s.rows), picked(F32, s.rows), want_lse(lse), want_picked(picked);
        const double bf16 = c.t == BF16 ? 0.03 : 0; // the logits' rounding
        cuda_cross_entropy_rows(QUEUE, lse.f32(), picked.f32(), z, c.t, s.stride, targets.i32(), s.rows, s.v);
        cpu()->cross_entropy_forward(cpu(), want_lse.f32(), want_picked.f32(), x, w, targets.i32(), s.rows, s.width,
                                     s.v, F32);
        expect_near(lse, want_lse, 2e-6, 2e-6 + bf16, c.name);
        expect_near(picked, want_picked, 2e-6 + bf16 / 4, 4e-6 + bf16, c.name);

        Array d_loss = Array(F32, s.rows).normal(c.rng), first(z);
        const float *weights = c.add ? weight.f32() : nullptr;
        cuda_cross_entropy_gradient(QUEUE, z, c.t, s.stride, d_loss.f32(), lse.f32(), targets.i32(), weights, s.rows,
                                    s.v);
        for (int64_t r = 0; r < s.rows; r++) {
            for (int64_t k = 0; k < s.stride; k++) {
                int64_t at = r * s.stride + k, target = static_cast<int64_t>(targets.at(r));
                double p = std::exp(first.at(at) - lse.at(r)) - (target == k + s.v.first ? 1 : 0);
                double want = k < s.v.held && target >= 0 ? d_loss.at(r) * (weights ? weight.at(r) : 1) * p : 0;
                if (!(std::fabs(z.at(at) - want) <= 1e-6 + (c.t == BF16 ? 0.01 : 4e-6) * std::fabs(want)))
                    fail_msg("%s: gradient %.9g, not %.9g", c.name, z.at(at), want);
            }
        }
    }
}
static void cross_entropy_of_chunks_agrees(void **) { for_cases("cross-entropy", cross_entropies); }

// Of no words held there is no sum; -Inf has no part in one; what is not a number is not lost.
static void odd_logits(const Case &c) {
    Array targets = Array(I32, 1).set(3), lse(F32, 1), picked = Array(F32, 1), logits = Array(c.t, 304, c.shift).set(1);
    auto logsumexp = [&](const Vocabulary &v) {
        cuda_cross_entropy_rows(QUEUE, lse.f32(), picked.f32(), logits, c.t, 304, targets.i32(), 1, v);
        return lse.at(0);
    };
    assert_true(logsumexp({4, 0, 300, 0}) == -INFINITY && picked.at(0) == 0);
    for (double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
        logits.put(299, bad);
        assert_true(std::isnan(logsumexp({0, 300, 300, 0})));
        assert_true(std::fabs(logsumexp({0, 299, 300, 0}) - (1 + std::log(299.0))) < 1e-5);
    }
    logits.put(299, -INFINITY);
    assert_true(std::fabs(logsumexp({0, 300, 300, 0}) - (1 + std::log(299.0))) < 1e-5);
    for (int64_t i = 8; i < 300; i++) logits.put(i, -INFINITY); // most threads have nothing else
    assert_true(std::fabs(logsumexp({0, 300, 300, 0}) - (1 + std::log(8.0))) < 1e-5);
}
static void logits_that_are_not_finite_do_what_they_must(void **) { for_cases("not finite", odd_logits); }

// The same numbers in bf16 and as f32's: the pass rounds nothing but its own result.
static void roundings(const Case &c) {
    const int64_t rows = 3, words = 2500, stride = 2504;
    const Vocabulary v = {7, words, 3000, 0};
    Array z = Array(c.t, rows * stride, c.shift).normal(c.rng, 3), exact(F32, rows * stride);
    for (int64_t i = 0; i < z.count(); i++) exact.put(i, z.at(i));
    Array targets = Array(I32, rows).set(2000), d_loss = Array(F32, rows).normal(c.rng);
    Array lse(F32, rows), picked(F32, rows), want_lse(lse), want_picked(picked);
    cuda_cross_entropy_rows(QUEUE, lse.f32(), picked.f32(), z, c.t, stride, targets.i32(), rows, v);
    cuda_cross_entropy_rows(QUEUE, want_lse.f32(), want_picked.f32(), exact, F32, stride, targets.i32(), rows, v);
    expect_near(lse, want_lse, 1e-6, 1e-6, c.name);
    expect_bits(picked, want_picked, c.name);
    cuda_cross_entropy_gradient(QUEUE, z, c.t, stride, d_loss.f32(), lse.f32(), targets.i32(), nullptr, rows, v);
    cuda_cross_entropy_gradient(QUEUE, exact, F32, stride, d_loss.f32(), lse.f32(), targets.i32(), nullptr, rows, v);
    for (int64_t i = 0; i < z.count(); i++) {
        Array rounded = Array(c.t, 1).set(exact.at(i));
        assert_true(z.at(i) == rounded.at(0));
    }
}
static void gradients_are_rounded_once(void **) { for_cases("rounded", roundings); }

// With or without a target, a row of padding behind: the bits of the two passes with a factor of 1.
static void both_passes(const Case &c) {
    const int64_t rows = 4, words = 2500, stride = 2504;
    const Vocabulary v = {0, words, words, 0};
    Array z = Array(c.t, rows * stride, c.shift).normal(c.rng, 3), want(z), ones = Array(F32, rows).set(1);
    Array targets = Array(I32, rows).integers(c.rng, 0, words), weight = Array(F32, rows).normal(c.rng);
    Array lse(F32, rows), picked(F32, rows), want_lse(F32, rows), want_picked(F32, rows);
    float *weights = c.add ? weight.f32() : nullptr;
    targets.put(2, -1);
    cuda_cross_entropy_both(QUEUE, lse.f32(), picked.f32(), z, c.t, stride, targets.i32(), weights, rows, v);
    cuda_cross_entropy_rows(QUEUE, want_lse.f32(), want_picked.f32(), want, c.t, stride, targets.i32(), rows, v);
    cuda_cross_entropy_gradient(QUEUE, want, c.t, stride, ones.f32(), want_lse.f32(), targets.i32(), weights, rows, v);
    expect_bits(lse, want_lse, c.name);
    expect_bits(picked, want_picked, c.name);
    expect_bits(z, want, c.name);
}
static void loss_and_gradient_in_one_pass_are_those_of_two(void **) { for_cases("both", both_passes); }

static void combinations(const Case &c) {
    if (c.t != F32) return;
    for (int ranks = 1; ranks < 4; ranks++) {
        const int64_t n = 300;
        Array parts = Array(F32, 2 * ranks * n).normal(c.rng, 3), targets = Array(I32, n).integers(c.rng, -1, 3),
              weight = Array(F32, n).normal(c.rng);
        Array loss(F32, n), lse(F32, n), want(F32, n), want_lse(F32, n);
        float *weights = c.add ? weight.f32() : nullptr;
        parts.put(7, NAN);
        cuda_cross_entropy_combine(QUEUE, loss.f32(), lse.f32(), parts.f32(), targets.i32(), weights, ranks, n);
        cpu()->cross_entropy_combine(cpu(), want.f32(), want_lse.f32(), parts.f32(), targets.i32(), weights, ranks, n);
        expect_near(loss, want, 2e-6, 2e-6, c.name);
        expect_near(lse, want_lse, 2e-6, 2e-6, c.name);
    }
}
static void parts_of_ranks_combine_alike(void **) { for_cases("combine", combinations); }

// ---- contrastive ----

static void expect_near_f64(const Array &got, const Array &want, double tolerance, const char *what) {
    for (int64_t i = 0; i < got.count() / 2; i++)
        if (!(std::fabs(got.f64()[i] - want.f64()[i]) <= tolerance * (1 + std::fabs(want.f64()[i]))))
            fail_msg("%s: element %lld is %.9g, not %.9g", what, static_cast<long long>(i), got.f64()[i],
                     want.f64()[i]);
}

static Array doubles(Rng *rng, int64_t n) {
    Array a(F32, 2 * n);
    for (int64_t i = 0; i < n; i++) a.f64()[i] = rng_normal(rng);
    return a;
}

struct Tile {
    PairTile t;
    const char *name;
    Rng *rng;
};

static void expect_columns(const Tile &s, const Array &got, const Array &want) {
    for (int64_t r = 0; r < s.t.rows; r++)
        for (int64_t k = 0; k < s.t.columns; k++) {
            double g = got.at(r * s.t.stride + k), w = want.at(r * s.t.stride + k);
            if (!(std::fabs(g - w) <= 2e-5 * (1 + std::fabs(w)))) fail_msg("%s: gradient %.9g, not %.9g", s.name, g, w);
        }
}

static void clip(const Tile &s, const Array &z, float log_scale) {
    const int64_t m = s.t.rows, n = s.t.columns;
    Array scale = Array(F32, 1).set(static_cast<double>(log_scale)), factor = Array(F32, 1).set(0.7);
    Array row_most = Array(F32, m).normal(s.rng), row_sum = Array(F32, m).set(2), own = Array(F32, m).set(0);
    Array column_most = Array(F32, n).normal(s.rng), column_sum = Array(F32, n).set(3);
    Array want_row_most(row_most), want_row_sum(row_sum), want_column_most(column_most), want_column_sum(column_sum),
        want_own(own);
    Array lse(F32, m), want_lse(F32, m), column_lse(F32, n), want_column_lse(F32, n), here(z), there(z);
    PairTile t = s.t, u = s.t;
    t.z = here.f32(), u.z = there.f32();
    cuda_clip_sums(QUEUE, {row_most.f32(), row_sum.f32()}, {column_most.f32(), column_sum.f32()}, own.f32(), &t,
                   scale.f32());
    cpu()->clip_sums(cpu(), {want_row_most.f32(), want_row_sum.f32()}, {want_column_most.f32(), want_column_sum.f32()},
                     want_own.f32(), &u, scale.f32());
    if (m == n) { // as if rows and columns were sums of two ranks
        Array most(row_most), sum(row_sum), want_most(row_most), want_sum(row_sum);
        most.put(0, -INFINITY), sum.put(0, 0), want_most.put(0, -INFINITY), want_sum.put(0, 0);
        cuda_clip_join(QUEUE, {most.f32(), sum.f32()}, {column_most.f32(), column_sum.f32()}, m);
        cpu()->clip_join(cpu(), {want_most.f32(), want_sum.f32()}, {column_most.f32(), column_sum.f32()}, m);
        expect_bits(most, want_most, s.name);
        expect_near(sum, want_sum, 1e-6, 1e-6, s.name);
    }
    cuda_clip_logsumexp(QUEUE, lse.f32(), {row_most.f32(), row_sum.f32()}, m);
    cpu()->clip_logsumexp(cpu(), want_lse.f32(), {want_row_most.f32(), want_row_sum.f32()}, m);
    cuda_clip_logsumexp(QUEUE, column_lse.f32(), {column_most.f32(), column_sum.f32()}, n);
    cpu()->clip_logsumexp(cpu(), want_column_lse.f32(), {want_column_most.f32(), want_column_sum.f32()}, n);
    expect_near(lse, want_lse, 2e-6, 4e-6, s.name);
    expect_near(column_lse, want_column_lse, 2e-6, 4e-6, s.name);
    expect_near(own, want_own, 1e-6, 0, s.name);
    Array d_scale = doubles(s.rng, m), want_d_scale(d_scale);
    cuda_clip_gradient(QUEUE, d_scale.f64(), &t, want_lse.f32(), want_column_lse.f32(), scale.f32(), factor.f32());
    cpu()->clip_gradient(cpu(), want_d_scale.f64(), &u, want_lse.f32(), want_column_lse.f32(), scale.f32(),
                         factor.f32());
    expect_columns(s, here, there);
    expect_near_f64(d_scale, want_d_scale, 2e-5, s.name);
    if (m != n) return;
    Array loss(F32, 2 * m), want_loss(F32, 2 * m);
    cuda_clip_losses(QUEUE, loss.f64(), want_lse.f32(), want_column_lse.f32(), want_own.f32(), m);
    cpu()->clip_losses(cpu(), want_loss.f64(), want_lse.f32(), want_column_lse.f32(), want_own.f32(), m);
    expect_bits(loss, want_loss, s.name);
}

static void siglip(const Tile &s, const Array &z) {
    const int64_t m = s.t.rows;
    Array scale = Array(F32, 1).set(1.3), bias = Array(F32, 1).set(-2), factor = Array(F32, 1).set(0.7), here(z),
          there(z);
    PairTile t = s.t, u = s.t;
    t.z = here.f32(), u.z = there.f32();
    Array loss = doubles(s.rng, m), want_loss(loss), d_scale = doubles(s.rng, m), want_d_scale(d_scale);
    Array d_bias = doubles(s.rng, m), want_d_bias(d_bias);
    cuda_siglip_sums(QUEUE, loss.f64(), &t, scale.f32(), bias.f32());
    cpu()->siglip_sums(cpu(), want_loss.f64(), &u, scale.f32(), bias.f32());
    expect_near_f64(loss, want_loss, 2e-6, s.name);
    cuda_siglip_gradient(QUEUE, d_scale.f64(), d_bias.f64(), &t, scale.f32(), bias.f32(), factor.f32());
    cpu()->siglip_gradient(cpu(), want_d_scale.f64(), want_d_bias.f64(), &u, scale.f32(), bias.f32(), factor.f32());
    expect_columns(s, here, there);
    expect_near_f64(d_scale, want_d_scale, 1e-5, s.name);
    expect_near_f64(d_bias, want_d_bias, 1e-5, s.name);
}

static void tiles(const Case &c) {
    if (c.t != F32) return;
    struct Sides {
        int64_t rows, columns, offset, first, end;
    };
    for (Sides k : {Sides{1, 1, 0, 0, 1}, Sides{9, 9, 0, 0, 9}, Sides{40, 70, 5, 10, 30}, Sides{33, 200, -4, 0, 29},
                    Sides{7, 5, 100, 0, 5}, Sides{600, 9, -300, 0, 9}}) {
        int64_t stride = (k.columns + 15) / 16 * 16;
        Array z = Array(F32, k.rows * stride).normal(c.rng);
        Tile s = {{nullptr, k.rows, k.columns, stride, k.offset, k.first, k.end, c.add, c.shift > 0}, c.name, c.rng};
        clip(s, z, 2.0f);
        clip(s, z, 5.0f); // above the clamp
        siglip(s, z);
    }
}
static void contrastive_tiles_agree(void **) { for_cases("contrastive", tiles); }

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(cross_entropy_of_chunks_agrees),
        cmocka_unit_test(logits_that_are_not_finite_do_what_they_must),
        cmocka_unit_test(gradients_are_rounded_once),
        cmocka_unit_test(loss_and_gradient_in_one_pass_are_those_of_two),
        cmocka_unit_test(parts_of_ranks_combine_alike),
        cmocka_unit_test(contrastive_tiles_agree),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
