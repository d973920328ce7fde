/* See dry.h. */
#include "kernels/dry.h"
#include "base/error.h"
#include <math.h>
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

static int64_t first_nonfinite(Backend *backend, const void *x, int64_t n, Dtype t) {
    (void)backend, (void)x, (void)n, (void)t;
    return -1;
}

static void wait_for_all(Backend *backend) { (void)backend; }

static const char *fault(Backend *backend) {
    (void)backend;
    return NULL;
}

// ---- what kernels would take ----

enum { KERNELS_MOST = 96 };

typedef struct DryClock {
    DryRates rates; // without a bandwidth: it stands still
    double seconds, flop_seconds, byte_seconds;
    DryLanes lanes;
    DryKernel of[KERNELS_MOST]; // each kernel
    int more[KERNELS_MOST];     // launches of one of its calls beyond the first
} DryClock;

void dry_set_rates(Backend *b, const DryRates *rates) {
    check(b->dry && rates->bf16 > 0 && rates->f32 > 0 && rates->bandwidth > 0);
    DryClock *clock = b->state;
    clock->rates = *rates, clock->seconds = clock->flop_seconds = clock->byte_seconds = 0;
    dry_lanes_start(&clock->lanes);
    memset(clock->of, 0, sizeof clock->of);
}

double dry_seconds(const Backend *b) { return ((const DryClock *)b->state)->seconds; }
double dry_floor(const Backend *b) {
    const DryClock *clock = b->state;
    return fmax(clock->flop_seconds, clock->byte_seconds);
}

static void destroy(Backend *b) {
    dry_lanes_free(&((DryClock *)b->state)->lanes);
    free(b->state);
    free(b);
}

// ---- lanes ----

static DryLanes *lanes_of(Backend *b) { return &((DryClock *)b->state)->lanes; }
static void set_lane(Backend *b, int lane) { dry_lanes_set(lanes_of(b), lane); }
static void lane_wait(Backend *b, int lane, LaneMark until) { dry_lanes_wait(lanes_of(b), lane, until); }
static void lanes_meet(Backend *b) { dry_lanes_meet(lanes_of(b)); }

void dry_open_lanes(Backend *b) {
    dry_lanes_start(lanes_of(b));
    b->here = &lanes_of(b)->here;
    b->lane = set_lane, b->lane_wait = lane_wait, b->lanes_meet = lanes_meet;
}

DryLane dry_lane(const Backend *b, int lane) { return ((const DryClock *)b->state)->lanes.of[lane]; }

// ---- what kernels move ----

static double product_bytes(const Matmul *m) {
    double in = (double)dtype_size(m->in), out = (double)dtype_size(m->out) * (1 + (m->add != 0) + (m->aux != NULL));
    return (double)m->batch * (in * (double)(m->m + m->n) * (double)m->k + out * (double)m->m * (double)m->n);
}

// FLOP of q k^T, or of p v. Positions with ranges are those of text: they see what is before them.
static double attention_product(const AttentionShape *s) {
    double seen = s->causal || s->range ? 0.5 : 1;
    return seen * 2 * (double)s->batch * s->heads * s->head_size * (double)s->queries * (double)s->keys;
}

static double attention_bytes(const AttentionShape *s, Dtype t) {
    double elements = 2 * (double)s->queries * s->heads + 2 * (double)s->keys * s->kv_heads;
    return (double)dtype_size(t) * (double)s->batch * s->head_size * elements;
}

static double elements_of(const AdamWPart *parts, int count) {
    double n = 0;
    for (int i = 0; i < count; i++) n += (double)parts[i].n;
    return n;
}

static double elements_in(const FloatSpan *spans, int count) {
    double n = 0;
    for (int i = 0; i < count; i++) n += (double)spans[i].n;
    return n;
}

static double doubles_in(const DoubleSum *sums, int count) {
    double n = 0;
    for (int i = 0; i < count; i++) n += (double)sums[i].n;
    return n;
}

// ---- kernels ----

