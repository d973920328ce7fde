/* Cross-entropy over a projection, in tiles of rows x vocabulary: a matrix product makes a tile of logits, a pass over
 * it turns it into running logsumexps (forward) or into the logits' gradient (backward), which two more products turn
 * into dx and dw. Rows without a target are left out before anything is computed. The table may hold a part of the
 * vocabulary: logsumexps of the parts combine into the whole one, which backward takes.
 * N rows, C width, V vocabulary; R scored rows. */
#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd/vec.h"
#include "kernels/cpu/sizes.h"
#include <math.h>
#include <string.h>

enum {
    TILE = 1 << 20, // elements of a tile of logits, at most
    SIDE = 1024,    // of a tile where both sides are long
    TASK = 1 << 13, // elements of a tile a task
};

typedef struct Loss { // one call
    Backend *backend;
    const void *x, *w;      // x: the scored rows, packed
    const int32_t *index;   // (R): their places
    const int32_t *targets; // (N)
    const float *weight;    // (N) or NULL
    float *lse;             // (N)
    const float *d_loss;    // (N), backward
    void *dx;               // (N, C), backward, or NULL
    bool add_x;
    int64_t rows, width, vocab; // rows: R; vocab: of the words held
    int64_t first, all;         // the first word held; words in the whole vocabulary
    Dtype t;
} Loss;

typedef struct Tile { // a block of logits
    const Loss *loss;
    int64_t row, rows, column, columns, stride;
    float *logits;              // (rows, stride)
    uint16_t *gradient;         // (rows, stride) in bf16, or NULL: in place
    const float *dx;            // (rows, C)
    float *most, *sum, *picked; // (rows): running maximum, sum of exponentials, the target's logit
} Tile;

// Sides of the tiles: a function of the problem alone.
static void tile_sides(int64_t rows, int64_t vocab, int64_t *row_side, int64_t *column_side) {
    int64_t columns = TILE / least(rows, SIDE);
    *column_side = least(vocab, columns);
    *row_side = least(rows, TILE / round_up(*column_side, 16));
}

static int64_t tile_stride(int64_t columns) { // not a multiple of 4096 bytes: rows would share cache sets
    int64_t stride = round_up(columns, 16);
    return stride % 1024 ? stride : stride + 16;
}

static void tile_logits(const Tile *t) {
    const Loss *l = t->loss;
    l->backend->matmul(l->backend, &(Matmul){.m = t->rows,
                                             .n = t->columns,
                                             .k = l->width,
                                             .batch = 1,
                                             .a = row_of(l->x, t->row, l->width, l->t),
                                             .a_row = l->width,
                                             .a_column = 1,
                                             .b = row_of(l->w, t->column, l->width, l->t),
                                             .b_row = 1,
                                             .b_column = l->width,
                                             .c = t->logits,
                                             .c_row = t->stride,
                                             .in = l->t,
                                             .out = F32});
}

// Rows of a tile that one task takes.
static int64_t task_rows(int64_t columns) { return columns < TASK ? TASK / columns : 1; }

static void run_rows(const Tile *t, ThreadTask task) {
    int64_t rows = task_rows(t->columns);
    threads_run(cpu_threads(t->loss->backend), divide_up(t->rows, rows), task, (void *)t);
}

// A row of logits, filled up to whole vectors with what adds nothing; returns its length.
static int64_t pad_row(float *row, int64_t columns) {
    int64_t padded = round_up(columns, LANES);
    for (int64_t c = columns; c < padded; c++) row[c] = -INFINITY;
    return padded;
}

static void forward_row(const Tile *t, int64_t r) {
    float *row = t->logits + r * t->stride;
    int64_t padded = pad_row(row, t->columns);
    int64_t target = t->loss->targets[t->loss->index[t->row + r]] - t->loss->first - t->column;
    float before = t->column ? t->most[r] : -INFINITY;
    Vec high = vec_set(before), sum = {0};
    for (int64_t c = 0; c < padded; c += LANES) high = vec_max(high, vec_load(row, c, F32));
    float most = vec_highest(high);
    for (int64_t c = 0; c < padded; c += LANES) sum += vec_exp(vec_load(row, c, F32) - most);
    t->sum[r] = (t->column ? t->sum[r] * expf(before - most) : 0) + vec_sum(sum);
    t->most[r] = most;
    if (target >= 0 && target < t->columns) t->picked[r] = row[target];
}

static void forward_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Tile *t = context;
    int64_t rows = task_rows(t->columns);
    for (int64_t r = task * rows; r < least(t->rows, (task + 1) * rows); r++) forward_row(t, r);
}

