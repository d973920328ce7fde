/* Backward of attention for one (batch element, key-value head): tiles of keys outside, blocks of queries inside. Each
 * tile's probabilities are formed again from the logsumexp (Dao et al. 2022):
 * P = exp(q k^T / sqrt(D) - lse), dV = P^T dO, dS = P (dO V^T - delta), delta = sum of dO O over D,
 * dQ = dS K / sqrt(D), dK = dS^T Q / sqrt(D). One task does all sums of its head, so their order is fixed. */
#include "kernels/cpu/simd/attention_tiles.h"

enum {
    TILE_KEYS = 128,                 // a multiple of MATMUL_PANEL
    TILE_QUERIES = 4 * MATMUL_ROWS,  // even
    TILE_STRIDE = TILE_KEYS + LANES, // of rows of a tile
};

typedef struct Head {           // what one head of queries keeps over all tiles of keys
    RowsOfA q, d_o;             // as A
    float *q_along, *d_o_along; // as B, panels along the queries
    float *dq;                  // (T, width)
    float *delta, *lse;         // (T); lse in base 2
} Head;

typedef struct Backward { // one task
    const AttentionJob *job;
    int64_t batch, width;                 // width: D rounded up to panels
    Head *heads;                          // (H / K)
    float *k_across, *v_across, *k_along; // of a tile of keys, as B
    float *dk, *dv;                       // (TILE_KEYS, width)
    float *p, *ds;                        // (TILE_QUERIES, TILE_STRIDE)
    uint32_t *p_pairs, *ds_pairs;         // the same in bf16, queries 2 i and 2 i + 1 paired
    uint16_t *ds_halves;                  // ds in bf16
} Backward;

// Hands out parts of the scratch; with memory NULL only counts.
typedef struct Take {
    char *memory;
    size_t used;
} Take;

static void *take(Take *t, int64_t count, size_t size) {
    char *part = t->memory ? t->memory + t->used : NULL;
    t->used += (size_t)round_up(count * (int64_t)size, 64);
    return part;
}

static void lay_out(Backward *b, Take *t) {
    const AttentionJob *job = b->job;
    const AttentionShape *s = job->s;
    int64_t T = s->queries, D = s->head_size, tile = TILE_QUERIES * TILE_STRIDE;
    b->heads = take(t, s->heads / s->kv_heads, sizeof *b->heads);
    for (int64_t h = 0; h < s->heads / s->kv_heads; h++) {
        Head head = {.q_along = take(t, panels_size(D, T, job->unit), 4),
                     .d_o_along = take(t, panels_size(D, T, job->unit), 4),
                     .dq = take(t, T * b->width, 4),
                     .delta = take(t, T, 4),
                     .lse = take(t, T, 4)};
        if (needs_copy(job)) head.q.data = take(t, T * D, 4), head.d_o.data = take(t, T * D, 4);
        if (t->memory) b->heads[h] = head;
    }
    b->k_across = take(t, panels_size(TILE_KEYS, D, job->unit), 4);
    b->v_across = take(t, panels_size(TILE_KEYS, D, job->unit), 4);
    b->k_along = take(t, panels_size(D, TILE_KEYS, job->unit), 4);
    b->dk = take(t, TILE_KEYS * b->width, 4);
    b->dv = take(t, TILE_KEYS * b->width, 4);
    b->p = take(t, tile, 4);
    b->ds = take(t, tile, 4);
    b->p_pairs = take(t, tile / 2, 4);
    b->ds_pairs = take(t, tile / 2, 4);
    b->ds_halves = take(t, tile, 2);
}

static float dot(const void *a, int64_t at_a, const void *b, int64_t at_b, int64_t n, Dtype t) {
    Vec sum = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += vec_load(a, at_a + i, t) * vec_load(b, at_b + i, t);
    if (i < n) sum += vec_load_part(a, at_a + i, n - i, t) * vec_load_part(b, at_b + i, n - i, t);
    return vec_sum(sum);
}

