/* See block.h. The cached path of attention runs the same weights in two pieces, queries apart from keys and values:
 * a view of the rows of the packed matrix, so that new keys and values land in the cache with one copy. */
#include "base/error.h"
#include "kernels/nn/block_parts.h"
#include "kernels/nn/tensor_parallel.h"
#include "kernels/recompute.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { NAME_MOST = 256, /* bytes of a parameter's name */ CACHE_ALIGNMENT = 256 };

static const char *join(char out[NAME_MOST], const char *name, const char *part) {
    check(snprintf(out, NAME_MOST, "%s.%s", name, part) < NAME_MOST);
    return out;
}

// ---- layers ----

Norm norm_declare(Parameters *p, const char *name, int64_t width, NormKind kind, double epsilon) {
    char full[NAME_MOST];
    Norm n = {.kind = kind, .epsilon = epsilon};
    n.scale = parameters_add(p, join(full, name, "scale"), SHAPE(width), (Init){.kind = INIT_ONE}, false);
    if (kind == NORM_LAYER)
        n.shift = parameters_add(p, join(full, name, "shift"), SHAPE(width), (Init){.kind = INIT_ZERO}, false);
    return n;
}

Tensor *norm_forward(Tape *t, const Norm *n, Tensor *x) {
    return n->kind == NORM_LAYER ? layernorm(t, x, n->scale, n->shift, n->epsilon)
                                 : rmsnorm(t, x, n->scale, n->epsilon);
}

Linear linear_declare(Parameters *p, const char *name, int64_t out, int64_t in, bool bias, double std) {
    char full[NAME_MOST];
    if (std <= 0) std = sqrt(2.0 / (double)(in + out));
    Init init = {.kind = INIT_NORMAL, .value = std};
    Linear l = {.weight = parameters_add(p, join(full, name, "weight"), SHAPE(out, in), init, true)};
    if (bias) l.bias = parameters_add(p, join(full, name, "bias"), SHAPE(out), (Init){.kind = INIT_ZERO}, false);
    return l;
}

Tensor *linear_layer(Tape *t, const Linear *l, Tensor *x) { return linear(t, x, l->weight, l->bias); }

// Of x in a pass.
static Draws draws_of(const Tensor *x, double p, uint64_t site, const BlockContext *context) {
    if (!x || !context->training || p <= 0) return (Draws){0};
    int64_t length = context->batch ? context->length : x->shape[1], width = x->shape[2];
    Draws d = {.p = p, .seed = context->dropout_seed, .site = site, .first = (uint64_t)(context->first * width)};
    if (context->row_numbers) {
        d.numbers = context->row_numbers;
        d.row = length * width;
    } else {
        d.first += context->first_row * (uint64_t)(length * width);
    }
    return d;
}

Tensor *residual_dropout(Tape *t, Tensor *x, double p, uint64_t site, const BlockContext *context) {
    Draws d = draws_of(x, p, site, context);
    return dropout_by(t, x, &d);
}

Residual residual_of(Tensor *x) { return (Residual){.x = x}; }

// No gradient reads a branch.
Tensor *residual_sum(Tape *t, const Residual *r) {
    if (!r->branch) return r->x;
    Tensor *kept = dropout_by(t, r->branch, &r->draws);
    if (kept != r->branch) tape_drop(t, r->branch);
    Tensor *sum = add(t, r->x, kept);
    tape_drop(t, kept);
    return sum;
}

Tensor *residual_norm(Tape *t, const Norm *n, Residual *r) {
    if (!r->branch) return norm_forward(t, n, r->x);
    NormedSum both = add_norm(t, r->x, r->branch, n->scale, n->shift, n->epsilon, &r->draws);
    tape_drop(t, r->branch);
    *r = residual_of(both.sum);
    return both.normed;
}

// ---- the block ----

static int64_t head_size(const BlockConfig *c) { return c->width / c->heads; }

// Projections into the residual stream are scaled; Glorot's deviation is worked out here, for linear_declare knows no
// factor.
static double projection_std(const BlockConfig *c, int64_t out, int64_t in) {
    double std = c->init_std > 0 ? c->init_std : sqrt(2.0 / (double)(in + out));
    return std * c->residual_init_scale;
}

int64_t block_common(const BlockConfig *c) {
    return parallel_common(parallel_common(c->heads, c->kv_heads), c->mlp_width);
}

