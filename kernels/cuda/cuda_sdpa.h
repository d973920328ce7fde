/* Attention by cuDNN's fused kernels, where it has them: bf16, no ranges, causal with as many keys as queries or not. A
 * plan is made once for a shape, and believed only once its first results have been held against our own kernels'. */
#pragma once
#include "kernels/cuda/cuda_state.h"

CudaSdpa *cuda_sdpa_new(CudaState *); // NULL where there is no cuDNN
void cuda_sdpa_free(CudaSdpa *);      // NULL is allowed
// As in backend.h; false: nothing was done, our own kernel is to do it.
bool cuda_sdpa_forward(CudaSdpa *, Backend *, void *o, float *lse, const void *q, const void *k, const void *v,
                       const AttentionShape *, Dtype);
// Sums in an order that may change: not the same bits in every run. Overwrites.
bool cuda_sdpa_backward(CudaSdpa *, Backend *, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                        const float *lse, const void *q, const void *k, const void *v, const AttentionShape *, Dtype);