#define SIZE(t) (double)dtype_size(t)
// Those that only write to the device: every kernel of backend.h that is not above, with its FLOP (of products, whose
// type comes first), the bytes that it reads and writes at least once, and what follows its backend.
// clang-format off
#define PRODUCTS(X)                                                                                                   \
    X(matmul, m->in, 2.0 * m->m * m->n * m->k * m->batch, product_bytes(m), const Matmul *m)                                 \
    X(matmul_fp8, E4M3, 2.0 * m->m * m->n * m->k * m->batch, product_bytes(m), const Matmul *m, Fp8Side left, Fp8Side right) \
    X(attention_forward, t, 2 * attention_product(s), attention_bytes(s, t), void *o, float *lse, const void *q,         \
      const void *k, const void *v, const AttentionShape *s, Dtype t)                                                 \
    X(attention_backward, t, 5 * attention_product(s), 2 * attention_bytes(s, t), void *dq, void *dk, void *dv,          \
      const void *d_o, const void *o, const float *lse, const void *q, const void *k, const void *v, const            \
      AttentionShape *s, Dtype t, bool add)                                                                           \
    X(cross_entropy_forward, t, 2.0 * n * width * v.held, width * (n + v.held) * SIZE(t), float *lse, float              \
      *picked, const void *x, const void *w, const int32_t *targets, int64_t n, int64_t width, Vocabulary v,          \
      Dtype t)                                                                                                        \
    X(cross_entropy_backward, t, 2.0 * n * width * v.held * (1 + (dx != NULL) + (dw != NULL)), width * (2.0 * n +        \
      v.held) * SIZE(t) + (dw ? 4.0 * width * v.held : 0), void *dx, bool add_x, float *dw, bool add_w, const         \
      float *d_loss, const float *lse, const void *x, const void *w, const int32_t *targets, const float              \
      *weight, int64_t n, int64_t width, Vocabulary v, Dtype t)
