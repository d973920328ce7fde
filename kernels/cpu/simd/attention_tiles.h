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

static inline int64_t round_up(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

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

// Rows (count, width) at x, `stride` elements apart, as panels for a product whose inner dimension is the width: the
// rows are the columns of B.
static inline void pack_across(float *out, const void *x, int64_t stride, int64_t count, int64_t width,
                               const AttentionJob *job) {
    for (int64_t i = 0; i < count; i += MATMUL_PANEL, out += units_of(width, job->unit) * MATMUL_PANEL)
        SIMD_NAME(matmul_pack)
    (out, MATMUL_PANEL,
     &(Lines){.data = at_element(x, i * stride, job->t),
              .line = stride,
              .step = 1,
              .count = least(MATMUL_PANEL, count - i),
              .k = width,
              .type = job->t},
     job->unit);
}

// The same rows for a product whose inner dimension is the rows: their elements are the columns of B.
static inline void pack_along(float *out, const void *x, int64_t stride, int64_t count, int64_t width,
                              const AttentionJob *job) {
    for (int64_t i = 0; i < width; i += MATMUL_PANEL, out += units_of(count, job->unit) * MATMUL_PANEL)
        SIMD_NAME(matmul_pack)
    (out, MATMUL_PANEL,
     &(Lines){.data = at_element(x, i, job->t),
              .line = 1,
              .step = stride,
              .count = least(MATMUL_PANEL, width - i),
              .k = count,
              .type = job->t},
     job->unit);
}

// Rows as the A of products: where they lie, or as f32 where the product cannot read bf16.
typedef struct RowsOfA {
    const char *data;
    int64_t row; // bytes from a row to the next
} RowsOfA;

static inline bool needs_copy(const AttentionJob *job) { return job->t == BF16 && job->unit == UNIT_F32; }

static inline RowsOfA rows_of_a(float *copy, const void *x, int64_t stride, int64_t count, int64_t width,
                                const AttentionJob *job) {
    if (!needs_copy(job)) return (RowsOfA){x, stride * (int64_t)dtype_size(job->t)};
    for (int64_t i = 0; i < count; i++)
        for (int64_t d = 0; d < width; d++) copy[i * width + d] = element_load(x, i * stride + d, BF16);
    return (RowsOfA){(const char *)copy, width * (int64_t)sizeof(float)};
}

// to (rows, n) (+)= A B, n a multiple of MATMUL_PANEL and any number of rows. A[r, u] lies at a + r a_row + u a_unit
// bytes; B is n / MATMUL_PANEL panels, b_panel floats apart.
static inline void tile_product(float *to, int64_t to_row, const char *a, int64_t a_row, int64_t a_unit, const float *b,
                                int64_t b_panel, int64_t rows, int64_t n, int64_t units, MatmulUnit unit, bool add) {
    int64_t parts = divide_up(rows, MATMUL_ROWS);
    Tile tile = {.a_row = a_row,
                 .a_unit = a_unit,
                 .b_unit = MATMUL_PANEL,
                 .units = units,
                 .columns = MATMUL_PANEL,
                 .from_row = to_row,
                 .to_row = to_row,
                 .from_type = F32,
                 .to_type = F32};
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = part * rows / parts;
        tile.rows = (int)((part + 1) * rows / parts - first);
        tile.a = a + first * a_row;
        for (int64_t c = 0; c < n; c += MATMUL_PANEL) {
            tile.b = b + c / MATMUL_PANEL * b_panel;
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
    VecI lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    VecI inside = (lane >= (int32_t)(x->first - at)) & (lane < (int32_t)(x->end - at));
    return vec_select(inside, v, vec_set(value));
}

// Zeros in whole vectors of [0, width) outside of the span.
INLINE void clear_outside(float *row, const Span *x, int64_t width) {
    for (int64_t j = 0; j < x->from; j += LANES) vec_store(row, j, (Vec){0}, F32);
    for (int64_t j = x->to; j < width; j += LANES) vec_store(row, j, (Vec){0}, F32);
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
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    VecI whole = bits - 0x4b400000, half = whole >> 1;
    return p * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
#endif
}

void SIMD_NAME(attention_forward_task)(void *job, int64_t task, int worker);
void SIMD_NAME(attention_backward_task)(void *job, int64_t task, int worker);
