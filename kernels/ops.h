/* Every operator as a function on a tape, with its formula. Shapes: N rows; B batch; T sequence; C width; F width out;
 * H heads; K key-value heads; D head size; V vocabulary; P patch side; M rows picked. Activations are F32 or BF16
 * ("x"); vectors (biases, norm scales) are F32 in either precision; indices are I32. On an error the tape keeps the
 * message and NULL is returned; NULL inputs from an earlier error pass through. */
#pragma once
#include "kernels/tape.h"

// y = x W^T + b;  dx = dy W;  dW = dy^T x;  db = sum over rows of dy
Tensor *linear(Tape *, Tensor *x, Tensor *weight, Tensor *bias); // (.., C) (F, C) (F)|NULL -> (.., F)

// y = a b (or a b^T);  da = dy b^T (dy b);  db = a^T dy (dy^T a)
Tensor *batched_matmul(Tape *, Tensor *a, Tensor *b, bool transpose_b); // (B, M, K) (B, K, N)|(B, N, K) -> (B, M, N)

// y[n] = table[ids[n]];  dtable[v] = sum over n with ids[n] = v of dy[n], in the order of n. Negative ids give zeros.
Tensor *embedding(Tape *, Tensor *ids, Tensor *table); // (..) I32, (V, C) -> (.., C)
// The table holds words [first, first + rows of the table) of a vocabulary; the others give zeros: summed over ranks
// that hold one part each, the whole embedding.
Tensor *split_embedding(Tape *, Tensor *ids, Tensor *table, int64_t first, int64_t vocabulary);

// y = (x - mean) / sqrt(var + eps) * scale + shift, over the last dimension (Ba et al. 2016)
Tensor *layernorm(Tape *, Tensor *x, Tensor *scale, Tensor *shift, double eps); // (.., C) (C) (C) -> (.., C)

// y = x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich 2019)
Tensor *rmsnorm(Tape *, Tensor *x, Tensor *scale, double eps); // (.., C) (C) -> (.., C)

// sum = x + dropout(f); y = layernorm(sum), or with shift NULL rmsnorm(sum): the bits of the operators one after the
// other, in one pass over memory. No gradient reads f.
typedef struct Draws { // of a dropout: see dropout and dropout_rows below
    double p; // 0: nothing is dropped
    uint64_t seed, site, first;
    Tensor *numbers;
    int64_t row;
} Draws;
typedef struct NormedSum { Tensor *sum, *normed; } NormedSum; // both NULL on an error
NormedSum add_norm(Tape *, Tensor *x, Tensor *f, Tensor *scale, Tensor *shift, double eps, const Draws *); // (.., C) (.., C) (C) (C)|NULL

// erf: y = x Phi(x); tanh: y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)
typedef enum { GELU_ERF, GELU_TANH, GELU_QUICK /* x sigmoid(1.702 x), as CLIP */ } GeluKind;
Tensor *gelu(Tape *, Tensor *x, GeluKind); // any shape

// y = gelu(x W1^T + b1) W2^T + b2: one operator where the backend may put the activation into the products, else three
Tensor *mlp(Tape *, Tensor *x, Tensor *up, Tensor *up_bias, Tensor *down, Tensor *down_bias, GeluKind);
// (.., C) (F, C) (F)|NULL (O, F) (O)|NULL -> (.., O)

// y = x sigmoid(x)
Tensor *silu(Tape *, Tensor *x); // any shape

// y = silu(gate) * up, where x = [gate | up] (Shazeer 2020)
Tensor *swiglu(Tape *, Tensor *x); // (.., 2 F) -> (.., F)

// Pairs (x[d], x[d + D/2]) turn by positions[n] * base^(-2 d / D) (Su et al. 2021, in the halves layout of LLaMA).
// The first `heads` heads of each row turn, the rest pass: x may be packed [q | k | v].
Tensor *rope(Tape *, Tensor *x, Tensor *positions, int heads, int head_size, double base); // (.., W) (rows) I32
// The same where x lies: for an x that nobody else reads, no gradient either.
Tensor *rope_in_place(Tape *, Tensor *x, Tensor *positions, int heads, int head_size, double base);

