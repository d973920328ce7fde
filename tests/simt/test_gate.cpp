/* The gate of a step: norms over many spans of memory, the verdict, and updates that read it, against the CPU. */
#include "tests/simt/support.h"
#include <cmath>
#include <cstring>

namespace {
struct Many {
    std::vector<Array *> arrays;
    std::vector<FloatSpan> spans;
    Many(const Case &c, int count) {
        const int64_t sizes[] = {1, 16384, 3, 0, 40001, 1025, 17};
        for (int i = 0; i < count; i++) {
            arrays.push_back(new Array(F32, sizes[i % 7], i % 3 == 1 ? c.shift : 0));
            arrays.back()->normal(c.rng);
            spans.push_back({arrays.back()->f32(), arrays.back()->count()});
        }
    }
    Many(const Many &) = delete;
    ~Many() {
        for (Array *a : arrays) delete a;
    }
    int count() const { return static_cast<int>(spans.size()); }
};
} // namespace

static double sum_of(const Many &s, const Array &finite) {
    Array out(F32, 2);
    cuda_sum_squares(QUEUE, out.f64(), s.spans.data(), s.count(), finite.f32(), finite.count());
    return *out.f64();
}

static void squares(const Case &c) {
    if (c.t != F32 || c.add) return;
    for (int count : {0, 1, 12, 260}) { // the last in two tables
        Many s(c, count);
        Array finite(F32, 5), want(F32, 2);
        finite.set(1e30);
        cpu()->sum_squares(cpu(), want.f64(), s.spans.data(), s.count(), finite.f32(), 5);
        double got = sum_of(s, finite), again = sum_of(s, finite);
        if (!(std::fabs(got - *want.f64()) <= 1e-12 * *want.f64())) fail_msg("%.17g, not %.17g", got, *want.f64());
        assert_memory_equal(&got, &again, sizeof got);
    }
}
static void sums_of_squares_agree_and_repeat_to_the_bit(void **) { for_cases("sums of squares", squares); }

static void bad_numbers(const Case &c) {
    if (c.t != F32 || c.add) return;
    Many s(c, 12);
    Array finite(F32, 300);
    finite.set(0);
    for (double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)}) {
        finite.put(299, bad);
        assert_false(std::isfinite(sum_of(s, finite)));
        finite.put(299, 0);
        s.arrays[11]->put(40000, bad);
        assert_false(std::isfinite(sum_of(s, finite)));
        s.arrays[11]->put(40000, 1);
    }
    assert_true(std::isfinite(sum_of(s, finite)));
}
static void a_loss_or_gradient_that_is_not_finite_shows_in_the_sum(void **) { for_cases("bad numbers", bad_numbers); }

static void sums_of_doubles_agree_with_the_cpu(void **) {
    const int64_t sizes[] = {1, 0, 255, 257, 5000};
    enum { COUNT = 130 }; // in two launches
    Rng rng = rng_for(5, PURPOSE_TEST, 0);
    Array x(F32, 2 * 5000), got(F32, 2 * COUNT), want(F32, 2 * COUNT);
    for (int i = 0; i < 5000; i++) x.f64()[i] = rng_normal(&rng);
    std::vector<DoubleSum> ours, theirs;
    for (int i = 0; i < COUNT; i++) {
        DoubleSum sum = {x.f64(), got.f64() + i, sizes[i % 5], i % 3 == 1};
        ours.push_back(sum);
        sum.out = want.f64() + i;
        theirs.push_back(sum);
    }
    cuda_sum_doubles(QUEUE, ours.data(), COUNT);
    cpu()->sum_doubles(cpu(), theirs.data(), COUNT);
    for (int i = 0; i < COUNT; i++) assert_true(std::fabs(got.f64()[i] - want.f64()[i]) <= 1e-11);
    for (int i = 1; i < COUNT; i += 3) assert_true(got.f64()[i] == 0);
    x.f64()[0] = INFINITY;
    cuda_sum_doubles(QUEUE, ours.data(), COUNT);
    for (int i = 0; i < COUNT; i++) assert_true(std::isfinite(got.f64()[i]) == (sizes[i % 5] == 0));
}

