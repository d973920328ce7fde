/* Attention of the CPU backend: one task for each (batch element, key-value head).
 * B batch, T queries, S keys, H heads, K key-value heads, D head size. */
#include "kernels/cpu/cpu.h"
#include <math.h>
#include <string.h>

typedef struct Job {
    const Backend *backend;
    const AttentionShape *s;
    Dtype t;
    bool add;
    void *o, *dq, *dk, *dv; // written
    float *lse;
    const void *q, *k, *v, *d_o, *out;
} Job;

typedef struct Interval {
    int64_t first, end;
} Interval;

static Interval keys_of(const AttentionShape *s, int64_t batch, int64_t query) {
    Interval keys = {0, s->keys};
    if (s->range) {
        const int32_t *r = s->range + 2 * (batch * s->queries + query);
        keys = (Interval){r[0] > 0 ? r[0] : 0, r[1] < s->keys ? r[1] : s->keys};
    } else if (s->causal) {
        keys.end = query + 1 + s->keys - s->queries;
    }
    return keys;
}

static inline float element(const void *x, int64_t i, Dtype t) {
    return t == F32 ? ((const float *)x)[i] : bf16_to_f32(((const uint16_t *)x)[i]);
}

static void load(float *out, const void *x, int64_t at, int64_t n, Dtype t) {
    for (int64_t i = 0; i < n; i++) out[i] = element(x, at + i, t);
}

static void store(void *x, int64_t at, const float *values, float factor, int64_t n, Dtype t, bool add) {
    for (int64_t i = 0; i < n; i++) {
        float v = factor * values[i] + (add ? element(x, at + i, t) : 0);
        if (t == F32)
            ((float *)x)[at + i] = v;
        else
            ((uint16_t *)x)[at + i] = f32_to_bf16(v);
    }
}

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void forward_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    const AttentionShape *s = job->s;
    int64_t b = task / s->kv_heads, g = task % s->kv_heads, D = s->head_size, group = s->heads / s->kv_heads;
    float *k = cpu_worker_scratch(job->backend, worker, (size_t)(2 * s->keys * D + s->keys + 2 * D) * sizeof(float));
    float *v = k + s->keys * D, *p = v + s->keys * D, *q = p + s->keys, *o = q + D, scale = 1 / sqrtf((float)D);
    for (int64_t j = 0; j < s->keys; j++) {
        load(k + j * D, job->k, (b * s->keys + j) * s->k_stride + g * D, D, job->t);
        load(v + j * D, job->v, (b * s->keys + j) * s->v_stride + g * D, D, job->t);
    }
    for (int64_t h = g * group; h < (g + 1) * group; h++)
        for (int64_t i = 0; i < s->queries; i++) {
            Interval keys = keys_of(s, b, i);
            float most = -INFINITY, sum = 0;
            load(q, job->q, (b * s->queries + i) * s->q_stride + h * D, D, job->t);
            for (int64_t j = keys.first; j < keys.end; j++) {
                p[j] = scale * dot(q, k + j * D, D);
                most = p[j] > most ? p[j] : most;
            }
            memset(o, 0, (size_t)D * sizeof *o);
            for (int64_t j = keys.first; j < keys.end; j++) {
                float e = expf(p[j] - most);
                sum += e;
                for (int64_t d = 0; d < D; d++) o[d] += e * v[j * D + d];
            }
            bool empty = keys.end <= keys.first;
            store(job->o, (b * s->queries + i) * s->o_stride + h * D, o, empty ? 0 : 1 / sum, D, job->t, false);
            job->lse[(b * s->heads + h) * s->queries + i] = empty ? -INFINITY : most + logf(sum);
        }
}

static void backward_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    const AttentionShape *s = job->s;
    int64_t b = task / s->kv_heads, g = task % s->kv_heads, D = s->head_size, group = s->heads / s->kv_heads;
    float *k = cpu_worker_scratch(job->backend, worker, (size_t)(4 * s->keys * D + 4 * D) * sizeof(float));
    float *v = k + s->keys * D, *dk = v + s->keys * D, *dv = dk + s->keys * D, *q = dv + s->keys * D, *dq = q + D;
    float *d_o = dq + D, *o = d_o + D, scale = 1 / sqrtf((float)D);
    for (int64_t j = 0; j < s->keys; j++) {
        load(k + j * D, job->k, (b * s->keys + j) * s->k_stride + g * D, D, job->t);
        load(v + j * D, job->v, (b * s->keys + j) * s->v_stride + g * D, D, job->t);
    }
    memset(dk, 0, (size_t)(2 * s->keys * D) * sizeof *dk);
    for (int64_t h = g * group; h < (g + 1) * group; h++)
        for (int64_t i = 0; i < s->queries; i++) {
            Interval keys = keys_of(s, b, i);
            float lse = job->lse[(b * s->heads + h) * s->queries + i];
            int64_t at = (b * s->queries + i) * s->q_stride + h * D, at_o = (b * s->queries + i) * s->o_stride + h * D;
            load(q, job->q, at, D, job->t);
            load(d_o, job->d_o, at_o, D, job->t);
            load(o, job->out, at_o, D, job->t);
            memset(dq, 0, (size_t)D * sizeof *dq);
            float delta = dot(o, d_o, D);
            for (int64_t j = keys.first; j < keys.end; j++) {
                float p = expf(scale * dot(q, k + j * D, D) - lse);
                float ds = p * (dot(d_o, v + j * D, D) - delta);
                for (int64_t d = 0; d < D; d++) {
                    dv[j * D + d] += p * d_o[d];
                    dk[j * D + d] += ds * q[d];
                    dq[d] += ds * k[j * D + d];
                }
            }
            if (job->dq) store(job->dq, at, dq, scale, D, job->t, job->add);
        }
    for (int64_t j = 0; j < s->keys; j++) {
        if (job->dk) store(job->dk, (b * s->keys + j) * s->k_stride + g * D, dk + j * D, scale, D, job->t, job->add);
        if (job->dv) store(job->dv, (b * s->keys + j) * s->v_stride + g * D, dv + j * D, 1, D, job->t, job->add);
    }
}

static void attention_forward(Backend *b, void *o, float *lse, const void *q, const void *k, const void *v,
                              const AttentionShape *s, Dtype t) {
    Job job = {.backend = b, .s = s, .t = t, .o = o, .lse = lse, .q = q, .k = k, .v = v};
    threads_run(cpu_threads(b), s->batch * s->kv_heads, forward_task, &job);
}

static void attention_backward(Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                               const float *lse, const void *q, const void *k, const void *v, const AttentionShape *s,
                               Dtype t, bool add) {
    Job job = {.backend = b,
               .s = s,
               .t = t,
               .add = add,
               .dq = dq,
               .dk = dk,
               .dv = dv,
               .lse = (float *)lse,
               .q = q,
               .k = k,
               .v = v,
               .d_o = d_o,
               .out = o};
    threads_run(cpu_threads(b), s->batch * s->kv_heads, backward_task, &job);
}

void SIMD_NAME(install_attention)(Backend *b) {
    b->attention_forward = attention_forward;
    b->attention_backward = attention_backward;
}
