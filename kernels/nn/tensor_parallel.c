/* See tensor_parallel.h. */
#include "kernels/nn/tensor_parallel.h"
#include "base/error.h"
#include "kernels/recompute.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NAME_MOST = 256 }; // bytes of a parameter's name

int parallel_ranks(const Parallel *p) { return p ? comm_size(p->tensor) : 1; }
bool parallel_shares_rows(const Parallel *p) { return parallel_ranks(p) > 1 && p->sequence; }

// ---- parameters ----

static Split split_along(int dimension, int segments, const int64_t *sizes) {
    Split s = {.dimension = dimension, .segments = segments};
    check(segments <= SPLIT_SEGMENTS);
    memcpy(s.size, sizes, (size_t)segments * sizeof *sizes);
    return s;
}

static void partial_inside(Parameters *p, const Tensor *vector) {
    if (vector && parallel_shares_rows(parameters_parallel(p))) parameters_set_partial(p, vector);
}

// A weight (out, in) and a bias (out), split as told.
static Linear declare(Parameters *p, const char *name, int64_t out, int64_t in, double std, Split weight,
                      const Split *bias) {
    char full[NAME_MOST];
    Init normal = {.kind = INIT_NORMAL, .value = std > 0 ? std : sqrt(2.0 / (double)(in + out))};
    check(snprintf(full, sizeof full, "%s.weight", name) < NAME_MOST);
    Linear l = {.weight = parameters_add_split(p, full, SHAPE(out, in), normal, true, weight)};
    parameters_scale_products(p, l.weight);
    check(snprintf(full, sizeof full, "%s.bias", name) < NAME_MOST);
    if (bias) l.bias = parameters_add_split(p, full, SHAPE(out), (Init){.kind = INIT_ZERO}, false, *bias);
    return l;
}

Linear column_declare(Parameters *p, const char *name, int segments, const int64_t *sizes, int64_t in, bool bias,
                      double std) {
    Split split = split_along(0, segments, sizes);
    int64_t out = 0;
    for (int i = 0; i < segments; i++) out += sizes[i];
    return declare(p, name, out, in, std, split, bias ? &split : NULL);
}

Linear row_declare(Parameters *p, const char *name, int64_t out, int64_t in, bool bias, double std) {
    Linear l = declare(p, name, out, in, std, split_along(1, 1, &in), bias ? &(Split){0} : NULL);
    partial_inside(p, l.bias);
    return l;
}

Norm stack_norm_declare(Parameters *p, const char *name, int64_t width, NormKind kind, double epsilon) {
    Norm n = norm_declare(p, name, width, kind, epsilon);
    partial_inside(p, n.scale);
    partial_inside(p, n.shift);
    return n;
}

// ---- passes ----

typedef struct Gathered { // a linear map of all ranks' rows
    const Linear *linear;
    Comm *tensor;
    int64_t batch, length;
} Gathered;

static Tensor *gathered_linear(Tape *t, const void *closure, Tensor *x) {
    const Gathered *g = closure;
    return linear_layer(t, g->linear, sequence_gather(t, x, g->batch, g->length, g->tensor));
}

Tensor *column_linear(Tape *t, const Parallel *p, const Linear *l, Tensor *x, const BlockContext *context) {
    if (parallel_ranks(p) == 1) return linear_layer(t, l, x);
    if (!p->sequence) return linear_layer(t, l, tensor_copy(t, x, p->tensor));
    Gathered g = {l, p->tensor, context->batch, context->length};
    return tape_recompute(t, gathered_linear, &g, sizeof g, x);
}

// A part's sum over ranks, and the bias. What has been summed is dropped: nothing reads it again.
static Tensor *sum_parts(Tape *t, const Parallel *p, const Linear *l, Tensor *part) {
    Tensor *y = p->sequence ? sequence_scatter(t, part, p->tensor) : tensor_reduce(t, part, p->tensor);
    tape_drop(t, part);
    if (!l->bias) return y;
    Tensor *sum = add(t, y, l->bias);
    tape_drop(t, y);
    return sum;
}

Tensor *row_linear(Tape *t, const Parallel *p, const Linear *l, Tensor *x) {
    if (parallel_ranks(p) == 1) return linear_layer(t, l, x);
    return sum_parts(t, p, l, linear(t, x, l->weight, NULL));
}

Tensor *split_mlp(Tape *t, const Parallel *p, const Linear *up, const Linear *down, GeluKind kind, Tensor *x) {
    check(!parallel_shares_rows(p));
    if (parallel_ranks(p) == 1) return mlp(t, x, up->weight, up->bias, down->weight, down->bias, kind);
    return sum_parts(t, p, down, mlp(t, tensor_copy(t, x, p->tensor), up->weight, up->bias, down->weight, NULL, kind));
}

void stack_share(const Parallel *p, int64_t batch, int64_t length, BlockContext *context) {
    if (!parallel_shares_rows(p)) return;
    check(!context->cache);
    context->batch = batch;
    context->length = length;
    context->first = comm_share(batch * length, comm_rank(p->tensor), comm_size(p->tensor));
}

Tensor *stack_enter(Tape *t, const Parallel *p, Tensor *x, BlockContext *context) {
    if (!x || !parallel_shares_rows(p)) return x;
    check(x->rank == 3);
    stack_share(p, x->shape[0], x->shape[1], context);
    return sequence_split(t, x, p->tensor);
}

Tensor *stack_leave(Tape *t, const Parallel *p, Tensor *x, const BlockContext *context) {
    return parallel_shares_rows(p) ? sequence_collect(t, x, context->batch, context->length, p->tensor) : x;
}

// ---- what fits ----

int64_t parallel_common(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

const char *parallel_degrees(int64_t common, Arena *memory) {
    const char *list = "1";
    for (int64_t d = 2; d <= common; d++)
        if (common % d == 0) list = arena_printf(memory, d == common ? "%s or %lld" : "%s, %lld", list, (long long)d);
    return list;
}
