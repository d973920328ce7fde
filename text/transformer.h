/* The text transformer: GPT-2-like (LayerNorm, learned positions, GELU, biases) or LLaMA-like (RMSNorm, rotary
 * positions, SwiGLU, grouped-query attention, no biases) by its config. */
#pragma once
#include "kernels/nn/block.h"

typedef struct TextConfig {
    int64_t vocabulary, context, width, layers, heads, kv_heads, mlp_width; // kv_heads 0: heads; mlp_width 0: 4 x width
    NormKind norm;
    MlpKind mlp;
    bool rope, bias, tied; // tied: the output projection is the token embedding
    double rope_base, norm_epsilon, dropout;
    double init_std; // of the blocks' matrices; 0: 0.02 sqrt(768 / width)
} TextConfig;

typedef struct Text {
    TextConfig config;
    Tensor *tokens;    // (V, C)
    Tensor *positions; // (context, C) or NULL
    Block *blocks;
    Norm norm;
    Tensor *head;             // (V, C); == tokens where tied, or a replica of them
    const Parallel *parallel; // tokens and head hold this rank's share of V
} Text;

const char *text_check(const TextConfig *, Arena *); // NULL, or what does not fit and what would
int64_t text_common(const TextConfig *);             // its layers divide over as many tensor ranks as divide this
bool text_declare(Text *, Parameters *, Arena *, const char *prefix, const TextConfig *, Error *);
// Of tied words: the head gets a replica of its own, PREFIX.tokens@head, as it needs where it is in another part of the
// model than the embedding, or where sums must not depend on that.
void text_declare_replica(Text *, Parameters *, Arena *, const char *prefix);
Tensor *text_embed(Tape *, const Text *,
                   Tensor *ids); // (R, T) I32 -> (R, T, C); ids < 0 give zeros, to be filled by image tokens
// Positions (context.positions, rope or learned), blocks and norm. With a cache: fills context.slots; where they are NULL,
// slots [used, used + T), and advances `used`. In parts: what is in front of the blocks (the context notes how rows are shared out), the blocks
// (block_forward), what is behind them.
Tensor *text_forward(Tape *, const Text *, Tensor *embedded, const BlockContext *); // (R, T, C) -> (R, T, C)
Tensor *text_enter(Tape *, const Text *, Tensor *embedded, BlockContext *);
Tensor *text_leave(Tape *, const Text *, Residual, const BlockContext *);
// -log p of each target, 0 where it is negative: (R, T, C), (R T) I32 -> (R T) F32
Tensor *text_score(Tape *, const Text *, Tensor *hidden, Tensor *targets);
// The same for who only adds them up: any number of losses, whose sum is theirs.
Tensor *text_score_sum(Tape *, const Text *, Tensor *hidden, Tensor *targets);
Tensor *text_logits(Tape *, const Text *, Tensor *hidden); // (N, C) -> (N, V); where the vocabulary is not shared out
KvCache *text_cache_new(Backend *, const Text *, int64_t batch, int64_t capacity); // kv_cache_free
double text_flop(const TextConfig *, double tokens,
                 double pairs); // of forward; pairs: (query, key) that attention computes
// Elements on a rank, for an estimate of memory: of the matrices, and of what a forward pass leaves on the tape.
double text_weights(const TextConfig *, const ParallelSizes *);
double text_activations(const TextConfig *, double tokens, Recompute, const ParallelSizes *);
