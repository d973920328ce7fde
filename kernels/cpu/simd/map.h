/* Elementwise kernels from formulas: y[i] (+)= f(a[i], b[i], p), in f32 whatever the type of the memory. The formula is
 * a constant argument of always-inlined functions, so each kernel becomes one loop of its own for each type. */
#pragma once
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

typedef Vec (*Formula)(Vec a, Vec b, Vec p);

typedef struct Map {
    void *y;
    const void *a, *b; // b NULL: the formula has no second input
    float p;           // a parameter of the formula
    Dtype type;
    bool add;
} Map;

INLINE void map_step(const Map *m, int64_t i, Formula f, Vec p, Dtype t, bool two, bool add) {
    Vec a = vec_load(m->a, i, t), b = two ? vec_load(m->b, i, t) : a;
    Vec y = f(a, b, p);
    vec_store(m->y, i, add ? vec_load(m->y, i, t) + y : y, t);
}

INLINE void map_span_of(const Map *job, int64_t first, int64_t end, Formula f, Dtype t, bool two, bool add) {
    const Map copy = *job, *m = &copy; // which no store can change
    Vec p = vec_set(m->p);
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) map_step(m, i, f, p, t, two, add);
    int64_t left = end - i;
    if (!left) return;
    Vec a = vec_load_part(m->a, i, left, t), b = two ? vec_load_part(m->b, i, left, t) : a;
    Vec y = f(a, b, p);
    vec_store_part(m->y, i, left, add ? vec_load_part(m->y, i, left, t) + y : y, t);
}

// Elements [first, end).
INLINE void map_span(const Map *m, int64_t first, int64_t end, Formula f, bool two) {
    if (m->type == F32) {
        if (m->add)
            map_span_of(m, first, end, f, F32, two, true);
        else
            map_span_of(m, first, end, f, F32, two, false);
    } else {
        if (m->add)
            map_span_of(m, first, end, f, BF16, two, true);
        else
            map_span_of(m, first, end, f, BF16, two, false);
    }
}
