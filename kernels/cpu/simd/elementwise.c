/* Elementwise kernels that cost no more than their memory traffic: convert, add, mul, scale, fill. */
#include "kernels/cpu/simd/map.h"

static void run_map(Backend *b, Map m, int64_t n, RangeTask task) { cpu_run_ranges(b, n, RANGE_ELEMENTS, task, &m); }

INLINE Vec add_formula(Vec a, Vec b, Vec p) { return (void)p, a + b; }
INLINE Vec mul_formula(Vec a, Vec b, Vec p) { return (void)p, a * b; }
INLINE Vec scale_formula(Vec a, Vec b, Vec p) { return (void)b, a * p; }

static void add_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, add_formula, true);
}
static void mul_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, mul_formula, true);
}
static void scale_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, scale_formula, false);
}

static void mul(Backend *b, void *out, const void *x, const void *y, int64_t n, Dtype t, bool add) {
    run_map(b, (Map){.y = out, .a = x, .b = y, .type = t, .add = add}, n, mul_task);
}

static void scale(Backend *b, void *out, const void *x, double factor, int64_t n, Dtype t, bool add) {
    run_map(b, (Map){.y = out, .a = x, .p = (float)factor, .type = t, .add = add}, n, scale_task);
}

// ---- add with repeats: b has n_b elements, a and out n = repeats * n_b ----

typedef struct Repeat {
    Map map;
    int64_t period; // n_b
} Repeat;

// Cuts [first, end) where b starts again.
static void add_repeat_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Repeat *r = context;
    while (first < end) {
        int64_t start = first / r->period * r->period, stop = start + r->period < end ? start + r->period : end;
        Map m = r->map;
        m.b = (const char *)m.b - start * (int64_t)dtype_size(m.type);
        map_span(&m, first, stop, add_formula, true);
        first = stop;
    }
}

static void add(Backend *b, void *out, const void *x, const void *y, int64_t n, int64_t n_b, Dtype t) {
    Map m = {.y = out, .a = x, .b = y, .type = t};
    if (n == n_b) {
        run_map(b, m, n, add_task);
    } else {
        Repeat r = {m, n_b};
        cpu_run_ranges(b, n, RANGE_ELEMENTS, add_repeat_task, &r);
    }
}

// ---- between types ----

typedef struct Transfer { // out (+)= x
    void *out;
    const void *x;
    Dtype to, from;
    bool add;
} Transfer;

INLINE void transfer_span(const Transfer *j, int64_t first, int64_t end, Dtype to, Dtype from, bool add) {
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
        Vec x = vec_load(j->x, i, from);
        vec_store(j->out, i, add ? vec_load(j->out, i, to) + x : x, to);
    }
    if (i == end) return;
    Vec x = vec_load_part(j->x, i, end - i, from);
    vec_store_part(j->out, i, end - i, add ? vec_load_part(j->out, i, end - i, to) + x : x, to);
}

INLINE void transfer_typed(const Transfer *j, int64_t first, int64_t end, bool add) {
    if (j->to == F32 && j->from == F32)
        transfer_span(j, first, end, F32, F32, add);
    else if (j->to == F32)
        transfer_span(j, first, end, F32, BF16, add);
    else if (j->from == F32)
        transfer_span(j, first, end, BF16, F32, add);
    else
        transfer_span(j, first, end, BF16, BF16, add);
}

static void transfer_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Transfer *j = context;
    if (j->add)
        transfer_typed(j, first, end, true);
    else
        transfer_typed(j, first, end, false);
}

static void convert(Backend *b, void *out, Dtype to, const void *x, Dtype from, int64_t n) {
    Transfer j = {out, x, to, from, false};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, transfer_task, &j);
}

static void add_in_place(Backend *b, void *out, const void *x, int64_t n, Dtype to, Dtype from) {
    Transfer j = {out, x, to, from, true};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, transfer_task, &j);
}

typedef struct Scaling { // out (+)= factor * x
    Transfer of;
    float factor;
} Scaling;

static void scale_by_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Scaling *s = context;
    const Transfer *j = &s->of;
    Vec factor = vec_set(s->factor);
    for (int64_t i = first; i < end; i += LANES) {
        int64_t n = end - i < LANES ? end - i : LANES;
        Vec y = vec_load_part(j->x, i, n, j->from) * factor;
        vec_store_part(j->out, i, n, j->add ? vec_load_part(j->out, i, n, j->to) + y : y, j->to);
    }
}

static void scale_by(Backend *b, void *out, Dtype to, const void *x, Dtype from, const float *by, int64_t n, bool add) {
    Scaling s = {{out, x, to, from, add}, by[0]};
    cpu_run_ranges(b, n, RANGE_ELEMENTS, scale_by_task, &s);
}

// ---- fill ----

static void fill_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Map *m = context;
    Vec value = vec_set(m->p);
    int64_t i = first, step = LANES;
    for (; i < end; i += step) {
        int64_t left = end - i;
        if (left >= LANES)
            vec_store(m->y, i, m->add ? vec_load(m->y, i, m->type) + value : value, m->type);
        else
            vec_store_part(m->y, i, left, m->add ? vec_load_part(m->y, i, left, m->type) + value : value, m->type);
    }
}

static void fill(Backend *b, void *x, const float *value, double factor, int64_t n, Dtype t, bool add) {
    run_map(b, (Map){.y = x, .p = (float)(factor * (double)value[0]), .type = t, .add = add}, n, fill_task);
}

void SIMD_NAME(install_elementwise)(Backend *b) {
    b->convert = convert, b->add = add, b->add_in_place = add_in_place;
    b->mul = mul, b->scale = scale, b->scale_by = scale_by, b->fill = fill;
}
