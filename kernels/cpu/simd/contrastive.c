/* The contrastive losses, in tiles of the pairs' logits z = scale a b^T (+ bias): a matrix product makes the raw tile,
 * a pass over it makes running logsumexps or sums (forward) or the logits' gradient (backward), which two more products
 * turn into da and db.
 * N pairs, D feature width. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd/vec.h"
#include "kernels/cpu/sizes.h"
#include <math.h>
#include <string.h>

enum {
    SIDE = 1024,        // of a tile
    STRIDE = SIDE + 16, // rows 4 KiB apart would share cache sets
    BLOCK = 16,         // rows or columns a task, a multiple of LANES
};

#define LOG_100 4.6051701859880914 // the clamp of CLIP's scale

typedef struct Job { // one call and the tile it is at
    Backend *backend;
    const float *a, *b; // (N, D)
    int64_t n, width, row, rows, column, columns;
    float *z; // (SIDE, STRIDE): products a b^T, then gradients
    float scale, bias, factor;
    float *row_lse, *column_lse;                                     // (N)
    float *row_most, *row_sum, *column_most, *column_sum, *diagonal; // (N)
    double *partial, *partial_bias; // (N): of each row, over the tiles of a row of tiles
} Job;

static void tile_products(Job *j) {
    j->backend->matmul(j->backend, &(Matmul){.m = j->rows,
                                             .n = j->columns,
                                             .k = j->width,
                                             .batch = 1,
                                             .a = j->a + j->row * j->width,
                                             .a_row = j->width,
                                             .a_column = 1,
                                             .b = j->b + j->column * j->width,
                                             .b_row = 1,
                                             .b_column = j->width,
                                             .c = j->z,
                                             .c_row = STRIDE,
                                             .in = F32,
                                             .out = F32});
}

// da[rows] (+)= z b[columns], db[columns] (+)= z^T a[rows]
static void tile_gradients(Job *j, float *da, bool add_a, float *db, bool add_b) {
    Matmul p = {.n = j->width,
                .batch = 1,
                .a = j->z,
                .b_row = j->width,
                .b_column = 1,
                .c_row = j->width,
                .in = F32,
                .out = F32};
    if (da) {
        p.m = j->rows, p.k = j->columns, p.a_row = STRIDE, p.a_column = 1, p.b = j->b + j->column * j->width;
        p.c = da + j->row * j->width, p.add = add_a || j->column;
        j->backend->matmul(j->backend, &p);
    }
    if (db) {
        p.m = j->columns, p.k = j->rows, p.a_row = 1, p.a_column = STRIDE, p.b = j->a + j->row * j->width;
        p.c = db + j->column * j->width, p.add = add_b || j->row;
        j->backend->matmul(j->backend, &p);
    }
}

static void run(Job *j, int64_t count, ThreadTask task) {
    threads_run(cpu_threads(j->backend), divide_up(count, BLOCK), task, j);
}

// Moves to the tile at (row, column) and computes its products.
static void tile_at(Job *j, int64_t row, int64_t column) {
    j->row = row;
    j->column = column;
    j->rows = least(SIDE, j->n - row);
    j->columns = least(SIDE, j->n - column);
    tile_products(j);
}

static Job job_new(Backend *be, const float *a, const float *b, int64_t n, int64_t width) {
    Job j = {.backend = be, .a = a, .b = b, .n = n, .width = width};
    size_t tile = SIDE * STRIDE * sizeof(float);
    char *base = cpu_shared_scratch(be, tile + (size_t)n * (5 * sizeof(float) + 2 * sizeof(double)));
    j.z = (float *)base;
    j.partial = (double *)(base + tile);
    j.partial_bias = j.partial + n;
    j.row_most = (float *)(j.partial_bias + n);
    j.row_sum = j.row_most + n;
    j.column_most = j.row_sum + n;
    j.column_sum = j.column_most + n;
    j.diagonal = j.column_sum + n;
    return j;
}

static double total(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

// x at the columns from c on, `outside` in the lanes beyond the tile.
INLINE Vec inside(const Job *j, int64_t c, Vec x, float outside) {
    if (c + LANES <= j->columns) return x;
    return vec_select(vec_lanes() < (int32_t)(j->columns - c), x, vec_set(outside));
}

INLINE Vec load_logits(const Job *j, const float *z, int64_t c) { return vec_load(z, c, F32) * j->scale + j->bias; }

// ---- softmax (CLIP) ----

static void clip_row(Job *j, int64_t r) {
    const float *z = j->z + r * STRIDE;
    int64_t at = j->row + r, same = at - j->column;
    float before = j->column ? j->row_most[at] : -INFINITY;
    Vec high = vec_set(before), sum = {0};
    for (int64_t c = 0; c < j->columns; c += LANES) high = vec_max(high, inside(j, c, load_logits(j, z, c), -INFINITY));
    float most = vec_highest(high);
    for (int64_t c = 0; c < j->columns; c += LANES)
        sum += vec_exp(inside(j, c, load_logits(j, z, c), -INFINITY) - most);
    j->row_sum[at] = (j->column ? j->row_sum[at] * expf(before - most) : 0) + vec_sum(sum);
    j->row_most[at] = most;
    if (same >= 0 && same < j->columns) j->diagonal[at] = j->scale * z[same];
}

static void clip_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) clip_row(j, r);
}

// A vector of columns.
static void clip_lanes(Job *j, int64_t c) {
    int64_t at = j->column + c, end = j->column + j->columns;
    Vec before = j->row ? vec_load_within(j->column_most, at, end, F32) : vec_set(-INFINITY);
    Vec sum = j->row ? vec_load_within(j->column_sum, at, end, F32) : (Vec){0}, most = before;
    for (int64_t r = 0; r < j->rows; r++) most = vec_max(most, vec_load(j->z, r * STRIDE + c, F32) * j->scale);
    if (j->row) sum *= vec_exp(before - most);
    for (int64_t r = 0; r < j->rows; r++) sum += vec_exp(vec_load(j->z, r * STRIDE + c, F32) * j->scale - most);
    vec_store_within(j->column_most, at, end, most, F32);
    vec_store_within(j->column_sum, at, end, sum, F32);
}

static void clip_columns(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t c = task * BLOCK; c < least(j->columns, (task + 1) * BLOCK); c += LANES) clip_lanes(j, c);
}

// NaN stays: a comparison the other way round would turn it into the clamp.
static float clip_scale(const float *log_scale) { return (float)exp(*log_scale > LOG_100 ? LOG_100 : *log_scale); }

static void clip_forward(Backend *be, float *out, float *rows, float *columns, const float *a, const float *b,
                         const float *log_scale, int64_t n, int64_t width) {
    Job j = job_new(be, a, b, n, width);
    j.scale = clip_scale(log_scale);
    for (int64_t row = 0; row < n; row += SIDE)
        for (int64_t column = 0; column < n; column += SIDE) {
            tile_at(&j, row, column);
            run(&j, j.rows, clip_rows);
            run(&j, j.columns, clip_columns);
        }
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        rows[i] = j.row_most[i] + logf(j.row_sum[i]);
        columns[i] = j.column_most[i] + logf(j.column_sum[i]);
        sum += 0.5 * ((double)rows[i] + columns[i]) - j.diagonal[i];
    }
    out[0] = (float)sum;
}

static void clip_gradient_row(Job *j, int64_t r) {
    float *z = j->z + r * STRIDE, half = 0.5f * j->factor;
    int64_t at = j->row + r, same = at - j->column, end = j->column + j->columns;
    bool here = same >= 0 && same < j->columns;
    float own = here ? j->scale * z[same] : 0;
    Vec sum = {0};
    for (int64_t c = 0; c < j->columns; c += LANES) {
        Vec s = load_logits(j, z, c), columns = vec_load_within(j->column_lse, j->column + c, end, F32);
        Vec d = half * (vec_exp(s - j->row_lse[at]) + vec_exp(s - columns));
        sum += inside(j, c, d * s, 0);
        vec_store(z, c, d * j->scale, F32);
    }
    if (here) z[same] -= j->factor * j->scale;
    j->partial[at] = (j->column ? j->partial[at] : 0) + vec_sum(sum) - (here ? (double)j->factor * own : 0);
}

static void clip_gradient(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) clip_gradient_row(j, r);
}

static void clip_backward(Backend *be, float *da, bool add_a, float *db, bool add_b, float *dscale, bool add_scale,
                          const float *factor, const float *rows, const float *columns, const float *a, const float *b,
                          const float *log_scale, int64_t n, int64_t width) {
    Job j = job_new(be, a, b, n, width);
    j.scale = clip_scale(log_scale);
    j.factor = factor[0];
    j.row_lse = (float *)rows;
    j.column_lse = (float *)columns;
    for (int64_t row = 0; row < n; row += SIDE)
        for (int64_t column = 0; column < n; column += SIDE) {
            tile_at(&j, row, column);
            run(&j, j.rows, clip_gradient);
            tile_gradients(&j, da, add_a, db, add_b);
        }
    float slope = *log_scale > LOG_100 ? 0 : (float)total(j.partial, n);
    if (dscale) dscale[0] = slope + (add_scale ? dscale[0] : 0);
}

// ---- sigmoid (SigLIP) ----

// log(1 + exp(x))
INLINE Vec softplus(Vec x) {
    Vec zero = {0};
    return vec_max(x, zero) + vec_log1p(vec_exp(-vec_abs(x)));
}

static void siglip_row(Job *j, int64_t r) {
    const float *z = j->z + r * STRIDE;
    int64_t at = j->row + r, same = at - j->column;
    Vec sum = {0};
    for (int64_t c = 0; c < j->columns; c += LANES) sum += softplus(inside(j, c, load_logits(j, z, c), -INFINITY));
    // softplus(-s) = softplus(s) - s
    double own = same >= 0 && same < j->columns ? (double)j->scale * z[same] + j->bias : 0;
    j->partial[at] = (j->column ? j->partial[at] : 0) + vec_sum(sum) - own;
}

static void siglip_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) siglip_row(j, r);
}

static void siglip_forward(Backend *be, float *out, const float *a, const float *b, const float *log_scale,
                           const float *bias, int64_t n, int64_t width) {
    Job j = job_new(be, a, b, n, width);
    j.scale = expf(*log_scale);
    j.bias = *bias;
    for (int64_t row = 0; row < n; row += SIDE)
        for (int64_t column = 0; column < n; column += SIDE) {
            tile_at(&j, row, column);
            run(&j, j.rows, siglip_rows);
        }
    out[0] = (float)total(j.partial, n);
}

static void siglip_gradient_row(Job *j, int64_t r) {
    float *z = j->z + r * STRIDE;
    int64_t at = j->row + r, same = at - j->column;
    bool here = same >= 0 && same < j->columns;
    float own = here ? j->scale * z[same] : 0;
    Vec sum = {0}, sum_bias = {0};
    for (int64_t c = 0; c < j->columns; c += LANES) {
        Vec s = vec_load(z, c, F32) * j->scale, d = j->factor * vec_sigmoid(s + j->bias);
        sum += inside(j, c, d * s, 0);
        sum_bias += inside(j, c, d, 0);
        vec_store(z, c, d * j->scale, F32);
    }
    if (here) z[same] -= j->factor * j->scale;
    j->partial[at] = (j->column ? j->partial[at] : 0) + vec_sum(sum) - (here ? (double)j->factor * own : 0);
    j->partial_bias[at] = (j->column ? j->partial_bias[at] : 0) + vec_sum(sum_bias) - (here ? j->factor : 0);
}

static void siglip_gradient(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) siglip_gradient_row(j, r);
}

static void siglip_backward(Backend *be, float *da, bool add_a, float *db, bool add_b, float *dscale, bool add_scale,
                            float *dbias, bool add_bias, const float *factor, const float *a, const float *b,
                            const float *log_scale, const float *bias, int64_t n, int64_t width) {
    Job j = job_new(be, a, b, n, width);
    j.scale = expf(*log_scale);
    j.bias = *bias;
    j.factor = factor[0];
    for (int64_t row = 0; row < n; row += SIDE)
        for (int64_t column = 0; column < n; column += SIDE) {
            tile_at(&j, row, column);
            run(&j, j.rows, siglip_gradient);
            tile_gradients(&j, da, add_a, db, add_b);
        }
    if (dscale) dscale[0] = (float)total(j.partial, n) + (add_scale ? dscale[0] : 0);
    if (dbias) dbias[0] = (float)total(j.partial_bias, n) + (add_bias ? dbias[0] : 0);
}

void SIMD_NAME(install_contrastive)(Backend *b) {
    b->clip_forward = clip_forward;
    b->clip_backward = clip_backward;
    b->siglip_forward = siglip_forward;
    b->siglip_backward = siglip_backward;
}