static void backward_row(const Tile *t, int64_t r) {
    const Loss *l = t->loss;
    float *row = t->logits + r * t->stride;
    int64_t at = l->index[t->row + r], target = l->targets[at] - l->first - t->column;
    int64_t padded = pad_row(row, t->columns);
    float factor = l->d_loss[at] * (l->weight ? l->weight[at] : 1), lse = l->lse[at];
    bool here = target >= 0 && target < t->columns;
    float own = here ? factor * (expf(row[target] - lse) - 1) : 0; // one rounding only, also in bf16
    if (t->gradient)
        for (int64_t c = 0; c < padded; c += LANES)
            vec_store(t->gradient, r * t->stride + c, factor * vec_exp(vec_load(row, c, F32) - lse), BF16);
    else
        for (int64_t c = 0; c < padded; c += LANES)
            vec_store(row, c, factor * vec_exp(vec_load(row, c, F32) - lse), F32);
    if (!here) return;
    if (t->gradient)
        t->gradient[r * t->stride + target] = f32_to_bf16(own);
    else
        row[target] = own;
}

static void backward_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Tile *t = context;
    int64_t rows = task_rows(t->columns);
    for (int64_t r = task * rows; r < least(t->rows, (task + 1) * rows); r++) backward_row(t, r);
}

// Brings the gradient of the scored rows to dx.
static void scatter_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Tile *t = context;
    const Loss *l = t->loss;
    int64_t rows = task_rows(t->columns);
    for (int64_t r = task * rows; r < least(t->rows, (task + 1) * rows); r++) {
        void *to = row_at(l->dx, l->index[t->row + r], l->width, l->t);
        for (int64_t c = 0; c < l->width; c += LANES)
            vec_write_within(to, c, l->width, vec_load_within(t->dx, r * l->width + c, (r + 1) * l->width, F32), l->t,
                             l->add_x);
    }
}

// ---- the scored rows ----

typedef struct Layout { // of the shared scratch
    int32_t *index;
    void *x;
    float *logits, *most, *sum, *picked, *dx;
    uint16_t *gradient;
    int64_t row_side, column_side, stride;
} Layout;

static int64_t count_scored(const Loss *l, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        check(l->targets[i] < l->all);
        count += l->targets[i] >= 0;
    }
    return count;
}

// Takes the scratch and packs the scored rows into it; sets rows, index and x of the loss.
static Layout lay_out(Loss *l, int64_t n, bool backward) {
    Layout y = {0};
    l->rows = count_scored(l, n);
    if (!l->rows || !l->vocab) return y;
    tile_sides(l->rows, l->vocab, &y.row_side, &y.column_side);
    y.stride = tile_stride(y.column_side);
    size_t row_bytes = (size_t)l->width * dtype_size(l->t), tile = (size_t)(y.row_side * y.stride);
    size_t parts[] = {(size_t)l->rows * 4,
                      l->rows < n ? (size_t)l->rows * row_bytes : 0,
                      tile * 4,
                      3 * 4 * (size_t)y.row_side,
                      backward ? 4 * (size_t)(y.row_side * l->width) : 0,
                      backward && l->t == BF16 ? tile * 2 : 0};
    size_t total = 0, at[6];
    for (int i = 0; i < 6; i++) {
        at[i] = total;
        total += (size_t)round_up((int64_t)parts[i], 64);
    }
    char *base = cpu_shared_scratch(l->backend, total);
    y.index = (int32_t *)base;
    y.logits = (float *)(base + at[2]);
    y.most = (float *)(base + at[3]);
    y.sum = y.most + y.row_side;
    y.picked = y.sum + y.row_side;
    y.dx = (float *)(base + at[4]);
    y.gradient = parts[5] ? (uint16_t *)(base + at[5]) : NULL;
    for (int64_t i = 0, r = 0; i < n; i++) {
        if (l->targets[i] < 0) continue;
        if (parts[1]) memcpy(base + at[1] + (size_t)r * row_bytes, row_of(l->x, i, l->width, l->t), row_bytes);
        y.index[r++] = (int32_t)i;
    }
    if (parts[1]) l->x = base + at[1];
    l->index = y.index;
    return y;
}

static Tile tile_of(const Loss *l, const Layout *y, int64_t row, int64_t column) {
    return (Tile){.loss = l,
                  .row = row,
                  .rows = least(y->row_side, l->rows - row),
                  .column = column,
                  .columns = least(y->column_side, l->vocab - column),
                  .stride = y->stride,
                  .logits = y->logits,
                  .gradient = y->gradient,
                  .dx = y->dx,
                  .most = y->most,
                  .sum = y->sum,
                  .picked = y->picked};
}

static void cross_entropy_forward(Backend *b, float *lse, float *picked, const void *x, const void *w,
                                  const int32_t *targets, int64_t n, int64_t width, Vocabulary v, Dtype t) {
    Loss l = {.backend = b,
              .x = x,
              .w = w,
              .targets = targets,
              .width = width,
              .vocab = v.held,
              .first = v.first,
              .all = v.all,
              .t = t};
    Layout y = lay_out(&l, n, false);
    for (int64_t i = 0; i < n; i++) lse[i] = targets[i] < 0 ? 0 : -INFINITY; // of no words
    memset(picked, 0, (size_t)n * sizeof *picked);
    for (int64_t row = 0; v.held && row < l.rows; row += y.row_side) {
        Tile tile = tile_of(&l, &y, row, 0);
        memset(tile.picked, 0, (size_t)tile.rows * sizeof *tile.picked);
        for (int64_t column = 0; column < v.held; column += y.column_side) {
            tile = tile_of(&l, &y, row, column);
            tile_logits(&tile);
            run_rows(&tile, forward_task);
        }
        for (int64_t r = 0; r < tile.rows; r++) {
            int64_t at = l.index[row + r];
            lse[at] = tile.most[r] + logf(tile.sum[r]);
            picked[at] = tile.picked[r];
        }
    }
}

