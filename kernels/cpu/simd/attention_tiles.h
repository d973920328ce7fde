/* What the two directions of attention share: the job, masks as intervals, copies of the operands in the order of the
 * register tile, and the exponential.
 * B batch, T queries, S keys, H heads, K key-value heads, D head size. */
#pragma once
#include "kernels/cpu/simd/matmul_pack.h"
#include "kernels/cpu/simd/vec.h"
#include <math.h>

typedef struct AttentionJob {
    const Backend *backend;
    const AttentionShape *s;
    Dtype t;
    MatmulUnit unit;                   // of the products: f32, or pairs of bf16
    const void *q, *k, *v, *d_o, *out; // read; out is what forward wrote
    void *o, *dq, *dk, *dv;            // written
    float *lse;                        // (B, H, T)
    float scale;                       // 1 / sqrt(D)
    int64_t chunks;                    // of queries, forward
    bool add;
} AttentionJob;

typedef struct Interval {
    int64_t first, end; // empty where first >= end
} Interval;

// The keys that a query sees.
static inline Interval query_keys(const AttentionShape *s, int64_t batch, int64_t query) {
    if (s->range) {
        const int32_t *r = s->range + 2 * (batch * s->queries + query);
        return (Interval){most(r[0], 0), least(r[1], s->keys)};
    }
    return (Interval){0, s->causal ? query + 1 + s->keys - s->queries : s->keys};
}

// The smallest interval that holds those of `count` queries.
static inline Interval union_keys(const AttentionShape *s, int64_t batch, int64_t query, int64_t count) {
    Interval all = {s->keys, 0};
    for (int64_t i = query; i < query + count; i++) {
        Interval one = query_keys(s, batch, i);
        if (one.first >= one.end) continue;
        all.first = least(all.first, one.first);
        all.end = most(all.end, one.end);
    }
    return all;
}

// Units of the inner dimension that n elements make.
static inline int64_t units_of(int64_t n, MatmulUnit unit) { return unit == UNIT_PAIR ? (n + 1) / 2 : n; }

static inline const char *at_element(const void *x, int64_t i, Dtype t) {
    return (const char *)x + i * (int64_t)dtype_size(t);
}

// Floats of `lines` columns over `inner` elements as panels (units, MATMUL_PANEL).
static inline int64_t panels_size(int64_t lines, int64_t inner, MatmulUnit unit) {
    return divide_up(lines, MATMUL_PANEL) * units_of(inner, unit) * MATMUL_PANEL;
}

// Operands of a product, in units of its inner dimension.
typedef struct OperandA {
    const char *data;  // A[r, u] lies at data + r row + u unit
    int64_t row, unit; // bytes; one of them is 4
} OperandA;

typedef struct OperandB {
    const float *data;   // B[u, c] lies at data + u unit + c / MATMUL_PANEL panel + c % MATMUL_PANEL
    int64_t unit, panel; // floats
} OperandB;

static inline OperandA part_of_a(OperandA a, int64_t row, int64_t unit) {
    a.data += row * a.row + unit * a.unit;
    return a;
}

static inline OperandB part_of_b(OperandB b, int64_t unit, int64_t column) {
    b.data += unit * b.unit + column / MATMUL_PANEL * b.panel;
    return b;
}

static inline bool needs_copy(const AttentionJob *job) { return job->t == BF16 && job->unit == UNIT_F32; }

// Rows (count, width) at x, `stride` elements apart, as the A of products over the width: where they lie, or, where the
// products cannot read them, as f32 in `copy`.
static inline OperandA rows_as_a(float *copy, const void *x, int64_t stride, int64_t count, int64_t width,
                                 const AttentionJob *job) {
    if (!needs_copy(job)) return (OperandA){x, stride * (int64_t)dtype_size(job->t), 4};
    for (int64_t i = 0; i < count; i++)
        for (int64_t d = 0; d < width; d++) copy[i * width + d] = element_load(x, i * stride + d, BF16);
    return (OperandA){(const char *)copy, width * (int64_t)sizeof(float), 4};
}

static inline OperandB pack_b(float *copy, const void *x, int64_t line, int64_t step, int64_t lines, int64_t inner,
                              const AttentionJob *job) {
    OperandB b = {copy, MATMUL_PANEL, units_of(inner, job->unit) * MATMUL_PANEL};
    for (int64_t i = 0; i < lines; i += MATMUL_PANEL) {
        int64_t count = least(MATMUL_PANEL, lines - i);
        Lines part = {at_element(x, i * line, job->t), line, step, count, inner, job->t};
        SIMD_NAME(matmul_pack)(copy + i / MATMUL_PANEL * b.panel, MATMUL_PANEL, &part, job->unit);
    }
    return b;
}

// The same rows as the columns of B, for products over the width.
static inline OperandB rows_across_b(float *copy, const void *x, int64_t stride, int64_t count, int64_t width,
                                     const AttentionJob *job) {
    return pack_b(copy, x, stride, 1, count, width, job);
}