Block block_declare(Parameters *p, const char *name, const BlockConfig *c, int site) {
    check(c->heads > 0 && c->kv_heads > 0 && c->width % c->heads == 0 && c->heads % c->kv_heads == 0);
    check(c->residual_init_scale > 0);
    char full[NAME_MOST];
    int64_t keys = c->kv_heads * head_size(c), qkv[] = {c->heads * head_size(c), keys, keys};
    int64_t up[] = {c->mlp_width, c->mlp_width}; // gate | up, or up alone
    Block b = {.config = *c, .site = site, .parallel = parameters_parallel(p)};
    check(block_common(c) % parallel_ranks(b.parallel) == 0);
    b.norm1 = stack_norm_declare(p, join(full, name, "norm1"), c->width, c->norm, c->norm_epsilon);
    b.qkv = column_declare(p, join(full, name, "qkv"), 3, qkv, c->width, c->bias, c->init_std);
    b.projection = row_declare(p, join(full, name, "projection"), c->width, c->width, c->bias,
                               projection_std(c, c->width, c->width));
    b.norm2 = stack_norm_declare(p, join(full, name, "norm2"), c->width, c->norm, c->norm_epsilon);
    b.up = column_declare(p, join(full, name, "up"), c->mlp == MLP_SWIGLU ? 2 : 1, up, c->width, c->bias, c->init_std);
    b.down = row_declare(p, join(full, name, "down"), c->width, c->mlp_width, c->bias,
                         projection_std(c, c->width, c->mlp_width));
    return b;
}

// Rows [first, first + count) of a linear map, as a map of its own. For inference: no gradient.
static Tensor *linear_rows(Tape *t, const Linear *l, Tensor *x, int64_t first, int64_t count) {
    Tensor weight = *l->weight, bias = {0};
    weight.shape[0] = count;
    weight.data = (char *)weight.data + (size_t)(first * weight.shape[1]) * dtype_size(weight.dtype);
    weight.needs_grad = false;
    if (l->bias) {
        bias = *l->bias;
        bias.shape[0] = count;
        bias.data = (float *)bias.data + first;
        bias.needs_grad = false;
    }
    return linear(t, x, &weight, l->bias ? &bias : NULL);
}

// (B, T, 2 K D) into the cache's slots
static void cache_write(KvCache *cache, int layer, const Tensor *kv, const Tensor *slots) {
    Tensor *to = &cache->kv[layer];
    check(layer < cache->layers && kv->shape[0] == to->shape[0] && kv->shape[2] == to->shape[2]);
    check(kv->dtype == to->dtype);
    check(tensor_count(slots) == tensor_rows(kv));
    cache->backend->put_rows(cache->backend, to->data, kv->data, slots->data, tensor_rows(kv), kv->shape[2],
                             tensor_rows(to), kv->dtype);
}

// (B, T, C) -> (B, T, H D), over the cached positions and the new ones
static Tensor *attend_cached(Tape *t, const Block *b, Tensor *x, const BlockContext *context) {
    const BlockConfig *c = &b->config;
    int64_t d = head_size(c), queries = c->heads * d, kv_width = 2 * c->kv_heads * d;
    check(!tape_recording(t) && context->range && parallel_ranks(b->parallel) == 1);
    Tensor *q = linear_rows(t, &b->qkv, x, 0, queries);
    Tensor *kv = linear_rows(t, &b->qkv, x, queries, kv_width);
    if (c->rope) {
        q = rope_in_place(t, q, context->positions, c->heads, (int)d, c->rope_base);
        kv = rope_in_place(t, kv, context->positions, c->kv_heads, (int)d, c->rope_base);
    }
    if (!q || !kv || !context->slots) return NULL;
    cache_write(context->cache, b->site, kv, context->slots);
    return attention(t, q, &context->cache->kv[b->site], context->range, (Heads){c->heads, c->kv_heads, false});
}

// A piece of a block's pass, as a function that may be run again.
typedef struct Piece {
    const Block *block;
    BlockContext context;
} Piece;

// Runs it; in recomputation of this kind it is not held.
static Tensor *run_piece(Tape *t, RecomputeFunction piece, const Block *b, Tensor *x, const BlockContext *context,
                         Recompute kind) {
    Piece p = {b, *context};
    return context->recompute == kind ? tape_recompute(t, piece, &p, sizeof p, x) : piece(t, &p, x);
}

// (B, T, C) or (1, N, C) -> (B, T, (H + 2 K) D)
static Tensor *attention_input(Tape *t, const void *closure, Tensor *x) {
    const Piece *p = closure;
    const Block *b = p->block;
    return column_linear(t, b->parallel, &b->qkv, norm_forward(t, &b->norm1, x), &p->context);
}