// Sums over ranks go from the first to the last; one part is taken as it is.
static void cross_entropy_combine(Backend *b, float *loss, float *lse, const float *parts, const int32_t *targets,
                                  const float *weight, int ranks, int64_t n) {
    (void)b;
    for (int64_t i = 0; i < n; i++) {
        float most = parts[i], sum = 0, picked = 0, whole;
        for (int r = 1; r < ranks; r++) { // NaN stays
            float part = parts[2 * r * n + i];
            most = part > most || isnan(part) ? part : most;
        }
        for (int r = 0; r < ranks; r++) {
            sum += expf(parts[2 * r * n + i] - most);
            picked += parts[(2 * r + 1) * n + i];
        }
        whole = ranks == 1 ? most : most + logf(sum);
        loss[i] = targets[i] < 0 ? 0 : (weight ? weight[i] : 1) * (whole - picked);
        lse[i] = targets[i] < 0 ? 0 : whole;
    }
}

// dw[columns, :] (+)= gradient^T x and dx[rows, :] (+)= gradient w
static void tile_products(const Tile *t, float *dx, bool dx_add, float *dw, bool dw_add) {
    const Loss *l = t->loss;
    const void *gradient = t->gradient ? (const void *)t->gradient : t->logits;
    if (dx)
        l->backend->matmul(l->backend, &(Matmul){.m = t->rows,
                                                 .n = l->width,
                                                 .k = t->columns,
                                                 .batch = 1,
                                                 .a = gradient,
                                                 .a_row = t->stride,
                                                 .a_column = 1,
                                                 .b = row_of(l->w, t->column, l->width, l->t),
                                                 .b_row = l->width,
                                                 .b_column = 1,
                                                 .c = dx,
                                                 .c_row = l->width,
                                                 .in = l->t,
                                                 .out = F32,
                                                 .add = dx_add});
    if (dw)
        l->backend->matmul(l->backend, &(Matmul){.m = t->columns,
                                                 .n = l->width,
                                                 .k = t->rows,
                                                 .batch = 1,
                                                 .a = gradient,
                                                 .a_row = 1,
                                                 .a_column = t->stride,
                                                 .b = row_of(l->x, t->row, l->width, l->t),
                                                 .b_row = l->width,
                                                 .b_column = 1,
                                                 .c = dw + t->column * l->width,
                                                 .c_row = l->width,
                                                 .in = l->t,
                                                 .out = F32,
                                                 .add = dw_add});
}

static void cross_entropy_backward(Backend *b, void *dx, bool add_x, float *dw, bool add_w, const float *d_loss,
                                   const float *lse, const void *x, const void *w, const int32_t *targets,
                                   const float *weight, int64_t n, int64_t width, Vocabulary v, Dtype t) {
    Loss l = {.backend = b,
              .x = x,
              .w = w,
              .targets = targets,
              .weight = weight,
              .lse = (float *)lse,
              .d_loss = d_loss,
              .dx = dx,
              .add_x = add_x,
              .width = width,
              .vocab = v.held,
              .first = v.first,
              .all = v.all,
              .t = t};
    Layout y = lay_out(&l, n, true);
    bool direct = l.rows == n && t == F32; // dx takes the products as they are
    for (int64_t i = 0; dx && !add_x && (l.rows < n || !v.held) && i < n; i++)
        if (targets[i] < 0 || !v.held) memset(row_at(dx, i, width, t), 0, (size_t)width * dtype_size(t));
    if (dw && !add_w && !l.rows) memset(dw, 0, (size_t)(v.held * width) * sizeof *dw);
    for (int64_t row = 0; v.held && row < l.rows; row += y.row_side) {
        float *rows = !dx ? NULL : direct ? (float *)dx + row * width : y.dx;
        for (int64_t column = 0; column < v.held; column += y.column_side) {
            Tile tile = tile_of(&l, &y, row, column);
            tile_logits(&tile);
            run_rows(&tile, backward_task);
            tile_products(&tile, rows, column > 0 || (direct && add_x), dw, add_w || row > 0);
        }
        if (dx && !direct) {
            Tile block = tile_of(&l, &y, row, 0);
            run_rows(&block, scatter_task);
        }
    }
}

void SIMD_NAME(install_cross_entropy)(Backend *b) {
    b->cross_entropy_forward = cross_entropy_forward;
    b->cross_entropy_combine = cross_entropy_combine;
    b->cross_entropy_backward = cross_entropy_backward;
}