static void load_head(Backward *b, Head *head, int64_t h) {
    const AttentionJob *job = b->job;
    const AttentionShape *s = job->s;
    int64_t T = s->queries, D = s->head_size, at_q = b->batch * T * s->q_stride + h * D,
            at_o = b->batch * T * s->o_stride + h * D;
    const void *q = at_element(job->q, at_q, job->t), *d_o = at_element(job->d_o, at_o, job->t);
    head->q = rows_of_a((float *)head->q.data, q, s->q_stride, T, D, job);
    head->d_o = rows_of_a((float *)head->d_o.data, d_o, s->o_stride, T, D, job);
    pack_along(head->q_along, q, s->q_stride, T, D, job);
    pack_along(head->d_o_along, d_o, s->o_stride, T, D, job);
    fill(head->dq, 0, T * b->width, 0);
    for (int64_t i = 0; i < T; i++) {
        head->delta[i] = dot(job->d_o, at_o + i * s->o_stride, job->out, at_o + i * s->o_stride, D, job->t);
        head->lse[i] = job->lse[(b->batch * s->heads + h) * T + i] * LOG2_E;
    }
}

// Scores and products dO V^T of one query in a tile become its P and dS, zero where the query does not see.
static void gradient_row(float *p, float *ds, float scale, float lse, float delta, Interval tile, Interval seen) {
    Span span = span_of(seen, tile);
    int64_t width = round_up(tile.end - tile.first, LANES);
    clear_outside(p, &span, width);
    clear_outside(ds, &span, width);
    for (int64_t j = span.from; j < span.to; j += LANES) {
        Vec x = vec_exp2(load_span(p, j, &span, -INFINITY) * scale - lse);
        vec_store(p, j, x, F32);
        vec_store(ds, j, x * (load_span(ds, j, &span, 0) - delta), F32);
    }
}

// Two rows of n floats as pairs of bf16.
static void pair_rows(uint32_t *out, const float *a, const float *b, int64_t n) {
    for (int64_t j = 0; j < n; j += LANES) {
        VecU low = __builtin_convertvector(vec_to_bf16(vec_load(a, j, F32)), VecU);
        VecU high = __builtin_convertvector(vec_to_bf16(vec_load(b, j, F32)), VecU);
        *(VecMemory *)(void *)(out + j) = (Vec)(low | high << 16);
    }
}

// The bf16 copies of P and dS that the products read.
static void make_pairs(Backward *b, int64_t rows, int64_t width) {
    if (rows % 2) {
        fill(b->p + rows * TILE_STRIDE, 0, width, 0);
        fill(b->ds + rows * TILE_STRIDE, 0, width, 0);
    }
    for (int64_t r = 0; r < rows; r += 2) {
        const float *p = b->p + r * TILE_STRIDE, *ds = b->ds + r * TILE_STRIDE;
        pair_rows(b->p_pairs + r / 2 * TILE_STRIDE, p, p + TILE_STRIDE, width);
        pair_rows(b->ds_pairs + r / 2 * TILE_STRIDE, ds, ds + TILE_STRIDE, width);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j += LANES)
            vec_store(b->ds_halves, r * TILE_STRIDE + j, vec_load(b->ds, r * TILE_STRIDE + j, F32), BF16);
}

