/* Products of few rows, with all that goes into them, against the CPU backend's calls apart: same roundings, so that
 * only the order of sums differs. */
#include "kernels/cuda/attention.h"
#include "tests/simt/support.h"
#include <math.h>

struct Shape {
    int64_t rows, n, k;
    int multiprocessors;
};
// Tiles of 8 and of 16, one and many for a block; tiles, steps and rounds that do not come out even.
static const Shape SHAPES[] = {{1, 37, 40, 132}, {3, 100, 264, 4}, {8, 96, 1160, 1}, {5, 203, 72, 1}, {1, 64, 4104, 2}};
enum { COUNT = sizeof SHAPES / sizeof *SHAPES };

struct Given { // inputs of a product
    Array x, w, bias, scale, shift;
    Given(Rng *rng, const Shape &s, int64_t matrix_rows)
        : x(BF16, s.rows * s.k), w(BF16, matrix_rows * s.k), bias(F32, matrix_rows), scale(F32, s.k), shift(F32, s.k) {
        x.normal(rng), w.normal(rng, 1 / sqrt(static_cast<double>(s.k))), bias.normal(rng), scale.normal(rng);
        shift.normal(rng);
        x.put(0, 3);
    }
};

static FewRows product_of(const Given &g, const Shape &s) {
    FewRows p = {};
    p.rows = s.rows, p.n = s.n, p.k = s.k, p.x = g.x, p.w = g.w, p.epsilon = 1e-5;
    return p;
}

// norm(x), as p says, on the CPU
static Array normed(const FewRows &p, const Given &g) {
    Array y(g.x), mean(F32, p.rows), rstd(F32, p.rows);
    if (p.norm_shift)
        cpu()->layernorm_forward(cpu(), y, mean.f32(), rstd.f32(), g.x, p.norm_scale, p.norm_shift, p.rows, p.k,
                                 p.epsilon, BF16);
    else if (p.norm_scale)
        cpu()->rmsnorm_forward(cpu(), y, rstd.f32(), g.x, p.norm_scale, p.rows, p.k, p.epsilon, BF16);
    return y;
}

// norm(x) w^T + bias: (rows, columns)
static Array multiplied(const FewRows &p, const Given &g, int64_t columns) {
    Array x = normed(p, g), z(BF16, p.rows * columns);
    Matmul m = {};
    m.m = p.rows, m.n = columns, m.k = p.k, m.batch = 1, m.a = x, m.b = g.w, m.c = z, m.bias = p.bias;
    m.a_row = p.k, m.a_column = 1, m.b_row = 1, m.b_column = p.k, m.c_row = columns, m.in = m.out = BF16;
    cpu()->matmul(cpu(), &m);
    return z;
}

static Array activated(const Array &z, const FewRows &p) {
    Array y(BF16, p.rows * p.n);
    int64_t n = p.rows * p.n;
    if (p.activation == FEW_ROWS_SWIGLU)
        cpu()->swiglu_forward(cpu(), y, z, p.rows, p.n, BF16);
    else if (p.activation == FEW_ROWS_SILU)
        cpu()->silu_forward(cpu(), y, z, n, BF16);
    else if (p.activation != FEW_ROWS_PLAIN)
        cpu()->gelu_forward(cpu(), y, z, n, p.activation - FEW_ROWS_GELU_ERF, BF16);
    else
        return z;
    return y;
}

static void expect_product(FewRows p, const Given &g, const Shape &s, const char *name) {
    bool gated = p.activation == FEW_ROWS_SWIGLU;
    Array y(BF16, p.rows * p.n), want = activated(multiplied(p, g, p.n * (gated ? 2 : 1)), p);
    if (p.residual) cpu()->add(cpu(), want, want, p.residual, p.rows * p.n, p.rows * p.n, BF16);
    p.y = y;
    assert_true(cuda_few_rows(QUEUE, &p, s.multiprocessors));
    expect_near(y, want, 1.0 / 64, 0.02, name);
    if (!p.residual) return;
    Array stream(BF16, p.rows * p.n); // added to where it lies
    cpu()->copy_rows(cpu(), stream, BF16, 1, 0, p.residual, BF16, 1, 0, 1, 1, p.rows * p.n, false);
    p.residual = p.y = stream;
    assert_true(cuda_few_rows(QUEUE, &p, s.multiprocessors));
    expect_bits(stream, y, name);
}

