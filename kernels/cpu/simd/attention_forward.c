/* Forward of attention, a chunk of queries of one (batch element, key-value head) at a time: keys and values are packed
 * once for all heads that share them, then each panel of queries goes over tiles of its keys with a running maximum
 * and sum (Dao et al. 2022). Tiles outside of the panel's interval are never touched. */
#include "kernels/cpu/simd/attention_tiles.h"

enum {
    TILE_KEYS = 512,                 // a multiple of MATMUL_PANEL
    TILE_STRIDE = TILE_KEYS + LANES, // rows 4 KiB apart would share cache sets
    PANEL_ROWS = (MATMUL_ROWS + LANES - 1) / LANES * LANES,
};

typedef struct Forward { // one task
    const AttentionJob *job;
    int64_t batch;
    Interval keys;                                               // packed; first is a multiple of MATMUL_PANEL
    int64_t width;                                               // D rounded up to panels
    OperandB k, v;                                               // keys across, values along
    float *scores;                                               // (MATMUL_ROWS, TILE_STRIDE), then probabilities
    uint16_t *halves;                                            // the same in bf16, where products take pairs
    float *sums;                                                 // (MATMUL_ROWS, width): of probability times value
    float *q;                                                    // (MATMUL_ROWS, D), where a copy is needed
    float most[PANEL_ROWS], sum[PANEL_ROWS], weight[PANEL_ROWS]; // of each query so far; weight: sum as products see it
    Interval seen[MATMUL_ROWS];                                  // keys of each query
} Forward;

// Takes the scratch and packs the keys.
static Forward forward_new(const AttentionJob *job, int worker, int64_t batch, int64_t kv_head, Interval keys) {
    const AttentionShape *s = job->s;
    Forward f = {.job = job, .batch = batch, .keys = keys, .width = round_up(s->head_size, MATMUL_PANEL)};
    int64_t count = keys.end - keys.first, tile = MATMUL_ROWS * TILE_STRIDE;
    int64_t k = panels_size(count, s->head_size, job->unit), v = panels_size(s->head_size, count, job->unit);
    int64_t q = needs_copy(job) ? MATMUL_ROWS * s->head_size : 0;
    int64_t total = k + v + tile + tile / 2 + MATMUL_ROWS * f.width + q;
    float *memory = cpu_worker_scratch(job->backend, worker, (size_t)total * sizeof(float));
    f.scores = memory + k + v;
    f.halves = (uint16_t *)(f.scores + tile);
    f.sums = f.scores + tile + tile / 2;
    f.q = f.sums + MATMUL_ROWS * f.width;
    int64_t row = batch * s->keys + keys.first, column = kv_head * s->head_size;
    f.k = rows_across_b(memory, at_element(job->k, row * s->k_stride + column, job->t), s->k_stride, count,
                        s->head_size, job);
    f.v = rows_along_b(memory + k, at_element(job->v, row * s->v_stride + column, job->t), s->v_stride, count,
                       s->head_size, job);
    return f;
}

// Row r of the tile: scores become probabilities relative to the running maximum, zero where the query does not see.
// In bf16 what is summed to divide by is what the product will add up: a rounded probability keeps its weight.
// Returns the factor for what was summed before.
static float softmax_row(Forward *f, int r, Interval tile) {
    float *row = f->scores + r * TILE_STRIDE, scale = f->job->scale * LOG2_E;
    uint16_t *halves = f->halves + r * TILE_STRIDE;
    bool pairs = f->job->unit == UNIT_PAIR;
    Span span = span_of(f->seen[r], tile);
    clear_outside(pairs ? (void *)halves : row, &span, round_up(tile.end - tile.first, LANES), pairs ? BF16 : F32);
    if (span.from == span.to) return 1;
    Vec high = vec_set(-INFINITY), sum = {0}, weight = {0};
    for (int64_t j = span.from; j < span.to; j += LANES) high = vec_max(high, load_span(row, j, &span, -INFINITY));
    float before = f->most[r], now = vec_highest(high);
    f->most[r] = now = now > before ? now : before;
    for (int64_t j = span.from; j < span.to; j += LANES) {
        Vec p = vec_exp2(load_span(row, j, &span, -INFINITY) * scale - now * scale);
        sum += p;
        if (pairs) {
            VecH rounded = vec_to_product(p);
            *(VecHMemory *)(halves + j) = rounded;
            weight += vec_from_bf16(rounded);
        } else {
            vec_store(row, j, p, F32);
        }
    }
    float factor = before == now ? 1 : vec_exp2(vec_set((before - now) * scale))[0];
    f->sum[r] = f->sum[r] * factor + vec_sum(sum);
    f->weight[r] = pairs ? f->weight[r] * factor + vec_sum(weight) : f->sum[r];
    return factor;
}

