/* Attention by cuDNN's fused kernels, where it has them: bf16, heads of at most 128 in multiples of 8, grouped or not,
 * causal with as many keys as queries or full. For each shape the first call asks for its plans, holds their results
 * against our own kernels', and times those that agree beside ours: the fastest is taken from then on. Masks by range stay
 * with ours: whether they are lengths, prefixes or documents is known to the device alone, and a mask for each pair would
 * take more memory than attention itself. */
#pragma once
#include "kernels/cuda/cuda_state.h"

// NULL where there is no cuDNN. steady: only plans that give the same bits in every run.
CudaSdpa *cuda_sdpa_new(CudaState *, bool steady);
void cuda_sdpa_free(CudaSdpa *); // NULL is allowed
// As in backend.h; false: nothing was done, our own kernel is to do it.
bool cuda_sdpa_forward(CudaSdpa *, Backend *, void *o, float *lse, const void *q, const void *k, const void *v,
                       const AttentionShape *, Dtype);
bool cuda_sdpa_backward(CudaSdpa *, Backend *, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                        const float *lse, const void *q, const void *k, const void *v, const AttentionShape *, Dtype);
