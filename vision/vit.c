/* See vit.h. Parameters: patches.*, class_token, positions, pre_norm.*, blocks.N.*, norm.*, pool.*. */
#include "vision/vit.h"
#include "base/error.h"
#include "kernels/nn/tensor_parallel.h"
#include <math.h>
#include <stdlib.h>

static const double TOKEN_STD = 0.02; // of the class token, learned positions and the pooling query

// ---- config ----

static int64_t mlp_width(const VitConfig *c) { return c->mlp_width ? c->mlp_width : 4 * c->width; }
static int64_t side_patches(const VitConfig *c) { return c->image_size / c->patch; }
int64_t vit_patches(const VitConfig *c) { return side_patches(c) * side_patches(c); }
int64_t vit_tokens(const VitConfig *c) { return vit_patches(c) + c->class_token; }

static BlockConfig block_config(const VitConfig *c) {
    return (BlockConfig){
        .width = c->width,
        .mlp_width = mlp_width(c),
        .heads = (int)c->heads,
        .kv_heads = (int)c->heads,
        .norm = NORM_LAYER,
        .norm_epsilon = c->norm_epsilon,
        .mlp = c->mlp,
        .bias = true,
        .dropout = c->dropout,
        .residual_init_scale = 1,
    };
}

int64_t vit_common(const VitConfig *c) {
    BlockConfig block = block_config(c);
    return block_common(&block);
}

const char *vit_check(const VitConfig *c, Arena *memory) {
    if (c->width < 1 || c->layers < 1 || c->heads < 1 || c->patch < 1 || c->image_size < c->patch)
        return "width, layers, heads and patch must be at least 1, and the image at least one patch";
    if (c->image_size % c->patch)
        return arena_printf(memory, "an image of %lld pixels does not divide into patches of %lld; %lld or %lld would",
                            (long long)c->image_size, (long long)c->patch,
                            (long long)(c->image_size / c->patch * c->patch),
                            (long long)((c->image_size / c->patch + 1) * c->patch));
    if (c->width % c->heads)
        return arena_printf(memory, "width %lld does not divide into %lld heads; a width of %lld or %lld would",
                            (long long)c->width, (long long)c->heads, (long long)(c->width / c->heads * c->heads),
                            (long long)((c->width / c->heads + 1) * c->heads));
    if (c->positions == POSITIONS_SINCOS && c->width % 4)
        return arena_printf(memory, "sin-cos positions need a width that divides by 4; %lld or %lld would do",
                            (long long)(c->width / 4 * 4), (long long)(c->width / 4 * 4 + 4));
    if (c->pooling == POOL_CLASS && !c->class_token) return "pooling by the class token needs class_token: true";
    return NULL;
}

// ---- parameters ----

// One coordinate over `width` channels: width / 2 sines, then as many cosines, at frequencies 10000^(-i / (width / 2)).
static void encode_coordinate(float *out, int64_t width, double coordinate) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        double angle = coordinate * pow(10000, -(double)i / (double)half);
        out[i] = (float)sin(angle);
        out[half + i] = (float)cos(angle);
    }
}

void vit_sincos(float *out, int64_t side, int64_t width, bool class_token) {
    check(width % 4 == 0);
    for (int64_t i = 0; class_token && i < width; i++) *out++ = 0;
    for (int64_t y = 0; y < side; y++)
        for (int64_t x = 0; x < side; x++, out += width) {
            encode_coordinate(out, width / 2, (double)x);
            encode_coordinate(out + width / 2, width / 2, (double)y);
        }
}

static Tensor *declare_positions(Parameters *p, Arena *memory, const char *prefix, const VitConfig *c) {
    const char *name = arena_printf(memory, "%s.positions", prefix);
    int64_t tokens = vit_tokens(c);
    if (c->positions == POSITIONS_LEARNED)
        return parameters_add(p, name, SHAPE(tokens, c->width), (Init){.kind = INIT_NORMAL, .value = TOKEN_STD}, false);
    float *table = malloc((size_t)(tokens * c->width) * sizeof *table);
    check(table);
    vit_sincos(table, side_patches(c), c->width, c->class_token);
    Tensor *positions =
        parameters_add(p, name, SHAPE(tokens, c->width), (Init){.kind = INIT_GIVEN, .given = table}, false);
    parameters_freeze(p, name);
    free(table);
    return positions;
}