static void products_are_those_of_the_calls_apart(void **) {
    Rng rng = rng_for(3, PURPOSE_TEST, 1);
    for (int i = 0; i < 2 * COUNT; i++) {
        const Shape &s = SHAPES[i % COUNT];
        simt_set_order(static_cast<SimtOrder>(i % 3), static_cast<uint64_t>(i));
        Given g(&rng, s, s.n);
        Array residual = Array(BF16, s.rows * s.n).normal(&rng);
        FewRows p = product_of(g, s);
        if (i % 2) p.bias = g.bias.f32();
        if (i % 3) p.norm_scale = g.scale.f32();
        if (i % 3 == 1) p.norm_shift = g.shift.f32();
        p.activation = i % 5;
        if (i % 4 == 3) p.residual = residual;
        expect_product(p, g, s, "product of few rows");
    }
}

static void gates_meet_what_they_let_through(void **) {
    Rng rng = rng_for(3, PURPOSE_TEST, 2);
    const Shape shapes[] = {{1, 8, 32, 132}, {6, 72, 120, 1}, {8, 152, 600, 2}};
    for (const Shape &s : shapes) {
        Given g(&rng, s, 2 * s.n);
        FewRows p = product_of(g, s);
        p.activation = FEW_ROWS_SWIGLU;
        p.norm_scale = g.scale.f32();
        if (s.rows > 1) p.bias = g.bias.f32();
        expect_product(p, g, s, "gated product of few rows");
    }
}

// Heads of queries, keys and values: 4 heads, of which `groups` share a key-value head.
static void expect_heads(Rng *rng, int64_t rows, int head_size, int groups, bool turns) {
    enum { HEADS = 4, SLOTS = 11 };
    const int64_t queries = HEADS * head_size, keys = queries / groups, kv = 2 * keys;
    const Shape s = {rows, queries + kv, 136, 3};
    Given g(rng, s, s.n);
    Array positions = Array(I32, rows).integers(rng, 0, 5000), slots(I32, rows);
    for (int64_t r = 0; r < rows; r++) slots.put(r, static_cast<double>((3 * r + 1) % SLOTS));
    Array q(BF16, rows * queries), cache = Array(BF16, SLOTS * kv).normal(rng), want_cache(cache);
    FewRows p = product_of(g, s);
    p.norm_scale = g.scale.f32(), p.norm_shift = g.shift.f32(), p.bias = g.bias.f32();
    p.cache = cache, p.slots = slots.i32(), p.queries = queries, p.y = q;
    p.positions = positions.i32(), p.rope_base = 1e4, p.head_size = head_size, p.turned = turns ? queries + keys : 0;
    assert_true(cuda_few_rows(QUEUE, &p, s.multiprocessors));
    Array z = multiplied(p, g, s.n), want_q(q), want_kv(BF16, rows * kv);
    if (turns)
        cpu()->rope(cpu(), z, z, positions.i32(), rows, s.n, static_cast<int>((queries + keys) / head_size), head_size,
                    1e4, false, BF16, false);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < queries; i++) want_q.put(r * queries + i, z.at(r * s.n + i));
        for (int64_t i = 0; i < kv; i++) want_kv.put(r * kv + i, z.at(r * s.n + queries + i));
    }
    cpu()->put_rows(cpu(), want_cache, want_kv, slots.i32(), rows, kv, SLOTS, BF16);
    expect_near(q, want_q, 1.0 / 64, 0.02, "queries");
    expect_near(cache, want_cache, 1.0 / 64, 0.02, "keys and values");
}

