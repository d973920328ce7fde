/* Elementwise kernels, activations, dropout, rope and AdamW against the CPU backend. */
#include "tests/simt/support.h"
#include <cmath>

static const int64_t SIZES[] = {1, 3, 7, 8, 31, 1000, 4099};
static const int64_t MANY = 280003; // blocks with more than one round

static void elementwise(const Case &c) {
    for (int64_t n : SIZES) {
        Array a = Array(c.t, n, c.shift).normal(c.rng), b = Array(c.t, n, c.shift).normal(c.rng);
        Array value = Array(F32, 1).normal(c.rng), old = Array(c.t, n, c.shift).normal(c.rng);
        Array product(old), want_product(old), scaled(old), want_scaled(old), filled(old), want_filled(old);
        cuda_mul(QUEUE, product, a, b, n, c.t, c.add);
        cpu()->mul(cpu(), want_product, a, b, n, c.t, c.add);
        expect_near(product, want_product, c.relative(), 1e-6, c.name);
        cuda_scale(QUEUE, scaled, a, -1.7, n, c.t, c.add);
        cpu()->scale(cpu(), want_scaled, a, -1.7, n, c.t, c.add);
        expect_near(scaled, want_scaled, c.relative(), 1e-6, c.name);
        cuda_fill(QUEUE, filled, value.f32(), 0.3, n, c.t, c.add);
        cpu()->fill(cpu(), want_filled, value.f32(), 0.3, n, c.t, c.add);
        expect_near(filled, want_filled, c.relative(), 1e-6, c.name);
        for (Dtype to : {F32, BF16}) { // from the activations' type
            Array out = Array(to, n, c.shift).normal(c.rng), want(out);
            cuda_scale_by(QUEUE, out, to, a, c.t, value.f32(), n, c.add);
            cpu()->scale_by(cpu(), want, to, a, c.t, value.f32(), n, c.add);
            expect_near(out, want, to == BF16 ? 1.0 / 128 : 2e-6, 1e-6, c.name);
        }
    }
}
static void mul_scale_and_fill_agree(void **) { for_cases("elementwise", elementwise); }

static void sums(const Case &c) {
    for (int64_t n : {int64_t(1), int64_t(6), int64_t(40), int64_t(1031), MANY}) {
        for (int64_t repeats = 1; repeats <= (n < MANY ? 5 : 1); repeats += 2) {
            Array a = Array(c.t, n * repeats, c.shift).normal(c.rng), b = Array(c.t, n, c.shift).normal(c.rng);
            Array y(c.t, n * repeats, c.shift), want(y);
            cuda_add(QUEUE, y, a, b, n * repeats, n, c.t);
            cpu()->add(cpu(), want, a, b, n * repeats, n, c.t);
            expect_bits(y, want, c.name);
            if (n == MANY) break;
            cuda_add(QUEUE, a, a, b, n * repeats, n, c.t); // in place
            expect_bits(a, want, c.name);
        }
    }
}
static void sums_have_the_same_bits_repeats_too(void **) { for_cases("add", sums); }

static void transfers(const Case &c) {
    for (int64_t n : SIZES) {
        for (Dtype from : {F32, BF16}) {
            Array x = Array(from, n, c.shift).normal(c.rng), y = Array(c.t, n, c.shift).normal(c.rng), want(y);
            if (n > 7) x.put(3, INFINITY), x.put(5, NAN), x.put(6, -0.0), x.put(7, 1e-41);
            if (c.add) {
                cuda_add_in_place(QUEUE, y, x, n, c.t, from);
                cpu()->add_in_place(cpu(), want, x, n, c.t, from);
            } else {
                cuda_convert(QUEUE, y, c.t, x, from, n);
                cpu()->convert(cpu(), want, c.t, x, from, n);
            }
            expect_bits(y, want, c.name);
        }
    }
}
static void conversions_have_the_same_bits(void **) { for_cases("convert", transfers); }

