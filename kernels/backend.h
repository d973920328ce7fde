/* The backend: one struct of function pointers on raw pointers and sizes, filled by cpu/ (and by a GPU module). Outputs
 * come first, then inputs, then sizes. `Dtype t` is the type of the activations; vectors are f32 throughout. Gradients
 * take a Destination-like pair (pointer, add); what is added to a vector's is summed first. Kernels give the same bits
 * for any number of threads. */
#pragma once
#include "kernels/fp8.h"
#include "kernels/matmul.h"
#include "kernels/tensor.h"

typedef struct Backend Backend;
enum { BACKEND_LANES = 4 };
typedef struct BackendRead BackendRead; // of device memory, under way

typedef struct AdamW { // one fused update; Loshchilov and Hutter 2019
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    double gradient_scale;   // the gradient is multiplied by this first (clipping, averaging)
    double correction1, correction2; // 1 - beta^step
} AdamW;

typedef struct AdamWPart { // what is updated: a parameter, or a run of one
    float       *parameter, *m, *v; // (n)
    uint16_t    *shadow;            // (n) bf16 copy of the new values, or NULL
    const float *gradient;          // (n)
    int64_t      n;
    bool         decays; // by AdamW.weight_decay
} AdamWPart;

// What becomes of a step whose numbers the host does not wait for: in device memory, all zero before the first one.
typedef struct Gate {
    double  norm;           // of the step's gradients
    float   gradient_scale; // clipping, in place of AdamW.gradient_scale
    int32_t failed;         // something of this step, or of one before it, is not finite: nothing is updated any more
} Gate;

typedef struct FloatSpan { // of device memory
    const float *x;
    int64_t      n;
} FloatSpan;

typedef struct DoubleSum { // of device memory: out[0] = the sum of x
    const double *x; // (n)
    double       *out;
    int64_t       n;
    int64_t       elsewhere; // not 0: it counts elsewhere, and out[0] is 0 where it is finite, else not finite
} DoubleSum;

typedef struct Vocabulary { // words [first, first + held) of `all` have their rows in a table on this rank
    int64_t first, held, all;
    int64_t spare; // rows of zeros behind those, in the table and in its gradient, where products may go on into
} Vocabulary;

typedef struct AttentionShape {
    int64_t batch, queries, keys; // B, T, S
    int     heads, kv_heads, head_size;
    int     causal; // or 0; no byte of this struct is padding: launches with it are compared byte by byte
    int64_t q_stride, k_stride, v_stride, o_stride; // elements from one position to the next; batch stride = T or S times it
    const int32_t *range; // (B, T, 2) or NULL
} AttentionShape;

typedef struct DropoutDraws { // which numbers a dropout draws, and what it drops
    double p; // 0: nothing
    uint64_t seed, site;
    // x[i] is element e = first + i of its site, or, where rows of `row` elements have numbers of their own, element
    // numbers[e / row] * row + e % row
    uint64_t first;
    const int32_t *numbers; // or NULL
    int64_t row;
} DropoutDraws;

typedef struct NormGradients { // where those of a norm go
    void  *dx;                   // (N, C)
    float *dscale, *dshift;      // (C); rmsnorm: no dshift
    float *sums;                 // (C) or NULL: the sums over the rows of dx as it is then, overwritten
    bool   add_x, add_scale, add_shift;
} NormGradients;

typedef struct PairTile { // a tile of a contrastive loss: products z = a b^T of M images' and N texts' features
    float  *z;                     // (M, stride)
    int64_t rows, columns, stride; // M, N; stride is a multiple of 16, at least N
    int64_t offset, first, end;    // row r and column r + offset are a pair where the latter lies in [first, end)
    int     add_rows, add_columns; // whether sums over earlier tiles of these rows, these columns are there already
} PairTile;
typedef struct PairSums {
    float *most, *sum; // of exp(s - most)
} PairSums;

typedef enum FewRowsActivation {
    FEW_ROWS_PLAIN, FEW_ROWS_GELU_ERF, FEW_ROWS_GELU_TANH, FEW_ROWS_GELU_QUICK, FEW_ROWS_SILU,
    FEW_ROWS_SWIGLU, // w holds gates (n, k), then what they let through (n, k), and bias likewise
} FewRowsActivation;