// Lower halves first, as ranks add.
static void parts_of_a_norm_add_up_along_the_tree_of_the_cpu(void **) {
    Rng rng = rng_for(6, PURPOSE_TEST, 0);
    constexpr int MOST = 700; // more than the threads of a block
    Array parts(F32, 2 * MOST), got(F32, sizeof(Gate) / 4), want(F32, sizeof(Gate) / 4);
    memset(got.f32(), 0, sizeof(Gate));
    memset(want.f32(), 0, sizeof(Gate));
    for (int i = 0; i < MOST; i++) parts.f64()[i] = std::exp(8 * rng_normal(&rng));
    for (int n = 1; n <= MOST; n += n < 40 ? 1 : n < 250 ? 70 : n < 260 ? 1 : 110) {
        cuda_gate(QUEUE, got.as<Gate>(), parts.f64(), n, 0);
        cpu()->gate(cpu(), want.as<Gate>(), parts.f64(), n, 0);
        assert_true(got.as<Gate>()->norm == want.as<Gate>()->norm);
    }
    const double *x = parts.f64();
    cuda_gate(QUEUE, got.as<Gate>(), x, 5, 0);
    assert_true(got.as<Gate>()->norm == std::sqrt((x[0] + x[1]) + (x[2] + (x[3] + x[4]))));
}

static void gates_agree_and_stay_failed(void **) {
    const double squares[][2] = {{4, 5}, {0.25, 0}, {1e300, 1e300}, {9, 16}, {NAN, 1}, {9, 16}};
    const double clips[] = {0, 1, 1, 6, 1, 1};
    Array sums(F32, 4), got(F32, sizeof(Gate) / 4), want(F32, sizeof(Gate) / 4);
    memset(got.f32(), 0, sizeof(Gate));
    memset(want.f32(), 0, sizeof(Gate));
    Gate *g = got.as<Gate>(), *w = want.as<Gate>();
    for (int i = 0; i < 6; i++) {
        memcpy(sums.f64(), squares[i], sizeof squares[i]);
        cuda_gate(QUEUE, g, sums.f64(), 2, clips[i]);
        cpu()->gate(cpu(), w, sums.f64(), 2, clips[i]);
        assert_int_equal(g->failed, i >= 4);
        assert_int_equal(w->failed, i >= 4);
        if (i == 4) continue;
        assert_true(g->norm == w->norm && g->gradient_scale == w->gradient_scale);
    }
    assert_true(g->norm == 5 && std::fabs(g->gradient_scale - 0.2f) < 1e-7f);
}

static void updates(const Case &c) {
    if (c.t != F32 || c.add) return;
    const int64_t n = 2050;
    const AdamW rule = {1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 1 - 0.81, 1 - 0.95 * 0.95};
    AdamW clipped = rule;
    clipped.gradient_scale = 0.125;
    Array gate(F32, sizeof(Gate) / 4), g = Array(F32, n).normal(c.rng), v = Array(F32, n).set(0.5);
    Array p = Array(F32, n).normal(c.rng), m = Array(F32, n).normal(c.rng), p2(p), m2(m), v2(v), before(p);
    *gate.as<Gate>() = Gate{8, 0.125f, 0};
    AdamWPart part = {p.f32(), m.f32(), v.f32(), nullptr, g.f32(), n, true};
    AdamWPart same = {p2.f32(), m2.f32(), v2.f32(), nullptr, g.f32(), n, true};
    cuda_adamw_parts(QUEUE, &part, 1, &rule, gate.as<Gate>());
    cuda_adamw_parts(QUEUE, &same, 1, &clipped, nullptr);
    expect_bits(p, p2, "clipped by the gate");
    assert_true(p.at(7) < before.at(7) || p.at(7) > before.at(7));
    gate.as<Gate>()->failed = 1;
    cuda_adamw_parts(QUEUE, &part, 1, &rule, gate.as<Gate>());
    expect_bits(p, p2, "closed"), expect_bits(m, m2, "closed"), expect_bits(v, v2, "closed");
}
static void updates_clip_as_the_gate_says_and_stop_at_a_failed_one(void **) { for_cases("gated updates", updates); }

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(sums_of_squares_agree_and_repeat_to_the_bit),
        cmocka_unit_test(a_loss_or_gradient_that_is_not_finite_shows_in_the_sum),
        cmocka_unit_test(sums_of_doubles_agree_with_the_cpu),
        cmocka_unit_test(parts_of_a_norm_add_up_along_the_tree_of_the_cpu),
        cmocka_unit_test(gates_agree_and_stay_failed),
        cmocka_unit_test(updates_clip_as_the_gate_says_and_stop_at_a_failed_one),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
