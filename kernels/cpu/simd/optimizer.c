/* AdamW (Loshchilov and Hutter 2019) in one pass: reads gradient, parameter and moments, writes parameter, moments and
 * the bf16 shadow. 28 bytes for each parameter, 30 with a shadow: the memory's speed is the limit. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

typedef struct Update {
    float *parameter, *m, *v;
    uint16_t *shadow; // or NULL
    const float *gradient;
    float gradient_scale, beta1, rest1, beta2, rest2, epsilon; // rest: 1 - beta, taken in f64
    float decay;                                               // 1 - learning_rate weight_decay
    float step;                                                // learning_rate / correction1
    float root_factor;                                         // 1 / sqrt(correction2)
} Update;

// p = p decay - step m / (sqrt(v) root_factor + epsilon)
INLINE Vec updated(const Update *u, Vec p, Vec g, Vec *m, Vec *v) {
    g *= u->gradient_scale;
    *m = *m * u->beta1 + g * u->rest1;
    *v = *v * u->beta2 + (g * g) * u->rest2;
    return p * u->decay - u->step * *m / (vec_sqrt(*v) * u->root_factor + u->epsilon);
}

INLINE void update_span(const Update *u, int64_t first, int64_t end, bool shadow) {
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
        Vec m = vec_load(u->m, i, F32), v = vec_load(u->v, i, F32);
        Vec p = updated(u, vec_load(u->parameter, i, F32), vec_load(u->gradient, i, F32), &m, &v);
        vec_store(u->m, i, m, F32);
        vec_store(u->v, i, v, F32);
        vec_store(u->parameter, i, p, F32);
        if (shadow) vec_store(u->shadow, i, p, BF16);
    }
    int64_t left = end - i;
    if (!left) return;
    Vec m = vec_load_part(u->m, i, left, F32), v = vec_load_part(u->v, i, left, F32);
    Vec p = updated(u, vec_load_part(u->parameter, i, left, F32), vec_load_part(u->gradient, i, left, F32), &m, &v);
    vec_store_part(u->m, i, left, m, F32);
    vec_store_part(u->v, i, left, v, F32);
    vec_store_part(u->parameter, i, left, p, F32);
    if (shadow) vec_store_part(u->shadow, i, left, p, BF16);
}

static void update_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Update *u = context;
    if (u->shadow)
        update_span(u, first, end, true);
    else
        update_span(u, first, end, false);
}

static void adamw(Backend *b, float *parameter, uint16_t *shadow, float *m, float *v, const float *gradient, int64_t n,
                  const AdamW *o) {
    Update u = {.parameter = parameter,
                .m = m,
                .v = v,
                .shadow = shadow,
                .gradient = gradient,
                .gradient_scale = (float)o->gradient_scale,
                .beta1 = (float)o->beta1,
                .rest1 = (float)(1 - o->beta1),
                .beta2 = (float)o->beta2,
                .rest2 = (float)(1 - o->beta2),
                .epsilon = (float)o->epsilon,
                .decay = (float)(1 - o->learning_rate * o->weight_decay),
                .step = (float)(o->learning_rate / o->correction1),
                .root_factor = (float)(1 / __builtin_sqrt(o->correction2))};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, update_task, &u);
}

void SIMD_NAME(install_optimizer)(Backend *b) { b->adamw = adamw; }
