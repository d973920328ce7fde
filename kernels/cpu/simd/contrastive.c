/* The contrastive losses, in tiles of the pairs' logits z = scale a b^T (+ bias): a matrix product makes the raw tile,
 * a pass over it makes running logsumexps or sums (forward) or the logits' gradient (backward), which two more products
 * turn into da and db.
 * N pairs, D feature width. */
#include "kernels/cpu/cpu.h"
#include <math.h>
#include <string.h>

enum { SIDE = 1024, STRIDE = SIDE + 16, BLOCK = 8 }; // of a tile; rows or columns a task

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

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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
    threads_run(cpu_threads(j->backend), (count + BLOCK - 1) / BLOCK, task, j);
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

// ---- softmax (CLIP) ----

// Takes a run of logits, `step` apart, into a running maximum and sum of exponentials.
static void online(float *most_at, float *sum_at, const float *z, int64_t count, int64_t step, float scale,
                   bool first) {
    float most = first ? -INFINITY : *most_at, sum = first ? 0 : *sum_at, before = most;
    for (int64_t i = 0; i < count; i++) most = scale * z[i * step] > most ? scale * z[i * step] : most;
    if (before < most) sum *= expf(before - most);
    for (int64_t i = 0; i < count; i++) sum += expf(scale * z[i * step] - most);
    *most_at = most;
    *sum_at = sum;
}

static void clip_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) {
        const float *z = j->z + r * STRIDE;
        int64_t at = j->row + r, same = at - j->column;
        online(&j->row_most[at], &j->row_sum[at], z, j->columns, 1, j->scale, j->column == 0);
        if (same >= 0 && same < j->columns) j->diagonal[at] = j->scale * z[same];
    }
}

static void clip_columns(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t c = task * BLOCK; c < least(j->columns, (task + 1) * BLOCK); c++) {
        int64_t at = j->column + c;
        online(&j->column_most[at], &j->column_sum[at], j->z + c, j->rows, STRIDE, j->scale, j->row == 0);
    }
}

static float clip_scale(const float *log_scale) { return (float)exp(*log_scale < LOG_100 ? *log_scale : LOG_100); }

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

static void clip_gradient(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) {
        float *z = j->z + r * STRIDE, half = 0.5f * j->factor;
        int64_t at = j->row + r, same = at - j->column;
        double sum = j->column ? j->partial[at] : 0;
        for (int64_t c = 0; c < j->columns; c++) {
            float s = j->scale * z[c];
            float d =
                half * (expf(s - j->row_lse[at]) + expf(s - j->column_lse[j->column + c]) - (c == same ? 2.0f : 0));
            sum += d * s;
            z[c] = d * j->scale;
        }
        j->partial[at] = sum;
    }
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
    float slope = *log_scale <= LOG_100 ? (float)total(j.partial, n) : 0;
    if (dscale) dscale[0] = slope + (add_scale ? dscale[0] : 0);
}

// ---- sigmoid (SigLIP) ----

// log(1 + exp(x))
static float softplus(float x) { return (x > 0 ? x : 0) + log1pf(expf(x > 0 ? -x : x)); }

static void siglip_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) {
        const float *z = j->z + r * STRIDE;
        int64_t at = j->row + r, same = at - j->column;
        double sum = j->column ? j->partial[at] : 0;
        for (int64_t c = 0; c < j->columns; c++) {
            float s = j->scale * z[c] + j->bias;
            sum += softplus(c == same ? -s : s);
        }
        j->partial[at] = sum;
    }
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

static void siglip_gradient(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->rows, (task + 1) * BLOCK); r++) {
        float *z = j->z + r * STRIDE;
        int64_t at = j->row + r, same = at - j->column;
        double sum = j->column ? j->partial[at] : 0, sum_bias = j->column ? j->partial_bias[at] : 0;
        for (int64_t c = 0; c < j->columns; c++) {
            float s = j->scale * z[c];
            float d = j->factor * (1 / (1 + expf(-s - j->bias)) - (c == same ? 1.0f : 0));
            sum += d * s;
            sum_bias += d;
            z[c] = d * j->scale;
        }
        j->partial[at] = sum;
        j->partial_bias[at] = sum_bias;
    }
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
