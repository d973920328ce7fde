/* Gathers, scatters, copies, embedding, means and L2 normalisation against the CPU backend. */
#include "tests/simt/support.h"
#include <math.h>

struct Shape {
    int64_t m, width, count;
};
static const Shape SHAPES[] = {{1, 1, 1}, {7, 8, 5}, {40, 33, 9}, {100, 64, 300}, {300, 24, 2}};

static Array distinct_rows(Rng *rng, int64_t m, int64_t count) { // m of them, some negative
    Array rows(I32, m);
    for (int64_t i = 0; i < m; i++) {
        int64_t row = i < count ? static_cast<int64_t>(permute_index(static_cast<uint64_t>(i),
                                                                     static_cast<uint64_t>(count), 7, PURPOSE_TEST, 3))
                                : -1;
        rows.put(i, rng_below(rng, 5) ? static_cast<double>(row) : -1);
    }
    return rows;
}

static void gathers(const Case &c) {
    for (Shape s : SHAPES) {
        Array x = Array(c.t, s.count * s.width, c.shift).normal(c.rng),
              rows = Array(I32, s.m).integers(c.rng, -1, s.count);
        Array y = Array(c.t, s.m * s.width, c.shift).normal(c.rng), want(y);
        x.put(0, -0.0);
        cuda_gather_rows(QUEUE, y, x, rows.i32(), s.m, s.width, s.count, c.t, c.add);
        cpu()->gather_rows(cpu(), want, x, rows.i32(), s.m, s.width, s.count, c.t, c.add);
        expect_bits(y, want, c.name);
        cuda_embedding_forward(QUEUE, y, rows.i32(), x, s.m, s.width, s.count, c.t);
        cpu()->embedding_forward(cpu(), want, rows.i32(), x, s.m, s.width, s.count, c.t);
        expect_bits(y, want, c.name);
    }
}
static void gathers_have_the_same_bits(void **) { for_cases("gather", gathers); }

static void places(const Case &c) {
    for (Shape s : SHAPES) {
        Array x = Array(c.t, s.m * s.width, c.shift).normal(c.rng), rows = distinct_rows(c.rng, s.m, s.count);
        Array base = Array(c.t, s.count * s.width, c.shift).normal(c.rng), y(c.t, s.count * s.width, c.shift), want(y);
        for (int64_t base_rows : {int64_t(0), int64_t(1), s.count}) {
            const void *under = base_rows ? static_cast<void *>(base) : nullptr;
            cuda_scatter_rows(QUEUE, y, under, base_rows, x, rows.i32(), s.m, s.width, s.count, c.t);
            cpu()->scatter_rows(cpu(), want, under, base_rows, x, rows.i32(), s.m, s.width, s.count, c.t);
            expect_bits(y, want, c.name);
        }
    }
}
static void rows_over_a_base_have_the_same_bits(void **) { for_cases("scatter rows", places); }

static void puts_rows(const Case &c) {
    for (Shape s : SHAPES) {
        int64_t m = s.m < s.count ? s.m : s.count;
        Array x = Array(c.t, m * s.width, c.shift).normal(c.rng), rows(I32, m);
        for (int64_t i = 0; i < m; i++)
            rows.put(i, static_cast<double>(permute_index(static_cast<uint64_t>(i), static_cast<uint64_t>(s.count), 7,
                                                          PURPOSE_TEST, 3)));
        Array y = Array(c.t, s.count * s.width, c.shift).normal(c.rng), want(y);
        x.put(0, -0.0);
        cuda_put_rows(QUEUE, y, x, rows.i32(), m, s.width, s.count, c.t);
        cpu()->put_rows(cpu(), want, x, rows.i32(), m, s.width, s.count, c.t);
        expect_bits(y, want, c.name);
    }
}
static void rows_are_put_where_they_belong(void **) { for_cases("put rows", puts_rows); }

// The state of rows of text, in device memory.
struct SpeechArrays {
    enum { KEPT = 3 };
    int64_t rows;
    Array draws, next, positions, slots, range, step, said;
    explicit SpeechArrays(int64_t rows_)
        : rows(rows_), draws(F32, rows_ * static_cast<int64_t>(sizeof(WordDraw) / sizeof(float))), next(I32, rows_),
          positions(I32, rows_), slots(I32, rows_), range(I32, 2 * rows_), step(I32, rows_), said(I32, KEPT * rows_) {
        for (int64_t r = 0; r < rows; r++) {
            next.put(r, 0), positions.put(r, 7 + static_cast<double>(r)), slots.put(r, 100 * static_cast<double>(r));
            range.put(2 * r, 0), range.put(2 * r + 1, 8), step.put(r, 0);
        }
        said.set(-9);
    }
    WordRows speech() const {
        return WordRows{draws.as<WordDraw>(), next.i32(),  positions.i32(),
                      slots.i32(),          range.i32(), step.i32(),
                      said.i32(),           KEPT,        5};
    }
};

static void expect_equal_speech(const SpeechArrays &got, const SpeechArrays &want, const char *what) {
    expect_bits(got.next, want.next, what);
    expect_bits(got.said, want.said, what);
    expect_bits(got.positions, want.positions, what);
    expect_bits(got.slots, want.slots, what);
    expect_bits(got.range, want.range, what);
    expect_bits(got.step, want.step, what);
}