static void gelus(const Case &c) {
    for (int64_t n : SIZES) {
        for (int kind = 0; kind < 4; kind++) {
            Array x = Array(c.t, n, c.shift).normal(c.rng, 4), dy = Array(c.t, n, c.shift).normal(c.rng);
            Array y = Array(c.t, n, c.shift).normal(c.rng), want(y), dx = Array(c.t, n, c.shift).normal(c.rng),
                  want_dx(dx);
            if (n > 7) x.put(2, 60), x.put(3, -60), x.put(4, 0), x.put(5, NAN);
            if (kind < 3) {
                cuda_gelu_forward(QUEUE, y, x, n, kind, c.t);
                cpu()->gelu_forward(cpu(), want, x, n, kind, c.t);
                cuda_gelu_backward(QUEUE, dx, dy, x, n, kind, c.t, c.add);
                cpu()->gelu_backward(cpu(), want_dx, dy, x, n, kind, c.t, c.add);
            } else {
                cuda_silu_forward(QUEUE, y, x, n, c.t);
                cpu()->silu_forward(cpu(), want, x, n, c.t);
                cuda_silu_backward(QUEUE, dx, dy, x, n, c.t, c.add);
                cpu()->silu_backward(cpu(), want_dx, dy, x, n, c.t, c.add);
            }
            expect_near(y, want, c.relative(4e-6), 1e-7, c.name);
            expect_near(dx, want_dx, c.relative(4e-6), 2e-6, c.name);
        }
    }
}
static void slopes_with_sums(const Case &c) {
    struct Shape {
        int64_t rows, width;
    };
    for (Shape s : {Shape{1, 1}, Shape{70, 24}, Shape{3, 257}, Shape{130, 8}}) {
        for (int kind = 0; kind < 3; kind++) {
            int64_t n = s.rows * s.width;
            Array x = Array(c.t, n, c.shift).normal(c.rng, 2), dy = Array(c.t, n, c.shift).normal(c.rng);
            Array dx = Array(c.t, n, c.shift).normal(c.rng), alone(dx);
            Array sums = Array(F32, s.width).normal(c.rng), want(sums);
            cuda_gelu_backward_sums(QUEUE, dx, sums.f32(), dy, x, s.rows, s.width, kind, c.t, c.add);
            cuda_gelu_backward(QUEUE, alone, dy, x, n, kind, c.t, false);
            cpu()->sum_columns(cpu(), want.f32(), alone, s.rows, s.width, c.t, c.add);
            expect_bits(dx, alone, c.name);
            expect_near(sums, want, 4e-6, 2e-5, c.name);
        }
    }
}
static void slopes_with_sums_have_the_bits_of_slopes(void **) { for_cases("gelu sums", slopes_with_sums); }

static void gelu_and_silu_agree(void **) { for_cases("gelu", gelus); }

static void swiglus(const Case &c) {
    for (int64_t width : {1, 5, 8, 64, 300}) {
        const int64_t rows = 11;
        Array x = Array(c.t, 2 * rows * width, c.shift).normal(c.rng, 2), y(c.t, rows * width, c.shift), want(y);
        Array dy = Array(c.t, rows * width, c.shift).normal(c.rng),
              dx = Array(c.t, 2 * rows * width, c.shift).normal(c.rng);
        Array want_dx(dx);
        cuda_swiglu_forward(QUEUE, y, x, rows, width, c.t);
        cpu()->swiglu_forward(cpu(), want, x, rows, width, c.t);
        expect_near(y, want, c.relative(4e-6), 1e-7, c.name);
        cuda_swiglu_backward(QUEUE, dx, dy, x, rows, width, c.t, c.add);
        cpu()->swiglu_backward(cpu(), want_dx, dy, x, rows, width, c.t, c.add);
        expect_near(dx, want_dx, c.relative(4e-6), 2e-6, c.name);
    }
}
static void swiglu_agrees(void **) { for_cases("swiglu", swiglus); }

static void dropouts(const Case &c) {
    const uint64_t firsts[] = {0, 1, 2, 7, 16, (1ull << 34) - 40, (1ull << 34) - 3, 0x123456789abull};
    for (int64_t n : {1, 5, 8, 100, 5000}) {
        for (uint64_t first : firsts) {
            Array x = Array(c.t, n, c.shift).normal(c.rng), y = Array(c.t, n, c.shift).normal(c.rng), want(y);
            if (n > 4) x.put(4, NAN);
            const DropoutDraws draws = {0.3, 0x9876543210abcdefull, 0xfedcba9876543210ull, first, nullptr, 0};
            cuda_dropout(QUEUE, y, x, n, &draws, c.t, c.add);
            cpu()->dropout(cpu(), want, x, n, &draws, c.t, c.add);
            if (c.add) // a multiplication and an addition may be one operation
                expect_near(y, want, c.relative(), 1e-6, c.name);
            else
                expect_bits(y, want, c.name);
        }
    }
}
static void numbered_dropouts(const Case &c) {
    for (int64_t row : {1, 6, 8, 48}) {
        const int64_t rows = 40;
        Array numbers = Array(I32, rows).integers(c.rng, 0, 1 << 30);
        for (int64_t first : {int64_t(0), row * 8, int64_t(5), row}) {
            int64_t n = rows * row - first - 3;
            if (n <= 0) continue;
            Array x = Array(c.t, n, c.shift).normal(c.rng), y = Array(c.t, n, c.shift).normal(c.rng), want(y);
            const DropoutDraws draws = {0.5, 77, 5, static_cast<uint64_t>(first), numbers.i32(), row};
            cuda_dropout(QUEUE, y, x, n, &draws, c.t, c.add);
            cpu()->dropout(cpu(), want, x, n, &draws, c.t, c.add);
            expect_bits(y, want, c.name); // the scale is 2: adding rounds once
        }
    }
}
static void dropout_of_numbered_rows_has_the_same_bits(void **) { for_cases("numbered dropout", numbered_dropouts); }