// A product of a few rows with a large matrix, with what stands in front of it and behind it in a block:
// z = norm(x) w^T + bias, rounded as y is; y = residual + activation(z). All launches with it are compared byte by byte.
typedef struct FewRows {
    int64_t rows, n, k;
    const void *x, *w;        // (rows, k), (n, k)
    const float *bias;        // (n) or NULL
    const float *norm_scale, *norm_shift; // (k); shift NULL: rmsnorm; both NULL: x as it is
    double epsilon;
    const void *residual;     // (rows, n) or NULL
    void *y;                  // (rows, n), may be the residual; with a cache (rows, queries)
    // Queries, keys and values: columns from `queries` on go to row slots[r] of the cache (any, n - queries)
    void *cache;              // or NULL
    const int32_t *slots;     // (rows)
    int64_t queries, turned;  // the first `turned` columns are heads that rope turns; 0: none
    const int32_t *positions; // (rows) of rope
    double rope_base;
    int32_t head_size, activation; // FewRowsActivation
    // In place of x, which is NULL then: what attention_parts left, heads of head_size; k is theirs together
    const float *parts;       // (rows, heads, chunks, head_size + 2)
    const int32_t *range;     // (rows, 2) of that attention
    int64_t chunks;
} FewRows;

enum { ATTENTION_CHUNK = 128 }; // keys of a part

typedef struct WordDraw { // how a row of text chooses its words
    float    factor;       // log2(e) / temperature; 0: always the likeliest
    int32_t  top_k;        // 0: all
    double   top_p;        // 1: all
    uint64_t seed, number; // its draws: PURPOSE_SAMPLING, of element `number`, two words for each choice
    int32_t  most;         // choices, at the most
    int32_t  none;
} WordDraw;

// Rows of text that grow by a word at a time. All in device memory; each choice moves it on, so that the next word's
// work is the same as this one's.
typedef struct WordRows {
    const WordDraw *draws;     // (rows)
    int32_t        *next;      // (rows) the word chosen last, which the next pass reads
    int32_t        *positions; // (rows) of that word
    int32_t        *slots;     // (rows) where its keys and values go
    int32_t        *range;     // (rows, 2) the keys it sees: [first, end); nothing once the row is at its end
    int32_t        *step;      // (rows) choices so far
    int32_t        *said;      // (kept, rows): choice number n of a row at n % kept; once it is at its end: end
    int32_t         kept, end; // end: the word behind which a row is at its end, as it is behind its draw's `most`
} WordRows;

typedef struct DeviceSlice { // a piece of a device's own work
    const char *name;
    int    stream;     // from 0 on: those of one stream come one after another
    double begin, end; // seconds, by clock_seconds
} DeviceSlice;

struct Backend {
    const char *name; // "cpu", "cuda", "dry"
    const char *isa;  // "avx512-bf16", "avx512", "avx2", "plain"; for a GPU its architecture
    const char *device; // a GPU's own name; NULL: no GPU
    bool        dry;  // memory is never there and nothing is computed (dry.h): do not draw what would be uploaded
    bool        apart; // its memory is a device's, which the host must not touch: see comm/comm_device.h
    const struct DeviceLinks *links; // moves its memory between devices (comm/device_link.h); NULL: nothing does
    int64_t     words_unit; // a table of words is to have a multiple of these rows in memory; 0: any number
    void       *state;
    void (*destroy)(Backend *);

