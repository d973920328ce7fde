/* The launchers of our own CUDA kernels: everything in kernels/backend.h that is not a matrix product or attention.
 * A call enqueues on a stream and returns; it never waits, and everything it points to is device memory unless a comment
 * says host. Meanings, shapes and argument order are those of kernels/backend.h: outputs, then inputs, then sizes; `add`
 * adds to what is there. Same bits for the same call whatever the device; no alignment is asked beyond the element's
 * (16 bytes are faster). Where a call needs scratch memory it asks for it itself. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/backend.h"

typedef struct CUstream_st *CudaStream; // cudaStream_t

// Starts what `arguments` describe; they may be read once or, where work is repeated, again and again.
typedef void CudaStart(const void *arguments, CudaStream stream);

typedef struct CudaQueue { // where a call goes
    CudaStream stream;
    // `bytes` of device memory, 256-byte aligned, for this call alone: the next call in the stream may have it again.
    // Never NULL.
    void *(*scratch)(void *owner, size_t bytes);
    // Takes a launch and copies its arguments, to start it now or later; NULL: it is started at once.
    void (*start)(void *owner, CudaStart *, const void *arguments, size_t bytes);
    // Device memory with a copy of `bytes` from the host (at most a few hundred), 16-byte aligned, for this call alone:
    // for numbers that differ from step to step, so that a launch's arguments stay the same. Never NULL.
    const void *(*message)(void *owner, const void *host, size_t bytes);
    void *owner;
} CudaQueue;

// ---- elementwise.cu; n elements ----
void cuda_convert(const CudaQueue *, void *out, Dtype to, const void *x, Dtype from, int64_t n);
void cuda_add(const CudaQueue *, void *out, const void *a, const void *b, int64_t n, int64_t n_b, Dtype t); // b repeats
void cuda_add_in_place(const CudaQueue *, void *out, const void *x, int64_t n, Dtype to, Dtype from);
void cuda_mul(const CudaQueue *, void *out, const void *a, const void *b, int64_t n, Dtype t, bool add);
void cuda_scale(const CudaQueue *, void *out, const void *x, double factor, int64_t n, Dtype t, bool add);
void cuda_scale_by(const CudaQueue *, void *out, Dtype to, const void *x, Dtype from, const float *by, int64_t n, bool add);
void cuda_fill(const CudaQueue *, void *x, const float *value, double factor, int64_t n, Dtype t, bool add);

// ---- activations.cu; kind: GeluKind ----
void cuda_gelu_forward(const CudaQueue *, void *y, const void *x, int64_t n, int kind, Dtype t);
void cuda_gelu_backward(const CudaQueue *, void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t, bool add);
void cuda_gelu_backward_sums(const CudaQueue *, void *dx, float *sums, const void *dy, const void *x, int64_t rows,
                             int64_t width, int kind, Dtype t, bool add_sums);
void cuda_silu_forward(const CudaQueue *, void *y, const void *x, int64_t n, Dtype t);
void cuda_silu_backward(const CudaQueue *, void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add);
void cuda_swiglu_forward(const CudaQueue *, void *y, const void *x, int64_t rows, int64_t width, Dtype t);
void cuda_swiglu_backward(const CudaQueue *, void *dx, const void *dy, const void *x, int64_t rows, int64_t width, Dtype t,
                          bool add);

// ---- dropout.cu, rope.cu ----
void cuda_dropout(const CudaQueue *, void *y, const void *x, int64_t n, const DropoutDraws *, Dtype t, bool add);
void cuda_rope(const CudaQueue *, void *y, const void *x, const int32_t *positions, int64_t rows, int64_t width, int heads,
               int head_size, double base, bool inverse, Dtype t, bool add);

// ---- reductions.cu, columns.cu ----
void cuda_block_squares(const CudaQueue *, double *out, const float *x, int64_t blocks, int64_t block); // out: device
void cuda_first_nonfinite(const CudaQueue *, int64_t *out, const void *x, int64_t n, Dtype t); // out[0], device: index or -1
void cuda_sum_into(const CudaQueue *, float *out, const void *x, int64_t n, double factor, Dtype t);
void cuda_sum_rows(const CudaQueue *, float *out, bool add, const double *x, int64_t n);
void cuda_sum_columns(const CudaQueue *, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add);
void cuda_fold_add(const CudaQueue *, void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t n_b, bool add);

// ---- norm.cu, norm_gradient.cu, norm_weights.cu ----
void cuda_layernorm_forward(const CudaQueue *, void *y, float *mean, float *rstd, const void *x, const float *scale,
                            const float *shift, int64_t rows, int64_t width, double eps, Dtype t);
void cuda_layernorm_backward_input(const CudaQueue *, void *dx, const void *dy, const void *x, const float *mean,
                                   const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t, bool add);
void cuda_layernorm_backward_weight(const CudaQueue *, float *dscale, float *dshift, const void *dy, const void *x,
                                    const float *mean, const float *rstd, int64_t rows, int64_t width, Dtype t,
                                    bool add_scale, bool add_shift); // dscale, dshift may be NULL
void cuda_rmsnorm_forward(const CudaQueue *, void *y, float *rstd, const void *x, const float *scale, int64_t rows,
                          int64_t width, double eps, Dtype t);
void cuda_rmsnorm_backward_input(const CudaQueue *, void *dx, const void *dy, const void *x, const float *rstd,
                                 const float *scale, int64_t rows, int64_t width, Dtype t, bool add);
void cuda_rmsnorm_backward_weight(const CudaQueue *, float *dscale, const void *dy, const void *x, const float *rstd,
                                  int64_t rows, int64_t width, Dtype t, bool add);
void cuda_add_norm_forward(const CudaQueue *, void *sum, void *y, float *mean, float *rstd, const void *x, const void *f,
                           const float *scale, const float *shift, int64_t rows, int64_t width, double eps,
                           const DropoutDraws *, Dtype t);
void cuda_add_norm_backward(const CudaQueue *, void *dsum, void *df, const void *dy, const void *sum, const float *mean,
                            const float *rstd, const float *scale, int64_t rows, int64_t width, const DropoutDraws *,
                            Dtype t, bool add_sum, bool add_f);
void cuda_norm_backward(const CudaQueue *, const NormGradients *, const void *dy, const void *x, const float *mean,
                        const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t);

// ---- rows.cu, scatter.cu; a row number beyond `count` is a device fault ----
void cuda_embedding_forward(const CudaQueue *, void *y, const int32_t *ids, const void *table, int64_t n, int64_t width,
                            int64_t vocab, Dtype t);
void cuda_local_ids(const CudaQueue *, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v);
void cuda_gather_rows(const CudaQueue *, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width,
                      int64_t count, Dtype t, bool add);
void cuda_scatter_rows(const CudaQueue *, void *y, const void *base, int64_t base_rows, const void *x, const int32_t *rows,
                       int64_t m, int64_t width, int64_t count, Dtype t);
void cuda_put_rows(const CudaQueue *, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, int64_t count,
                   Dtype t);
void cuda_copy_rows(const CudaQueue *, void *out, Dtype to, int64_t out_stride, int64_t out_first, const void *in,
                    Dtype from, int64_t in_stride, int64_t in_first, int64_t batch, int64_t count, int64_t width, bool add);
void cuda_scatter_add_rows(const CudaQueue *, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m,
                           int64_t width, int64_t count);
void cuda_embedding_backward(const CudaQueue *, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width,
                             int64_t vocab, Dtype t, bool add);

// ---- few_rows.cu ----
// BF16. False, and nothing is started, where it does not take the shape or the addresses; multiprocessors 0: it only says.
bool cuda_few_rows(const CudaQueue *, const FewRows *, int multiprocessors);

// ---- choose.cu ----
void cuda_choose_words(const CudaQueue *, const WordRows *, const void *x, int64_t rows, int64_t width, Dtype t);

// ---- pooling.cu ----
void cuda_mean_rows_forward(const CudaQueue *, void *y, const void *x, const float *mask, int64_t batch, int64_t rows,
                            int64_t width, Dtype t);
void cuda_mean_rows_backward(const CudaQueue *, void *dx, const void *dy, const float *mask, int64_t batch, int64_t rows,
                             int64_t width, Dtype t, bool add);
void cuda_l2_normalize_forward(const CudaQueue *, float *y, float *norm, const void *x, int64_t rows, int64_t width, Dtype t);
void cuda_l2_normalize_backward(const CudaQueue *, void *dx, const float *dy, const float *y, const float *norm,
                                int64_t rows, int64_t width, Dtype t, bool add);

// ---- pictures.cu, patch_mse.cu; mean and std: 3 host numbers each ----
void cuda_pixels(const CudaQueue *, void *y, const uint8_t *x, const uint8_t *mirrored, int64_t batch, int64_t height,
                 int64_t width, const double *mean, const double *std, Dtype t);
void cuda_patches_forward(const CudaQueue *, void *y, const void *x, const int32_t *keep, int64_t batch, int64_t height,
                          int64_t width, int patch, int64_t kept, Dtype t);
void cuda_patches_backward(const CudaQueue *, void *dx, const void *dy, const int32_t *keep, int64_t batch, int64_t height,
                           int64_t width, int patch, int64_t kept, Dtype t, bool add);
void cuda_masked_patch_mse_forward(const CudaQueue *, float *out, const void *x, const void *images, const int32_t *patches,
                                   int64_t m, int64_t batch, int64_t height, int64_t width, int patch, bool normalize,
                                   Dtype t);
void cuda_masked_patch_mse_backward(const CudaQueue *, void *dx, const float *factor, const void *x, const void *images,
                                    const int32_t *patches, int64_t m, int64_t batch, int64_t height, int64_t width,
                                    int patch, bool normalize, Dtype t, bool add);

// ---- cross_entropy.cu: passes over a chunk of rows of logits, which the caller makes and consumes by matrix products ----
// logits (rows, stride), of type t; the words held are columns [0, v.held), what follows is padding; stride >= v.held.
// lse, picked, targets, d_loss, weight (rows) begin at those of the chunk. Rows without a target count as zeros.
void cuda_cross_entropy_rows(const CudaQueue *, float *lse, float *picked, const void *logits, Dtype t, int64_t stride,
                             const int32_t *targets, int64_t rows, Vocabulary v);
// In place: the gradient by the logits, in one rounding; zeros in the padding and in rows without a target.
void cuda_cross_entropy_gradient(const CudaQueue *, void *logits, Dtype t, int64_t stride, const float *d_loss,
                                 const float *lse, const int32_t *targets, const float *weight, int64_t rows, Vocabulary v);
// Both passes in one, with d_loss 1: a row's second look finds it in the cache.
void cuda_cross_entropy_both(const CudaQueue *, float *lse, float *picked, void *logits, Dtype t, int64_t stride,
                             const int32_t *targets, const float *weight, int64_t rows, Vocabulary v);
void cuda_cross_entropy_combine(const CudaQueue *, float *loss, float *lse, const float *parts, const int32_t *targets,
                                const float *weight, int ranks, int64_t n);

// ---- contrastive.cu ----
void cuda_clip_sums(const CudaQueue *, PairSums rows, PairSums columns, float *own, const PairTile *, const float *log_scale);
void cuda_clip_join(const CudaQueue *, PairSums a, PairSums b, int64_t n);
void cuda_clip_logsumexp(const CudaQueue *, float *lse, PairSums sums, int64_t n);
void cuda_clip_losses(const CudaQueue *, double *loss, const float *row_lse, const float *column_lse, const float *own,
                      int64_t n);
void cuda_clip_gradient(const CudaQueue *, double *d_scale, const PairTile *, const float *row_lse, const float *column_lse,
                        const float *log_scale, const float *factor);
void cuda_siglip_sums(const CudaQueue *, double *loss, const PairTile *, const float *log_scale, const float *bias);
void cuda_siglip_gradient(const CudaQueue *, double *d_scale, double *d_bias, const PairTile *, const float *log_scale,
                          const float *bias, const float *factor);

// ---- fp8.cu ----
// out: codes of x (rows, columns), bf16, as it lies or (columns, rows).
void cuda_fp8_quantise(const CudaQueue *, uint8_t *out, const uint16_t *x, int64_t rows, int64_t columns, bool transposed,
                       Fp8Side);
void cuda_fp8_advance(const CudaQueue *, Fp8Scaling *, float *most, int margin);

// ---- optimizer.cu ----
// parts, spans: host; they go along with the launches, and the rule as a message.
void cuda_adamw_parts(const CudaQueue *, const AdamWPart *parts, int count, const AdamW *, const Gate *);
void cuda_sum_squares(const CudaQueue *, double *out, const FloatSpan *spans, int count, const float *finite, int64_t n);
void cuda_sum_doubles(const CudaQueue *, const DoubleSum *sums, int count);
void cuda_gate(const CudaQueue *, Gate *, const double *squares, int64_t n, double clip);

#ifdef __cplusplus
}
#endif
