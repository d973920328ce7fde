/* Launchers of our own attention kernels: what runs where cuDNN is not there or has no plan. Any head size up to 256,
 * f32 and bf16, every mask that AttentionShape can express, the same bits in every run. Arguments as in
 * kernels/backend.h. */
#pragma once
#include "kernels/cuda/kernels.h"

enum { ATTENTION_MOST_HEAD_SIZE = 256 };

#ifdef __cplusplus
extern "C" {
#endif

void cuda_attention_forward(const CudaQueue *, void *o, float *lse, const void *q, const void *k, const void *v,
                            const AttentionShape *, Dtype t);
void cuda_attention_backward(const CudaQueue *, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                             const float *lse, const void *q, const void *k, const void *v, const AttentionShape *, Dtype t,
                             bool add);
// One query in each row, in parts: Backend.attention_parts. False, and nothing is started, where it does not take the shape.
bool cuda_attention_parts(const CudaQueue *, float *parts, const void *q, const void *k, const void *v,
                          const AttentionShape *, Dtype t);

#ifdef __cplusplus
}
#endif
