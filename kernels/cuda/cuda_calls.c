/* The backend's functions that are one call of our own kernels (kernels.h): each is put into the stream with the work
 * space it asks for, and looked at for errors. */
#include "base/error.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/kernels.h"
#include <stdlib.h>
#include <string.h>

typedef struct Call { // one launch or a few that belong together
    CudaState *state;
    CudaQueue queue;
    size_t mark; // of the work space before it
} Call;

static Call call_begin(Backend *be) {
    CudaState *s = cuda_state(be);
    return (Call){s, cuda_queue(s), cuda_scratch_mark(s)};
}

static void call_end(const Call *c, const char *name) {
    cuda_scratch_rewind(c->state, c->mark);
    cuda_after(c->state, name);
}

#define CALL(name, ...)                                                                                                \
    do {                                                                                                               \
        Call call = call_begin(be);                                                                                    \
        cuda_##name(&call.queue, __VA_ARGS__);                                                                         \
        call_end(&call, #name);                                                                                        \
    } while (0)

static void convert(Backend *be, void *out, Dtype to, const void *x, Dtype from, int64_t n) {
    CALL(convert, out, to, x, from, n);
}
static void add(Backend *be, void *out, const void *a, const void *b, int64_t n, int64_t n_b, Dtype t) {
    CALL(add, out, a, b, n, n_b, t);
}
static void add_in_place(Backend *be, void *out, const void *x, int64_t n, Dtype to, Dtype from) {
    CALL(add_in_place, out, x, n, to, from);
}
static void mul(Backend *be, void *out, const void *a, const void *b, int64_t n, Dtype t, bool add) {
    CALL(mul, out, a, b, n, t, add);
}
static void scale(Backend *be, void *out, const void *x, double factor, int64_t n, Dtype t, bool add) {
    CALL(scale, out, x, factor, n, t, add);
}
static void scale_by(Backend *be, void *out, Dtype to, const void *x, Dtype from, const float *by, int64_t n,
                     bool add) {
    CALL(scale_by, out, to, x, from, by, n, add);
}
static void fill(Backend *be, void *x, const float *value, double factor, int64_t n, Dtype t, bool add) {
    CALL(fill, x, value, factor, n, t, add);
}
static void gelu_forward(Backend *be, void *y, const void *x, int64_t n, int kind, Dtype t) {
    CALL(gelu_forward, y, x, n, kind, t);
}
static void gelu_backward(Backend *be, void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t,
                          bool add) {
    CALL(gelu_backward, dx, dy, x, n, kind, t, add);
}
static void silu_forward(Backend *be, void *y, const void *x, int64_t n, Dtype t) { CALL(silu_forward, y, x, n, t); }
static void silu_backward(Backend *be, void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add) {
    CALL(silu_backward, dx, dy, x, n, t, add);
}
static void swiglu_forward(Backend *be, void *y, const void *x, int64_t rows, int64_t width, Dtype t) {
    CALL(swiglu_forward, y, x, rows, width, t);
}
static void swiglu_backward(Backend *be, void *dx, const void *dy, const void *x, int64_t rows, int64_t width, Dtype t,
                            bool add) {
    CALL(swiglu_backward, dx, dy, x, rows, width, t, add);
}
static void dropout(Backend *be, void *y, const void *x, int64_t n, const DropoutDraws *draws, Dtype t, bool add) {
    CALL(dropout, y, x, n, draws, t, add);
}
static void add_norm_forward(Backend *be, void *sum, void *y, float *mean, float *rstd, const void *x, const void *f,
                             const float *scale, const float *shift, int64_t rows, int64_t width, double eps,
                             const DropoutDraws *draws, Dtype t) {
    CALL(add_norm_forward, sum, y, mean, rstd, x, f, scale, shift, rows, width, eps, draws, t);
}
static void add_norm_backward(Backend *be, void *dsum, void *df, const void *dy, const void *sum, const float *mean,
                              const float *rstd, const float *scale, int64_t rows, int64_t width,
                              const DropoutDraws *draws, Dtype t, bool add_sum, bool add_f) {
    CALL(add_norm_backward, dsum, df, dy, sum, mean, rstd, scale, rows, width, draws, t, add_sum, add_f);
}
static void norm_backward(Backend *be, const NormGradients *out, const void *dy, const void *x, const float *mean,
                          const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t) {
    CALL(norm_backward, out, dy, x, mean, rstd, scale, rows, width, t);
}
static void gelu_backward_sums(Backend *be, void *dx, float *sums, const void *dy, const void *x, int64_t rows,
                               int64_t width, int kind, Dtype t, bool add_sums) {
    CALL(gelu_backward_sums, dx, sums, dy, x, rows, width, kind, t, add_sums);
}
static void rope(Backend *be, void *y, const void *x, const int32_t *positions, int64_t rows, int64_t width, int heads,
                 int head_size, double base, bool inverse, Dtype t, bool add) {
    CALL(rope, y, x, positions, rows, width, heads, head_size, base, inverse, t, add);
}
static void sum_into(Backend *be, float *out, const void *x, int64_t n, double factor, Dtype t) {
    CALL(sum_into, out, x, n, factor, t);
}
static void sum_rows(Backend *be, float *out, bool add, const double *x, int64_t n) { CALL(sum_rows, out, add, x, n); }
static void sum_columns(Backend *be, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add) {
    CALL(sum_columns, out, x, rows, width, t, add);
}
static void fold_add(Backend *be, void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t n_b, bool add) {
    CALL(fold_add, db, tb, dy, t, n, n_b, add);
}
static void layernorm_forward(Backend *be, void *y, float *mean, float *rstd, const void *x, const float *scale,
                              const float *shift, int64_t rows, int64_t width, double eps, Dtype t) {
    CALL(layernorm_forward, y, mean, rstd, x, scale, shift, rows, width, eps, t);
}
static void layernorm_backward_input(Backend *be, void *dx, const void *dy, const void *x, const float *mean,
                                     const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t,
                                     bool add) {
    CALL(layernorm_backward_input, dx, dy, x, mean, rstd, scale, rows, width, t, add);
}
static void layernorm_backward_weight(Backend *be, float *dscale, float *dshift, const void *dy, const void *x,
                                      const float *mean, const float *rstd, int64_t rows, int64_t width, Dtype t,
                                      bool add_scale, bool add_shift) {
    CALL(layernorm_backward_weight, dscale, dshift, dy, x, mean, rstd, rows, width, t, add_scale, add_shift);
}
static void rmsnorm_forward(Backend *be, void *y, float *rstd, const void *x, const float *scale, int64_t rows,
                            int64_t width, double eps, Dtype t) {
    CALL(rmsnorm_forward, y, rstd, x, scale, rows, width, eps, t);
}
static void rmsnorm_backward_input(Backend *be, void *dx, const void *dy, const void *x, const float *rstd,
                                   const float *scale, int64_t rows, int64_t width, Dtype t, bool add) {
    CALL(rmsnorm_backward_input, dx, dy, x, rstd, scale, rows, width, t, add);
}
static void rmsnorm_backward_weight(Backend *be, float *dscale, const void *dy, const void *x, const float *rstd,
                                    int64_t rows, int64_t width, Dtype t, bool add) {
    CALL(rmsnorm_backward_weight, dscale, dy, x, rstd, rows, width, t, add);
}
static void embedding_forward(Backend *be, void *y, const int32_t *ids, const void *table, int64_t n, int64_t width,
                              int64_t vocab, Dtype t) {
    CALL(embedding_forward, y, ids, table, n, width, vocab, t);
}
static void local_ids(Backend *be, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v) {
    CALL(local_ids, local, ids, n, v);
}
static void gather_rows(Backend *be, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width,
                        int64_t count, Dtype t, bool add) {
    CALL(gather_rows, y, x, rows, m, width, count, t, add);
}
static void scatter_rows(Backend *be, void *y, const void *base, int64_t base_rows, const void *x, const int32_t *rows,
                         int64_t m, int64_t width, int64_t count, Dtype t) {
    CALL(scatter_rows, y, base, base_rows, x, rows, m, width, count, t);
}
static void put_rows(Backend *be, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, int64_t count,
                     Dtype t) {
    CALL(put_rows, y, x, rows, m, width, count, t);
}
static void choose_words(Backend *be, const WordRows *speech, const void *x, int64_t rows, int64_t width, Dtype t) {
    CALL(choose_words, speech, x, rows, width, t);
}
static bool few_rows_wins(Backend *be, const FewRows *p, Dtype t) {
    CudaQueue queue = cuda_queue(cuda_state(be));
    return t == BF16 && cuda_few_rows(&queue, p, 0);
}
static void few_rows(Backend *be, const FewRows *p, Dtype t) {
    Call call = call_begin(be);
    check(t == BF16 && cuda_few_rows(&call.queue, p, call.state->multiprocessors) && "few_rows_wins said so");
    call_end(&call, "few_rows");
}
static void copy_rows(Backend *be, void *out, Dtype to, int64_t out_stride, int64_t out_first, const void *in,
                      Dtype from, int64_t in_stride, int64_t in_first, int64_t batch, int64_t count, int64_t width,
                      bool add) {
    CALL(copy_rows, out, to, out_stride, out_first, in, from, in_stride, in_first, batch, count, width, add);
}
static void scatter_add_rows(Backend *be, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m,
                             int64_t width, int64_t count) {
    CALL(scatter_add_rows, y, to, x, from, rows, m, width, count);
}
static void embedding_backward(Backend *be, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width,
                               int64_t vocab, Dtype t, bool add) {
    CALL(embedding_backward, dtable, dy, ids, n, width, vocab, t, add);
}
static void mean_rows_forward(Backend *be, void *y, const void *x, const float *mask, int64_t batch, int64_t rows,
                              int64_t width, Dtype t) {
    CALL(mean_rows_forward, y, x, mask, batch, rows, width, t);
}
static void mean_rows_backward(Backend *be, void *dx, const void *dy, const float *mask, int64_t batch, int64_t rows,
                               int64_t width, Dtype t, bool add) {
    CALL(mean_rows_backward, dx, dy, mask, batch, rows, width, t, add);
}
static void l2_normalize_forward(Backend *be, float *y, float *norm, const void *x, int64_t rows, int64_t width,
                                 Dtype t) {
    CALL(l2_normalize_forward, y, norm, x, rows, width, t);
}
static void l2_normalize_backward(Backend *be, void *dx, const float *dy, const float *y, const float *norm,
                                  int64_t rows, int64_t width, Dtype t, bool add) {
    CALL(l2_normalize_backward, dx, dy, y, norm, rows, width, t, add);
}
static void pixels(Backend *be, void *y, const uint8_t *x, const uint8_t *mirrored, int64_t batch, int64_t height,
                   int64_t width, const double *mean, const double *std, Dtype t) {
    CALL(pixels, y, x, mirrored, batch, height, width, mean, std, t);
}
static void patches_forward(Backend *be, void *y, const void *x, const int32_t *keep, int64_t batch, int64_t height,
                            int64_t width, int patch, int64_t kept, Dtype t) {
    CALL(patches_forward, y, x, keep, batch, height, width, patch, kept, t);
}
static void patches_backward(Backend *be, void *dx, const void *dy, const int32_t *keep, int64_t batch, int64_t height,
                             int64_t width, int patch, int64_t kept, Dtype t, bool add) {
    CALL(patches_backward, dx, dy, keep, batch, height, width, patch, kept, t, add);
}
static void masked_patch_mse_forward(Backend *be, float *out, const void *x, const void *images, const int32_t *patches,
                                     int64_t m, int64_t batch, int64_t height, int64_t width, int patch, bool normalize,
                                     Dtype t) {
    CALL(masked_patch_mse_forward, out, x, images, patches, m, batch, height, width, patch, normalize, t);
}
static void masked_patch_mse_backward(Backend *be, void *dx, const float *factor, const void *x, const void *images,
                                      const int32_t *patches, int64_t m, int64_t batch, int64_t height, int64_t width,
                                      int patch, bool normalize, Dtype t, bool add) {
    CALL(masked_patch_mse_backward, dx, factor, x, images, patches, m, batch, height, width, patch, normalize, t, add);
}
static void cross_entropy_combine(Backend *be, float *loss, float *lse, const float *parts, const int32_t *targets,
                                  const float *weight, int ranks, int64_t n) {
    CALL(cross_entropy_combine, loss, lse, parts, targets, weight, ranks, n);
}
static void clip_sums(Backend *be, PairSums rows, PairSums columns, float *own, const PairTile *tile,
                      const float *log_scale) {
    CALL(clip_sums, rows, columns, own, tile, log_scale);
}
static void clip_join(Backend *be, PairSums a, PairSums b, int64_t n) { CALL(clip_join, a, b, n); }
static void clip_logsumexp(Backend *be, float *lse, PairSums sums, int64_t n) { CALL(clip_logsumexp, lse, sums, n); }
static void clip_losses(Backend *be, double *loss, const float *row_lse, const float *column_lse, const float *own,
                        int64_t n) {
    CALL(clip_losses, loss, row_lse, column_lse, own, n);
}
static void clip_gradient(Backend *be, double *d_scale, const PairTile *tile, const float *row_lse,
                          const float *column_lse, const float *log_scale, const float *factor) {
    CALL(clip_gradient, d_scale, tile, row_lse, column_lse, log_scale, factor);
}
static void siglip_sums(Backend *be, double *loss, const PairTile *tile, const float *log_scale, const float *bias) {
    CALL(siglip_sums, loss, tile, log_scale, bias);
}
static void siglip_gradient(Backend *be, double *d_scale, double *d_bias, const PairTile *tile, const float *log_scale,
                            const float *bias, const float *factor) {
    CALL(siglip_gradient, d_scale, d_bias, tile, log_scale, bias, factor);
}
static void adamw_parts(Backend *be, const AdamWPart *parts, int count, const AdamW *rule, const Gate *gate) {
    CALL(adamw_parts, parts, count, rule, gate);
}
static void sum_squares(Backend *be, double *out, const FloatSpan *spans, int count, const float *finite, int64_t n) {
    CALL(sum_squares, out, spans, count, finite, n);
}
static void close_gate(Backend *be, Gate *gate, const double *squares, int64_t n, double clip) {
    CALL(gate, gate, squares, n, clip);
}

static void sum_doubles(Backend *be, const DoubleSum *sums, int count) { CALL(sum_doubles, sums, count); }
static void block_squares(Backend *be, double *out, const float *x, int64_t blocks, int64_t block) {
    CALL(block_squares, out, x, blocks, block);
}

// ---- a result that the host waits for ----

static int64_t first_nonfinite(Backend *be, const void *x, int64_t n, Dtype t) {
    CudaState *s = cuda_state(be);
    size_t mark = cuda_scratch_mark(s);
    int64_t *at = cuda_scratch(s, sizeof *at), first;
    CALL(first_nonfinite, at, x, n, t);
    be->download(be, &first, at, sizeof first);
    cuda_scratch_rewind(s, mark);
    return first;
}

void cuda_calls_install(Backend *be) {
    be->convert = convert, be->add = add, be->add_in_place = add_in_place, be->mul = mul, be->scale = scale,
    be->scale_by = scale_by, be->fill = fill, be->gelu_forward = gelu_forward, be->gelu_backward = gelu_backward,
    be->silu_forward = silu_forward, be->silu_backward = silu_backward, be->swiglu_forward = swiglu_forward,
    be->swiglu_backward = swiglu_backward, be->dropout = dropout, be->add_norm_forward = add_norm_forward,
    be->gelu_backward_sums = gelu_backward_sums, be->norm_backward = norm_backward,
    be->add_norm_backward = add_norm_backward, be->rope = rope, be->sum_into = sum_into, be->sum_rows = sum_rows,
    be->sum_columns = sum_columns, be->fold_add = fold_add, be->layernorm_forward = layernorm_forward,
    be->layernorm_backward_input = layernorm_backward_input, be->layernorm_backward_weight = layernorm_backward_weight,
    be->rmsnorm_forward = rmsnorm_forward, be->rmsnorm_backward_input = rmsnorm_backward_input,
    be->rmsnorm_backward_weight = rmsnorm_backward_weight, be->embedding_forward = embedding_forward,
    be->local_ids = local_ids, be->gather_rows = gather_rows, be->put_rows = put_rows, be->choose_words = choose_words,
    be->scatter_rows = scatter_rows, be->copy_rows = copy_rows, be->scatter_add_rows = scatter_add_rows,
    be->embedding_backward = embedding_backward, be->mean_rows_forward = mean_rows_forward,
    be->mean_rows_backward = mean_rows_backward, be->l2_normalize_forward = l2_normalize_forward,
    be->l2_normalize_backward = l2_normalize_backward, be->pixels = pixels, be->patches_forward = patches_forward,
    be->patches_backward = patches_backward, be->masked_patch_mse_forward = masked_patch_mse_forward,
    be->masked_patch_mse_backward = masked_patch_mse_backward, be->cross_entropy_combine = cross_entropy_combine,
    be->clip_sums = clip_sums, be->clip_join = clip_join, be->clip_logsumexp = clip_logsumexp,
    be->clip_losses = clip_losses, be->clip_gradient = clip_gradient, be->siglip_sums = siglip_sums,
    be->siglip_gradient = siglip_gradient, be->adamw_parts = adamw_parts, be->sum_squares = sum_squares,
    be->sum_doubles = sum_doubles;
    be->gate = close_gate, be->block_squares = block_squares, be->first_nonfinite = first_nonfinite;
    const char *few = getenv("BIFOCAL_FEW_ROWS");
    if (!few || strcmp(few, "off") != 0) be->few_rows = few_rows, be->few_rows_wins = few_rows_wins;
}