// The stream through a norm and what cuts it into columns. Where the norm's output is not held, it cannot be the
// stream's other output: then the sum is formed first.
static Tensor *read_stream(Tape *t, const Block *b, const Norm *norm, const Linear *columns, RecomputeFunction piece,
                           Residual *r, const BlockContext *context) {
    if (context->recompute != RECOMPUTE_SELECTIVE)
        return column_linear(t, b->parallel, columns, residual_norm(t, norm, r), context);
    *r = residual_of(residual_sum(t, r));
    return run_piece(t, piece, b, r->x, context, RECOMPUTE_SELECTIVE);
}

// (B, T, C) or (1, N, C) -> (B, T, H D); H and K: the heads of this rank
static Tensor *attend(Tape *t, const Block *b, Residual *r, const BlockContext *context) {
    const BlockConfig *c = &b->config;
    int heads = c->heads / parallel_ranks(b->parallel), kv_heads = c->kv_heads / parallel_ranks(b->parallel);
    if (context->cache) return attend_cached(t, b, residual_norm(t, &b->norm1, r), context);
    Tensor *qkv = read_stream(t, b, &b->norm1, &b->qkv, attention_input, r, context);
    if (c->rope) qkv = rope_in_place(t, qkv, context->positions, heads + kv_heads, (int)head_size(c), c->rope_base);
    return attention(t, qkv, NULL, context->range, (Heads){heads, kv_heads, context->causal});
}

static Tensor *activate(Tape *t, MlpKind kind, Tensor *x) {
    switch (kind) {
    case MLP_GELU_ERF:
        return gelu(t, x, GELU_ERF);
    case MLP_GELU_TANH:
        return gelu(t, x, GELU_TANH);
    case MLP_GELU_QUICK:
        return gelu(t, x, GELU_QUICK);
    case MLP_SILU:
        return silu(t, x);
    case MLP_SWIGLU:
        return swiglu(t, x);
    }
    check_failed("a kind of MLP", __FILE__, __LINE__);
}

// False: another activation.
static bool is_gelu(MlpKind kind, GeluKind *gelu) {
    *gelu = kind == MLP_GELU_ERF ? GELU_ERF : kind == MLP_GELU_TANH ? GELU_TANH : GELU_QUICK;
    return kind == MLP_GELU_ERF || kind == MLP_GELU_TANH || kind == MLP_GELU_QUICK;
}

Tensor *mlp_forward(Tape *t, const Linear *up, const Linear *down, MlpKind kind, Tensor *x) {
    GeluKind gelu;
    if (is_gelu(kind, &gelu)) return mlp(t, x, up->weight, up->bias, down->weight, down->bias, gelu);
    return linear_layer(t, down, activate(t, kind, linear_layer(t, up, x)));
}

// (B, T, C) or (1, N, C) -> (B, T, F) or (B, T, 2 F); F: of this rank
static Tensor *mlp_input(Tape *t, const void *closure, Tensor *x) {
    const Piece *p = closure;
    const Block *b = p->block;
    return column_linear(t, b->parallel, &b->up, norm_forward(t, &b->norm2, x), &p->context);
}

// (B, T, F) or (B, T, 2 F) -> (B, T, C) or (1, N, C)
static Tensor *mlp_output(Tape *t, const void *closure, Tensor *x) {
    const Block *b = ((const Piece *)closure)->block;
    return row_linear(t, b->parallel, &b->down, activate(t, b->config.mlp, x));
}

// (B, T, C) or (1, N, C), what is added to the stream. In one piece where nothing of it is computed again and rows are
// not gathered: its activation may then be part of its products.
static Tensor *mlp_branch(Tape *t, const Block *b, Residual *r, const BlockContext *context) {
    GeluKind gelu;
    bool whole = context->recompute != RECOMPUTE_SELECTIVE && !parallel_shares_rows(b->parallel);
    if (is_gelu(b->config.mlp, &gelu) && whole)
        return split_mlp(t, b->parallel, &b->up, &b->down, gelu, residual_norm(t, &b->norm2, r));
    Tensor *h = read_stream(t, b, &b->norm2, &b->up, mlp_input, r, context);
    return run_piece(t, mlp_output, b, h, context, RECOMPUTE_SELECTIVE);
}

static void add_branch(Residual *r, const Block *b, Tensor *h, uint64_t site, const BlockContext *context) {
    check(!r->branch);
    r->branch = h;
    r->draws = draws_of(h, b->config.dropout, site, context);
}

static Residual block_pass(Tape *t, const Block *b, Residual r, const BlockContext *context) {
    uint64_t site = 2 * (uint64_t)b->site;
    add_branch(&r, b, row_linear(t, b->parallel, &b->projection, attend(t, b, &r, context)), site, context);
    add_branch(&r, b, mlp_branch(t, b, &r, context), site + 1, context);
    return r;
}

