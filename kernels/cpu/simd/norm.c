/* Layer norm and RMS norm over rows, alone or behind a residual sum. A row is read from memory once and from cache
 * after that; statistics are f32. Gradients of scale and shift sum over fixed blocks of rows, whose sums combine in
 * order. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/draws.h"

enum { WEIGHT_ROWS = 64, WEIGHT_COLUMNS = 256, WEIGHT_VISIT = 4 }; // cut of the weight gradients

typedef struct Norm {
    void *y; // (N, C); backward: dx
    const void *x, *dy;
    const float *scale, *shift; // (C)
    float *mean, *rstd;         // (N); rmsnorm: mean NULL
    int64_t width;
    float epsilon;
    Dtype type;
    bool add;
    // Behind a residual sum: forward forms it, backward hands its gradient on
    void *sum;                 // (N, C), or NULL
    const void *left, *branch; // (N, C) what is summed
    void *dbranch;             // (N, C), or NULL
    Drop drop;                 // of the branch
    bool add_branch;
} Norm;

// ---- forward ----

// Four sums go side by side: additions to one wait for each other.
INLINE float row_sum(const void *x, int64_t width, Dtype t) {
    Vec sum[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        for (int k = 0; k < 4; k++) sum[k] += vec_load(x, i + k * LANES, t);
    for (; i < width; i += LANES) sum[0] += vec_load_within(x, i, width, t);
    return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// sum of (x - mean)^2: the lanes beyond the row would add mean^2 each, so the rest of a row goes one by one
INLINE float row_squares(const void *x, float mean, int64_t width, Dtype t) {
    Vec sum[4] = {{0}, {0}, {0}, {0}}, centre = vec_set(mean);
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        for (int k = 0; k < 4; k++) {
            Vec d = vec_load(x, i + k * LANES, t) - centre;
            sum[k] += d * d;
        }
    }
    for (; i + LANES <= width; i += LANES) {
        Vec d = vec_load(x, i, t) - centre;
        sum[0] += d * d;
    }
    float total = vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; i < width; i++) {
        float d = element_load(x, i, t) - mean;
        total += d * d;
    }
    return total;
}

// The sums of rows [first, end), rounded to their type, as is what dropout leaves: what the norm reads, from the cache.
INLINE void form_sums(const Norm *j, int64_t first, int64_t end, Dtype t) {
    const void *branch = j->branch;
    first *= j->width, end *= j->width;
    if (j->drop.at.p > 0) {
        drop_span(&j->drop, j->sum, j->branch, first, end, t, false);
        branch = j->sum;
    }
    for (int64_t i = first; i < end; i += LANES)
        vec_store_within(j->sum, i, end, vec_load_within(j->left, i, end, t) + vec_load_within(branch, i, end, t), t);
}

INLINE void layernorm_row(const Norm *j, int64_t r, Dtype t) {
    int64_t width = j->width;
    const void *x = row_of(j->x, r, width, t);
    void *y = row_at(j->y, r, width, t);
    float mean = row_sum(x, width, t) / (float)width;
    float rstd = 1.0f / __builtin_sqrtf(row_squares(x, mean, width, t) / (float)width + j->epsilon);
    Vec centre = vec_set(mean), factor = vec_set(rstd);
    for (int64_t i = 0; i < width; i += LANES) {
        Vec xhat = (vec_load_within(x, i, width, t) - centre) * factor;
        vec_store_within(y, i, width,
                         xhat * vec_load_within(j->scale, i, width, F32) + vec_load_within(j->shift, i, width, F32), t);
    }
    j->mean[r] = mean;
    j->rstd[r] = rstd;
}

INLINE void rmsnorm_row(const Norm *j, int64_t r, Dtype t) {
    int64_t width = j->width;
    const void *x = row_of(j->x, r, width, t);
    void *y = row_at(j->y, r, width, t);
    float rstd = 1.0f / __builtin_sqrtf(row_squares(x, 0, width, t) / (float)width + j->epsilon);
    Vec factor = vec_set(rstd);
    for (int64_t i = 0; i < width; i += LANES)
        vec_store_within(y, i, width,
                         vec_load_within(x, i, width, t) * factor * vec_load_within(j->scale, i, width, F32), t);
    j->rstd[r] = rstd;
}

INLINE void norm_rows(const Norm *j, int64_t first, int64_t end, Dtype t, bool centred) {
    if (j->sum) form_sums(j, first, end, t);
    for (int64_t r = first; r < end; r++) {
        if (centred)
            layernorm_row(j, r, t);
        else
            rmsnorm_row(j, r, t);
    }
}

static void layernorm_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Norm *j = context;
    if (j->type == F32)
        norm_rows(j, first, end, F32, true);
    else
        norm_rows(j, first, end, BF16, true);
}
static void rmsnorm_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Norm *j = context;
    if (j->type == F32)
        norm_rows(j, first, end, F32, false);
    else
        norm_rows(j, first, end, BF16, false);
}

static void layernorm_forward(Backend *b, void *y, float *mean, float *rstd, const void *x, const float *scale,
                              const float *shift, int64_t rows, int64_t width, double eps, Dtype t) {
    Norm j = {.y = y,
              .x = x,
              .scale = scale,
              .shift = shift,
              .mean = mean,
              .rstd = rstd,
              .width = width,
              .epsilon = (float)eps,
              .type = t};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), layernorm_task, &j);
}

static void rmsnorm_forward(Backend *b, void *y, float *rstd, const void *x, const float *scale, int64_t rows,
                            int64_t width, double eps, Dtype t) {
    Norm j = {.y = y, .x = x, .scale = scale, .rstd = rstd, .width = width, .epsilon = (float)eps, .type = t};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), rmsnorm_task, &j);
}

static void add_norm_forward(Backend *b, void *sum, void *y, float *mean, float *rstd, const void *x, const void *f,
                             const float *scale, const float *shift, int64_t rows, int64_t width, double eps,
                             const DropoutDraws *draws, Dtype t) {
    Norm j = {.y = y,
              .x = sum,
              .scale = scale,
              .shift = shift,
              .mean = mean,
              .rstd = rstd,
              .width = width,
              .epsilon = (float)eps,
              .type = t,
              .sum = sum,
              .left = x,
              .branch = f,
              .drop = drop_by(draws)};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), shift ? layernorm_task : rmsnorm_task, &j);
}

// ---- gradient of the input: with g = dy scale, dx = rstd (g - mean(g) - xhat mean(g xhat)); rmsnorm: no mean(g) ----

INLINE void backward_rows(const Norm *j, int64_t first, int64_t end, Dtype t, bool centred) {
    int64_t width = j->width;
    for (int64_t r = first; r < end; r++) {
        const void *x = row_of(j->x, r, width, t), *dy = row_of(j->dy, r, width, t);
        void *dx = row_at(j->y, r, width, t);
        Vec centre = vec_set(centred ? j->mean[r] : 0), factor = vec_set(j->rstd[r]);
        Vec sum = {0}, dot = {0};
        for (int64_t i = 0; i < width; i += LANES) { // beyond the row g is 0
            Vec g = vec_load_within(dy, i, width, t) * vec_load_within(j->scale, i, width, F32);
            sum += g;
            dot += g * ((vec_load_within(x, i, width, t) - centre) * factor);
        }
        Vec mean_g = vec_set(centred ? vec_sum(sum) / (float)width : 0),
            mean_dot = vec_set(vec_sum(dot) / (float)width);
        for (int64_t i = 0; i < width; i += LANES) {
            Vec g = vec_load_within(dy, i, width, t) * vec_load_within(j->scale, i, width, F32);
            Vec xhat = (vec_load_within(x, i, width, t) - centre) * factor;
            vec_write_within(dx, i, width, factor * (g - mean_g - xhat * mean_dot), t, j->add);
        }
    }
    if (j->dbranch) drop_span(&j->drop, j->dbranch, j->y, first * width, end * width, t, j->add_branch);
}

static void layernorm_backward_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Norm *j = context;
    if (j->type == F32)
        backward_rows(j, first, end, F32, true);
    else
        backward_rows(j, first, end, BF16, true);
}
static void rmsnorm_backward_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Norm *j = context;
    if (j->type == F32)
        backward_rows(j, first, end, F32, false);
    else
        backward_rows(j, first, end, BF16, false);
}

static void layernorm_backward_input(Backend *b, void *dx, const void *dy, const void *x, const float *mean,
                                     const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t,
                                     bool add) {
    Norm j = {.y = dx,
              .x = x,
              .dy = dy,
              .scale = scale,
              .mean = (float *)mean,
              .rstd = (float *)rstd,
              .width = width,
              .type = t,
              .add = add};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), layernorm_backward_task, &j);
}

static void rmsnorm_backward_input(Backend *b, void *dx, const void *dy, const void *x, const float *rstd,
                                   const float *scale, int64_t rows, int64_t width, Dtype t, bool add) {
    Norm j = {.y = dx, .x = x, .dy = dy, .scale = scale, .rstd = (float *)rstd, .width = width, .type = t, .add = add};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), rmsnorm_backward_task, &j);
}

static void add_norm_backward(Backend *b, void *dsum, void *df, const void *dy, const void *sum, const float *mean,
                              const float *rstd, const float *scale, int64_t rows, int64_t width,
                              const DropoutDraws *draws, Dtype t, bool add_sum, bool add_f) {
    Norm j = {.y = dsum,
              .x = sum,
              .dy = dy,
              .scale = scale,
              .mean = (float *)mean,
              .rstd = (float *)rstd,
              .width = width,
              .type = t,
              .add = add_sum,
              .dbranch = df,
              .drop = drop_by(draws),
              .add_branch = add_f};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), mean ? layernorm_backward_task : rmsnorm_backward_task,
                   &j);
}

// ---- gradients of scale and shift: dscale = sum over rows of dy xhat, dshift = sum of dy ----

typedef struct Weights {
    const void *x, *dy;
    const float *mean, *rstd; // mean NULL: rmsnorm
    float *partial;           // (blocks, 2, C): of dscale and of dshift
    float *dscale, *dshift;   // NULL where not wanted
    int64_t rows, width;
    Dtype type;
    bool add_scale, add_shift;
} Weights;

// Rows [row, row + count) added to the sums of columns [first, end). Several rows in one visit of the sums.
INLINE void weight_rows(const Weights *j, float *scale, float *shift, int64_t row, const int count, int64_t first,
                        int64_t end, Dtype t) {
    Vec centre[WEIGHT_VISIT], factor[WEIGHT_VISIT];
    for (int k = 0; k < count; k++) {
        centre[k] = vec_set(j->mean ? j->mean[row + k] : 0);
        factor[k] = vec_set(j->rstd[row + k]);
    }
    const void *x = row_of(j->x, row, j->width, t), *dy = row_of(j->dy, row, j->width, t);
    for (int64_t i = first; i < end; i += LANES) { // the sums hold whole vectors
        Vec a = vec_load(scale, i - first, F32), b = vec_load(shift, i - first, F32);
        for (int k = 0; k < count; k++) {
            int64_t at = k * j->width + i, stop = k * j->width + end;
            Vec g = vec_load_within(dy, at, stop, t);
            a += g * ((vec_load_within(x, at, stop, t) - centre[k]) * factor[k]);
            b += g;
        }
        vec_store(scale, i - first, a, F32);
        vec_store(shift, i - first, b, F32);
    }
}

// partial[block] for columns [first, end)
INLINE void weight_block(const Weights *job, int64_t block, int64_t first, int64_t end, Dtype t) {
    const Weights copy = *job, *j = &copy; // which no store can change
    int64_t width = j->width, row = block * WEIGHT_ROWS,
            stop = row + WEIGHT_ROWS < j->rows ? row + WEIGHT_ROWS : j->rows;
    float scale[WEIGHT_COLUMNS] = {0}, shift[WEIGHT_COLUMNS] = {0};
    for (; row + WEIGHT_VISIT <= stop; row += WEIGHT_VISIT)
        weight_rows(j, scale, shift, row, WEIGHT_VISIT, first, end, t);
    for (; row < stop; row++) weight_rows(j, scale, shift, row, 1, first, end, t);
    size_t bytes = (size_t)(end - first) * sizeof(float);
    memcpy(j->partial + 2 * block * width + first, scale, bytes);
    memcpy(j->partial + (2 * block + 1) * width + first, shift, bytes);
}

static void weight_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Weights *j = context;
    int64_t pieces = range_blocks(j->width, WEIGHT_COLUMNS);
    for (int64_t task = first; task < end; task++) {
        int64_t column = task % pieces * WEIGHT_COLUMNS;
        int64_t stop = column + WEIGHT_COLUMNS < j->width ? column + WEIGHT_COLUMNS : j->width;
        if (j->type == F32)
            weight_block(j, task / pieces, column, stop, F32);
        else
            weight_block(j, task / pieces, column, stop, BF16);
    }
}

static void combine(float *out, const float *partial, int64_t blocks, int64_t width, bool add) {
    for (int64_t i = 0; i < width; i += LANES) {
        Vec sum = {0};
        for (int64_t k = 0; k < blocks; k++) sum += vec_load_within(partial + 2 * k * width, i, width, F32);
        vec_write_within(out, i, width, sum, F32, add);
    }
}

static void weight_gradients(Backend *b, Weights j) {
    int64_t blocks = range_blocks(j.rows, WEIGHT_ROWS), pieces = range_blocks(j.width, WEIGHT_COLUMNS);
    j.partial = cpu_shared_scratch(b, sizeof(float) * (size_t)(2 * blocks * j.width + 1));
    cpu_run_ranges(b, blocks * pieces, 1, weight_task, &j);
    if (j.dscale) combine(j.dscale, j.partial, blocks, j.width, j.add_scale);
    if (j.dshift) combine(j.dshift, j.partial + j.width, blocks, j.width, j.add_shift);
}

static void layernorm_backward_weight(Backend *b, float *dscale, float *dshift, const void *dy, const void *x,
                                      const float *mean, const float *rstd, int64_t rows, int64_t width, Dtype t,
                                      bool add_scale, bool add_shift) {
    weight_gradients(b, (Weights){.x = x,
                                  .dy = dy,
                                  .mean = mean,
                                  .rstd = rstd,
                                  .dscale = dscale,
                                  .dshift = dshift,
                                  .rows = rows,
                                  .width = width,
                                  .type = t,
                                  .add_scale = add_scale,
                                  .add_shift = add_shift});
}

static void rmsnorm_backward_weight(Backend *b, float *dscale, const void *dy, const void *x, const float *rstd,
                                    int64_t rows, int64_t width, Dtype t, bool add) {
    weight_gradients(b, (Weights){.x = x,
                                  .dy = dy,
                                  .rstd = rstd,
                                  .dscale = dscale,
                                  .rows = rows,
                                  .width = width,
                                  .type = t,
                                  .add_scale = add});
}

void SIMD_NAME(install_norm)(Backend *b) {
    b->layernorm_forward = layernorm_forward, b->layernorm_backward_input = layernorm_backward_input;
    b->layernorm_backward_weight = layernorm_backward_weight;
    b->rmsnorm_forward = rmsnorm_forward, b->rmsnorm_backward_input = rmsnorm_backward_input;
    b->rmsnorm_backward_weight = rmsnorm_backward_weight;
    b->add_norm_forward = add_norm_forward, b->add_norm_backward = add_norm_backward;
}
