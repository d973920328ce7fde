/* The pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). One block serves GPT-2, LLaMA, ViT
 * and MAE by its config (Vaswani et al. 2017; Radford et al. 2019; Touvron et al. 2023; Dosovitskiy et al. 2020). */
#pragma once
#include "kernels/nn/parameters.h"
#include "kernels/ops.h"

typedef enum { NORM_LAYER, NORM_RMS } NormKind;
typedef enum { MLP_GELU_ERF, MLP_GELU_TANH, MLP_GELU_QUICK, MLP_SILU, MLP_SWIGLU } MlpKind;

typedef struct BlockConfig {
    int64_t  width, mlp_width;
    int      heads, kv_heads;     // kv_heads divides heads
    NormKind norm;
    double   norm_epsilon;
    MlpKind  mlp;
    bool     bias;                // of the linear maps
    bool     rope;
    double   rope_base;
    double   dropout;             // on both residual branches
    double   residual_init_scale; // of the two projections into the residual stream: GPT-2's 1 / sqrt(2 L); else 1
    double   init_std;
} BlockConfig;

typedef struct Norm { Tensor *scale, *shift; NormKind kind; double epsilon; } Norm; // shift NULL: rmsnorm
typedef struct Linear { Tensor *weight, *bias; } Linear;                         // (F, C), (F)|NULL

typedef struct Block {
    BlockConfig config;
    Norm        norm1, norm2;
    Linear      qkv, projection; // ((H + 2 K) D, C), (C, H D)
    Linear      up, down;        // (F, C) or (2 F, C) as [gate | up]; (C, F)
    int         site;            // number of the block, keys its dropout
} Block;

// What a pass over blocks shares.
typedef struct BlockContext {
    Tensor  *range;      // (B, T, 2) or NULL
    bool     causal;     // where range is NULL
    Tensor  *positions;  // (B T) I32, for rope
    uint64_t dropout_seed, first_element; // of the global batch, in rows
    bool     training;   // dropout on
    struct KvCache *cache; // generation: keys and values of earlier positions; NULL in training
} BlockContext;

// Keys and values of one block for generation: (B, capacity, 2 K D).
typedef struct KvCache { Tensor *kv; int64_t capacity; const int32_t *write_at; /* (B T) host: position of each row */ Tensor *write_rows; } KvCache;

Norm    norm_declare(Parameters *, const char *name, int64_t width, NormKind, double epsilon);
Tensor *norm_forward(Tape *, const Norm *, Tensor *x);
Linear  linear_declare(Parameters *, const char *name, int64_t out, int64_t in, bool bias, double std);
Tensor *linear_layer(Tape *, const Linear *, Tensor *x);
Block   block_declare(Parameters *, const char *name, const BlockConfig *, int site);
Tensor *block_forward(Tape *, const Block *, Tensor *x, const BlockContext *); // (B, T, C) -> (B, T, C)
