/* See dry.h. */
#include "kernels/dry.h"
#include "base/error.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// Address space that no page of memory ever stands behind, and that faults where it is touched.
static void *allocate(void *backend, size_t bytes) {
    (void)backend;
    void *memory = mmap(NULL, bytes ? bytes : 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void release(void *backend, void *memory, size_t bytes) {
    (void)backend;
    if (memory) check(!munmap(memory, bytes ? bytes : 1));
}

static void download(Backend *backend, void *host, const void *device, size_t bytes) {
    (void)backend, (void)device;
    if (bytes) memset(host, 0, bytes);
}

static void block_squares(Backend *backend, double *out, const float *x, int64_t blocks, int64_t block) {
    (void)backend, (void)x, (void)block;
    for (int64_t i = 0; i < blocks; i++) out[i] = 0;
}

static int64_t first_nonfinite(Backend *backend, const void *x, int64_t n, Dtype t) {
    (void)backend, (void)x, (void)n, (void)t;
    return -1;
}

static void wait_for_all(Backend *backend) { (void)backend; }

static const char *fault(Backend *backend) {
    (void)backend;
    return NULL;
}

static void destroy(Backend *b) { free(b); }

// Those that only write to the device: every kernel of backend.h that is not above, with what follows its backend.
// clang-format off
#define KERNELS(X)                                                                                                    \
    X(copy, void *to, const void *from, size_t bytes)                                                                 \
    X(upload, void *device, const void *host, size_t bytes)                                                           \
    X(zero, void *memory, size_t bytes)                                                                               \
    X(matmul, const Matmul *m)                                                                                        \
    X(sum_columns, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add)                         \
    X(convert, void *out, Dtype to, const void *x, Dtype from, int64_t n)                                             \
    X(add, void *out, const void *a, const void *b, int64_t n, int64_t n_b, Dtype t)                                  \
    X(add_in_place, void *out, const void *x, int64_t n, Dtype to, Dtype from)                                        \
    X(fold_add, void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t n_b, bool add)                        \
    X(mul, void *out, const void *a, const void *b, int64_t n, Dtype t, bool add)                                     \
    X(scale, void *out, const void *x, double factor, int64_t n, Dtype t, bool add)                                   \
    X(gelu_forward, void *y, const void *x, int64_t n, int kind, Dtype t)                                             \
    X(gelu_backward, void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t, bool add)                 \
    X(silu_forward, void *y, const void *x, int64_t n, Dtype t)                                                       \
    X(silu_backward, void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add)                           \
    X(swiglu_forward, void *y, const void *x, int64_t rows, int64_t width, Dtype t)                                   \
    X(swiglu_backward, void *dx, const void *dy, const void *x, int64_t rows, int64_t width, Dtype t, bool add)       \
    X(dropout, void *y, const void *x, int64_t n, double p, uint64_t seed, uint64_t site, uint64_t first, const       \
      int32_t *numbers, int64_t row, Dtype t, bool add)                                                               \
    X(rope, void *y, const void *x, const int32_t *positions, int64_t rows, int64_t width, int heads, int             \
      head_size, double base, bool inverse, Dtype t, bool add)                                                        \
    X(sum_into, float *out, const void *x, int64_t n, double factor, Dtype t)                                         \
    X(fill, void *x, const float *value, double factor, int64_t n, Dtype t, bool add)                                 \
    X(layernorm_forward, void *y, float *mean, float *rstd, const void *x, const float *scale, const float *shift,    \
      int64_t rows, int64_t width, double eps, Dtype t)                                                               \
    X(layernorm_backward_input, void *dx, const void *dy, const void *x, const float *mean, const float *rstd,        \
      const float *scale, int64_t rows, int64_t width, Dtype t, bool add)                                             \
    X(layernorm_backward_weight, float *dscale, float *dshift, const void *dy, const void *x, const float *mean,      \
      const float *rstd, int64_t rows, int64_t width, Dtype t, bool add_scale, bool add_shift)                        \
    X(rmsnorm_forward, void *y, float *rstd, const void *x, const float *scale, int64_t rows, int64_t width,          \
      double eps, Dtype t)                                                                                            \
    X(rmsnorm_backward_input, void *dx, const void *dy, const void *x, const float *rstd, const float *scale,         \
      int64_t rows, int64_t width, Dtype t, bool add)                                                                 \
    X(rmsnorm_backward_weight, float *dscale, const void *dy, const void *x, const float *rstd, int64_t rows,         \
      int64_t width, Dtype t, bool add)                                                                               \
    X(embedding_forward, void *y, const int32_t *ids, const void *table, int64_t n, int64_t width, int64_t vocab,     \
      Dtype t)                                                                                                        \
    X(embedding_backward, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width, int64_t        \
      vocab, Dtype t, bool add)                                                                                       \
    X(local_ids, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v)                                         \
    X(gather_rows, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, int64_t count, Dtype t,     \
      bool add)                                                                                                       \
    X(scatter_add_rows, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m, int64_t         \
      width, int64_t count)                                                                                           \
    X(scatter_rows, void *y, const void *base, int64_t base_rows, const void *x, const int32_t *rows, int64_t m,      \
      int64_t width, int64_t count, Dtype t)                                                                          \
    X(copy_rows, void *out, Dtype to, int64_t out_stride, int64_t out_first, const void *in, Dtype from, int64_t      \
      in_stride, int64_t in_first, int64_t batch, int64_t count, int64_t width, bool add)                             \
    X(mean_rows_forward, void *y, const void *x, const float *mask, int64_t batch, int64_t rows, int64_t width,       \
      Dtype t)                                                                                                        \
    X(mean_rows_backward, void *dx, const void *dy, const float *mask, int64_t batch, int64_t rows, int64_t width,    \
      Dtype t, bool add)                                                                                              \
    X(l2_normalize_forward, float *y, float *norm, const void *x, int64_t rows, int64_t width, Dtype t)               \
    X(l2_normalize_backward, void *dx, const float *dy, const float *y, const float *norm, int64_t rows, int64_t      \
      width, Dtype t, bool add)                                                                                       \
    X(pixels, void *y, const uint8_t *x, int64_t batch, int64_t height, int64_t width, const double *mean, const      \
      double *std, Dtype t)                                                                                           \
    X(patches_forward, void *y, const void *x, const int32_t *keep, int64_t batch, int64_t height, int64_t width,     \
      int patch, int64_t kept, Dtype t)                                                                               \
    X(patches_backward, void *dx, const void *dy, const int32_t *keep, int64_t batch, int64_t height, int64_t         \
      width, int patch, int64_t kept, Dtype t, bool add)                                                              \
    X(masked_patch_mse_forward, float *out, const void *x, const void *images, const int32_t *patches, int64_t m,     \
      int64_t batch, int64_t height, int64_t width, int patch, bool normalize, Dtype t)                               \
    X(masked_patch_mse_backward, void *dx, const float *factor, const void *x, const void *images, const int32_t      \
      *patches, int64_t m, int64_t batch, int64_t height, int64_t width, int patch, bool normalize, Dtype t, bool     \
      add)                                                                                                            \
    X(attention_forward, void *o, float *lse, const void *q, const void *k, const void *v, const AttentionShape       \
      *s, Dtype t)                                                                                                    \
    X(attention_backward, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse, const       \
      void *q, const void *k, const void *v, const AttentionShape *s, Dtype t, bool add)                              \
    X(cross_entropy_forward, float *lse, float *picked, const void *x, const void *w, const int32_t *targets,         \
      int64_t n, int64_t width, Vocabulary v, Dtype t)                                                                \
    X(cross_entropy_combine, float *loss, float *lse, const float *parts, const int32_t *targets, const float         \
      *weight, int ranks, int64_t n)                                                                                  \
    X(cross_entropy_backward, void *dx, bool add_x, float *dw, bool add_w, const float *d_loss, const float *lse,     \
      const void *x, const void *w, const int32_t *targets, const float *weight, int64_t n, int64_t width,            \
      Vocabulary v, Dtype t)                                                                                          \
    X(clip_sums, PairSums rows, PairSums columns, float *own, const PairTile *tile, const float *log_scale)           \
    X(clip_logsumexp, float *lse, PairSums sums, int64_t n)                                                           \
    X(clip_losses, double *loss, const float *row_lse, const float *column_lse, const float *own, int64_t n)          \
    X(clip_gradient, double *d_scale, const PairTile *tile, const float *row_lse, const float *column_lse, const      \
      float *log_scale, const float *factor)                                                                          \
    X(siglip_sums, double *loss, const PairTile *tile, const float *log_scale, const float *bias)                     \
    X(siglip_gradient, double *d_scale, double *d_bias, const PairTile *tile, const float *log_scale, const float     \
      *bias, const float *factor)                                                                                     \
    X(sum_rows, float *out, bool add, const double *x, int64_t n)                                                     \
    X(adamw, float *parameter, uint16_t *shadow, float *m, float *v, const float *gradient, int64_t n, const AdamW    \
      *how)
// clang-format on

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define DEFINE_KERNEL(name, ...)                                                                                       \
    static void name(Backend *backend, __VA_ARGS__) {}
#define INSTALL_KERNEL(name, ...) .name = name,
KERNELS(DEFINE_KERNEL)

Backend *dry_backend_new(void) {
    Backend *b = malloc(sizeof *b);
    check(b);
    *b = (Backend){.name = "dry",
                   .isa = "none",
                   .dry = true,
                   .destroy = destroy,
                   .allocate = allocate,
                   .release = release,
                   .download = download,
                   .wait = wait_for_all,
                   .fault = fault,
                   .block_squares = block_squares,
                   .first_nonfinite = first_nonfinite,
                   KERNELS(INSTALL_KERNEL)};
    return b;
}