#define KERNELS(X)                                                                                                    \
    X(copy, 2.0 * bytes, void *to, const void *from, size_t bytes)                                                 \
    X(upload, 2.0 * bytes, void *device, const void *host, size_t bytes)                                           \
    X(zero, bytes, void *memory, size_t bytes)                                                                     \
    X(sum_columns, rows * width * SIZE(t), float *out, const void *x, int64_t rows, int64_t width, Dtype t,        \
      bool add)                                                                                                       \
    X(convert, n * (SIZE(from) + SIZE(to)), void *out, Dtype to, const void *x, Dtype from, int64_t n)             \
    X(add, (2.0 * n + n_b) * SIZE(t), void *out, const void *a, const void *b, int64_t n, int64_t n_b, Dtype       \
      t)                                                                                                              \
    X(add_in_place, n * (SIZE(from) + 2 * SIZE(to)), void *out, const void *x, int64_t n, Dtype to, Dtype          \
      from)                                                                                                           \
    X(fold_add, n * SIZE(t) + n_b * SIZE(tb), void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t      \
      n_b, bool add)                                                                                                  \
    X(mul, (3 + add) * n * SIZE(t), void *out, const void *a, const void *b, int64_t n, Dtype t, bool add)                 \
    X(scale, (2 + add) * n * SIZE(t), void *out, const void *x, double factor, int64_t n, Dtype t, bool add)               \
    X(gelu_forward, 2 * n * SIZE(t), void *y, const void *x, int64_t n, int kind, Dtype t)                         \
    X(gelu_backward, (3 + add) * n * SIZE(t), void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t,       \
      bool add)                                                                                                       \
    X(silu_forward, 2 * n * SIZE(t), void *y, const void *x, int64_t n, Dtype t)                                   \
    X(silu_backward, (3 + add) * n * SIZE(t), void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add)       \
    X(swiglu_forward, 3 * rows * width * SIZE(t), void *y, const void *x, int64_t rows, int64_t width, Dtype       \
      t)                                                                                                              \
    X(swiglu_backward, (5 + 2 * add) * rows * width * SIZE(t), void *dx, const void *dy, const void *x, int64_t rows,          \
      int64_t width, Dtype t, bool add)                                                                               \
    X(dropout, (2 + add) * n * SIZE(t), void *y, const void *x, int64_t n, const DropoutDraws *draws, Dtype t, bool add)   \
    X(add_norm_forward, 4 * rows * width * SIZE(t), void *sum, void *y, float *mean, float *rstd, const void *x,   \
      const void *f, const float *scale, const float *shift, int64_t rows, int64_t width, double eps, const           \
      DropoutDraws *draws, Dtype t)                                                                                   \
    X(add_norm_backward, (3 + add_sum + (df != NULL) + (df && add_f)) * rows * width * SIZE(t), void *dsum, void *df, const void *dy, const void *sum,        \
      const float *mean, const float *rstd, const float *scale, int64_t rows, int64_t width, const DropoutDraws       \
      *draws, Dtype t, bool add_sum, bool add_f)                                                                      \
    X(norm_backward, (3 + out->add_x) * rows * width * SIZE(t), const NormGradients *out, const void *dy, const void  \
      *x, const float *mean, const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t)             \
    X(gelu_backward_sums, 3 * rows * width * SIZE(t), void *dx, float *sums, const void *dy, const void *x, int64_t   \
      rows, int64_t width, int kind, Dtype t, bool add_sums)                                                          \
    X(rope, (2 + add) * rows * width * SIZE(t), void *y, const void *x, const int32_t *positions, int64_t rows,            \
      int64_t width, int heads, int head_size, double base, bool inverse, Dtype t, bool add)                          \
    X(block_squares, 4.0 * blocks * block, double *out, const float *x, int64_t blocks, int64_t block)             \
    X(sum_into, n * SIZE(t), float *out, const void *x, int64_t n, double factor, Dtype t)                         \
    X(scale_by, n * (SIZE(to) + SIZE(from)), void *out, Dtype to, const void *x, Dtype from, const float *by,         \
      int64_t n, bool add)                                                                                            \
    X(fill, n * SIZE(t), void *x, const float *value, double factor, int64_t n, Dtype t, bool add)                 \
    X(layernorm_forward, 2 * rows * width * SIZE(t), void *y, float *mean, float *rstd, const void *x, const       \
      float *scale, const float *shift, int64_t rows, int64_t width, double eps, Dtype t)                             \
    X(layernorm_backward_input, (3 + add) * rows * width * SIZE(t), void *dx, const void *dy, const void *x, const         \
      float *mean, const float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t, bool add)             \
    X(layernorm_backward_weight, 2 * rows * width * SIZE(t), float *dscale, float *dshift, const void *dy,         \
      const void *x, const float *mean, const float *rstd, int64_t rows, int64_t width, Dtype t, bool add_scale,      \
      bool add_shift)                                                                                                 \
    X(rmsnorm_forward, 2 * rows * width * SIZE(t), void *y, float *rstd, const void *x, const float *scale,        \
      int64_t rows, int64_t width, double eps, Dtype t)                                                               \
    X(rmsnorm_backward_input, (3 + add) * rows * width * SIZE(t), void *dx, const void *dy, const void *x, const           \
      float *rstd, const float *scale, int64_t rows, int64_t width, Dtype t, bool add)                                \
    X(rmsnorm_backward_weight, 2 * rows * width * SIZE(t), float *dscale, const void *dy, const void *x,           \
      const float *rstd, int64_t rows, int64_t width, Dtype t, bool add)                                              \
    X(embedding_forward, 2 * n * width * SIZE(t), void *y, const int32_t *ids, const void *table, int64_t n,       \
      int64_t width, int64_t vocab, Dtype t)                                                                          \
    X(embedding_backward, n * width * (SIZE(t) + 8) + (add ? 0 : vocab * width * 4), float *dtable, const          \
      void *dy, const int32_t *ids, int64_t n, int64_t width, int64_t vocab, Dtype t, bool add)                       \
    X(local_ids, 8 * n, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v)                               \
    X(gather_rows, (2 + add) * m * width * SIZE(t), void *y, const void *x, const int32_t *rows, int64_t m, int64_t        \
      width, int64_t count, Dtype t, bool add)                                                                        \
    X(scatter_add_rows, m * width * (SIZE(from) + 2 * SIZE(to)), void *y, Dtype to, const void *x, Dtype           \
      from, const int32_t *rows, int64_t m, int64_t width, int64_t count)                                             \
    X(scatter_rows, 2 * count * width * SIZE(t), void *y, const void *base, int64_t base_rows, const void *x,      \
      const int32_t *rows, int64_t m, int64_t width, int64_t count, Dtype t)                                          \
    X(put_rows, 2 * m * width * SIZE(t), void *y, const void *x, const int32_t *rows, int64_t m, int64_t width,    \
      int64_t count, Dtype t)                                                                                         \
    X(choose_words, rows * width * SIZE(t), const WordRows *speech, const void *x, int64_t rows, int64_t width, Dtype t) \
    X(copy_rows, batch * count * width * (SIZE(from) + SIZE(to)), void *out, Dtype to, int64_t out_stride,         \
      int64_t out_first, const void *in, Dtype from, int64_t in_stride, int64_t in_first, int64_t batch, int64_t      \
      count, int64_t width, bool add)                                                                                 \
    X(mean_rows_forward, batch * rows * width * SIZE(t), void *y, const void *x, const float *mask, int64_t        \
      batch, int64_t rows, int64_t width, Dtype t)                                                                    \
    X(mean_rows_backward, batch * rows * width * SIZE(t), void *dx, const void *dy, const float *mask,             \
      int64_t batch, int64_t rows, int64_t width, Dtype t, bool add)                                                  \
    X(l2_normalize_forward, 2 * rows * width * SIZE(t), float *y, float *norm, const void *x, int64_t rows,        \
      int64_t width, Dtype t)                                                                                         \
    X(l2_normalize_backward, (3 + add) * rows * width * SIZE(t), void *dx, const float *dy, const float *y, const          \
      float *norm, int64_t rows, int64_t width, Dtype t, bool add)                                                    \
    X(pixels, 3 * batch * height * width * (1 + SIZE(t)), void *y, const uint8_t *x, const uint8_t *mirrored,       \
      int64_t batch, int64_t height, int64_t width, const double *mean, const double *std, Dtype t)                                          \
    X(patches_forward, 6 * batch * kept * patch * patch * SIZE(t), void *y, const void *x, const int32_t           \
      *keep, int64_t batch, int64_t height, int64_t width, int patch, int64_t kept, Dtype t)                          \
    X(patches_backward, 6 * batch * kept * patch * patch * SIZE(t), void *dx, const void *dy, const int32_t        \
      *keep, int64_t batch, int64_t height, int64_t width, int patch, int64_t kept, Dtype t, bool add)                \
    X(masked_patch_mse_forward, 6.0 * m * patch * patch * SIZE(t), float *out, const void *x, const          \
      void *images, const int32_t *patches, int64_t m, int64_t batch, int64_t height, int64_t width, int patch,       \
      bool normalize, Dtype t)                                                                                        \
    X(masked_patch_mse_backward, 9.0 * m * patch * patch * SIZE(t), void *dx, const float *factor,           \
      const void *x, const void *images, const int32_t *patches, int64_t m, int64_t batch, int64_t height,            \
      int64_t width, int patch, bool normalize, Dtype t, bool add)                                                    \
    X(cross_entropy_combine, (2.0 * ranks + 2) * 4 * n, float *loss, float *lse, const float *parts, const         \
      int32_t *targets, const float *weight, int ranks, int64_t n)                                                    \
    X(clip_sums, 4 * tile->rows * tile->columns, PairSums rows, PairSums columns, float *own, const PairTile       \
      *tile, const float *log_scale)                                                                                  \
    X(clip_join, 24 * n, PairSums a, PairSums b, int64_t n)                                                            \
    X(clip_logsumexp, 12 * n, float *lse, PairSums sums, int64_t n)                                                \
    X(clip_losses, 20 * n, double *loss, const float *row_lse, const float *column_lse, const float *own,          \
      int64_t n)                                                                                                      \
    X(clip_gradient, 8 * tile->rows * tile->columns, double *d_scale, const PairTile *tile, const float            \
      *row_lse, const float *column_lse, const float *log_scale, const float *factor)                                 \
    X(siglip_sums, 4 * tile->rows * tile->columns, double *loss, const PairTile *tile, const float                 \
      *log_scale, const float *bias)                                                                                  \
    X(siglip_gradient, 8 * tile->rows * tile->columns, double *d_scale, double *d_bias, const PairTile *tile,      \
      const float *log_scale, const float *bias, const float *factor)                                                 \
    X(sum_rows, 12 * n, float *out, bool add, const double *x, int64_t n)                                          \
    X(adamw_parts, 28 * elements_of(parts, count), const AdamWPart *parts, int count, const AdamW *how, const      \
      Gate *gate)                                                                                                     \
    X(sum_squares, 4 * elements_in(spans, count), double *out, const FloatSpan *spans, int count, const float           \
      *finite, int64_t n)                                                                                             \
    X(sum_doubles, 8 * doubles_in(sums, count), const DoubleSum *sums, int count)                                     \
    X(gate, 8 * n, Gate *gate, const double *squares, int64_t n, double clip)