    // memory
    void *(*allocate)(void *backend, size_t bytes); // device memory; NULL where there is none left (ArenaSource's shape)
    void (*release)(void *backend, void *memory, size_t bytes);
    // Makes a block of `bytes` at least `more` longer where it stands; false: it cannot. NULL: no block can
    bool (*extend)(void *backend, void *memory, size_t bytes, size_t more);
    // Memory of the host, zeroed, that copy, upload and download take as they take the device's; copies of it run at the
    // speed of the bus. NULL: the device's memory is the host's. Use backend_allocate_host and backend_release_host
    void *(*allocate_host)(Backend *, size_t bytes); // NULL where there is none left
    void (*release_host)(Backend *, void *memory, size_t bytes);
    void (*copy)(Backend *, void *to, const void *from, size_t bytes);       // device to device
    void (*upload)(Backend *, void *device, const void *host, size_t bytes);
    void (*download)(Backend *, void *host, const void *device, size_t bytes); // waits
    void (*zero)(Backend *, void *memory, size_t bytes);
    void (*wait)(Backend *); // until all that was started is done
    // A run of calls that comes again with the same shapes, a training step say. Between begin and end calls may only be
    // written down; what was starts where the host waits and at the end, all at once where it came before. NULL: calls
    // start as they come. Use backend_sequence_begin and backend_sequence_end
    void (*sequence_begin)(Backend *, const char *name); // name: for the log and the trace; lives as long as the program
    void (*sequence_end)(Backend *);
    void (*flush)(Backend *); // starts what was written down so far, and does not wait. NULL: nothing ever is
    // Lanes: within a sequence calls go one behind the other in one lane, 0 at first, and beside those in others, but
    // where a wait orders them; outside of sequences, and NULL: all calls go in their order. What one call hands to
    // another over memory, and memory that is used again, is for the callers to order (a tape does: tape_lane).
    const LaneMark *here; // the mark behind what goes into the present lane now: it stands where that lane is left
    void (*lane)(Backend *, int lane); // where calls go from here on, below BACKEND_LANES
    void (*lane_wait)(Backend *, int lane, LaneMark until); // what follows in the lane comes behind the mark
    void (*lanes_meet)(Backend *); // what follows in any lane comes behind all before. Use backend_lanes_meet
    // Numbers the host wants later: copied in the order of the calls, while the host goes on. NULL: read at once. Use
    // backend_read_start and backend_read_finish
    BackendRead *(*read_start)(Backend *, const void *device, size_t bytes);
    void (*read_finish)(Backend *, BackendRead *, void *host);
    // For timelines; NULL: there is nothing to be seen. From begin on a device's own work is noted (false: it cannot be,
    // and the log says why); end hands all of it to `slice`, in the order of its beginnings
    bool (*watch_begin)(Backend *);
    void (*watch_end)(Backend *, void *context, void (*slice)(void *context, const DeviceSlice *));
    // For profilers: what is called between them belongs to `name`; they nest. NULL: nobody listens. Use backend_range
    void (*range_push)(Backend *, const char *name);
    void (*range_pop)(Backend *);
    void *listener; // of whoever set them
    bool (*memory)(Backend *, size_t *free, size_t *total); // bytes of a GPU's own memory; NULL: it has none of its own
    size_t (*memory_held)(Backend *); // bytes of it for tensors and work space; the rest is CUDA's, or others'. NULL likewise
    const char *(*fault)(Backend *); // what a device did wrong, which nothing can be done about; NULL: nothing (or no device)

    // matrix products
    void (*matmul)(Backend *, const Matmul *);
    // Whether a product with an epilogue or with sums is one call here, and faster than the calls apart; the answer for
    // a shape stays. NULL: never
    bool (*matmul_wins)(Backend *, const Matmul *);
    // The same of one product in BF16, with A and B rounded to fp8 first; m, n and k are multiples of 16, and A and B lie
    // without gaps. NULL: this device cannot
    void (*matmul_fp8)(Backend *, const Matmul *, Fp8Side a, Fp8Side b);
    // A product of a few rows as one call. NULL: it is none here. few_rows_wins: whether it can be and is faster than the
    // calls apart; the answer for a shape stays
    void (*few_rows)(Backend *, const FewRows *, Dtype t);
    // Attention of one query in each row, in parts of ATTENTION_CHUNK keys: parts (B, H, chunks, D + 2), for few_rows
    void (*attention_parts)(Backend *, float *parts, const void *q, const void *k, const void *v, const AttentionShape *, Dtype t);
    bool (*few_rows_wins)(Backend *, const FewRows *, Dtype t);
    void (*fp8_advance)(Backend *, Fp8Scaling *, float *most, int margin); // (FP8_SIDES) each, behind a step; most becomes 0
    void (*sum_columns)(Backend *, float *out, const void *x, int64_t rows, int64_t width, Dtype t, bool add); // out[c] = sum_r x[r, c]