// o[i] = sum over allowed keys j of softmax_j(q[i] . k[j] / sqrt(D)) v[j]; tiles with a running maximum, never T x T
// (Dao et al. 2022). Heads h share key-value head h / (H / K) (Ainslie et al. 2023).
// q: (B, T, H D), kv: (B, S, 2 K D) as [k | v]; kv NULL: q is packed (B, T, (H + 2 K) D) as [q | k | v].
// Every mask is an interval of keys for each query: range (B, T, 2) I32 holds [first, end) of it. A prefix, lengths of
// keys and documents packed into one sequence are all ranges. An empty interval gives zeros.
// range NULL: all keys, or, when causal, keys up to i + S - T.
typedef struct { int heads, kv_heads; bool causal; } Heads;
Tensor *attention(Tape *, Tensor *q, Tensor *kv, Tensor *range, Heads); // -> (B, T, H D)

// y[c] = (x[c] / 255 - mean[c]) / std[c]. mean, std: 3 host numbers each. No gradient.
// (B, H, W, 3) U8 -> (B, 3, H, W); mirrored (B) U8: from left to right where it is not 0; NULL: none
Tensor *pixels(Tape *, Tensor *bytes, Tensor *mirrored, Dtype, const double mean[3], const double std[3]);

// y[b, n] = W . patch n of image b + bias (Dosovitskiy et al. 2020). Patch n = row-major; a patch is flattened (c, y, x).
// keep: (B, M) I32, which patches of each image are wanted, or NULL for all (M = (H/P) (W/P)).
Tensor *patch_embedding(Tape *, Tensor *images, Tensor *weight, Tensor *bias, Tensor *keep, int patch);
// (B, 3, H, W) (C, 3 P P) (C)|NULL -> (B, M, C)

// y = a + b; b may have fewer elements, a multiple of which a has: it repeats (positions over a batch)
Tensor *add(Tape *, Tensor *a, Tensor *b);
// y = a * b, the same shapes
Tensor *mul(Tape *, Tensor *a, Tensor *b);
// y = factor x
Tensor *scale(Tape *, Tensor *x, double factor);
// y = x keep / (1 - p), keep[i] = draw number e = first_element + i of rng_for(seed, PURPOSE_DROPOUT, site) >= 2^32 p:
// word e % 4 of philox_block(seed, PURPOSE_DROPOUT << 32 | (e / 4 mod 2^32), site ^ (e / 2^34 << 32)), the same on every
// backend. p = 0 passes x through.
// `first_element` is the global number of x's first element, so that no layout changes the draw.
Tensor *dropout(Tape *, Tensor *x, double p, uint64_t seed, uint64_t site, uint64_t first_element);
// The same of rows of `row` elements that have any numbers, (R) I32: x, whose first element is element `first` of these
// rows (0, or where a share of them begins), is drawn as if each row stood at its number.
Tensor *dropout_rows(Tape *, Tensor *x, double p, uint64_t seed, uint64_t site, Tensor *numbers, int64_t row,
                     int64_t first);
Tensor *dropout_by(Tape *, Tensor *x, const Draws *); // either, as the draws say

// y[b] = [a[b]; c[b]] along the rows of each batch element. a or c of rank 2 (R, C) repeats for every b.
Tensor *concat_rows(Tape *, Tensor *a, Tensor *c); // (B, T1, C) (B, T2, C) -> (B, T1 + T2, C)
Tensor *slice_rows(Tape *, Tensor *x, int64_t first, int64_t count); // (B, T, C) -> (B, count, C)
// y[m] = x[rows[m]]; rows may repeat; a negative row gives zeros. Gradients add in the order of m.
Tensor *gather_rows(Tape *, Tensor *x, Tensor *rows); // (.., C) as (R, C), (M) I32 -> (M, C)
// y = base, with y[rows[m]] = x[m]; rows must be distinct; negative rows are left out. base NULL: zeros, (count, C).
// base of rank 1 (C): every row not written holds it (mask tokens).
Tensor *scatter_rows(Tape *, Tensor *base, Tensor *x, Tensor *rows, int64_t count);

// y[b] = sum over t of mask[b, t] x[b, t] / sum of mask[b]; mask F32 (B, T) or NULL: all. An empty mask gives zeros.
Tensor *mean_rows(Tape *, Tensor *x, Tensor *mask); // (B, T, C) -> (B, C)