static Tensor *whole_block(Tape *t, const void *closure, Tensor *x) {
    const Piece *p = closure;
    Residual r = block_pass(t, p->block, residual_of(x), &p->context);
    return residual_sum(t, &r);
}

Residual block_forward(Tape *t, const Block *b, Residual r, const BlockContext *given) {
    BlockContext context = *given;
    if (!tape_recording(t)) context.recompute = RECOMPUTE_FULL; // nothing is held then, nor computed again
    if (context.recompute != RECOMPUTE_FULL) return block_pass(t, b, r, &context);
    if (!r.branch && block_step_wins(t, b, r.x, &context)) return residual_of(block_step(t, b, r.x, &context));
    return residual_of(run_piece(t, whole_block, b, residual_sum(t, &r), &context, RECOMPUTE_FULL));
}

double block_flop(const BlockConfig *c, double tokens, double pairs) {
    double width = (double)c->width, qkv = (double)((c->heads + 2 * c->kv_heads) * head_size(c));
    double mlp = (double)c->mlp_width * (c->mlp == MLP_SWIGLU ? 3 : 2);
    return 2 * tokens * width * (qkv + width + mlp) + 4 * pairs * width;
}

double block_weights(const BlockConfig *c, const ParallelSizes *sizes) {
    double width = (double)c->width, qkv = (double)((c->heads + 2 * c->kv_heads) * head_size(c));
    double mlp = (double)c->mlp_width * (c->mlp == MLP_SWIGLU ? 3 : 2);
    return width * (qkv + width + mlp) / (sizes ? sizes->tensor : 1);
}

// Outputs of width C: two norms, attention, two sums; and qkv, up, activation.
double block_activations(const BlockConfig *c, double tokens, Recompute recompute, const ParallelSizes *sizes) {
    double width = (double)c->width, qkv = (double)((c->heads + 2 * c->kv_heads) * head_size(c));
    double up = (double)c->mlp_width * (c->mlp == MLP_SWIGLU ? 2 : 1);
    double split = sizes ? sizes->tensor : 1, shared = sizes && sizes->sequence ? split : 1;
    if (recompute == RECOMPUTE_FULL) return tokens * width / shared;
    double inner = width + qkv + up + (recompute == RECOMPUTE_SELECTIVE ? 0 : (double)c->mlp_width);
    return tokens * ((recompute == RECOMPUTE_SELECTIVE ? 2 : 4) * width / shared + inner / split);
}

// ---- the cache ----

KvCache *kv_cache_new(Backend *backend, const BlockConfig *c, int layers, int64_t batch, int64_t capacity,
                      Dtype dtype) {
    KvCache *cache = calloc(1, sizeof *cache);
    check(cache);
    *cache = (KvCache){backend, calloc((size_t)layers, sizeof(Tensor)), layers, batch, capacity, 0, 0};
    check(cache->kv);
    Tensor kv = {.rank = 3, .dtype = dtype, .borrowed = true, .name = "cache"};
    kv.shape[0] = batch, kv.shape[1] = capacity, kv.shape[2] = 2 * c->kv_heads * head_size(c);
    size_t each = (tensor_bytes(&kv) + CACHE_ALIGNMENT - 1) / CACHE_ALIGNMENT * CACHE_ALIGNMENT;
    cache->bytes = each * (size_t)layers;
    char *memory = backend->allocate(backend, cache->bytes);
    check(memory);
    backend->zero(backend, memory, cache->bytes); // slots outside every range must still hold numbers
    for (int i = 0; i < layers; i++) cache->kv[i] = kv, cache->kv[i].data = memory + (size_t)i * each;
    return cache;
}

void kv_cache_begin(KvCache *cache, int64_t batch) {
    check(batch <= cache->batch);
    for (int i = 0; i < cache->layers; i++) cache->kv[i].shape[0] = batch;
    cache->used = 0;
}

void kv_cache_free(KvCache *cache) {
    if (!cache) return;
    cache->backend->release(cache->backend, cache->kv[0].data, cache->bytes);
    free(cache->kv);
    free(cache);
}

Tensor *kv_cache_slots(Tape *t, const KvCache *cache, int64_t count) {
    int64_t batch = cache->kv[0].shape[0];
    int32_t *rows = malloc((size_t)(batch * count) * sizeof *rows + 1);
    check(rows && batch * cache->capacity <= INT32_MAX && cache->used + count <= cache->capacity);
    for (int64_t i = 0; i < batch * count; i++)
        rows[i] = (int32_t)(i / count * cache->capacity + cache->used + i % count);
    Tensor *slots = tape_constant(t, I32, SHAPE(batch * count), rows);
    free(rows);
    return slots;
}