// clang-format on

#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wconversion" // of counts to numbers of bytes
#define NUMBER_PRODUCT(name, ...) NUMBER_##name,
#define NUMBER_KERNEL(name, ...)  NUMBER_##name,
#define NAME_PRODUCT(name, ...)   #name,
#define NAME_KERNEL(name, ...)    #name,
#define DEFINE_PRODUCT(name, t, flop, bytes, ...)                                                                      \
    static void name(Backend *backend, __VA_ARGS__) {                                                                  \
        charge(backend, NUMBER_##name, t, (double)(flop), (double)(bytes));                                            \
    }
#define DEFINE_KERNEL(name, bytes, ...)                                                                                \
    static void name(Backend *backend, __VA_ARGS__) { charge(backend, NUMBER_##name, F32, 0, (double)(bytes)); }
#define INSTALL_PRODUCT(name, t, flop, bytes, ...) .name = name,
#define INSTALL_KERNEL(name, bytes, ...)           .name = name,
enum { PRODUCTS(NUMBER_PRODUCT) KERNELS(NUMBER_KERNEL) KERNEL_COUNT };
_Static_assert((int)KERNEL_COUNT <= (int)KERNELS_MOST, "each kernel has a count");
static const char *const kernel_names[KERNEL_COUNT] = {PRODUCTS(NAME_PRODUCT) KERNELS(NAME_KERNEL)};

static double rate_of(const DryRates *r, int kernel, Dtype t) {
    bool attention = kernel == NUMBER_attention_forward || kernel == NUMBER_attention_backward;
    if (attention && t == BF16 && r->attention > 0) return r->attention;
    return t == F32 ? r->f32 : t == BF16 ? r->bf16 : r->fp8;
}

// flop: of products in type t
static void charge(Backend *b, int kernel, Dtype t, double flop, double bytes) {
    DryClock *clock = b->state;
    DryKernel *k = &clock->of[kernel];
    const DryRates *r = &clock->rates;
    int launches = 1 + clock->more[kernel];
    k->calls++, k->launches += launches;
    k->flop += flop, k->bytes += bytes;
    if (!(r->bandwidth > 0)) return;
    double computes = flop > 0 ? flop / rate_of(r, kernel, t) : 0, moves = bytes / r->bandwidth;
    double work = fmax(computes, moves), gaps = launches * r->launch;
    k->work += work, k->gaps += gaps;
    clock->seconds += work + gaps, clock->flop_seconds += computes, clock->byte_seconds += moves;
    dry_lanes_advance(&clock->lanes, work + gaps);
}

PRODUCTS(DEFINE_PRODUCT)
KERNELS(DEFINE_KERNEL)

static int number_of(const char *kernel) {
    for (int i = 0; i < KERNEL_COUNT; i++)
        if (!strcmp(kernel, kernel_names[i])) return i;
    check_failed("a kernel of this name", __FILE__, __LINE__);
}

int64_t dry_calls(const Backend *b, const char *kernel) {
    const DryClock *clock = b->state;
    int64_t all = 0;
    if (kernel) return clock->of[number_of(kernel)].calls;
    for (int i = 0; i < KERNEL_COUNT; i++) all += clock->of[i].calls;
    return all;
}

bool dry_kernel(const Backend *b, int number, DryKernel *out) {
    if (number >= KERNEL_COUNT) return false;
    *out = ((const DryClock *)b->state)->of[number];
    out->name = kernel_names[number];
    out->product = number < NUMBER_copy;
    return true;
}

void dry_set_launches(Backend *b, const char *kernel, int launches) {
    ((DryClock *)b->state)->more[number_of(kernel)] = launches - 1;
}

void dry_charge(Backend *b, const char *kernel, double bytes) { charge(b, number_of(kernel), F32, 0, bytes); }

static void advance_fp8(Backend *backend, Fp8Scaling *scaling, float *most, int margin) {} // a few numbers

void dry_fuse(Backend *b) { b->norm_backward = norm_backward, b->gelu_backward_sums = gelu_backward_sums; }

Backend *dry_backend_new(void) {
    Backend *b = malloc(sizeof *b);
    DryClock *state = calloc(1, sizeof *state);
    check(b && state);
    *b = (Backend){.name = "dry",
                   .isa = "none",
                   .dry = true,
                   .state = state,
                   .destroy = destroy,
                   .allocate = allocate,
                   .release = release,
                   .download = download,
                   .wait = wait_for_all,
                   .fault = fault,
                   .first_nonfinite = first_nonfinite,
                   .fp8_advance = advance_fp8,
                   PRODUCTS(INSTALL_PRODUCT) KERNELS(INSTALL_KERNEL)};
    b->norm_backward = NULL, b->gelu_backward_sums = NULL; // calls apart, as on the CPU: see dry_fuse
    return b;
}
