/* Attention of the CPU backend: cuts the work into tasks. One source for f32 and bf16; where the machine multiplies
 * pairs of bf16, bf16 products are made of them, elsewhere operands become f32 a tile at a time. */
#include "kernels/cpu/simd/attention_tiles.h"

enum { CHUNK = 256 }; // queries a task, at most: enough to pay for packing their keys again

static AttentionJob job_new(const Backend *b, const void *q, const void *k, const void *v, const AttentionShape *s,
                            Dtype t) {
    AttentionJob job = {.backend = b,
                        .s = s,
                        .t = t,
                        .unit = UNIT_F32,
                        .q = q,
                        .k = k,
                        .v = v,
                        .scale = 1 / sqrtf((float)s->head_size),
                        .chunks = divide_up(s->queries, CHUNK)};
#if defined(__AVX512BF16__)
    if (t == BF16 && s->head_size % 2 == 0) job.unit = UNIT_PAIR;
#endif
    return job;
}

static void attention_forward(Backend *b, void *o, float *lse, const void *q, const void *k, const void *v,
                              const AttentionShape *s, Dtype t) {
    AttentionJob job = job_new(b, q, k, v, s, t);
    job.o = o;
    job.lse = lse;
    threads_run(cpu_threads(b), s->batch * s->kv_heads * job.chunks, SIMD_NAME(attention_forward_task), &job);
}

static void attention_backward(Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                               const float *lse, const void *q, const void *k, const void *v, const AttentionShape *s,
                               Dtype t, bool add) {
    AttentionJob job = job_new(b, q, k, v, s, t);
    job.d_o = d_o;
    job.out = o;
    job.lse = (float *)lse;
    job.dq = dq, job.dk = dk, job.dv = dv;
    job.add = add;
    threads_run(cpu_threads(b), s->batch * s->kv_heads, SIMD_NAME(attention_backward_task), &job);
}

void SIMD_NAME(install_attention)(Backend *b) {
    b->attention_forward = attention_forward;
    b->attention_backward = attention_backward;
}
