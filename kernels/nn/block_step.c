/* One new position of each of a few rows through a block, over a cache of keys and values: what a token of a text
 * costs. Where the backend has products of few rows, each of the four matrices is one call with all that stands around
 * it (norm, bias, rope, the cache, activation, residual), and attention another. */
#include "base/error.h"
#include "kernels/nn/block_parts.h"
#include "kernels/nn/tensor_parallel.h"

typedef struct Step { // the four products of a block
    FewRows qkv, projection, up, down;
} Step;

static FewRows few_rows_of(const Linear *l, int64_t rows, int64_t out) {
    return (FewRows){
        .rows = rows, .n = out, .k = l->weight->shape[1], .w = l->weight->data, .bias = l->bias ? l->bias->data : NULL};
}

static void behind_norm(FewRows *p, const Norm *n) {
    p->norm_scale = n->scale->data;
    p->norm_shift = n->shift ? n->shift->data : NULL;
    p->epsilon = n->epsilon;
}

static int32_t activation_of(MlpKind kind) {
    switch (kind) {
    case MLP_GELU_ERF:
        return FEW_ROWS_GELU_ERF;
    case MLP_GELU_TANH:
        return FEW_ROWS_GELU_TANH;
    case MLP_GELU_QUICK:
        return FEW_ROWS_GELU_QUICK;
    case MLP_SILU:
        return FEW_ROWS_SILU;
    case MLP_SWIGLU:
        return FEW_ROWS_SWIGLU;
    }
    check_failed("a kind of MLP", __FILE__, __LINE__);
}

// All but the addresses of what is computed.
static Step step_of(const Block *b, const Tensor *x, const BlockContext *context) {
    const BlockConfig *c = &b->config;
    const Tensor *cache = &context->cache->kv[b->site];
    int64_t rows = x->shape[0], size = c->width / c->heads, queries = c->heads * size, keys = c->kv_heads * size;
    Step s = {.qkv = few_rows_of(&b->qkv, rows, queries + 2 * keys),
              .projection = few_rows_of(&b->projection, rows, c->width),
              .up = few_rows_of(&b->up, rows, c->mlp_width),
              .down = few_rows_of(&b->down, rows, c->width)};
    behind_norm(&s.qkv, &b->norm1);
    s.qkv.cache = cache->data, s.qkv.queries = queries, s.qkv.slots = context->slots->data;
    s.qkv.head_size = (int32_t)size;
    if (c->rope) {
        s.qkv.turned = queries + keys, s.qkv.positions = context->positions->data;
        s.qkv.rope_base = c->rope_base;
    }
    s.projection.head_size = (int32_t)size, s.projection.range = context->range->data;
    s.projection.chunks = (cache->shape[1] + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK;
    behind_norm(&s.up, &b->norm2);
    s.up.activation = activation_of(c->mlp);
    return s;
}

bool block_step_wins(Tape *t, const Block *b, const Tensor *x, const BlockContext *context) {
    Backend *be = tape_backend(t);
    if (!be->few_rows || !x || tape_recording(t) || !context->cache || !context->slots || x->shape[1] != 1 ||
        parallel_ranks(b->parallel) > 1 || b->qkv.weight->dtype != x->dtype || !context->range)
        return false;
    Step s = step_of(b, x, context);
    return be->few_rows_wins(be, &s.qkv, x->dtype) && be->few_rows_wins(be, &s.projection, x->dtype) &&
           be->few_rows_wins(be, &s.up, x->dtype) && be->few_rows_wins(be, &s.down, x->dtype);
}

static Tensor *run(Tape *t, FewRows *p, const Tensor *x, const Tensor *residual, int64_t width) {
    Backend *be = tape_backend(t);
    Dtype dtype = residual ? residual->dtype : x->dtype;
    Tensor *y = tape_tensor(t, dtype, SHAPE(p->rows, 1, width));
    p->x = x ? x->data : NULL;
    p->residual = residual ? residual->data : NULL;
    p->y = y->data;
    be->few_rows(be, p, dtype);
    return y;
}

// Attention over the cache, in parts that the projection joins.
static void attend(Tape *t, const Block *b, const Tensor *q, FewRows *projection, const BlockContext *context) {
    const BlockConfig *c = &b->config;
    Backend *be = tape_backend(t);
    const Tensor *kv = &context->cache->kv[b->site];
    int64_t size = c->width / c->heads, keys = c->kv_heads * size;
    AttentionShape shape = {.batch = q->shape[0],
                            .queries = 1,
                            .keys = kv->shape[1],
                            .heads = c->heads,
                            .kv_heads = c->kv_heads,
                            .head_size = (int)size,
                            .q_stride = c->heads * size,
                            .k_stride = 2 * keys,
                            .v_stride = 2 * keys,
                            .o_stride = c->heads * size,
                            .range = context->range->data};
    Tensor *parts = tape_tensor(t, F32, SHAPE(shape.batch, c->heads, projection->chunks, size + 2));
    const char *v = (const char *)kv->data + (size_t)keys * dtype_size(kv->dtype);
    be->attention_parts(be, parts->data, q->data, kv->data, v, &shape, q->dtype);
    projection->parts = parts->data;
}

Tensor *block_step(Tape *t, const Block *b, Tensor *x, const BlockContext *context) {
    Step s = step_of(b, x, context);
    Tensor *q = run(t, &s.qkv, x, NULL, s.qkv.queries);
    attend(t, b, q, &s.projection, context);
    Tensor *middle = run(t, &s.projection, NULL, x, s.projection.n);
    Tensor *h = run(t, &s.up, middle, NULL, s.up.n);
    return run(t, &s.down, h, middle, s.down.n);
}
