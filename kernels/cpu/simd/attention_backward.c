/* Backward of attention for one (batch element, key-value head): tiles of keys outside, blocks of queries inside. Each
 * tile's probabilities are formed again from the logsumexp (Dao et al. 2022):
 * P = exp(q k^T / sqrt(D) - lse), dV = P^T dO, dS = P (dO V^T - delta), delta = sum of dO O over D,
 * dQ = dS K / sqrt(D), dK = dS^T Q / sqrt(D). One task does all sums of its head, so their order is fixed. */
#include "kernels/cpu/simd/attention_tiles.h"

enum {
    TILE_KEYS = 128, // a multiple of MATMUL_PANEL
    TILE_PANELS = 5,
    TILE_QUERIES = (TILE_PANELS * MATMUL_ROWS + 1) / 2 * 2, // even
    TILE_STRIDE = TILE_KEYS + LANES,                        // of rows of a tile
};

typedef struct Head {            // what one head of queries keeps over all tiles of keys
    OperandA q, d_o;             // over D
    OperandB q_along, d_o_along; // over the queries
    float *copies[4];            // scratch of those
    float *dq;                   // (T, width)
    float *delta, *lse;          // (T); lse in base 2
} Head;

typedef struct Backward { // one task
    const AttentionJob *job;
    int64_t batch, width;                 // width: D rounded up to panels
    Head *heads;                          // (H / K)
    OperandB k_across, v_across, k_along; // a tile of keys
    float *copies[3];                     // scratch of those
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
    int64_t along = panels_size(D, T, job->unit), copy = needs_copy(job) ? T * D : 0;
    for (int64_t h = 0; h < s->heads / s->kv_heads; h++) {
        Head head = {.copies = {take(t, copy, 4), take(t, copy, 4), take(t, along, 4), take(t, along, 4)},
                     .dq = take(t, T * b->width, 4),
                     .delta = take(t, T, 4),
                     .lse = take(t, T, 4)};
        if (t->memory) b->heads[h] = head;
    }
    b->copies[0] = take(t, panels_size(TILE_KEYS, D, job->unit), 4);
    b->copies[1] = take(t, panels_size(TILE_KEYS, D, job->unit), 4);
    b->copies[2] = take(t, panels_size(D, TILE_KEYS, job->unit), 4);
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
    head->q = rows_as_a(head->copies[0], q, s->q_stride, T, D, job);
    head->d_o = rows_as_a(head->copies[1], d_o, s->o_stride, T, D, job);
    head->q_along = rows_along_b(head->copies[2], q, s->q_stride, T, D, job);
    head->d_o_along = rows_along_b(head->copies[3], d_o, s->o_stride, T, D, job);
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
    clear_outside(p, &span, width, F32);
    clear_outside(ds, &span, width, F32);
    for (int64_t j = span.from; j < span.to; j += LANES) {
        Vec x = vec_exp2(load_span(p, j, &span, -INFINITY) * scale - lse);
        vec_store(p, j, x, F32);
        vec_store(ds, j, x * (load_span(ds, j, &span, 0) - delta), F32);
    }
}