// y = x / max(|x|, eps), eps = 1e-12, for each row
Tensor *l2_normalize(Tape *, Tensor *x); // (.., C) -> (.., C) F32 whatever x is

// y = factor * sum of x, in f64 blocks of fixed order
Tensor *sum(Tape *, Tensor *x, double factor); // any -> (1) F32

// loss[n] = weight[n] (logsumexp_v(x[n] . W[v]) - x[n] . W[target[n]]) in tiles: logits are never stored whole, and the
// backward pass computes them again. Targets < 0 give 0. weight: (N) F32, no gradient, or NULL for ones.
Tensor *linear_cross_entropy(Tape *, Tensor *x, Tensor *w, Tensor *targets, Tensor *weight); // (.., C) (V, C) (N) -> (N) F32
// The same with the vocabulary shared out over a group: w holds rows [comm_share(V, r), comm_share(V, r + 1)). Every
// rank gets the loss; dx is a part of the sum over ranks (x comes through tensor_copy), dw whole.
Tensor *split_cross_entropy(Tape *, Tensor *x, Tensor *w, Tensor *targets, Tensor *weight, int64_t vocabulary, Comm *);
const char *cross_entropy_wrong(const Node *); // with the inputs of one of these; NULL: nothing
// linear_cross_entropy for who wants nothing but the sum over rows: it, (1), where the backend then forms gradients with the
// loss, while the logits are there, and later scales them alone; else the losses themselves, (N).
Tensor *cross_entropy_sum(Tape *, Tensor *x, Tensor *w, Tensor *targets, Tensor *weight);

// Symmetric InfoNCE (Radford et al. 2021): s = exp(min(log_scale, ln 100)) a b^T;
// y = 1/2 sum over i of [logsumexp(s[i, :]) + logsumexp(s[:, i]) - 2 s[i, i]]; in tiles.
Tensor *clip_loss(Tape *, Tensor *a, Tensor *b, Tensor *log_scale); // (B, D) (B, D) F32, (1) -> (1) F32
// Sigmoid loss (Zhai et al. 2023): y = -sum over i, j of log sigmoid(z (exp(log_scale) a[i] . b[j] + bias)), z = +-1
Tensor *siglip_loss(Tape *, Tensor *a, Tensor *b, Tensor *log_scale, Tensor *bias); // (B, D) (B, D) F32 (1) (1) -> (1)

// y = sum over m of mean over the patch of (x[m] - target)^2, target = patch patches[m] of the images, flattened
// (y, x, c) as in MAE (He et al. 2021), normalised by its own mean and variance (unbiased, + 1e-6) where asked.
Tensor *masked_patch_mse(Tape *, Tensor *x, Tensor *images, Tensor *patches, int patch, bool normalize);
// (M, P P 3), (B, 3, H, W), (M) I32 into B (H/P) (W/P) -> (1) F32

// ---- between the ranks of a group, which call the same in the same order; alone (or comm NULL) x passes through ----
// Rows of a (B, T, C) tensor are shared out: rank r has rows [comm_share(B T, r), comm_share(B T, r + 1)), as (1, N, C).

// y = x;  dx = sum over ranks of dy. All hold x alike; each computes a part with it (columns of a linear map).
Tensor *tensor_copy(Tape *, Tensor *x, Comm *);
// y = sum over ranks of x;  dx = dy. All hold y and its gradient alike.
Tensor *tensor_reduce(Tape *, Tensor *x, Comm *);
// y = own rows of x, which all hold alike;  dx = all ranks' dy
Tensor *sequence_split(Tape *, Tensor *x, Comm *); // (B, T, C) -> (1, N, C)
// y = all ranks' x;  dx = own rows of dy, which all hold alike
Tensor *sequence_collect(Tape *, Tensor *x, int64_t batch, int64_t length, Comm *); // (1, N, C) -> (B, T, C)
// y = all ranks' x;  dx = own rows of the sum over ranks of dy: each computes a part with y
Tensor *sequence_gather(Tape *, Tensor *x, int64_t batch, int64_t length, Comm *); // (1, N, C) -> (B, T, C)
// y = own rows of the sum over ranks of x;  dx = all ranks' dy
Tensor *sequence_scatter(Tape *, Tensor *x, Comm *); // (B, T, C) -> (1, N, C)
