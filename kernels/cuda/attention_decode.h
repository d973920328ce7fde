/* Attention of one query against many keys: see attention_decode.cu. */
#pragma once
#include "kernels/cuda/attention_call.h"

// False: nothing was done; there are more queries, or the sizes or alignments are not for it.
bool cuda_attention_decode(const CudaQueue *, void *o, float *lse, const void *q, const void *k, const void *v,
                           const AttentionShape *, Dtype t);
