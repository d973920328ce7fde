/* Attention on the GPU. */
#include "base/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_state.h"

static void forward(Backend *b, void *o, float *lse, const void *q, const void *k, const void *v,
                    const AttentionShape *shape, Dtype t) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    check(shape->head_size <= ATTENTION_MOST_HEAD_SIZE);
    cuda_attention_forward(&queue, o, lse, q, k, v, shape, t);
    cuda_after(s, "attention_forward");
}

static void backward(Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse,
                     const void *q, const void *k, const void *v, const AttentionShape *shape, Dtype t, bool add) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    check(shape->head_size <= ATTENTION_MOST_HEAD_SIZE);
    cuda_attention_backward(&queue, dq, dk, dv, d_o, o, lse, q, k, v, shape, t, add);
    cuda_scratch_rewind(s, mark);
    cuda_after(s, "attention_backward");
}

void cuda_attention_install(Backend *b) { b->attention_forward = forward, b->attention_backward = backward; }