// Some choices by the same scores, as the CPU makes them.
static void speak(const Case &c, const Array &x, int64_t rows, int64_t width, const WordDraw *draws, int choices) {
    SpeechArrays got(rows);
    for (int64_t r = 0; r < rows; r++) got.draws.as<WordDraw>()[r] = draws[r];
    SpeechArrays want(got);
    const WordRows ours = got.speech(), theirs = want.speech();
    for (int n = 0; n < choices; n++) {
        cuda_choose_words(QUEUE, &ours, x, rows, width, c.t);
        cpu()->choose_words(cpu(), &theirs, x, rows, width, c.t);
        expect_equal_speech(got, want, c.name);
    }
}

static void choices(const Case &c) {
    const int64_t rows = 6;
    if (c.add) return;
    for (int64_t width : {1, 31, 1024, 5003}) {
        Array x = Array(c.t, rows * width, c.shift).integers(c.rng, -40, 40);
        for (int64_t i = 0; i < width; i++) x.put(width + i, -INFINITY); // of row 1; row 2 has words ruled out
        for (int64_t i = 0; i < width / 2; i++) x.put(2 * width + i, -INFINITY);
        x.put(3 * width + width / 2, INFINITY);
        x.put(4 * width + width - 1, NAN);
        WordDraw draws[rows];
        for (WordDraw &d : draws) d = WordDraw{0, 0, 1, 3, 4, 100, 0};
        draws[5].most = 2;
        speak(c, x, rows, width, draws, 4);
    }
}
static void the_first_of_the_largest_is_chosen(void **) { for_cases("argmax", choices); }

// Scores as models give them, with equal ones, both zeros, and words ruled out.
static void lots(const Case &c) {
    const int64_t rows = 7;
    if (c.add || c.shift) return;
    for (int64_t width : {40, 1500}) {
        for (double deviation : {0.02, 4.0}) {
            Array x = Array(c.t, rows * width, c.shift).normal(c.rng, deviation);
            for (int64_t i = 0; i < rows * width; i += 3) x.put(i, static_cast<double>(static_cast<int>(x.at(i))));
            for (int64_t i = 0; i < rows * width; i += 11) x.put(i, -0.0);
            for (int64_t i = width; i < 2 * width; i += 2) x.put(i, -INFINITY);
            WordDraw draws[rows] = {
                {1.4427f, 0, 1, 1, 0, 100, 0},         {0.7f, 40, 1, 2, 1, 100, 0},
                {1.8f, 0, 0.9, 3, 2, 100, 0},          {1.4427f, 20, 0.5, 4, 3, 100, 0},
                {1e30f, 0, 1, 5, 4, 100, 0},           {0.0145f, 1000, 0.999, 6, 1ull << 40, 100, 0},
                {2.2f, 1, 1e-9, 1ull << 50, 6, 100, 0}};
            speak(c, x, rows, width, draws, 2);
        }
    }
}
static void lots_fall_as_on_the_cpu(void **) { for_cases("lots", lots); }

static void copies(const Case &c) {
    for (Dtype from : {F32, BF16}) {
        for (int64_t width : {1, 8, 36}) {
            const int64_t batch = 3, count = 4, out_stride = 9, in_stride = 6;
            Array x = Array(from, batch * in_stride * width, c.shift).normal(c.rng);
            Array y = Array(c.t, batch * out_stride * width, c.shift).normal(c.rng), want(y);
            cuda_copy_rows(QUEUE, y, c.t, out_stride, 5, x, from, in_stride, 2, batch, count, width, c.add);
            cpu()->copy_rows(cpu(), want, c.t, out_stride, 5, x, from, in_stride, 2, batch, count, width, c.add);
            expect_bits(y, want, c.name);
        }
    }
}
static void copies_have_the_same_bits(void **) { for_cases("copy rows", copies); }

static void scatters(const Case &c) {
    const Shape shapes[] = {{1, 1, 1},    {16, 8, 3},      {17, 40, 1},     {100, 12, 7}, {333, 5, 50},
                            {64, 300, 2}, {2500, 3, 3000}, {400, 1, 70000}, {4200, 2, 40}};
    for (Shape s : shapes) {
        Array x = Array(c.t, s.m * s.width, c.shift).normal(c.rng), rows = Array(I32, s.m).integers(c.rng, -1, s.count);
        for (int64_t i = 0; i < s.m; i++) // one number that many share
            if (i % 3 == 1 && s.m > 20) rows.put(i, static_cast<double>(s.count / 2));
        for (Dtype to : {F32, BF16}) {
            Array y = Array(to, s.count * s.width, c.shift).normal(c.rng), want(y), again(y);
            cuda_scatter_add_rows(QUEUE, y, to, x, c.t, rows.i32(), s.m, s.width, s.count);
            cpu()->scatter_add_rows(cpu(), want, to, x, c.t, rows.i32(), s.m, s.width, s.count);
            expect_near(y, want, to == BF16 ? 1.0 / 128 : 2e-6, 4e-5, c.name);
            cuda_scatter_add_rows(QUEUE, again, to, x, c.t, rows.i32(), s.m, s.width, s.count);
            expect_bits(again, y, c.name);
        }
        Array table = Array(F32, s.count * s.width, c.shift).normal(c.rng), want(table);
        cuda_embedding_backward(QUEUE, table.f32(), x, rows.i32(), s.m, s.width, s.count, c.t, c.add);
        cpu()->embedding_backward(cpu(), want.f32(), x, rows.i32(), s.m, s.width, s.count, c.t, c.add);
        expect_near(table, want, 2e-6, 4e-5, c.name);
    }
}
static void rows_that_meet_add_up_and_repeat_to_the_bit(void **) { for_cases("scatter add", scatters); }