    // elementwise; n elements
    void (*convert)(Backend *, void *out, Dtype to, const void *x, Dtype from, int64_t n);
    void (*add)(Backend *, void *out, const void *a, const void *b, int64_t n, int64_t n_b, Dtype t); // b repeats
    void (*add_in_place)(Backend *, void *out, const void *x, int64_t n, Dtype to, Dtype from);       // out += x
    void (*fold_add)(Backend *, void *db, Dtype tb, const void *dy, Dtype t, int64_t n, int64_t n_b, bool add); // db[i] = sum of repeats
    void (*mul)(Backend *, void *out, const void *a, const void *b, int64_t n, Dtype t, bool add);
    void (*scale)(Backend *, void *out, const void *x, double factor, int64_t n, Dtype t, bool add);
    void (*gelu_forward)(Backend *, void *y, const void *x, int64_t n, int kind, Dtype t);
    void (*gelu_backward)(Backend *, void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t, bool add);
    // The same of rows, and sums (width) (+)= those over the rows of dx, in one pass. NULL: not in less than the two calls
    void (*gelu_backward_sums)(Backend *, void *dx, float *sums, const void *dy, const void *x, int64_t rows, int64_t width, int kind,
                               Dtype t, bool add_sums);
    void (*silu_forward)(Backend *, void *y, const void *x, int64_t n, Dtype t);
    void (*silu_backward)(Backend *, void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add);
    void (*swiglu_forward)(Backend *, void *y, const void *x, int64_t rows, int64_t width, Dtype t); // width = F
    void (*swiglu_backward)(Backend *, void *dx, const void *dy, const void *x, int64_t rows, int64_t width, Dtype t, bool add);
    void (*dropout)(Backend *, void *y, const void *x, int64_t n, const DropoutDraws *, Dtype t, bool add);
    // y may be x
    void (*rope)(Backend *, void *y, const void *x, const int32_t *positions, int64_t rows, int64_t width, int heads, int head_size,
                 double base, bool inverse, Dtype t, bool add);
    // out[i], device: the sum of squares of x[i * block], ... x[i * block + block - 1]
    void (*block_squares)(Backend *, double *out, const float *x, int64_t blocks, int64_t block);
    int64_t (*first_nonfinite)(Backend *, const void *x, int64_t n, Dtype t); // index, or -1; waits
    void (*sum_into)(Backend *, float *out, const void *x, int64_t n, double factor, Dtype t); // out[0] = factor * sum
    void (*scale_by)(Backend *, void *out, Dtype to, const void *x, Dtype from, const float *by, int64_t n, bool add); // out (+)= by[0] * x
    void (*fill)(Backend *, void *x, const float *value, double factor, int64_t n, Dtype t, bool add); // x[i] (+)= factor * value[0]

    // rows
    void (*layernorm_forward)(Backend *, void *y, float *mean, float *rstd, const void *x, const float *scale, const float *shift,
                              int64_t rows, int64_t width, double eps, Dtype t);
    void (*layernorm_backward_input)(Backend *, void *dx, const void *dy, const void *x, const float *mean, const float *rstd,
                                     const float *scale, int64_t rows, int64_t width, Dtype t, bool add);
    void (*layernorm_backward_weight)(Backend *, float *dscale, float *dshift, const void *dy, const void *x, const float *mean,
                                      const float *rstd, int64_t rows, int64_t width, Dtype t, bool add_scale, bool add_shift);
    void (*rmsnorm_forward)(Backend *, void *y, float *rstd, const void *x, const float *scale, int64_t rows, int64_t width, double eps, Dtype t);
    void (*rmsnorm_backward_input)(Backend *, void *dx, const void *dy, const void *x, const float *rstd, const float *scale,
                                   int64_t rows, int64_t width, Dtype t, bool add);
    void (*rmsnorm_backward_weight)(Backend *, float *dscale, const void *dy, const void *x, const float *rstd, int64_t rows,
                                    int64_t width, Dtype t, bool add);
    // sum = x + dropout(f), y = the norm of sum as it is kept: what dropout, add and the norm would give one after the
    // other. mean and shift NULL: rmsnorm
    void (*add_norm_forward)(Backend *, void *sum, void *y, float *mean, float *rstd, const void *x, const void *f, const float *scale,
                             const float *shift, int64_t rows, int64_t width, double eps, const DropoutDraws *, Dtype t);
    // dsum (+)= the norm's gradient of its input, then df (+)= dropout(dsum); mean NULL: rmsnorm
    void (*add_norm_backward)(Backend *, void *dsum, void *df, const void *dy, const void *sum, const float *mean, const float *rstd,
                              const float *scale, int64_t rows, int64_t width, const DropoutDraws *, Dtype t, bool add_sum, bool add_f);
    // All gradients of a norm in one pass over dy and x; mean NULL: rmsnorm. NULL: not in less than the calls apart
    void (*norm_backward)(Backend *, const NormGradients *, const void *dy, const void *x, const float *mean, const float *rstd,
                          const float *scale, int64_t rows, int64_t width, Dtype t);
    void (*embedding_forward)(Backend *, void *y, const int32_t *ids, const void *table, int64_t n, int64_t width, int64_t vocab, Dtype t);
    // dtable is f32 (V, C); rows of one id add in the order of n
    void (*embedding_backward)(Backend *, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width, int64_t vocab, Dtype t, bool add);
    // local[i] = ids[i] - v.first, or -1 where the table does not hold the word; negative ids stay so
    void (*local_ids)(Backend *, int32_t *local, const int32_t *ids, int64_t n, Vocabulary v);
    // y[m] (+)= x[rows[m]], x (count, width)
    void (*gather_rows)(Backend *, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, int64_t count, Dtype t, bool add);
    // y[rows[m]] (+)= x[m], in the order of m for a repeated row; only the named rows are touched (zero y first if need be)
    void (*scatter_add_rows)(Backend *, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m, int64_t width, int64_t count);
    // y[r] = x[m] where rows[m] = r, else base, of type t too (rank 1: base_rows 1; whole: base_rows count; NULL: zeros)
    void (*scatter_rows)(Backend *, void *y, const void *base, int64_t base_rows, const void *x, const int32_t *rows, int64_t m,
                         int64_t width, int64_t count, Dtype t);
    // y[rows[m]] = x[m], of type t too: the rows differ, and what they do not name stays
    void (*put_rows)(Backend *, void *y, const void *x, const int32_t *rows, int64_t m, int64_t width, int64_t count, Dtype t);
    // Each row's next word by its scores x (rows, width), and WordRows moved on. Weights are integers, round(2^40 p / p of
    // the likeliest), and stand in the order of falling scores (of equals the first in front): top_k of them; of these
    // the fewest that hold top_p; then by lot. So the choice is the same on every device. -1, where one is NaN or the
    // largest is not finite: the row is at its end then too
    void (*choose_words)(Backend *, const WordRows *, const void *x, int64_t rows, int64_t width, Dtype t);
    // copies `count` rows for each of `batch`: out row b * out_stride + out_first + i (+)= in row b * in_stride + in_first + i
    void (*copy_rows)(Backend *, void *out, Dtype to, int64_t out_stride, int64_t out_first, const void *in, Dtype from, int64_t in_stride,
                      int64_t in_first, int64_t batch, int64_t count, int64_t width, bool add);
    void (*mean_rows_forward)(Backend *, void *y, const void *x, const float *mask, int64_t batch, int64_t rows, int64_t width, Dtype t);
    void (*mean_rows_backward)(Backend *, void *dx, const void *dy, const float *mask, int64_t batch, int64_t rows, int64_t width, Dtype t, bool add);
    void (*l2_normalize_forward)(Backend *, float *y, float *norm, const void *x, int64_t rows, int64_t width, Dtype t);
    void (*l2_normalize_backward)(Backend *, void *dx, const float *dy, const float *y, const float *norm, int64_t rows, int64_t width, Dtype t, bool add);

