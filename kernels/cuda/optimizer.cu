/* AdamW (Loshchilov and Hutter 2019) over many parameters in one pass: reads gradient, parameter and moments, writes
 * parameter, moments and the bf16 shadow; 28 bytes for each number, 30 with a shadow. A launch carries a table of
 * parts, the same in every step; each block finds the one it belongs to. What differs from step to step comes as a
 * message, or from the gate. */
#include "kernels/cuda/language.h"

enum { THREADS = 256, N = 4 };
enum { FEW = 48, MANY = 512 }; // parts of a launch: the table is a parameter of the kernel (32,764 bytes at most)

struct Part {
    float *parameter, *m, *v;
    uint16_t *shadow; // or NULL
    const float *gradient;
    int64_t n;
    int decays, aligned; // aligned: all of it at multiples of 16 bytes, the shadow of 8
};

template <int PARTS> struct Table {
    Part part[PARTS];
    unsigned first_block[PARTS]; // of each part; where there is none no block is either
};
static_assert(sizeof(Table<MANY>) + 2 * sizeof(void *) <= 32764, "parameters of a kernel");

struct Rule {
    float gradient_scale, beta1, rest1, beta2, rest2, epsilon; // rest: 1 - beta, taken in f64
    float decay;                                               // 1 - learning_rate weight_decay
    float step;                                                // learning_rate / correction1
    float root_factor;                                         // 1 / sqrt(correction2)
};

// p = p decay - step m / (sqrt(v) root_factor + epsilon)
static __device__ __forceinline__ float updated(const Rule &r, float p, float g, float *m, float *v) {
    g *= r.gradient_scale;
    *m = *m * r.beta1 + g * r.rest1;
    *v = *v * r.beta2 + (g * g) * r.rest2;
    return p * r.decay - r.step * *m / (sqrtf(*v) * r.root_factor + r.epsilon);
}

template <int WIDTH> static __device__ __forceinline__ void update(const Part &part, const Rule &r, int64_t i) {
    Floats<WIDTH> p = load<WIDTH>(part.parameter + i), g = load<WIDTH>(part.gradient + i);
    Floats<WIDTH> m = load<WIDTH>(part.m + i), v = load<WIDTH>(part.v + i);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) p.at[k] = updated(r, p.at[k], g.at[k], &m.at[k], &v.at[k]);
    store<WIDTH>(part.parameter + i, p);
    store<WIDTH>(part.m + i, m);
    store<WIDTH>(part.v + i, v);
    if (part.shadow) store<WIDTH>(reinterpret_cast<Bf16 *>(part.shadow) + i, p);
}

template <int PARTS>
static __global__ void __launch_bounds__(THREADS)
    adamw_kernel(const Table<PARTS> table, const Rule *rule, const Gate *gate) {
    if (gate && gate->failed) return;
    int at = 0; // the last part that begins at or before this block
    for (int stride = MANY / 2; stride; stride /= 2)
        if (at + stride < PARTS && table.first_block[at + stride] <= blockIdx.x) at += stride;
    const Part &part = table.part[at];
    Rule r = *rule;
    if (gate) r.gradient_scale = gate->gradient_scale;
    if (!part.decays) r.decay = 1;
    int64_t i = (static_cast<int64_t>(blockIdx.x - table.first_block[at]) * THREADS + threadIdx.x) * N;
    if (part.aligned && i + N <= part.n) {
        update<N>(part, r, i);
    } else {
        for (int64_t k = i; k < i + N && k < part.n; k++) update<1>(part, r, k);
    }
}

static Part part_of(const AdamWPart *p) {
    bool aligned = packs_at(p->parameter, N) && packs_at(p->m, N) && packs_at(p->v, N) && packs_at(p->gradient, N) &&
                   packs_at(p->shadow, N);
    return Part{p->parameter, p->m, p->v, p->shadow, p->gradient, p->n, p->decays, aligned};
}

static Rule rule_of(const AdamW *o) {
    return Rule{static_cast<float>(o->gradient_scale),
                static_cast<float>(o->beta1),
                static_cast<float>(1 - o->beta1),
                static_cast<float>(o->beta2),
                static_cast<float>(1 - o->beta2),
                static_cast<float>(o->epsilon),
                static_cast<float>(1 - o->learning_rate * o->weight_decay),
                static_cast<float>(o->learning_rate / o->correction1),
                static_cast<float>(1 / sqrt(o->correction2))};
}

// Starts as many of the parts as a table takes; returns how many of them.
template <int PARTS>
static int start_parts(const CudaQueue *q, const AdamWPart *parts, int count, const Rule *rule, const Gate *gate) {
    Table<PARTS> table = {};
    int64_t blocks = 0;
    int used = 0, taken = 0;
    for (; taken < count && used < PARTS; taken++) {
        int64_t more = divide_up<int64_t>(parts[taken].n, THREADS * N);
        if (more <= 0) continue;
        if (used && blocks + more > INT32_MAX) break;
        table.part[used] = part_of(&parts[taken]);
        table.first_block[used++] = static_cast<unsigned>(blocks);
        blocks += more;
    }
    for (int k = used; k < PARTS; k++) table.first_block[k] = UINT32_MAX;
    if (blocks)
        launch<adamw_kernel<PARTS>>(dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, q, table, rule, gate);
    return taken;
}

void cuda_adamw_parts(const CudaQueue *q, const AdamWPart *parts, int count, const AdamW *o, const Gate *gate) {
    const Rule host = rule_of(o), *rule = static_cast<const Rule *>(q->message(q->owner, &host, sizeof host));
    for (int i = 0; i < count;)
        i += count - i > FEW ? start_parts<MANY>(q, parts + i, count - i, rule, gate)
                             : start_parts<FEW>(q, parts + i, count - i, rule, gate);
}