static AttentionPool declare_pool(Parameters *p, Arena *memory, const char *prefix, const VitConfig *c) {
    Init normal = {.kind = INIT_NORMAL, .value = TOKEN_STD};
    return (AttentionPool){
        .query = parameters_add(p, arena_printf(memory, "%s.query", prefix), SHAPE(1, c->width), normal, false),
        .q = linear_declare(p, arena_printf(memory, "%s.q", prefix), c->width, c->width, true, 0),
        .kv = linear_declare(p, arena_printf(memory, "%s.kv", prefix), 2 * c->width, c->width, true, 0),
        .projection = linear_declare(p, arena_printf(memory, "%s.projection", prefix), c->width, c->width, true, 0),
        .norm = norm_declare(p, arena_printf(memory, "%s.norm", prefix), c->width, NORM_LAYER, c->norm_epsilon),
        .up = linear_declare(p, arena_printf(memory, "%s.up", prefix), mlp_width(c), c->width, true, 0),
        .down = linear_declare(p, arena_printf(memory, "%s.down", prefix), c->width, mlp_width(c), true, 0),
    };
}

bool vit_declare(Vit *m, Parameters *p, Arena *memory, const char *prefix, const VitConfig *c, Error *error) {
    const char *wrong = vit_check(c, memory);
    if (wrong) return error_set(error, ERROR_USAGE, "%s: %s", prefix, wrong);
    BlockConfig block = block_config(c);
    *m = (Vit){.config = *c, .parallel = parameters_parallel(p)};
    m->patches = linear_declare(p, arena_printf(memory, "%s.patches", prefix), c->width, 3 * c->patch * c->patch,
                                c->patch_bias, 0);
    if (c->class_token)
        m->class_token = parameters_add(p, arena_printf(memory, "%s.class_token", prefix), SHAPE(1, c->width),
                                        (Init){.kind = INIT_NORMAL, .value = TOKEN_STD}, false);
    m->positions = declare_positions(p, memory, prefix, c);
    if (c->pre_norm)
        m->pre_norm =
            stack_norm_declare(p, arena_printf(memory, "%s.pre_norm", prefix), c->width, NORM_LAYER, c->norm_epsilon);
    m->blocks = arena_array(memory, Block, c->layers);
    for (int i = 0; i < c->layers; i++)
        m->blocks[i] = block_declare(p, arena_printf(memory, "%s.blocks.%d", prefix, i), &block, i);
    m->norm = stack_norm_declare(p, arena_printf(memory, "%s.norm", prefix), c->width, NORM_LAYER, c->norm_epsilon);
    if (c->pooling == POOL_ATTENTION) m->pool = declare_pool(p, memory, arena_printf(memory, "%s.pool", prefix), c);
    return true;
}

// ---- passes ----

// The positions of the patches kept of each image, its class token first: (B (M (+1)), C)
static Tensor *kept_positions(Tape *t, const Vit *m, const int32_t *keep, int64_t batch, int64_t kept) {
    int64_t first = m->config.class_token, tokens = kept + first;
    int32_t *rows = malloc((size_t)(batch * tokens) * sizeof *rows);
    check(rows);
    for (int64_t b = 0; b < batch; b++) {
        if (first) rows[b * tokens] = 0;
        for (int64_t i = 0; i < kept; i++) rows[b * tokens + first + i] = keep[b * kept + i] + (int32_t)first;
    }
    Tensor *index = tape_constant(t, I32, SHAPE(batch * tokens), rows);
    free(rows);
    return gather_rows(t, m->positions, index);
}

