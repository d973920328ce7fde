/* The contrastive losses on one tile of products z = a b^T, whose logits are s = exp(log_scale) z (+ bias): a pass over
 * the tile makes running logsumexps or sums (forward) or turns z into the loss's gradient (backward). Who walks over
 * the tiles makes the products before and spreads the gradient to a and b after (kernels/pair_tiles.h). M rows, N
 * columns of the tile. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd/vec.h"
#include "kernels/cpu/sizes.h"
#include <math.h>

enum { BLOCK = 16 }; // rows or columns a task, a multiple of LANES

#define LOG_100 4.6051701859880914 // the clamp of CLIP's scale

typedef struct Job { // one call
    const PairTile *t;
    float scale, bias, factor;
    bool clamped;                      // the scale: it has no gradient
    PairSums rows, columns;            // (M), (N)
    float *own;                        // (M)
    const float *row_lse, *column_lse; // (M), (N)
    double *loss, *d_scale, *d_bias;   // (M)
} Job;

static void run(Backend *be, Job *j, int64_t count, ThreadTask task) {
    threads_run(cpu_threads(be), divide_up(count, BLOCK), task, j);
}

// The column of the tile with which row r forms a pair, or -1.
static int64_t partner(const PairTile *t, int64_t r) {
    int64_t column = r + t->offset;
    return column >= t->first && column < t->end ? column : -1;
}

// x at the columns from c on, `outside` in the lanes beyond the tile.
INLINE Vec inside(const PairTile *t, int64_t c, Vec x, float outside) {
    if (c + LANES <= t->columns) return x;
    return vec_select(vec_lanes() < (int32_t)(t->columns - c), x, vec_set(outside));
}

INLINE Vec load_logits(const Job *j, const float *z, int64_t c) { return vec_load(z, c, F32) * j->scale + j->bias; }

static void sum_rows(Backend *be, float *out, bool add, const double *x, int64_t n) {
    (void)be;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    out[0] = (float)sum + (add ? out[0] : 0);
}

// ---- softmax (CLIP) ----

static void clip_row(Job *j, int64_t r) {
    const PairTile *t = j->t;
    const float *z = t->z + r * t->stride;
    int64_t own = partner(t, r);
    float before = t->add_rows ? j->rows.most[r] : -INFINITY;
    Vec high = vec_set(before), sum = {0};
    for (int64_t c = 0; c < t->columns; c += LANES) high = vec_max(high, inside(t, c, load_logits(j, z, c), -INFINITY));
    float most = vec_highest(high);
    for (int64_t c = 0; c < t->columns; c += LANES)
        sum += vec_exp(inside(t, c, load_logits(j, z, c), -INFINITY) - most);
    j->rows.sum[r] = (t->add_rows ? j->rows.sum[r] * expf(before - most) : 0) + vec_sum(sum);
    j->rows.most[r] = most;
    if (own >= 0) j->own[r] = j->scale * z[own];
}

static void clip_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->t->rows, (task + 1) * BLOCK); r++) clip_row(j, r);
}

// A vector of columns.
static void clip_lanes(Job *j, int64_t c) {
    const PairTile *t = j->t;
    int64_t end = t->columns;
    Vec before = t->add_columns ? vec_load_within(j->columns.most, c, end, F32) : vec_set(-INFINITY);
    Vec sum = t->add_columns ? vec_load_within(j->columns.sum, c, end, F32) : (Vec){0}, most = before;
    for (int64_t r = 0; r < t->rows; r++) most = vec_max(most, vec_load(t->z, r * t->stride + c, F32) * j->scale);
    if (t->add_columns) sum *= vec_exp(before - most);
    for (int64_t r = 0; r < t->rows; r++) sum += vec_exp(vec_load(t->z, r * t->stride + c, F32) * j->scale - most);
    vec_store_within(j->columns.most, c, end, most, F32);
    vec_store_within(j->columns.sum, c, end, sum, F32);
}

static void clip_columns(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t c = task * BLOCK; c < least(j->t->columns, (task + 1) * BLOCK); c += LANES) clip_lanes(j, c);
}

// NaN stays: a comparison the other way round would turn it into the clamp.
static float clip_scale(const float *log_scale) { return (float)exp(*log_scale > LOG_100 ? LOG_100 : *log_scale); }

static void clip_sums(Backend *be, PairSums rows, PairSums columns, float *own, const PairTile *t,
                      const float *log_scale) {
    Job j = {.t = t, .scale = clip_scale(log_scale), .rows = rows, .columns = columns, .own = own};
    run(be, &j, t->rows, clip_rows);
    run(be, &j, t->columns, clip_columns);
}

static void clip_logsumexp(Backend *be, float *lse, PairSums sums, int64_t n) {
    (void)be;
    for (int64_t i = 0; i < n; i++) lse[i] = sums.most[i] + logf(sums.sum[i]);
}

static void clip_losses(Backend *be, double *loss, const float *row_lse, const float *column_lse, const float *own,
                        int64_t n) {
    (void)be;
    for (int64_t i = 0; i < n; i++) loss[i] = 0.5 * ((double)row_lse[i] + column_lse[i]) - own[i];
}

static void clip_gradient_row(Job *j, int64_t r) {
    const PairTile *t = j->t;
    float *z = t->z + r * t->stride, half = 0.5f * j->factor, lse = j->row_lse[r];
    int64_t own = partner(t, r);
    float own_logit = own >= 0 ? j->scale * z[own] : 0;
    Vec sum = {0};
    for (int64_t c = 0; c < t->columns; c += LANES) {
        Vec s = load_logits(j, z, c), column_lse = vec_load_within(j->column_lse, c, t->columns, F32);
        Vec d = half * (vec_exp(s - lse) + vec_exp(s - column_lse));
        sum += inside(t, c, d * s, 0);
        vec_store(z, c, d * j->scale, F32);
    }
    if (own >= 0) z[own] -= j->factor * j->scale;
    double slope = j->clamped ? 0 : vec_sum(sum) - (double)j->factor * own_logit;
    j->d_scale[r] = (t->add_rows ? j->d_scale[r] : 0) + slope;
}

static void clip_gradient_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->t->rows, (task + 1) * BLOCK); r++) clip_gradient_row(j, r);
}

static void clip_gradient(Backend *be, double *d_scale, const PairTile *t, const float *row_lse,
                          const float *column_lse, const float *log_scale, const float *factor) {
    Job j = {.t = t,
             .scale = clip_scale(log_scale),
             .factor = *factor,
             .clamped = *log_scale > LOG_100,
             .row_lse = row_lse,
             .column_lse = column_lse,
             .d_scale = d_scale};
    run(be, &j, t->rows, clip_gradient_rows);
}

// ---- sigmoid (SigLIP) ----

// log(1 + exp(x))
INLINE Vec softplus(Vec x) {
    Vec zero = {0};
    return vec_max(x, zero) + vec_log1p(vec_exp(-vec_abs(x)));
}

static void siglip_row(Job *j, int64_t r) {
    const PairTile *t = j->t;
    const float *z = t->z + r * t->stride;
    int64_t own = partner(t, r);
    Vec sum = {0};
    for (int64_t c = 0; c < t->columns; c += LANES) sum += softplus(inside(t, c, load_logits(j, z, c), -INFINITY));
    // softplus(-s) = softplus(s) - s
    double own_logit = own >= 0 ? (double)j->scale * z[own] + j->bias : 0;
    j->loss[r] = (t->add_rows ? j->loss[r] : 0) + vec_sum(sum) - own_logit;
}

static void siglip_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->t->rows, (task + 1) * BLOCK); r++) siglip_row(j, r);
}

static void siglip_sums(Backend *be, double *loss, const PairTile *t, const float *log_scale, const float *bias) {
    Job j = {.t = t, .scale = expf(*log_scale), .bias = *bias, .loss = loss};
    run(be, &j, t->rows, siglip_rows);
}

static void siglip_gradient_row(Job *j, int64_t r) {
    const PairTile *t = j->t;
    float *z = t->z + r * t->stride;
    int64_t own = partner(t, r);
    float own_logit = own >= 0 ? j->scale * z[own] : 0;
    Vec sum = {0}, sum_bias = {0};
    for (int64_t c = 0; c < t->columns; c += LANES) {
        Vec s = vec_load(z, c, F32) * j->scale, d = j->factor * vec_sigmoid(s + j->bias);
        sum += inside(t, c, d * s, 0);
        sum_bias += inside(t, c, d, 0);
        vec_store(z, c, d * j->scale, F32);
    }
    if (own >= 0) z[own] -= j->factor * j->scale;
    j->d_scale[r] = (t->add_rows ? j->d_scale[r] : 0) + vec_sum(sum) - (double)j->factor * own_logit;
    j->d_bias[r] = (t->add_rows ? j->d_bias[r] : 0) + vec_sum(sum_bias) - (own >= 0 ? j->factor : 0);
}

static void siglip_gradient_rows(void *context, int64_t task, int worker) {
    (void)worker;
    Job *j = context;
    for (int64_t r = task * BLOCK; r < least(j->t->rows, (task + 1) * BLOCK); r++) siglip_gradient_row(j, r);
}

static void siglip_gradient(Backend *be, double *d_scale, double *d_bias, const PairTile *t, const float *log_scale,
                            const float *bias, const float *factor) {
    Job j = {.t = t, .scale = expf(*log_scale), .bias = *bias, .factor = *factor, .d_scale = d_scale, .d_bias = d_bias};
    run(be, &j, t->rows, siglip_gradient_rows);
}

void SIMD_NAME(install_contrastive)(Backend *b) {
    b->sum_rows = sum_rows;
    b->clip_sums = clip_sums;
    b->clip_logsumexp = clip_logsumexp;
    b->clip_losses = clip_losses;
    b->clip_gradient = clip_gradient;
    b->siglip_sums = siglip_sums;
    b->siglip_gradient = siglip_gradient;
}
