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
    behind_norm(&s.up, &b->norm2);
    s.up.activation = activation_of(c->mlp);
    return s;
}

bool block_step_wins(Tape *t, const Block *b, const Tensor *x, const BlockContext *context) {
    Backend *be = tape_backend(t);
    if (!be->few_rows || !x || tape_recording(t) || !context->cache || !context->slots || x->shape[1] != 1 ||
        parallel_ranks(b->parallel) > 1 || b->qkv.weight->dtype != x->dtype)
        return false;
    Step s = step_of(b, x, context);
    return be->few_rows_wins(be, &s.qkv, x->dtype) && be->few_rows_wins(be, &s.projection, x->dtype) &&
           be->few_rows_wins(be, &s.up, x->dtype) && be->few_rows_wins(be, &s.down, x->dtype);
}

static void run(Backend *be, FewRows *p, const Tensor *x, const Tensor *residual, Tensor *y) {
    p->x = x->data;
    p->residual = residual ? residual->data : NULL;
    p->y = y->data;
    be->few_rows(be, p, x->dtype);
}

Tensor *block_step(Tape *t, const Block *b, Tensor *x, const BlockContext *context) {
    const BlockConfig *c = &b->config;
    Backend *be = tape_backend(t);
    Step s = step_of(b, x, context);
    int64_t rows = x->shape[0], width = c->width;
    Tensor *q = tape_tensor(t, x->dtype, SHAPE(rows, 1, s.qkv.queries));
    run(be, &s.qkv, x, NULL, q);
    Tensor *o = attention(t, q, &context->cache->kv[b->site], context->range, (Heads){c->heads, c->kv_heads, false});
    if (!o) return NULL;
    Tensor *middle = tape_tensor(t, x->dtype, SHAPE(rows, 1, width)),
           *y = tape_tensor(t, x->dtype, SHAPE(rows, 1, width));
    Tensor *h = tape_tensor(t, x->dtype, SHAPE(rows, 1, c->mlp_width));
    run(be, &s.projection, o, x, middle);
    run(be, &s.up, middle, NULL, h);
    run(be, &s.down, h, middle, y);
    return y;
}
