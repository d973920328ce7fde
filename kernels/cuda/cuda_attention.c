/* Attention on the GPU: by cuDNN where it was built with it and is the fastest, else by our own kernels.
 * BIFOCAL_ATTENTION: "own" takes ours alone; "fast" takes plans of cuDNN's too whose bits may differ from run to run.
 */
#include "base/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/host/work_space.h"
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

typedef struct Backward { // what a backward pass reads and writes
    void *dq, *dk, *dv;
    const void *d_o, *o;
    const float *lse;
    const void *q, *k, *v;
} Backward;

static void run_own(CudaState *s, const Backward *a, const AttentionShape *shape, Dtype t, bool add) {
    CudaQueue queue = cuda_queue(s);
    cuda_attention_backward(&queue, a->dq, a->dk, a->dv, a->d_o, a->o, a->lse, a->q, a->k, a->v, shape, t, add);
}

#ifdef BIFOCAL_CUDNN
static void *moved(const void *x, int64_t elements) {
    return x ? (char *)x + (size_t)elements * sizeof(uint16_t) : NULL;
}

// The same from element `first` of the batch on, in bf16.
static Backward from_element(const Backward *a, const AttentionShape *s, int64_t first) {
    int64_t query = first * s->queries, key = first * s->keys;
    int64_t q = query * s->q_stride, k = key * s->k_stride, v = key * s->v_stride, o = query * s->o_stride;
    return (Backward){.dq = moved(a->dq, q),
                      .dk = moved(a->dk, k),
                      .dv = moved(a->dv, v),
                      .d_o = moved(a->d_o, o),
                      .o = moved(a->o, o),
                      .lse = a->lse + query * s->heads,
                      .q = moved(a->q, q),
                      .k = moved(a->k, k),
                      .v = moved(a->v, v)};
}

// By cuDNN, in as many calls as its work space asks for; false: not at all. A last slice that is smaller is a shape of
// its own, which may be ours.
static bool run_slices(Backend *b, const Backward *whole, const AttentionShape *shape, Dtype t) {
    AttentionShape s = *shape;
    int64_t most = work_attention_slice(s.batch, s.queries, s.keys, s.heads, s.kv_heads, s.head_size);
    for (int64_t at = 0; at < shape->batch; at += most) {
        Backward a = from_element(whole, shape, at);
        s.batch = shape->batch - at < most ? shape->batch - at : most;
        if (cuda_sdpa_backward(cuda_state(b)->sdpa, b, a.dq, a.dk, a.dv, a.d_o, a.o, a.lse, a.q, a.k, a.v, &s, t))
            continue;
        if (at == 0) return false;
        run_own(cuda_state(b), &a, &s, t, false);
    }
    return true;
}
#endif

static void parts(Backend *b, float *out, const void *q, const void *k, const void *v, const AttentionShape *shape,
                  Dtype t) {
    CudaState *s = cuda_state(b);
    CudaQueue queue = cuda_queue(s);
    check(cuda_attention_parts(&queue, out, q, k, v, shape, t) && "few_rows_wins said so");
    cuda_after(s, "attention_parts");
}

static void backward(Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse,
                     const void *q, const void *k, const void *v, const AttentionShape *shape, Dtype t, bool add) {
    CudaState *s = cuda_state(b);
    Backward a = {dq, dk, dv, d_o, o, lse, q, k, v};
    size_t mark = cuda_scratch_mark(s);
    bool done = false;
    check(shape->head_size <= ATTENTION_MOST_HEAD_SIZE);
#ifdef BIFOCAL_CUDNN
    done = !add && t == BF16 && run_slices(b, &a, shape, t);
#endif
    if (!done) run_own(s, &a, shape, t, add);
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
    b->attention_forward = forward, b->attention_backward = backward, b->attention_parts = parts;
}

void cuda_attention_close(CudaState *s) {
#ifdef BIFOCAL_CUDNN
    cuda_sdpa_free(s->sdpa);
#endif
    s->sdpa = NULL;
}
