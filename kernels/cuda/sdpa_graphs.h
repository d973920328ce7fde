/* Attention as graphs of cuDNN: what its fused kernels recognise, operation by operation. B batch, T queries, S keys, H
 * heads, K key-value heads, D head size; bf16 but where noted. */
#pragma once
#include "kernels/cuda/cudnn_graph.h"

typedef struct SdpaKey { // bytes that say which graph: no padding
    int64_t batch, queries, keys, heads, kv_heads, size, q_stride, k_stride, v_stride;
    int32_t causal, backward;
    int64_t steady; // backward: the same bits each time
} SdpaKey;

// Names of tensors. f32: STATS (B, H, T, 1); work space of the backward pass DELTA (B, H, T, 1) and, where bits may
// change, DQ_SUM (B, H, T, D); values SCALE, HIDDEN (-Inf; causal), ONE (backward).
enum {
    SDPA_Q = 1,
    SDPA_K, // forward and backward: keys turned, from the same memory
    SDPA_V,
    SDPA_O,
    SDPA_STATS,
    SDPA_SCALE,
    SDPA_HIDDEN,
    SDPA_ONE,
    SDPA_D_O,
    SDPA_DQ,
    SDPA_DK,
    SDPA_DV,
    SDPA_DELTA,
    SDPA_DQ_SUM,
};

CudnnGraph *sdpa_graph(Cudnn *, const SdpaKey *);
