/* From tokens to features: means over rows, with or without a mask, and L2 normalisation. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

enum { COLUMNS = 128 }; // of a piece: one task works on a piece of one batch element

typedef struct Mean {
    void *y;                     // forward (B, C); backward dx (B, T, C)
    const void *x;               // forward (B, T, C); backward dy (B, C)
    const float *mask;           // (B, T) or NULL
    int64_t rows, width, pieces; // pieces: of the columns
    Dtype type;
    bool add;
} Mean;

static float mask_total(const Mean *j, int64_t batch) {
    if (!j->mask) return (float)j->rows;
    double total = 0;
    for (int64_t t = 0; t < j->rows; t++) total += (double)j->mask[batch * j->rows + t];
    return (float)total;
}

INLINE float mask_at(const Mean *j, int64_t row) { return j->mask ? j->mask[row] : 1.0f; }

INLINE void mean_columns(const Mean *j, int64_t batch, int64_t first, int64_t end, Dtype t) {
    float total = mask_total(j, batch), inverse = total != 0 ? 1 / total : 0;
    int64_t i = first;
    for (; i + 4 * LANES <= end; i += 4 * LANES) {
        Vec sum[4] = {{0}, {0}, {0}, {0}};
        for (int64_t r = batch * j->rows; r < (batch + 1) * j->rows; r++) {
            const void *x = row_of(j->x, r, j->width, t);
            for (int k = 0; k < 4; k++) sum[k] += vec_load(x, i + k * LANES, t) * mask_at(j, r);
        }
        for (int k = 0; k < 4; k++) vec_store(row_at(j->y, batch, j->width, t), i + k * LANES, sum[k] * inverse, t);
    }
    for (; i < end; i += LANES) {
        Vec sum = {0};
        for (int64_t r = batch * j->rows; r < (batch + 1) * j->rows; r++)
            sum += vec_load_within(row_of(j->x, r, j->width, t), i, end, t) * mask_at(j, r);
        vec_store_within(row_at(j->y, batch, j->width, t), i, end, sum * inverse, t);
    }
}

INLINE void spread_columns(const Mean *j, int64_t batch, int64_t first, int64_t end, Dtype t) {
    float total = mask_total(j, batch), inverse = total != 0 ? 1 / total : 0;
    for (int64_t r = batch * j->rows; r < (batch + 1) * j->rows; r++) {
        Vec share = vec_set(mask_at(j, r) * inverse);
        for (int64_t i = first; i < end; i += LANES)
            vec_write_within(row_at(j->y, r, j->width, t), i, end,
                             vec_load_within(row_of(j->x, batch, j->width, t), i, end, t) * share, t, j->add);
    }
}

INLINE void piece_of(const Mean *j, int64_t task, int64_t *batch, int64_t *first, int64_t *end) {
    *batch = task / j->pieces;
    *first = task % j->pieces * COLUMNS;
    *end = *first + COLUMNS < j->width ? *first + COLUMNS : j->width;
}

static void mean_task(void *context, int64_t task, int64_t stop, int worker) {
    (void)worker;
    const Mean *j = context;
    for (int64_t batch, first, end; task < stop; task++) {
        piece_of(j, task, &batch, &first, &end);
        if (j->type == F32)
            mean_columns(j, batch, first, end, F32);
        else
            mean_columns(j, batch, first, end, BF16);
    }
}

static void spread_task(void *context, int64_t task, int64_t stop, int worker) {
    (void)worker;
    const Mean *j = context;
    for (int64_t batch, first, end; task < stop; task++) {
        piece_of(j, task, &batch, &first, &end);
        if (j->type == F32)
            spread_columns(j, batch, first, end, F32);
        else
            spread_columns(j, batch, first, end, BF16);
    }
}

static void run_mean(Backend *b, Mean j, int64_t batch, RangeTask task) {
    j.pieces = range_blocks(j.width, COLUMNS);
    cpu_run_ranges(b, batch * j.pieces, range_rows(COLUMNS * j.rows, RANGE_ELEMENTS), task, &j);
}

static void mean_rows_forward(Backend *b, void *y, const void *x, const float *mask, int64_t batch, int64_t rows,
                              int64_t width, Dtype t) {
    run_mean(b, (Mean){.y = y, .x = x, .mask = mask, .rows = rows, .width = width, .type = t}, batch, mean_task);
}

static void mean_rows_backward(Backend *b, void *dx, const void *dy, const float *mask, int64_t batch, int64_t rows,
                               int64_t width, Dtype t, bool add) {
    run_mean(b, (Mean){.y = dx, .x = dy, .mask = mask, .rows = rows, .width = width, .type = t, .add = add}, batch,
             spread_task);
}

// ---- L2 normalisation; the features are f32 whatever x is ----

typedef struct L2 {
    float *y, *norm; // (N, C), (N): max(|x|, eps)
    const void *x;   // backward: unused
    void *dx;
    const float *dy;
    int64_t width;
    Dtype type;
    bool add;
} L2;

static const float L2_EPSILON = 1e-12f;

INLINE void l2_rows(const L2 *j, int64_t first, int64_t end, Dtype t) {
    int64_t width = j->width;
    for (int64_t r = first; r < end; r++) {
        const void *x = row_of(j->x, r, width, t);
        Vec sum = {0};
        for (int64_t i = 0; i < width; i += LANES) {
            Vec v = vec_load_within(x, i, width, t);
            sum += v * v;
        }
        float length = __builtin_sqrtf(vec_sum(sum)), norm = length < L2_EPSILON ? L2_EPSILON : length;
        Vec divisor = vec_set(norm);
        for (int64_t i = 0; i < width; i += LANES)
            vec_store_within(j->y + r * width, i, width, vec_load_within(x, i, width, t) / divisor, F32);
        j->norm[r] = norm;
    }
}

// dx = (dy - y (y . dy)) / |x|; where |x| was raised to eps it is a constant: dx = dy / eps
INLINE void l2_gradient_rows(const L2 *j, int64_t first, int64_t end, Dtype t) {
    int64_t width = j->width;
    for (int64_t r = first; r < end; r++) {
        const float *y = j->y + r * width, *dy = j->dy + r * width;
        Vec dot = {0};
        for (int64_t i = 0; i < width; i += LANES)
            dot += vec_load_within(y, i, width, F32) * vec_load_within(dy, i, width, F32);
        float norm = j->norm[r];
        Vec along = vec_set(norm <= L2_EPSILON ? 0 : vec_sum(dot)), divisor = vec_set(norm);
        for (int64_t i = 0; i < width; i += LANES) {
            Vec d = (vec_load_within(dy, i, width, F32) - vec_load_within(y, i, width, F32) * along) / divisor;
            vec_write_within(row_at(j->dx, r, width, t), i, width, d, t, j->add);
        }
    }
}

static void l2_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const L2 *j = context;
    if (j->type == F32)
        l2_rows(j, first, end, F32);
    else
        l2_rows(j, first, end, BF16);
}

static void l2_gradient_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const L2 *j = context;
    if (j->type == F32)
        l2_gradient_rows(j, first, end, F32);
    else
        l2_gradient_rows(j, first, end, BF16);
}

static void l2_normalize_forward(Backend *b, float *y, float *norm, const void *x, int64_t rows, int64_t width,
                                 Dtype t) {
    L2 j = {.y = y, .norm = norm, .x = x, .width = width, .type = t};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), l2_task, &j);
}

static void l2_normalize_backward(Backend *b, void *dx, const float *dy, const float *y, const float *norm,
                                  int64_t rows, int64_t width, Dtype t, bool add) {
    L2 j = {.y = (float *)y, .norm = (float *)norm, .dx = dx, .dy = dy, .width = width, .type = t, .add = add};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_ELEMENTS), l2_gradient_task, &j);
}

void SIMD_NAME(install_pooling)(Backend *b) {
    b->mean_rows_forward = mean_rows_forward, b->mean_rows_backward = mean_rows_backward;
    b->l2_normalize_forward = l2_normalize_forward, b->l2_normalize_backward = l2_normalize_backward;
}