// Two rows of n floats as pairs of bf16.
static void pair_rows(uint32_t *out, const float *a, const float *b, int64_t n) {
    for (int64_t j = 0; j < n; j += LANES) {
        VecU low = __builtin_convertvector(vec_to_product(vec_load(a, j, F32)), VecU);
        VecU high = __builtin_convertvector(vec_to_product(vec_load(b, j, F32)), VecU);
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
            *(VecHMemory *)(b->ds_halves + r * TILE_STRIDE + j) =
                vec_to_product(vec_load(b->ds, r * TILE_STRIDE + j, F32));
}

// A block of queries of one head against a tile of keys, as panels of queries and what each of them sees of the tile.
typedef struct Block {
    Head *head;
    int64_t query, rows; // first, count
    Interval tile;
    int panels;
    Interval row[TILE_PANELS];  // rows of a panel, counted from `query`
    Interval seen[TILE_PANELS]; // its keys, counted from the tile's first
} Block;

static Block block_new(const Backward *b, Head *head, int64_t query, int64_t rows, Interval tile) {
    Block k = {.head = head, .query = query, .rows = rows, .tile = tile, .panels = (int)divide_up(rows, MATMUL_ROWS)};
    for (int i = 0; i < k.panels; i++) {
        k.row[i] = (Interval){i * rows / k.panels, (i + 1) * rows / k.panels};
        Interval keys = union_keys(b->job->s, b->batch, query + k.row[i].first, k.row[i].end - k.row[i].first);
        k.seen[i] = (Interval){most(keys.first, tile.first) - tile.first, least(keys.end, tile.end) - tile.first};
    }
    return k;
}

// P and dS of the block, zero where a query does not see.
static void form_gradients(Backward *b, const Block *k) {
    const AttentionJob *job = b->job;
    int64_t units = units_of(job->s->head_size, job->unit);
    for (int i = 0; i < k->panels; i++) {
        int64_t row = k->row[i].first, rows = k->row[i].end - row, at = k->seen[i].first / MATMUL_PANEL * MATMUL_PANEL;
        int64_t columns = k->seen[i].end - at, to = row * TILE_STRIDE + at, query = k->query + row;
        tile_product(b->p + to, TILE_STRIDE, part_of_a(k->head->q, query, 0), part_of_b(b->k_across, 0, at), rows,
                     columns, units, job->unit, false);
        tile_product(b->ds + to, TILE_STRIDE, part_of_a(k->head->d_o, query, 0), part_of_b(b->v_across, 0, at), rows,
                     columns, units, job->unit, false);
    }
    for (int64_t r = 0; r < k->rows; r++)
        gradient_row(b->p + r * TILE_STRIDE, b->ds + r * TILE_STRIDE, job->scale * LOG2_E, k->head->lse[k->query + r],
                     k->head->delta[k->query + r], k->tile, query_keys(job->s, b->batch, k->query + r));
    if (job->unit == UNIT_PAIR) make_pairs(b, k->rows, round_up(k->tile.end - k->tile.first, LANES));
}

// dQ += dS K
static void add_query_gradients(Backward *b, const Block *k) {
    const MatmulUnit unit = b->job->unit;
    bool pairs = unit == UNIT_PAIR;
    OperandA ds = {pairs ? (char *)b->ds_halves : (char *)b->ds, TILE_STRIDE * (pairs ? 2 : 4), 4};
    for (int i = 0; i < k->panels; i++) {
        int64_t row = k->row[i].first, rows = k->row[i].end - row;
        int64_t first = pairs ? k->seen[i].first / 2 : k->seen[i].first, units = units_of(k->seen[i].end, unit) - first;
        if (units <= 0) continue;
        tile_product(k->head->dq + (k->query + row) * b->width, b->width, part_of_a(ds, row, first),
                     part_of_b(b->k_along, first, 0), rows, b->width, units, unit, true);
    }
}

// dK += dS^T Q, dV += P^T dO
static void add_key_gradients(Backward *b, const Block *k) {
    const MatmulUnit unit = b->job->unit;
    bool pairs = unit == UNIT_PAIR;
    OperandA p = {pairs ? (char *)b->p_pairs : (char *)b->p, 4, TILE_STRIDE * 4};
    OperandA ds = {pairs ? (char *)b->ds_pairs : (char *)b->ds, 4, TILE_STRIDE * 4};
    int64_t count = k->tile.end - k->tile.first, parts = divide_up(count, MATMUL_ROWS), width = b->width;
    for (int64_t part = 0; part < parts; part++) {
        int64_t key = part * count / parts, end = (part + 1) * count / parts, first = k->rows, last = 0;
        for (int i = 0; i < k->panels; i++) // the queries that see any of these keys
            if (k->seen[i].first < end && k->seen[i].end > key) {
                first = least(first, k->row[i].first);
                last = k->row[i].end;
            }
        first = pairs ? first / 2 : first;
        int64_t units = units_of(last, unit) - first, at = units_of(k->query, unit) + first;
        if (units <= 0) continue;
        tile_product(b->dv + key * width, width, part_of_a(p, key, first), part_of_b(k->head->d_o_along, at, 0),
                     end - key, width, units, unit, true);
        tile_product(b->dk + key * width, width, part_of_a(ds, key, first), part_of_b(k->head->q_along, at, 0),
                     end - key, width, units, unit, true);
    }
}

// All queries of all heads against one tile of keys; then its dk and dv are complete.
static void backward_keys(Backward *b, int64_t kv_head, Interval tile) {
    const AttentionJob *job = b->job;
    const AttentionShape *s = job->s;
    int64_t D = s->head_size, keys = tile.end - tile.first, row = b->batch * s->keys + tile.first;
    int64_t at_k = row * s->k_stride + kv_head * D, at_v = row * s->v_stride + kv_head * D;
    b->k_across = rows_across_b(b->copies[0], at_element(job->k, at_k, job->t), s->k_stride, keys, D, job);
    b->v_across = rows_across_b(b->copies[1], at_element(job->v, at_v, job->t), s->v_stride, keys, D, job);
    b->k_along = rows_along_b(b->copies[2], at_element(job->k, at_k, job->t), s->k_stride, keys, D, job);
    fill(b->dk, 0, keys * b->width, 0);
    fill(b->dv, 0, keys * b->width, 0);
    int64_t blocks = divide_up(s->queries, TILE_QUERIES), size = round_up(divide_up(s->queries, most(blocks, 1)), 2);
    for (int64_t h = 0; h < s->heads / s->kv_heads; h++)
        for (int64_t query = 0; query < s->queries; query += size) {
            int64_t rows = least(size, s->queries - query);
            Interval seen = union_keys(s, b->batch, query, rows);
            if (seen.first >= tile.end || seen.end <= tile.first) continue;
            Block block = block_new(b, &b->heads[h], query, rows, tile);
            form_gradients(b, &block);
            if (job->dq) add_query_gradients(b, &block);
            if (job->dk || job->dv) add_key_gradients(b, &block);
        }
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