    // pictures
    // mirrored (B): not 0 where a picture is mirrored from left to right; NULL: none
    void (*pixels)(Backend *, void *y, const uint8_t *x, const uint8_t *mirrored, int64_t batch, int64_t height, int64_t width, const double *mean, const double *std, Dtype t);
    // (B, 3, H, W) -> (B, M, 3 P P), flattened (c, y, x); keep (B, M) or NULL
    void (*patches_forward)(Backend *, void *y, const void *x, const int32_t *keep, int64_t batch, int64_t height, int64_t width, int patch,
                            int64_t kept, Dtype t);
    void (*patches_backward)(Backend *, void *dx, const void *dy, const int32_t *keep, int64_t batch, int64_t height, int64_t width, int patch,
                             int64_t kept, Dtype t, bool add);
    // out[0] = loss; backward: dx = factor[0] * dloss/dx
    void (*masked_patch_mse_forward)(Backend *, float *out, const void *x, const void *images, const int32_t *patches, int64_t m,
                                     int64_t batch, int64_t height, int64_t width, int patch, bool normalize, Dtype t);
    void (*masked_patch_mse_backward)(Backend *, void *dx, const float *factor, const void *x, const void *images, const int32_t *patches,
                                      int64_t m, int64_t batch, int64_t height, int64_t width, int patch, bool normalize, Dtype t, bool add);

    // attention; lse (B, H, T): logsumexp of each query's scores. Backward overwrites or adds each of dq, dk, dv, whose
    // strides are those of q, k, v; any of them may be NULL
    void (*attention_forward)(Backend *, void *o, float *lse, const void *q, const void *k, const void *v, const AttentionShape *, Dtype t);
    void (*attention_backward)(Backend *, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse, const void *q,
                               const void *k, const void *v, const AttentionShape *, Dtype t, bool add);

