/* Our own attention kernels against the CPU backend: every mask, grouped heads, packed and apart, odd sizes, head sizes
 * of each compiled kernel. */
#include "kernels/cuda/attention.h"
#include "tests/simt/support.h"
#include <algorithm>
#include <cmath>
#include <cstdio>

namespace {
enum Mask { FULL, CAUSAL, RANGES, DOCUMENTS, MASKS };

struct Sizes {
    int64_t batch, queries, keys;
    int heads, kv_heads, size;
    bool packed; // q, k and v are parts of one row
};

struct Problem {
    AttentionShape shape;
    Array qkv, kv, range, d_o;
    int64_t k_at, v_at; // elements
    bool packed;
    Dtype t;

    const char *element(const Array &x, int64_t at) const {
        return x.as<char>() + at * static_cast<int64_t>(dtype_size(t));
    }
    const char *k() const { return element(packed ? qkv : kv, k_at); }
    const char *v() const { return element(packed ? qkv : kv, v_at); }
};

// Intervals of keys: any, none now and then; or documents that follow each other.
Array ranges(const Sizes &s, Mask mask, Rng *rng) {
    Array range(I32, s.batch * s.queries * 2);
    for (int64_t b = 0; b < s.batch; b++) {
        int32_t start = 0;
        for (int64_t i = 0; i < s.queries; i++) {
            int32_t *pair = range.i32() + (b * s.queries + i) * 2;
            if (mask == DOCUMENTS && rng_below(rng, 9) == 0) start = static_cast<int32_t>(i);
            int32_t first = static_cast<int32_t>(rng_below(rng, static_cast<uint64_t>(s.keys)));
            int32_t count = static_cast<int32_t>(rng_below(rng, static_cast<uint64_t>(s.keys - first + 1)));
            pair[0] = mask == DOCUMENTS ? start : first;
            pair[1] = mask == DOCUMENTS ? static_cast<int32_t>(i) + 1 : rng_below(rng, 5) ? first + count : first;
        }
    }
    return range;
}

Problem problem(const Case &c, const Sizes &s, Mask mask) {
    int64_t q_width = static_cast<int64_t>(s.heads) * s.size, kv_width = static_cast<int64_t>(s.kv_heads) * s.size * 2;
    int64_t width = s.packed ? q_width + kv_width : q_width;
    Problem p = {{},
                 Array(c.t, s.batch * s.queries * width, c.shift),
                 Array(c.t, s.packed ? 1 : s.batch * s.keys * kv_width, c.shift),
                 ranges(s, mask, c.rng),
                 Array(c.t, s.batch * s.queries * q_width, c.shift),
                 0,
                 0,
                 s.packed,
                 c.t};
    p.qkv.normal(c.rng), p.kv.normal(c.rng), p.d_o.normal(c.rng);
    p.shape.batch = s.batch, p.shape.queries = s.queries, p.shape.keys = s.keys;
    p.shape.heads = s.heads, p.shape.kv_heads = s.kv_heads, p.shape.head_size = s.size;
    p.shape.q_stride = width, p.shape.o_stride = q_width;
    p.shape.k_stride = p.shape.v_stride = s.packed ? width : kv_width;
    p.shape.causal = mask == CAUSAL;
    p.shape.range = mask == RANGES || mask == DOCUMENTS ? p.range.i32() : nullptr;
    p.k_at = s.packed ? q_width : 0;
    p.v_at = p.k_at + kv_width / 2;
    return p;
}

// Sums of some hundred terms in another order, and roundings of what goes in between.
double relative(Dtype t) { return t == BF16 ? 1.0 / 64 : 2e-5; }

void compare(const Case &c, const Sizes &s, Mask mask) {
    char name[160];
    snprintf(name, sizeof name, "%s, B %d, T %d, S %d, H %d, K %d, D %d, mask %d%s", c.name, static_cast<int>(s.batch),
             static_cast<int>(s.queries), static_cast<int>(s.keys), s.heads, s.kv_heads, s.size, mask,
             s.packed ? ", packed" : "");
    Problem p = problem(c, s, mask);
    Array o(c.t, p.d_o.count(), c.shift), want_o(c.t, p.d_o.count(), c.shift);
    Array lse(F32, s.batch * s.heads * s.queries), want_lse(F32, lse.count());
    cuda_attention_forward(QUEUE, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t);
    cpu()->attention_forward(cpu(), want_o, want_lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t);
    expect_near(o, want_o, relative(c.t), relative(c.t) / 4, name);
    expect_near(lse, want_lse, relative(c.t), relative(c.t), name);
    // Both take the same output and logsumexp, so that only the backward pass is compared.
    Array dq = Array(c.t, p.qkv.count(), c.shift).normal(c.rng), dkv = Array(c.t, p.kv.count(), c.shift).normal(c.rng);
    Array want_dq(dq), want_dkv(dkv);
    Array &at = s.packed ? dq : dkv, &want_at = s.packed ? want_dq : want_dkv;
    char *dk = const_cast<char *>(p.element(at, p.k_at)), *dv = const_cast<char *>(p.element(at, p.v_at));
    cuda_attention_backward(QUEUE, dq, dk, dv, p.d_o, want_o, want_lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t,
                            c.add);
    cpu()->attention_backward(cpu(), want_dq, const_cast<char *>(p.element(want_at, p.k_at)),
                              const_cast<char *>(p.element(want_at, p.v_at)), p.d_o, want_o, want_lse.f32(), p.qkv,
                              p.k(), p.v(), &p.shape, c.t, c.add);
    expect_near(dq, want_dq, relative(c.t), relative(c.t), name);
    if (!s.packed) expect_near(dkv, want_dkv, relative(c.t), relative(c.t), name);
}

void small(const Case &c) {
    static const Sizes sizes[] = {{2, 7, 7, 2, 2, 12, true},  {1, 35, 35, 2, 1, 8, true},   {2, 5, 41, 4, 2, 20, false},
                                  {1, 1, 33, 2, 2, 4, false}, {1, 67, 70, 1, 1, 36, false}, {1, 9, 9, 1, 1, 5, true}};
    int number = 0; // half of the masks with each way of adding
    for (const Sizes &s : sizes)
        for (int mask = 0; mask < MASKS; mask++)
            if ((mask != DOCUMENTS || s.queries == s.keys) && number++ % 2 == c.add)
                compare(c, s, static_cast<Mask>(mask));
}
void every_mask_agrees(void **) { for_cases("attention", small); }

void wide(const Case &c) {
    if (c.shift) return;
    for (int size : {64, 128, 160}) compare(c, {1, 18, 37, 2, 1, size, false}, c.add ? RANGES : CAUSAL);
}
void every_head_size_agrees(void **) { for_cases("wide heads", wide); }

// What the tensor cores take: heads of multiples of 8, tiles that are not full, one warp's rows or two.
void tensor_cores(const Case &c) {
    if (c.shift || c.t != BF16) return;
    static const Sizes sizes[] = {{2, 37, 37, 2, 1, 16, true},   {1, 131, 131, 1, 1, 64, true},
                                  {1, 70, 150, 2, 1, 64, false}, {1, 33, 40, 1, 1, 80, false},
                                  {1, 50, 70, 2, 2, 88, false},  {1, 80, 67, 2, 1, 128, false}};
    int number = 0;
    for (const Sizes &s : sizes)
        for (int mask = 0; mask < MASKS; mask++)
            if ((mask != DOCUMENTS || s.queries == s.keys) && number++ % 2 == c.add)
                compare(c, s, static_cast<Mask>(mask));
}
void tensor_cores_agree_for_every_mask(void **) { for_cases("tensor cores", tensor_cores); }

// One query: several chunks of keys, groups of heads of any size, what is seen beginning and ending in any chunk.
void decode(const Case &c) {
    if (c.add) return;
    static const Sizes sizes[] = {
        {3, 1, 300, 2, 2, 64, false}, {2, 1, 131, 6, 2, 16, false}, {2, 1, 140, 5, 1, 80, false}};
    for (const Sizes &s : sizes)
        for (Mask mask : {CAUSAL, RANGES}) compare(c, s, mask);
    compare(c, {1, 1, 200, 2, 1, 128, false}, RANGES);
}
void one_query_agrees(void **) { for_cases("decode", decode); }

// What a cache holds beyond the range is not looked at, and its length leaves the bits alone.
void filling(const Case &c) {
    if (c.shift || c.add) return;
    Problem p = problem(c, {1, 1, 400, 2, 1, 32, false}, RANGES);
    p.range.i32()[0] = 0, p.range.i32()[1] = 150;
    for (int64_t i = 150 * p.shape.k_stride; i < p.kv.count(); i++) p.kv.put(i, NAN);
    Array o(c.t, p.d_o.count()), same(c.t, p.d_o.count()), lse(F32, 2);
    p.shape.range = p.range.i32();
    cuda_attention_forward(QUEUE, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t);
    p.shape.keys = 150, p.shape.range = nullptr;
    cuda_attention_forward(QUEUE, same, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t);
    for (int64_t i = 0; i < o.count(); i++) assert_false(std::isnan(o.at(i)));
    expect_bits(o, same, c.name);
}
void a_cache_s_capacity_leaves_the_bits_alone(void **) { for_cases("filling", filling); }

// Gradients that nobody wants are not touched.
void parts(const Case &c) {
    if (c.shift || c.add) return;
    Problem p = problem(c, {1, 20, 34, 2, 2, 16, false}, CAUSAL);
    Array o(c.t, p.d_o.count()), lse(F32, 2 * 20), dq(c.t, p.qkv.count()), dk(c.t, p.kv.count()), same_dq(dq),
        same_dk(dk);
    cuda_attention_forward(QUEUE, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t);
    char *v = dk.as<char>() + p.v_at * static_cast<int64_t>(dtype_size(c.t));
    char *same_v = same_dk.as<char>() + p.v_at * static_cast<int64_t>(dtype_size(c.t));
    cuda_attention_backward(QUEUE, dq, dk, v, p.d_o, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t, false);
    cuda_attention_backward(QUEUE, same_dq, nullptr, nullptr, p.d_o, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t,
                            false);
    cuda_attention_backward(QUEUE, nullptr, same_dk, same_v, p.d_o, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t,
                            false);
    expect_bits(same_dq, dq, c.name);
    expect_bits(same_dk, dk, c.name);
}
void each_gradient_may_be_asked_for_alone(void **) { for_cases("parts", parts); }

// What is no number reaches the outputs of the queries that see it, and no other.
void not_finite(const Case &c) {
    if (c.shift || c.add) return;
    Problem p = problem(c, {1, 40, 40, 1, 1, 8, false}, CAUSAL);
    p.kv.put(20 * 16 + 3, NAN); // key 20
    Array o(c.t, p.d_o.count()), lse(F32, 40);
    cuda_attention_forward(QUEUE, o, lse.f32(), p.qkv, p.k(), p.v(), &p.shape, c.t);
    for (int i = 0; i < 40; i++) assert_int_equal(std::isnan(o.at(i * 8)), i >= 20);
}
void nan_reaches_the_queries_that_see_it(void **) { for_cases("nan", not_finite); }
} // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(every_mask_agrees),
        cmocka_unit_test(every_head_size_agrees),
        cmocka_unit_test(tensor_cores_agree_for_every_mask),
        cmocka_unit_test(one_query_agrees),
        cmocka_unit_test(a_cache_s_capacity_leaves_the_bits_alone),
        cmocka_unit_test(each_gradient_may_be_asked_for_alone),
        cmocka_unit_test(nan_reaches_the_queries_that_see_it),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
