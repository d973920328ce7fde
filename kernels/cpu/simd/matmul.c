/* Matrix products of the CPU backend. */
#include "kernels/cpu/cpu.h"

static inline float element(const void *x, int64_t i, Dtype t) {
    return t == F32 ? ((const float *)x)[i] : bf16_to_f32(((const uint16_t *)x)[i]);
}

typedef struct Job {
    const Matmul  *p;
    const Backend *backend;
} Job;

// One row of C of one product of the batch.
static void row_task(void *context, int64_t task, int worker) {
    const Job    *job = context;
    const Matmul *p = job->p;
    int64_t       z = task / p->m, m = task % p->m;
    float        *sum = cpu_worker_scratch(job->backend, worker, (size_t)p->n * sizeof *sum);
    for (int64_t n = 0; n < p->n; n++) sum[n] = p->bias ? p->bias[n] : 0;
    for (int64_t k = 0; k < p->k; k++) {
        float a = element(p->a, z * p->a_batch + m * p->a_row + k * p->a_column, p->in);
        for (int64_t n = 0; n < p->n; n++)
            sum[n] += a * element(p->b, z * p->b_batch + k * p->b_row + n * p->b_column, p->in);
    }
    int64_t at = z * p->c_batch + m * p->c_row;
    for (int64_t n = 0; n < p->n; n++) {
        float v = p->add ? sum[n] + element(p->c, at + n, p->out) : sum[n];
        if (p->out == F32) ((float *)p->c)[at + n] = v;
        else ((uint16_t *)p->c)[at + n] = f32_to_bf16(v);
    }
}

static void matmul(Backend *b, const Matmul *p) {
    threads_run(cpu_threads(b), p->m * p->batch, row_task, &(Job){p, b});
}

void SIMD_NAME(install_matmul)(Backend *b) { b->matmul = matmul; }
