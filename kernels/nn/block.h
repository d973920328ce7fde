/* The pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). One block serves GPT-2, LLaMA, ViT
 * and MAE by its config (Vaswani et al. 2017; Radford et al. 2019; Touvron et al. 2023; Dosovitskiy et al. 2020). */
#pragma once
#include "kernels/nn/parameters.h"
#include "kernels/ops.h"

typedef enum { NORM_LAYER, NORM_RMS } NormKind;
typedef enum { MLP_GELU_ERF, MLP_GELU_TANH, MLP_GELU_QUICK, MLP_SILU, MLP_SWIGLU } MlpKind;

typedef struct BlockConfig {
    int64_t width, mlp_width;
    int heads, kv_heads; // kv_heads divides heads
    NormKind norm;
    double norm_epsilon;
    MlpKind mlp;
    bool bias; // of the linear maps
    bool rope;
    double rope_base;
    double dropout;             // on both residual branches
    double residual_init_scale; // of the two projections into the residual stream: GPT-2's 1 / sqrt(2 L); else 1
    double init_std;            // 0: Glorot's sqrt(2 / (in + out)), for each matrix its own
} BlockConfig;

typedef struct Norm {
    Tensor *scale, *shift;
    NormKind kind;
    double epsilon;
} Norm; // shift NULL: rmsnorm
typedef struct Linear {
    Tensor *weight, *bias;
} Linear; // (F, C), (F)|NULL

typedef struct Block {
    BlockConfig config;
    Norm norm1, norm2;
    Linear qkv, projection;   // ((H + 2 K) D, C), (C, H D)
    Linear up, down;          // (F, C) or (2 F, C) as [gate | up]; (C, F)
    int site;                 // number of the block in its stack: keys its dropout, names its cache
    const Parallel *parallel; // how its maps are split: qkv and up by columns, projection and down by rows
} Block;

/* Keys and values of all blocks of a stack, for generation. A pass over T positions fills slots [used, used + T) of every
 * row, or those that its context names. Prompts of different lengths are padded behind: a row's padding stays outside
 * every range of its own until what follows is written over it. */
typedef struct KvCache {
    Backend *backend; // not owned
    Tensor *kv;       // (layers) of (B, capacity, 2 K D), in the type of the activations
    int layers;
    int64_t batch;          // B at the most
    int64_t capacity, used; // slots
    size_t bytes;           // of all layers, in one piece of memory
} KvCache;

/* What of a block is computed again in the backward pass instead of being held. Selective: what is large and costs next
 * to nothing, the norms and the activation of the MLP. Full: everything but the block's input. */
typedef enum { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL, RECOMPUTE_AUTO } Recompute; // auto: not yet chosen

/* The residual stream between two blocks: x + dropout(branch). What a block adds last stays apart, so that the norm that
 * reads the sum can form it on its way. */
typedef struct Residual {
    Tensor *x;
    Tensor *branch; // of x's shape; NULL: x is all
    Draws draws;    // of the branch's dropout
} Residual;

// What a pass over blocks shares.
typedef struct BlockContext {
    Tensor *range;         // (B, T, 2) I32 or NULL; with a cache it is needed, and counts slots
    bool causal;           // where range is NULL
    Tensor *positions;     // (B T) I32, for rope and learned positions of text
    uint64_t dropout_seed; // of this step and this pass
    uint64_t first_row;    // global number of the pass's first row, so that no layout changes the draws
    Tensor *row_numbers;   // (B) I32: each row's global number, where they do not follow first_row; else NULL
    bool training;         // dropout on
    Recompute recompute;
    // Where rows are shared out (sequence parallel; set by stack_enter): B and T of the pass, and the first of its B T
    // positions that lies here
    int64_t batch, length, first;
    KvCache *cache; // generation (tapes that do not record); NULL in training
    Tensor *slots;  // (B T) I32: the cache's rows that the new keys and values go to (kv_cache_slots)
} BlockContext;

Norm norm_declare(Parameters *, const char *name, int64_t width, NormKind, double epsilon);
Tensor *norm_forward(Tape *, const Norm *, Tensor *x);
Linear linear_declare(Parameters *, const char *name, int64_t out, int64_t in, bool bias, double std);
Tensor *linear_layer(Tape *, const Linear *, Tensor *x);
// Residual dropout of a pass: p of x's elements become 0. site: unique among the dropouts of the pass.
Tensor *residual_dropout(Tape *, Tensor *x, double p, uint64_t site,
                         const BlockContext *); // (B, T, C), or (1, N, C) where rows are shared out
// x as a stream of which nothing is apart; the sum; the norm of the sum, which then is the stream.
Residual residual_of(Tensor *x);
Tensor *residual_sum(Tape *, const Residual *);
Tensor *residual_norm(Tape *, const Norm *, Residual *);
Block block_declare(Parameters *, const char *name, const BlockConfig *, int site);
// (B, T, C) -> (B, T, C), or (1, N, C) -> (1, N, C) where rows are shared out
Residual block_forward(Tape *, const Block *, Residual, const BlockContext *);
int64_t block_common(const BlockConfig *); // its layers divide over as many tensor ranks as divide this
// up, activation, down: (.., C) -> (.., C)
Tensor *mlp_forward(Tape *, const Linear *up, const Linear *down, MlpKind, Tensor *x);
// Of forward. tokens: rows that pass; pairs: (query, key) pairs that attention computes.
double block_flop(const BlockConfig *, double tokens, double pairs);
// Of a rank, for an estimate of memory: elements of its matrices, and what a forward pass leaves behind.
double block_weights(const BlockConfig *, const ParallelSizes *);
double block_activations(const BlockConfig *, double tokens, Recompute, const ParallelSizes *);

// A cache for `layers` blocks of this config; kv_cache_free(NULL) is allowed.
KvCache *kv_cache_new(Backend *, const BlockConfig *, int layers, int64_t batch, int64_t capacity, Dtype);
void kv_cache_free(KvCache *);
void kv_cache_begin(KvCache *, int64_t batch); // empty again, for so many rows
// Rows of (B, capacity) for `count` new positions of each row of the batch, from `used` on: (B count) I32. They are data,
// so that passes at other positions are the same to a device that repeats them.
Tensor *kv_cache_slots(Tape *, const KvCache *, int64_t count);