static void heads_turn_and_go_to_the_cache(void **) {
    Rng rng = rng_for(3, PURPOSE_TEST, 3);
    expect_heads(&rng, 1, 64, 1, false);
    expect_heads(&rng, 3, 24, 2, false);
    expect_heads(&rng, 1, 64, 4, true);
    expect_heads(&rng, 8, 32, 1, true);
    expect_heads(&rng, 5, 16, 2, true);
}

// The product of what attention's parts come to, and attention as a call of its own with a product of its result.
static void attention_is_joined_on_the_way(void **) {
    enum { HEADS = 2, KEYS = 300 };
    Rng rng = rng_for(3, PURPOSE_TEST, 5);
    for (int size : {16, 40}) {
        const int64_t rows = 5, width = HEADS * size, chunks = (KEYS + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK;
        const Shape s = {rows, 48, width, 1};
        Given g(&rng, s, s.n);
        Array q = Array(BF16, rows * width).normal(&rng), kv = Array(BF16, rows * KEYS * 2 * width).normal(&rng);
        Array range(I32, 2 * rows), parts(F32, rows * HEADS * chunks * (size + 2)), o(BF16, rows * width);
        const int ends[] = {0, 1, 128, 130, 300}; // keys that a row sees
        for (int64_t r = 0; r < rows; r++) range.put(2 * r, r == 4 ? 140 : 0), range.put(2 * r + 1, ends[r]);
        AttentionShape shape = {};
        shape.batch = rows, shape.queries = 1, shape.keys = KEYS, shape.heads = shape.kv_heads = HEADS;
        shape.head_size = size, shape.range = range.i32();
        shape.q_stride = shape.o_stride = width, shape.k_stride = shape.v_stride = 2 * width;
        Array lse(F32, rows * HEADS), y(BF16, rows * s.n), want(y);
        const uint16_t *k = kv.as<uint16_t>();
        assert_true(cuda_attention_parts(QUEUE, parts.f32(), q, k, k + width, &shape, BF16));
        cuda_attention_forward(QUEUE, o, lse.f32(), q, k, k + width, &shape, BF16);
        FewRows p = product_of(g, s);
        p.x = o, p.y = want;
        assert_true(cuda_few_rows(QUEUE, &p, s.multiprocessors));
        p.x = nullptr, p.y = y, p.parts = parts.f32(), p.range = range.i32(), p.chunks = chunks, p.head_size = size;
        assert_true(cuda_few_rows(QUEUE, &p, s.multiprocessors));
        expect_bits(y, want, "a product of joined attention");
    }
}

static void what_does_not_fit_is_left_to_others(void **) {
    Rng rng = rng_for(3, PURPOSE_TEST, 4);
    const Shape s = {1, 40, 64, 4};
    Given g(&rng, s, s.n);
    Array y(BF16, 9 * s.n);
    FewRows good = product_of(g, s), p;
    good.y = y;
    assert_true(cuda_few_rows(QUEUE, &good, 0));
    p = good, p.rows = 9;
    assert_false(cuda_few_rows(QUEUE, &p, 4));
    p = good, p.k = 60;
    assert_false(cuda_few_rows(QUEUE, &p, 4));
    p = good, p.w = static_cast<const char *>(p.w) + 2;
    assert_false(cuda_few_rows(QUEUE, &p, 4));
    p = good, p.rows = 8, p.k = 16384; // more than a block's shared memory
    assert_false(cuda_few_rows(QUEUE, &p, 4));
    p = good, p.turned = 40, p.head_size = 20;
    assert_false(cuda_few_rows(QUEUE, &p, 4));
    p = good, p.n = 20, p.activation = FEW_ROWS_SWIGLU;
    assert_false(cuda_few_rows(QUEUE, &p, 4));
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_those_of_the_calls_apart), cmocka_unit_test(gates_meet_what_they_let_through),
        cmocka_unit_test(heads_turn_and_go_to_the_cache),        cmocka_unit_test(attention_is_joined_on_the_way),
        cmocka_unit_test(what_does_not_fit_is_left_to_others),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
