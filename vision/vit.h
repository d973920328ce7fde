/* The ViT trunk (Dosovitskiy et al. 2020): patches, positions, transformer blocks, a final norm; and pooling to one
 * feature. The same trunk serves classification-style features, captioning, contrastive learning and MAE. */
#pragma once
#include "kernels/nn/block.h"

typedef enum { POOL_CLASS, POOL_MEAN, POOL_ATTENTION } Pooling;
typedef enum { POSITIONS_LEARNED, POSITIONS_SINCOS } Positions;

typedef struct VitConfig {
    int64_t image_size, patch, width, layers, heads, mlp_width; // pixels; mlp_width 0: 4 x width
    Pooling pooling;
    Positions positions;
    MlpKind mlp;
    double norm_epsilon, dropout;
    bool class_token; // POOL_CLASS needs it
    bool patch_bias;  // CLIP has none
    bool pre_norm;    // CLIP's norm before the blocks
} VitConfig;

// One learned query looks at all tokens, then an MLP with a residual (Zhai et al. 2022; SigLIP).
typedef struct AttentionPool {
    Tensor *query;            // (1, C)
    Linear q, kv, projection; // (C, C), (2 C, C), (C, C)
    Norm norm;
    Linear up, down; // (F, C), (C, F)
} AttentionPool;

typedef struct Vit {
    VitConfig config;
    Linear patches;      // (C, 3 P P), (C)
    Tensor *class_token; // (1, C) or NULL
    Tensor *positions;   // (N (+1), C); class token first
    Norm pre_norm, norm;
    Block *blocks;
    AttentionPool pool; // POOL_ATTENTION
    const Parallel *parallel;
} Vit;

const char *vit_check(const VitConfig *, Arena *); // NULL, or what does not fit and what would
int64_t vit_common(const VitConfig *);             // its layers divide over as many tensor ranks as divide this
int64_t vit_patches(const VitConfig *);            // (S / P)^2
int64_t vit_tokens(const VitConfig *);             // with the class token
bool vit_declare(Vit *, Parameters *, Arena *, const char *prefix, const VitConfig *, Error *);
// (B, 3, S, S) -> (B, N (+1), C) after the final norm. keep (B, kept) on the host: only these patches are seen (MAE)
// and N = kept; NULL: all. In parts: what is in front of the blocks (the context notes how rows are shared out), the
// blocks (block_forward), what is behind them.
Tensor *vit_forward(Tape *, const Vit *, Tensor *images, const int32_t *keep, int64_t kept, const BlockContext *);
Tensor *vit_enter(Tape *, const Vit *, Tensor *images, const int32_t *keep, int64_t kept, BlockContext *);
Tensor *vit_leave(Tape *, const Vit *, Residual, const BlockContext *);
Tensor *vit_pool(Tape *, const Vit *, Tensor *tokens);         // (B, N (+1), C) -> (B, C)
Tensor *vit_patch_tokens(Tape *, const Vit *, Tensor *tokens); // without the class token: (B, N (+1), C) -> (B, N, C)
// Fixed positions of a square grid (He et al. 2021): the first half of the width encodes x, the second y, each as sines
// then cosines; a row of zeros first for the class token. out (side * side (+1), width).
void vit_sincos(float *out, int64_t side, int64_t width, bool class_token);
double vit_flop(const VitConfig *, double images, int64_t tokens); // of forward, `tokens` seen of each image
// Elements on a rank, for an estimate of memory: of the matrices, and of what a forward pass leaves on the tape.
double vit_weights(const VitConfig *, const ParallelSizes *);
double vit_activations(const VitConfig *, double images, int64_t tokens, Recompute, const ParallelSizes *);
