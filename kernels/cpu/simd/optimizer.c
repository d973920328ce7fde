/* AdamW (Loshchilov and Hutter 2019) in one pass: reads gradient, parameter and moments, writes parameter, moments and
 * the bf16 shadow. 28 bytes for each parameter, 30 with a shadow: the memory's speed is the limit. Blocks of all parts
 * are shared out over the threads together. And what a GPU decides for itself (gate): the norm over many spans, and
 * whether a step is taken. */
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

typedef struct Rule {
    float gradient_scale, beta1, rest1, beta2, rest2, epsilon; // rest: 1 - beta, taken in f64
    float decay;                                               // 1 - learning_rate weight_decay
    float step;                                                // learning_rate / correction1
    float root_factor;                                         // 1 / sqrt(correction2)
} Rule;

// p = p decay - step m / (sqrt(v) root_factor + epsilon)
INLINE Vec updated(const Rule *r, float decay, Vec p, Vec g, Vec *m, Vec *v) {
    g *= r->gradient_scale;
    *m = *m * r->beta1 + g * r->rest1;
    *v = *v * r->beta2 + (g * g) * r->rest2;
    return p * decay - r->step * *m / (vec_sqrt(*v) * r->root_factor + r->epsilon);
}

INLINE void update_span(const AdamWPart *u, const Rule *r, int64_t first, int64_t end, bool shadow) {
    float decay = u->decays ? r->decay : 1;
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
        Vec m = vec_load(u->m, i, F32), v = vec_load(u->v, i, F32);
        Vec p = updated(r, decay, vec_load(u->parameter, i, F32), vec_load(u->gradient, i, F32), &m, &v);
        vec_store(u->m, i, m, F32);
        vec_store(u->v, i, v, F32);
        vec_store(u->parameter, i, p, F32);
        if (shadow) vec_store(u->shadow, i, p, BF16);
    }
    int64_t left = end - i;
    if (!left) return;
    Vec m = vec_load_part(u->m, i, left, F32), v = vec_load_part(u->v, i, left, F32);
    Vec p =
        updated(r, decay, vec_load_part(u->parameter, i, left, F32), vec_load_part(u->gradient, i, left, F32), &m, &v);
    vec_store_part(u->m, i, left, m, F32);
    vec_store_part(u->v, i, left, v, F32);
    vec_store_part(u->parameter, i, left, p, F32);
    if (shadow) vec_store_part(u->shadow, i, left, p, BF16);
}

typedef struct Update {
    const AdamWPart *parts;
    int64_t *first_block; // (count + 1) of each part; the last is the end of all
    int count;
    Rule rule;
} Update;

static void update_block(const Update *u, int64_t block) {
    int at = 0, end = u->count; // the part it lies in: of parts without elements none is
    while (end - at > 1) {
        int middle = (at + end) / 2;
        if (u->first_block[middle] <= block)
            at = middle;
        else
            end = middle;
    }
    const AdamWPart *part = &u->parts[at];
    int64_t first = (block - u->first_block[at]) * RANGE_ELEMENTS, stop = first + RANGE_ELEMENTS;
    if (stop > part->n) stop = part->n;
    if (part->shadow)
        update_span(part, &u->rule, first, stop, true);
    else
        update_span(part, &u->rule, first, stop, false);
}

static void update_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    for (int64_t block = first; block < end; block++) update_block(context, block);
}

static void adamw_parts(Backend *b, const AdamWPart *parts, int count, const AdamW *o, const Gate *gate) {
    if (gate && gate->failed) return;
    Update u = {.parts = parts,
                .first_block = cpu_shared_scratch(b, sizeof(int64_t) * ((size_t)count + 1)),
                .count = count,
                .rule = {.gradient_scale = gate ? gate->gradient_scale : (float)o->gradient_scale,
                         .beta1 = (float)o->beta1,
                         .rest1 = (float)(1 - o->beta1),
                         .beta2 = (float)o->beta2,
                         .rest2 = (float)(1 - o->beta2),
                         .epsilon = (float)o->epsilon,
                         .decay = (float)(1 - o->learning_rate * o->weight_decay),
                         .step = (float)(o->learning_rate / o->correction1),
                         .root_factor = (float)(1 / __builtin_sqrt(o->correction2))}};
    u.first_block[0] = 0;
    for (int i = 0; i < count; i++) u.first_block[i + 1] = u.first_block[i] + range_blocks(parts[i].n, RANGE_ELEMENTS);
    cpu_run_ranges(b, u.first_block[count], 1, update_task, &u);
}

// ---- the gate ----

static void sum_squares(Backend *b, double *out, const FloatSpan *spans, int count, const float *finite, int64_t n) {
    (void)b;
    double sum = 0;
    for (int i = 0; i < count; i++)
        for (int64_t k = 0; k < spans[i].n; k++) sum += (double)spans[i].x[k] * (double)spans[i].x[k];
    for (int64_t i = 0; i < n; i++) sum += (double)(finite[i] - finite[i]); // 0, or not a number
    *out = sum;
}

static void sum_doubles(Backend *b, const DoubleSum *sums, int count) {
    (void)b;
    for (int i = 0; i < count; i++) {
        double sum = 0;
        for (int64_t k = 0; k < sums[i].n; k++) sum += sums[i].x[k];
        *sums[i].out = sums[i].elsewhere ? sum - sum : sum; // 0, or not a number
    }
}

// Lower half first.
static double sum_tree(const double *x, int64_t n) {
    if (n <= 1) return n ? *x : 0;
    return sum_tree(x, n / 2) + sum_tree(x + n / 2, n - n / 2);
}

static void close_gate(Backend *b, Gate *gate, const double *squares, int64_t n, double clip) {
    (void)b;
    double norm = __builtin_sqrt(sum_tree(squares, n));
    gate->norm = norm;
    gate->gradient_scale = clip > 0 && norm > clip ? (float)(clip / norm) : 1;
    if (!__builtin_isfinite(norm)) gate->failed = 1;
}

void SIMD_NAME(install_optimizer)(Backend *b) {
    b->adamw_parts = adamw_parts, b->sum_squares = sum_squares, b->sum_doubles = sum_doubles;
    b->gate = close_gate;
}