    // losses. Of the words held: lse (N), picked (N) the target's logit, 0 where it is not held; both 0 without a target
    void (*cross_entropy_forward)(Backend *, float *lse, float *picked, const void *x, const void *w, const int32_t *targets, int64_t n,
                                  int64_t width, Vocabulary v, Dtype t);
    // From the tables of all ranks, parts (ranks, 2, N) of lse and picked: loss (N), and lse (N) over all words
    void (*cross_entropy_combine)(Backend *, float *loss, float *lse, const float *parts, const int32_t *targets, const float *weight,
                                  int ranks, int64_t n);
    // Backward: d_loss (N) f32; lse (N) over all words; dx (N, C) or NULL: its part by the words held; dw (held, C) f32 or NULL
    void (*cross_entropy_backward)(Backend *, void *dx, bool add_x, float *dw, bool add_w, const float *d_loss, const float *lse, const void *x,
                                   const void *w, const int32_t *targets, const float *weight, int64_t n, int64_t width, Vocabulary v, Dtype t);
    // Both at once, where all words are held and d_loss would be ones: dx (N, C), dw (V, C) f32, either may be NULL, both are
    // overwritten. NULL: not in less than the two calls
    void (*cross_entropy_both)(Backend *, float *lse, float *picked, void *dx, float *dw, const void *x, const void *w, const int32_t *targets,
                               const float *weight, int64_t n, int64_t width, Vocabulary v, Dtype t);
    // contrastive losses, on one tile of products; rows' and columns' arrays begin at those of the tile. Softmax: the
    // running sums of exp of both, and the logit of each row's own pair where it is in the tile
    void (*clip_sums)(Backend *, PairSums rows, PairSums columns, float *own, const PairTile *, const float *log_scale);
    void (*clip_join)(Backend *, PairSums a, PairSums b, int64_t n); // a becomes the sums over what both are over
    void (*clip_logsumexp)(Backend *, float *lse, PairSums sums, int64_t n);
    void (*clip_losses)(Backend *, double *loss, const float *row_lse, const float *column_lse, const float *own, int64_t n); // of each pair
    // z becomes the gradient of factor[0] x loss by z; d_scale (M): each row's part of that by log_scale
    void (*clip_gradient)(Backend *, double *d_scale, const PairTile *, const float *row_lse, const float *column_lse,
                          const float *log_scale, const float *factor);
    void (*siglip_sums)(Backend *, double *loss, const PairTile *, const float *log_scale, const float *bias); // loss (M)
    void (*siglip_gradient)(Backend *, double *d_scale, double *d_bias, const PairTile *, const float *log_scale, const float *bias,
                            const float *factor);
    void (*sum_rows)(Backend *, float *out, bool add, const double *x, int64_t n); // out[0] (+)= sum of x

    // optimizer. All parts in as few launches as there may be; gate, device: NULL where the host knows that all is well
    void (*adamw_parts)(Backend *, const AdamWPart *parts, int count, const AdamW *, const Gate *);
    // The same of parts whose m and v, and where there is a shadow the parameter too, are memory of allocate_host: they go
    // through a window on the device, part by part, up and down beside the arithmetic. NULL where that is
    void (*adamw_streamed)(Backend *, const AdamWPart *parts, int count, const AdamW *, const Gate *, void *window, size_t bytes);
    // out[0], device: the sum of squares of all spans, in f64 and a fixed order; not finite where any of finite (n) is not
    void (*sum_squares)(Backend *, double *out, const FloatSpan *spans, int count, const float *finite, int64_t n);
    // Sums in f64, each in an order that depends on its n alone
    void (*sum_doubles)(Backend *, const DoubleSum *sums, int count);
    // The gate of a step whose squares (n), device, are all the parts of its norm, added along a binary tree as a
    // COMM_ORDERED sum is; clip: the largest norm, 0: any
    void (*gate)(Backend *, Gate *, const double *squares, int64_t n, double clip);
};

void backend_free(Backend *); // NULL is allowed
void backend_range_push(Backend *, const char *name);
void backend_range_pop(Backend *);
void *backend_allocate_host(Backend *, size_t bytes); // zeroed; NULL where there is none left
void backend_release_host(Backend *, void *memory, size_t bytes);
void backend_sequence_begin(Backend *, const char *name);
void backend_sequence_end(Backend *);
void backend_lanes_meet(Backend *);
// What lies at `device` once all calls up to now are done; the memory may be used otherwise by calls behind this one.
BackendRead *backend_read_start(Backend *, const void *device, size_t bytes);
void backend_read_finish(Backend *, BackendRead *, void *host); // waits for it alone and frees it; host NULL: frees it
