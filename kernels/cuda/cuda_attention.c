/* Attention on the GPU: by cuDNN where it was built with it and is the fastest, else by our own kernels.
 * BIFOCAL_ATTENTION: "own" takes ours alone; "fast" takes plans of cuDNN's too whose bits may differ from run to run.
 */
#include "base/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_state.h"
#include <stdlib.h>
#include <string.h>
#ifdef BIFOCAL_CUDNN
#include "kernels/cuda/cuda_sdpa.h"
#endif

static void forward(Backend *b, void *o, float *lse, const void *q, const void *k, const void *v,
                    const AttentionShape *shape, Dtype t) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    check(shape->head_size <= ATTENTION_MOST_HEAD_SIZE);
#ifdef BIFOCAL_CUDNN
    if (cuda_sdpa_forward(s->sdpa, b, o, lse, q, k, v, shape, t)) {
        cuda_after(s, "attention_forward");
        return;
    }
#endif
    cuda_attention_forward(&queue, o, lse, q, k, v, shape, t);
    cuda_scratch_rewind(s, mark);
    cuda_after(s, "attention_forward");
}

static void backward(Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse,
                     const void *q, const void *k, const void *v, const AttentionShape *shape, Dtype t, bool add) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    size_t mark = cuda_scratch_mark(s);
    check(shape->head_size <= ATTENTION_MOST_HEAD_SIZE);
#ifdef BIFOCAL_CUDNN
    if (!add && cuda_sdpa_backward(s->sdpa, b, dq, dk, dv, d_o, o, lse, q, k, v, shape, t)) {
        cuda_after(s, "attention_backward");
        return;
    }
#endif
    cuda_attention_backward(&queue, dq, dk, dv, d_o, o, lse, q, k, v, shape, t, add);
    cuda_scratch_rewind(s, mark);
    cuda_after(s, "attention_backward");
}

void cuda_attention_install(Backend *b) {
#ifdef BIFOCAL_CUDNN
    CudaState *s = cuda_state(b);
    const char *way = getenv("BIFOCAL_ATTENTION");
    bool steady = !way || strcmp(way, "fast") != 0;
    if (!way || strcmp(way, "own") != 0) s->sdpa = cuda_sdpa_new(s, steady);
#endif
    b->attention_forward = forward, b->attention_backward = backward;
}

void cuda_attention_close(CudaState *s) {
#ifdef BIFOCAL_CUDNN
    cuda_sdpa_free(s->sdpa);
#endif
    s->sdpa = NULL;
}