Tensor *vit_enter(Tape *t, const Vit *m, Tensor *images, const int32_t *keep, int64_t kept, BlockContext *context) {
    const VitConfig *c = &m->config;
    if (!images) return NULL;
    int64_t batch = images->shape[0];
    Tensor *index = keep ? tape_constant(t, I32, SHAPE(batch, kept), keep) : NULL;
    Tensor *x = patch_embedding(t, images, m->patches.weight, m->patches.bias, index, (int)c->patch); // (B, N, C)
    if (m->class_token) x = concat_rows(t, m->class_token, x);
    x = add(t, x, keep ? kept_positions(t, m, keep, batch, kept) : m->positions);
    x = stack_enter(t, m->parallel, x, context);
    x = residual_dropout(t, x, c->dropout, 2 * (uint64_t)c->layers, context);
    return c->pre_norm ? norm_forward(t, &m->pre_norm, x) : x;
}

Tensor *vit_leave(Tape *t, const Vit *m, Residual r, const BlockContext *context) {
    return stack_leave(t, m->parallel, residual_norm(t, &m->norm, &r), context);
}

Tensor *vit_forward(Tape *t, const Vit *m, Tensor *images, const int32_t *keep, int64_t kept,
                    const BlockContext *given) {
    BlockContext context = *given;
    Residual r = residual_of(vit_enter(t, m, images, keep, kept, &context));
    for (int i = 0; i < m->config.layers; i++) r = block_forward(t, &m->blocks[i], r, &context);
    return vit_leave(t, m, r, &context);
}

// (1, C) -> (B, 1, C)
static Tensor *repeat_row(Tape *t, Tensor *row, int64_t batch) {
    int32_t *zeros = calloc((size_t)batch, sizeof *zeros);
    check(zeros);
    Tensor *rows = gather_rows(t, row, tape_constant(t, I32, SHAPE(batch), zeros));
    free(zeros);
    return rows ? tape_reshape(t, rows, SHAPE(batch, 1, tensor_width(rows))) : NULL;
}

// (B, N (+1), C) -> (B, C)
static Tensor *attention_pool(Tape *t, const Vit *m, Tensor *tokens) {
    const AttentionPool *pool = &m->pool;
    int heads = (int)m->config.heads;
    Tensor *q = repeat_row(t, linear_layer(t, &pool->q, pool->query), tokens->shape[0]);
    Tensor *x = attention(t, q, linear_layer(t, &pool->kv, tokens), NULL, (Heads){heads, heads, false}); // (B, 1, C)
    x = linear_layer(t, &pool->projection, x);
    x = add(t, x, mlp_forward(t, &pool->up, &pool->down, m->config.mlp, norm_forward(t, &pool->norm, x)));
    return x ? tape_reshape(t, x, SHAPE(tokens->shape[0], m->config.width)) : NULL;
}

Tensor *vit_patch_tokens(Tape *t, const Vit *m, Tensor *tokens) {
    if (!tokens || !m->config.class_token) return tokens;
    return slice_rows(t, tokens, 1, tokens->shape[1] - 1);
}

Tensor *vit_pool(Tape *t, const Vit *m, Tensor *tokens) {
    if (!tokens) return NULL;
    if (m->config.pooling == POOL_MEAN) return mean_rows(t, vit_patch_tokens(t, m, tokens), NULL);
    if (m->config.pooling == POOL_ATTENTION) return attention_pool(t, m, tokens);
    Tensor *first = slice_rows(t, tokens, 0, 1); // (B, 1, C)
    return first ? tape_reshape(t, first, SHAPE(tokens->shape[0], tokens->shape[2])) : NULL;
}

double vit_flop(const VitConfig *c, double images, int64_t tokens) {
    BlockConfig block = block_config(c);
    double each = (double)tokens, patches = (double)(tokens - c->class_token);
    double embed = 2 * patches * 3 * (double)(c->patch * c->patch * c->width);
    return images * (embed + (double)c->layers * block_flop(&block, each, each * each));
}

double vit_weights(const VitConfig *c, const ParallelSizes *sizes) {
    BlockConfig block = block_config(c);
    double rows = 3 * (double)(c->patch * c->patch) + (double)vit_tokens(c);
    return (double)c->layers * block_weights(&block, sizes) + rows * (double)c->width;
}

double vit_activations(const VitConfig *c, double images, int64_t tokens, Recompute recompute,
                       const ParallelSizes *sizes) {
    BlockConfig block = block_config(c);
    double all = images * (double)tokens;
    return (double)c->layers * block_activations(&block, all, recompute, sizes) + 3 * all * (double)c->width;
}