static void dropout_has_the_same_bits(void **) { for_cases("dropout", dropouts); }

static void ropes(const Case &c) {
    struct Shape { // head_size; heads of which the first turn
        int64_t rows, width;
        int heads, head_size;
    };
    for (Shape s : {Shape{1, 2, 1, 2}, Shape{9, 96, 3, 16}, Shape{20, 64, 1, 64}, Shape{5, 30, 5, 6},
                    Shape{17, 401, 2, 128}, Shape{2, 272, 1, 264}}) {
        Array x = Array(c.t, s.rows * s.width, c.shift).normal(c.rng),
              y = Array(c.t, s.rows * s.width, c.shift).normal(c.rng);
        Array want(y), positions = Array(I32, s.rows).integers(c.rng, 0, 100000);
        for (bool inverse : {false, true}) {
            cuda_rope(QUEUE, y, x, positions.i32(), s.rows, s.width, s.heads, s.head_size, 10000, inverse, c.t, c.add);
            cpu()->rope(cpu(), want, x, positions.i32(), s.rows, s.width, s.heads, s.head_size, 10000, inverse, c.t,
                        c.add);
            expect_near(y, want, c.relative(), 4e-6, c.name);
        }
        if (c.add) continue;
        cuda_rope(QUEUE, x, x, positions.i32(), s.rows, s.width, s.heads, s.head_size, 10000, true, c.t,
                  false); // in place
        expect_near(x, want, c.relative(), 4e-6, c.name);
    }
}
static void rope_agrees_in_place_too(void **) { for_cases("rope", ropes); }

static void adamw(const Case &c) {
    const AdamW rule = {1e-3, 0.9, 0.95, 1e-8, 0.1, 0.25, 1 - 0.81, 1 - 0.95 * 0.95};
    std::vector<Array *> arrays;
    std::vector<AdamWPart> parts;
    const int64_t sizes[] = {1, 1024, 3, 0, 2050, 777};
    for (int i = 0; i < 60; i++) { // more than one table
        int64_t n = sizes[i % 6];
        AdamWPart part = {};
        float **places[] = {&part.parameter, &part.m, &part.v};
        for (float **place : places) {
            arrays.push_back(new Array(F32, n, i % 7 == 3 ? c.shift : 0));
            arrays.back()->normal(c.rng);
            *place = arrays.back()->f32();
        }
        for (int64_t k = 0; k < n; k++) part.v[k] = fabsf(part.v[k]);
        arrays.push_back(new Array(F32, n));
        part.gradient = arrays.back()->normal(c.rng).f32();
        arrays.push_back(new Array(BF16, n, c.shift));
        part.shadow = i % 3 ? arrays.back()->as<uint16_t>() : nullptr;
        part.n = n, part.decays = i % 2;
        parts.push_back(part);
    }
    std::vector<Array *> want; // as they are before
    for (Array *a : arrays) want.push_back(new Array(*a));
    if (c.add) cuda_adamw_parts(QUEUE, parts.data(), static_cast<int>(parts.size()), &rule, nullptr);
    for (size_t i = 0; i < parts.size(); i++) {
        const AdamWPart &p = parts[i];
        if (!c.add) cuda_adamw_parts(QUEUE, &p, 1, &rule, nullptr);
        Array **w = &want[5 * i], **got = &arrays[5 * i];
        AdamWPart same = {w[0]->f32(), w[1]->f32(), w[2]->f32(), p.shadow ? w[4]->as<uint16_t>() : nullptr,
                          w[3]->f32(), p.n,         p.decays};
        cpu()->adamw_parts(cpu(), &same, 1, &rule, nullptr);
        for (int k = 0; k < 3; k++) expect_near(*got[k], *w[k], 1e-6, 1e-8, c.name);
        for (int64_t k = 0; p.shadow && k < p.n; k++) assert_int_equal(p.shadow[k], f32_to_bf16(p.parameter[k]));
    }
    for (Array *a : arrays) delete a;
    for (Array *a : want) delete a;
}
static void adamw_agrees_one_part_or_many(void **) { for_cases("adamw", adamw); }

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(mul_scale_and_fill_agree),
        cmocka_unit_test(sums_have_the_same_bits_repeats_too),
        cmocka_unit_test(conversions_have_the_same_bits),
        cmocka_unit_test(gelu_and_silu_agree),
        cmocka_unit_test(slopes_with_sums_have_the_bits_of_slopes),
        cmocka_unit_test(swiglu_agrees),
        cmocka_unit_test(dropout_has_the_same_bits),
        cmocka_unit_test(dropout_of_numbered_rows_has_the_same_bits),
        cmocka_unit_test(rope_agrees_in_place_too),
        cmocka_unit_test(adamw_agrees_one_part_or_many),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