static void identifiers(const Case &c) {
    if (c.t != F32) return;
    Array ids = Array(I32, 1000).integers(c.rng, -1, 500), local(I32, 1000), want(I32, 1000);
    Vocabulary v = {120, 77, 500, 0};
    cuda_local_ids(QUEUE, local.i32(), ids.i32(), 1000, v);
    cpu()->local_ids(cpu(), want.i32(), ids.i32(), 1000, v);
    expect_bits(local, want, c.name);
}
static void local_ids_are_the_same(void **) { for_cases("local ids", identifiers); }

static void means(const Case &c) {
    struct Mean {
        int64_t batch, rows, width;
    };
    for (Mean s : {Mean{1, 1, 1}, Mean{3, 5, 8}, Mean{2, 40, 37}, Mean{4, 17, 264}, Mean{2, 0, 8}}) {
        Array x = Array(c.t, s.batch * s.rows * s.width, c.shift).normal(c.rng),
              mask = Array(F32, s.batch * s.rows).integers(c.rng, 0, 2);
        if (s.batch == 3)
            for (int64_t i = 0; i < s.rows; i++) mask.put(i, 0);
        Array y(c.t, s.batch * s.width, c.shift), want(y), dy = Array(c.t, s.batch * s.width, c.shift).normal(c.rng);
        for (float *m : {static_cast<float *>(nullptr), mask.f32()}) {
            cuda_mean_rows_forward(QUEUE, y, x, m, s.batch, s.rows, s.width, c.t);
            cpu()->mean_rows_forward(cpu(), want, x, m, s.batch, s.rows, s.width, c.t);
            expect_near(y, want, c.relative(), 1e-6, c.name);
            Array dx = Array(c.t, s.batch * s.rows * s.width, c.shift).normal(c.rng), want_dx(dx);
            cuda_mean_rows_backward(QUEUE, dx, dy, m, s.batch, s.rows, s.width, c.t, c.add);
            cpu()->mean_rows_backward(cpu(), want_dx, dy, m, s.batch, s.rows, s.width, c.t, c.add);
            expect_near(dx, want_dx, c.relative(), 1e-6, c.name);
        }
    }
}
static void means_of_rows_agree(void **) { for_cases("mean rows", means); }

static void lengths(const Case &c) {
    for (int64_t width : {1, 8, 100, 512, 1025, 1032, 4104}) {
        const int64_t rows = 5;
        Array x = Array(c.t, rows * width, c.shift).normal(c.rng), y(F32, rows * width, c.shift), norm(F32, rows);
        for (int64_t i = 0; i < width; i++) x.put(2 * width + i, 0);
        Array want(y), want_norm(norm), dy = Array(F32, rows * width, c.shift).normal(c.rng);
        cuda_l2_normalize_forward(QUEUE, y.f32(), norm.f32(), x, rows, width, c.t);
        cpu()->l2_normalize_forward(cpu(), want.f32(), want_norm.f32(), x, rows, width, c.t);
        expect_near(y, want, 2e-6, 0, c.name);
        expect_near(norm, want_norm, 2e-6, 0, c.name);
        Array dx = Array(c.t, rows * width, c.shift).normal(c.rng), want_dx(dx);
        cuda_l2_normalize_backward(QUEUE, dx, dy.f32(), want.f32(), want_norm.f32(), rows, width, c.t, c.add);
        cpu()->l2_normalize_backward(cpu(), want_dx, dy.f32(), want.f32(), want_norm.f32(), rows, width, c.t, c.add);
        expect_near(dx, want_dx, c.relative(), 4e-6, c.name);
    }
}
static void l2_normalisation_agrees(void **) { for_cases("l2 normalize", lengths); }

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(gathers_have_the_same_bits),
        cmocka_unit_test(rows_over_a_base_have_the_same_bits),
        cmocka_unit_test(rows_are_put_where_they_belong),
        cmocka_unit_test(the_first_of_the_largest_is_chosen),
        cmocka_unit_test(lots_fall_as_on_the_cpu),
        cmocka_unit_test(copies_have_the_same_bits),
        cmocka_unit_test(rows_that_meet_add_up_and_repeat_to_the_bit),
        cmocka_unit_test(local_ids_are_the_same),
        cmocka_unit_test(means_of_rows_agree),
        cmocka_unit_test(l2_normalisation_agrees),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