// The same rows as the rows of B, for products over the rows. f32 in whole panels is read where it lies, unless its
// stride would put many rows into the same cache sets.
static inline OperandB rows_along_b(float *copy, const void *x, int64_t stride, int64_t count, int64_t width,
                                    const AttentionJob *job) {
    if (job->t == F32 && width % MATMUL_PANEL == 0 && stride % 256) return (OperandB){x, stride, MATMUL_PANEL};
    return pack_b(copy, x, 1, stride, width, count, job);
}

// to (rows, columns) (+)= A B, any number of rows; whole panels of columns are written.
static inline void tile_product(float *to, int64_t to_row, OperandA a, OperandB b, int64_t rows, int64_t columns,
                                int64_t units, MatmulUnit unit, bool add) {
    int64_t parts = divide_up(rows, MATMUL_ROWS);
    Tile tile = {.a_row = a.row,
                 .a_unit = a.unit,
                 .b_unit = b.unit,
                 .units = units,
                 .columns = MATMUL_PANEL,
                 .from_row = to_row,
                 .to_row = to_row,
                 .from_type = F32,
                 .to_type = F32};
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = part * rows / parts;
        tile.rows = (int)((part + 1) * rows / parts - first);
        tile.a = part_of_a(a, first, 0).data;
        for (int64_t c = 0; c < columns; c += MATMUL_PANEL) {
            tile.b = part_of_b(b, 0, c).data;
            tile.to = to + first * to_row + c;
            tile.from = add ? tile.to : NULL;
            SIMD_NAME(matmul_tile)(&tile, unit);
        }
    }
}

// Writes or adds factor * row (width) to element `at` of x.
static inline void store_row(void *x, int64_t at, const float *row, float factor, int64_t width, Dtype t, bool add) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) {
        Vec y = factor * vec_load(row, d, F32);
        vec_store(x, at + d, add ? y + vec_load(x, at + d, t) : y, t);
    }
    if (d == width) return;
    Vec y = factor * vec_load(row, d, F32); // rows of tiles are padded
    vec_store_part(x, at + d, width - d, add ? y + vec_load_part(x, at + d, width - d, t) : y, t);
}

static inline void fill(float *x, int64_t first, int64_t end, float value) {
    for (int64_t i = first; i < end; i++) x[i] = value;
}

// The part of a row of scores that a query sees, counted from the tile's first key; in whole vectors [from, to).
typedef struct Span {
    int64_t first, end, from, to;
} Span;

static inline Span span_of(Interval seen, Interval tile) {
    Span x = {.first = most(seen.first, tile.first) - tile.first, .end = least(seen.end, tile.end) - tile.first};
    if (x.first >= x.end) return (Span){0};
    x.from = x.first & -LANES;
    x.to = (x.end + LANES - 1) & -LANES;
    return x;
}

// The vector at `at`, with `value` in the lanes outside of the span.
INLINE Vec load_span(const float *row, int64_t at, const Span *x, float value) {
    Vec v = vec_load(row, at, F32);
    if (at >= x->first && at + LANES <= x->end) return v;
    VecI lane = vec_lanes();
    VecI inside = (lane >= (int32_t)(x->first - at)) & (lane < (int32_t)(x->end - at));
    return vec_select(inside, v, vec_set(value));
}

// Zeros in whole vectors of [0, width) outside of the span.
INLINE void clear_outside(void *row, const Span *x, int64_t width, Dtype t) {
    for (int64_t j = 0; j < x->from; j += LANES) vec_store(row, j, (Vec){0}, t);
    for (int64_t j = x->to; j < width; j += LANES) vec_store(row, j, (Vec){0}, t);
}

// bf16 for the products, which take subnormals for 0 anyway: so may the conversion.
INLINE VecH vec_to_product(Vec x) {
#if defined(__AVX512BF16__)
    return (VecH)_mm512_cvtneps_pbh((__m512)x);
#else
    return vec_to_bf16(x);
#endif
}

#define LOG2_E 1.4426950408889634f
#define LN_2   0.6931471805599453f

// 2^x for x not far above 0, 0 for x <= -200; NaN stays.
INLINE Vec vec_exp2(Vec x) {
    x = vec_max(x, vec_set(-200.0f));
    VecI bits;
    Vec n = vec_round(x, &bits), r = x - n;
    Vec p = 1.326472707e-03f * r + 9.671512649e-03f;
    p = p * r + 5.550733744e-02f;
    p = p * r + 2.402224209e-01f;
    p = p * r + 6.931469776e-01f;
    p = p * r + 1.0f;
    return vec_times_power(p, n, bits);
}

void SIMD_NAME(attention_forward_task)(void *job, int64_t task, int worker);
void SIMD_NAME(attention_backward_task)(void *job, int64_t task, int worker);