static void rescale(float *x, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

// One tile of keys for `rows` queries.
static void forward_tile(Forward *f, OperandA q, int rows, Interval tile, bool first) {
    const AttentionJob *job = f->job;
    const MatmulUnit unit = job->unit;
    int64_t count = tile.end - tile.first, at = tile.first - f->keys.first, D = job->s->head_size;
    bool pairs = unit == UNIT_PAIR;
    tile_product(f->scores, TILE_STRIDE, q, part_of_b(f->k, 0, at), rows, count, units_of(D, unit), unit, false);
    for (int r = 0; r < rows; r++) {
        float factor = softmax_row(f, r, tile);
        if (!first && factor != 1) rescale(f->sums + r * f->width, factor, f->width);
    }
    OperandA p = {pairs ? (char *)f->halves : (char *)f->scores, TILE_STRIDE * (pairs ? 2 : 4), 4};
    tile_product(f->sums, f->width, p, part_of_b(f->v, units_of(at, unit), 0), rows, f->width, units_of(count, unit),
                 unit, !first);
}

// Sums become the output; most and sum become the logsumexp. Queries that see nothing give zeros.
static void finish_rows(Forward *f, int64_t head, int64_t query, int rows) {
    const AttentionJob *job = f->job;
    const AttentionShape *s = job->s;
    float inverse[PANEL_ROWS], lse[PANEL_ROWS];
    for (int r = 0; r < rows; r += LANES) {
        Vec sum = vec_load(f->sum, r, F32);
        vec_store(inverse, r, 1.0f / vec_load(f->weight, r, F32), F32);
        vec_store(lse, r, vec_load(f->most, r, F32) * job->scale + vec_log(sum), F32);
    }
    for (int r = 0; r < rows; r++) {
        if (f->seen[r].first >= f->seen[r].end) {
            fill(f->sums, r * f->width, (r + 1) * f->width, 0);
            inverse[r] = 0, lse[r] = -INFINITY;
        }
        int64_t row = f->batch * s->queries + query + r;
        store_row(job->o, row * s->o_stride + head * s->head_size, f->sums + r * f->width, inverse[r], s->head_size,
                  job->t, false);
        job->lse[(f->batch * s->heads + head) * s->queries + query + r] = lse[r];
    }
}

// At most MATMUL_ROWS queries of one head.
static void forward_rows(Forward *f, int64_t head, int64_t query, int rows) {
    const AttentionJob *job = f->job;
    const AttentionShape *s = job->s;
    Interval keys = union_keys(s, f->batch, query, rows);
    int64_t at_q = (f->batch * s->queries + query) * s->q_stride + head * s->head_size;
    OperandA q = rows_as_a(f->q, at_element(job->q, at_q, job->t), s->q_stride, rows, s->head_size, job);
    for (int r = 0; r < PANEL_ROWS; r++) f->most[r] = -INFINITY, f->sum[r] = f->weight[r] = 0;
    for (int r = 0; r < rows; r++) f->seen[r] = query_keys(s, f->batch, query + r);
    int64_t start = keys.first / MATMUL_PANEL * MATMUL_PANEL;
    for (int64_t at = start; at < keys.end; at += TILE_KEYS)
        forward_tile(f, q, rows, (Interval){at, least(at + TILE_KEYS, keys.end)}, at == start);
    finish_rows(f, head, query, rows);
}

// task: a (batch element, key-value head, chunk of queries)
void SIMD_NAME(attention_forward_task)(void *context, int64_t task, int worker) {
    const AttentionJob *job = context;
    const AttentionShape *s = job->s;
    int64_t chunk = task % job->chunks, head = task / job->chunks % s->kv_heads,
            batch = task / job->chunks / s->kv_heads;
    int64_t first = chunk * s->queries / job->chunks, count = (chunk + 1) * s->queries / job->chunks - first;
    int64_t group = s->heads / s->kv_heads, panels = divide_up(count, MATMUL_ROWS);
    Interval keys = union_keys(s, batch, first, count);
    keys.first = least(keys.first, keys.end) / MATMUL_PANEL * MATMUL_PANEL;
    Forward f = forward_new(job, worker, batch, head, keys);
    for (int64_t h = head * group; h < (head + 1) * group; h++)
        for (int64_t p = 0; p < panels; p++) {
            int64_t at = p * count / panels;
            forward_rows(&f, h, first + at, (int)((p + 1) * count / panels - at));
        }
}