// A block of queries of one head against the tile of keys.
static void backward_tile(Backward *b, Head *head, int64_t query, int64_t rows, Interval tile, bool first) {
    const AttentionJob *job = b->job;
    const MatmulUnit unit = job->unit;
    int64_t D = job->s->head_size, T = job->s->queries, keys = tile.end - tile.first,
            inner = units_of(D, unit) * MATMUL_PANEL;
    int64_t n = round_up(keys, MATMUL_PANEL), queries = units_of(rows, unit), at = units_of(query, unit) * MATMUL_PANEL;
    int64_t along = units_of(T, unit) * MATMUL_PANEL, width = b->width;
    bool pairs = unit == UNIT_PAIR;
    tile_product(b->p, TILE_STRIDE, head->q.data + query * head->q.row, head->q.row, 4, b->k_across, inner, rows, n,
                 units_of(D, unit), unit, false);
    tile_product(b->ds, TILE_STRIDE, head->d_o.data + query * head->d_o.row, head->d_o.row, 4, b->v_across, inner, rows,
                 n, units_of(D, unit), unit, false);
    for (int64_t r = 0; r < rows; r++)
        gradient_row(b->p + r * TILE_STRIDE, b->ds + r * TILE_STRIDE, job->scale * LOG2_E, head->lse[query + r],
                     head->delta[query + r], tile, query_keys(job->s, b->batch, query + r));
    if (pairs) make_pairs(b, rows, round_up(keys, LANES));
    const char *p = pairs ? (char *)b->p_pairs : (char *)b->p, *ds = pairs ? (char *)b->ds_pairs : (char *)b->ds;
    const char *ds_rows = pairs ? (char *)b->ds_halves : (char *)b->ds;
    tile_product(b->dv, width, p, 4, TILE_STRIDE * 4, head->d_o_along + at, along, keys, width, queries, unit, !first);
    tile_product(b->dk, width, ds, 4, TILE_STRIDE * 4, head->q_along + at, along, keys, width, queries, unit, !first);
    tile_product(head->dq + query * width, width, ds_rows, TILE_STRIDE * (pairs ? 2 : 4), 4, b->k_along,
                 units_of(keys, unit) * MATMUL_PANEL, rows, width, units_of(keys, unit), unit, true);
}

// All queries of all heads against one tile of keys; then its dk and dv are complete.
static void backward_keys(Backward *b, int64_t kv_head, Interval tile) {
    const AttentionJob *job = b->job;
    const AttentionShape *s = job->s;
    int64_t D = s->head_size, keys = tile.end - tile.first, row = b->batch * s->keys + tile.first;
    int64_t at_k = row * s->k_stride + kv_head * D, at_v = row * s->v_stride + kv_head * D;
    pack_across(b->k_across, at_element(job->k, at_k, job->t), s->k_stride, keys, D, job);
    pack_across(b->v_across, at_element(job->v, at_v, job->t), s->v_stride, keys, D, job);
    pack_along(b->k_along, at_element(job->k, at_k, job->t), s->k_stride, keys, D, job);
    bool first = true;
    for (int64_t h = 0; h < s->heads / s->kv_heads; h++)
        for (int64_t query = 0; query < s->queries; query += TILE_QUERIES) {
            int64_t rows = least(TILE_QUERIES, s->queries - query);
            Interval seen = union_keys(s, b->batch, query, rows);
            if (seen.first >= tile.end || seen.end <= tile.first) continue;
            backward_tile(b, &b->heads[h], query, rows, tile, first);
            first = false;
        }
    if (first) fill(b->dk, 0, keys * b->width, 0), fill(b->dv, 0, keys * b->width, 0);
    for (int64_t j = 0; j < keys; j++) {
        if (job->dk) store_row(job->dk, at_k + j * s->k_stride, b->dk + j * b->width, job->scale, D, job->t, job->add);
        if (job->dv) store_row(job->dv, at_v + j * s->v_stride, b->dv + j * b->width, 1, D, job->t, job->add);
    }
}

// task: a (batch element, key-value head)
void SIMD_NAME(attention_backward_task)(void *context, int64_t task, int worker) {
    const AttentionJob *job = context;
    const AttentionShape *s = job->s;
    int64_t kv_head = task % s->kv_heads, group = s->heads / s->kv_heads, D = s->head_size;
    Backward b = {.job = job, .batch = task / s->kv_heads, .width = round_up(D, MATMUL_PANEL)};
    Take count = {0};
    lay_out(&b, &count);
    lay_out(&b, &(Take){.memory = cpu_worker_scratch(job->backend, worker, count.used)});
    for (int64_t h = 0; h < group; h++) load_head(&b, &b.heads[h], kv_head * group + h);
    for (int64_t key = 0; key < s->keys; key += TILE_KEYS)
        backward_keys(&b, kv_head, (Interval){key, least(key + TILE_KEYS, s->keys)});
    for (int64_t h = 0; job->dq && h < group; h++)
        for (int64_t i = 0; i < s->queries; i++)
            store_row(job->dq, (b.batch * s->queries + i) * s->q_stride + (kv_head * group + h) * D,
                      b.heads[h].dq + i * b.width, job->scale, D, job->t, job->add);
}
