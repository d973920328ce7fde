/* GELU in its three forms, SiLU and SwiGLU with their gradients. Formulas are at the operators in kernels/ops.h. */
#include "kernels/cpu/simd/map.h"
#include "kernels/ops.h"

INLINE Vec gelu_erf(Vec x, Vec b, Vec p) {
    (void)b, (void)p;
    Vec density;
    return x * vec_normal_distribution(x, &density);
}
INLINE Vec gelu_erf_gradient(Vec dy, Vec x, Vec p) {
    (void)p;
    Vec density, phi = vec_normal_distribution(x, &density);
    return dy * (phi + x * density);
}

// u = sqrt(2/pi) (x + 0.044715 x^3); (1 + tanh u) / 2 = sigmoid(2 u)
INLINE Vec gelu_tanh_gate(Vec x) { return vec_sigmoid(x * (1.595769122f + 0.0713548163f * (x * x))); }
INLINE Vec gelu_tanh(Vec x, Vec b, Vec p) { return (void)b, (void)p, x * gelu_tanh_gate(x); }
INLINE Vec gelu_tanh_gradient(Vec dy, Vec x, Vec p) {
    (void)p;
    Vec gate = gelu_tanh_gate(x);
    return dy * (gate + x * (gate * (1.0f - gate)) * (1.595769122f + 0.214064449f * (x * x)));
}

// x sigmoid(p x): SiLU at p = 1, the quick GELU at p = 1.702
INLINE Vec swish(Vec x, Vec b, Vec p) { return (void)b, x * vec_sigmoid(p * x); }
INLINE Vec swish_gradient(Vec dy, Vec x, Vec p) {
    Vec gate = vec_sigmoid(p * x);
    return dy * (gate + p * x * (gate * (1.0f - gate)));
}

static void gelu_erf_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, gelu_erf, false);
}
static void gelu_erf_gradient_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, gelu_erf_gradient, true);
}
static void gelu_tanh_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, gelu_tanh, false);
}
static void gelu_tanh_gradient_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, gelu_tanh_gradient, true);
}
static void swish_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, swish, false);
}
static void swish_gradient_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    map_span(context, first, end, swish_gradient, true);
}

static const float QUICK = 1.702f;

static void gelu_forward(Backend *b, void *y, const void *x, int64_t n, int kind, Dtype t) {
    Map m = {.y = y, .a = x, .p = QUICK, .type = t};
    RangeTask task = kind == GELU_ERF ? gelu_erf_task : kind == GELU_TANH ? gelu_tanh_task : swish_task;
    cpu_run_ranges(b, n, RANGE_HEAVY, task, &m);
}

static void gelu_backward(Backend *b, void *dx, const void *dy, const void *x, int64_t n, int kind, Dtype t, bool add) {
    Map m = {.y = dx, .a = dy, .b = x, .p = QUICK, .type = t, .add = add};
    RangeTask task = kind == GELU_ERF    ? gelu_erf_gradient_task
                     : kind == GELU_TANH ? gelu_tanh_gradient_task
                                         : swish_gradient_task;
    cpu_run_ranges(b, n, RANGE_HEAVY, task, &m);
}

static void silu_forward(Backend *b, void *y, const void *x, int64_t n, Dtype t) {
    Map m = {.y = y, .a = x, .p = 1, .type = t};
    cpu_run_ranges(b, n, RANGE_HEAVY, swish_task, &m);
}

static void silu_backward(Backend *b, void *dx, const void *dy, const void *x, int64_t n, Dtype t, bool add) {
    Map m = {.y = dx, .a = dy, .b = x, .p = 1, .type = t, .add = add};
    cpu_run_ranges(b, n, RANGE_HEAVY, swish_gradient_task, &m);
}

// ---- SwiGLU: rows of [gate | up] ----

typedef struct Swiglu {
    void *out;      // forward y (N, F); backward dx (N, 2 F)
    const void *x;  // (N, 2 F)
    const void *dy; // (N, F)
    int64_t width;  // F
    Dtype type;
    bool add;
} Swiglu;

INLINE Vec swiglu_formula(Vec gate, Vec up, Vec p) { return (void)p, gate * vec_sigmoid(gate) * up; }

static void swiglu_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Swiglu *j = context;
    int64_t size = (int64_t)dtype_size(j->type), row = j->width * size;
    for (int64_t r = first; r < end; r++) {
        const char *x = (const char *)j->x + 2 * r * row;
        Map m = {.y = (char *)j->out + r * row, .a = x, .b = x + row, .type = j->type};
        map_span(&m, 0, j->width, swiglu_formula, true);
    }
}

static void swiglu_forward(Backend *b, void *y, const void *x, int64_t rows, int64_t width, Dtype t) {
    Swiglu j = {.out = y, .x = x, .width = width, .type = t};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_HEAVY), swiglu_task, &j);
}

// dgate = dy up (s + gate s (1 - s)), dup = dy gate s, with s = sigmoid(gate)
INLINE void swiglu_gradient_step(Vec dy, Vec gate, Vec up, Vec *dgate, Vec *dup) {
    Vec s = vec_sigmoid(gate);
    *dgate = dy * up * (s + gate * (s * (1.0f - s)));
    *dup = dy * (gate * s);
}

INLINE void swiglu_gradient_row(char *dx, const char *dy, const char *x, int64_t width, Dtype t, bool add) {
    int64_t i = 0;
    Vec dgate, dup;
    for (; i + LANES <= width; i += LANES) {
        swiglu_gradient_step(vec_load(dy, i, t), vec_load(x, i, t), vec_load(x, width + i, t), &dgate, &dup);
        vec_store(dx, i, add ? vec_load(dx, i, t) + dgate : dgate, t);
        vec_store(dx, width + i, add ? vec_load(dx, width + i, t) + dup : dup, t);
    }
    int64_t left = width - i;
    if (!left) return;
    swiglu_gradient_step(vec_load_part(dy, i, left, t), vec_load_part(x, i, left, t),
                         vec_load_part(x, width + i, left, t), &dgate, &dup);
    vec_store_part(dx, i, left, add ? vec_load_part(dx, i, left, t) + dgate : dgate, t);
    vec_store_part(dx, width + i, left, add ? vec_load_part(dx, width + i, left, t) + dup : dup, t);
}

static void swiglu_gradient_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Swiglu *j = context;
    int64_t row = j->width * (int64_t)dtype_size(j->type);
    for (int64_t r = first; r < end; r++) {
        char *dx = (char *)j->out + 2 * r * row;
        const char *dy = (const char *)j->dy + r * row, *x = (const char *)j->x + 2 * r * row;
        if (j->type == F32)
            swiglu_gradient_row(dx, dy, x, j->width, F32, j->add);
        else
            swiglu_gradient_row(dx, dy, x, j->width, BF16, j->add);
    }
}

static void swiglu_backward(Backend *b, void *dx, const void *dy, const void *x, int64_t rows, int64_t width, Dtype t,
                            bool add) {
    Swiglu j = {dx, x, dy, width, t, add};
    cpu_run_ranges(b, rows, range_rows(width, RANGE_HEAVY), swiglu_gradient_task, &j);
}

void SIMD_NAME(install_activations)(Backend *b) {
    b->gelu_forward = gelu_forward, b->gelu_backward = gelu_backward;
    b->silu_forward = silu_forward, b->silu_backward = silu_backward;
    b->swiglu_forward = swiglu_forward, b->swiglu_backward = swiglu_backward;
}
