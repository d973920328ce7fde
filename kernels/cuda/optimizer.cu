/* AdamW (Loshchilov and Hutter 2019) over many parameters in one pass: reads gradient, parameter and moments, writes
 * parameter, moments and the bf16 shadow; 28 bytes for each number, 30 with a shadow. A launch carries a table of
 * parts; each block finds the one it belongs to. */
#include "kernels/cuda/language.h"

enum { THREADS = 256, N = 4, PARTS = 48 }; // parts of a launch: the table is a parameter of the kernel (4 KiB at most)

struct Part {
    float *parameter, *m, *v;
    uint16_t *shadow; // or NULL
    const float *gradient;
    int64_t n;
    float decay; // 1 - learning_rate weight_decay
    int aligned; // all of it at multiples of 16 bytes, the shadow of 8
};

struct Table {
    Part part[PARTS];
    unsigned first_block[PARTS + 1]; // of each part; the last is the end of all
};

struct Rule {
    float gradient_scale, beta1, rest1, beta2, rest2, epsilon; // rest: 1 - beta, taken in f64
    float step;                                                // learning_rate / correction1
    float root_factor;                                         // 1 / sqrt(correction2)
};

// p = p decay - step m / (sqrt(v) root_factor + epsilon)
static __device__ __forceinline__ float updated(const Rule &r, float decay, float p, float g, float *m, float *v) {
    g *= r.gradient_scale;
    *m = *m * r.beta1 + g * r.rest1;
    *v = *v * r.beta2 + (g * g) * r.rest2;
    return p * decay - r.step * *m / (sqrtf(*v) * r.root_factor + r.epsilon);
}

template <int WIDTH> static __device__ __forceinline__ void update(const Part &part, const Rule &r, int64_t i) {
    Floats<WIDTH> p = load<WIDTH>(part.parameter + i), g = load<WIDTH>(part.gradient + i);
    Floats<WIDTH> m = load<WIDTH>(part.m + i), v = load<WIDTH>(part.v + i);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) p.at[k] = updated(r, part.decay, p.at[k], g.at[k], &m.at[k], &v.at[k]);
    store<WIDTH>(part.parameter + i, p);
    store<WIDTH>(part.m + i, m);
    store<WIDTH>(part.v + i, v);
    if (part.shadow) store<WIDTH>(reinterpret_cast<Bf16 *>(part.shadow) + i, p);
}

static __global__ void __launch_bounds__(THREADS) adamw_kernel(const Table table, Rule rule) {
    int at = 0; // the last part that begins at or before this block
    for (int step = 32; step; step /= 2)
        if (at + step < PARTS && table.first_block[at + step] <= blockIdx.x) at += step;
    const Part &part = table.part[at];
    int64_t i = (static_cast<int64_t>(blockIdx.x - table.first_block[at]) * THREADS + threadIdx.x) * N;
    if (part.aligned && i + N <= part.n) {
        update<N>(part, rule, i);
    } else {
        for (int64_t k = i; k < i + N && k < part.n; k++) update<1>(part, rule, k);
    }
}

static Part part_of(const CudaAdamwPart *p, double learning_rate) {
    bool aligned = packs_at(p->parameter, N) && packs_at(p->m, N) && packs_at(p->v, N) && packs_at(p->gradient, N) &&
                   packs_at(p->shadow, N);
    return Part{
        p->parameter, p->m, p->v, p->shadow, p->gradient, p->n, static_cast<float>(1 - learning_rate * p->weight_decay),
        aligned};
}

void cuda_adamw_parts(const CudaQueue *q, const CudaAdamwPart *parts, int count, const AdamW *o) {
    Rule rule = {static_cast<float>(o->gradient_scale),
                 static_cast<float>(o->beta1),
                 static_cast<float>(1 - o->beta1),
                 static_cast<float>(o->beta2),
                 static_cast<float>(1 - o->beta2),
                 static_cast<float>(o->epsilon),
                 static_cast<float>(o->learning_rate / o->correction1),
                 static_cast<float>(1 / sqrt(o->correction2))};
    for (int i = 0; i < count;) {
        Table table = {};
        int64_t blocks = 0;
        int used = 0;
        for (; i < count && used < PARTS; i++) {
            int64_t more = divide_up<int64_t>(parts[i].n, THREADS * N);
            if (more <= 0) continue;
            if (used && blocks + more > INT32_MAX) break;
            table.part[used] = part_of(&parts[i], o->learning_rate);
            table.first_block[used++] = static_cast<unsigned>(blocks);
            blocks += more;
        }
        for (int k = used; k <= PARTS; k++) table.first_block[k] = UINT32_MAX; // no block is there
        if (blocks) launch<adamw_kernel>(dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, q, table, rule);
    }
}

void cuda_adamw(const CudaQueue *q, float *parameter, uint16_t *shadow, float *m, float *v, const float *gradient,
                int64_t n, const AdamW *o) {
    CudaAdamwPart part = {parameter, m, v, shadow, gradient, n, o->weight_decay};
    cuda_adamw_parts(q, &part, 1, o);
}
