/* See transformer.h. Parameters: tokens, positions (learned), blocks.N.*, norm.*, head (untied), tokens@head (a replica
 * of tied words). */
#include "text/transformer.h"
#include "base/error.h"
#include "kernels/nn/tensor_parallel.h"
#include <math.h>
#include <stdio.h>

// GPT-2's 0.02 at its width of 768, and in proportion to 1 / sqrt(width) at others: a small model with 0.02 throughout
// starts with attention and MLPs that pass next to nothing.
static double init_std(const TextConfig *c) {
    return c->init_std > 0 ? c->init_std : 0.02 * sqrt(768.0 / (double)c->width);
}

static const double EMBEDDING_STD = 0.02;

// ---- config ----

static int64_t kv_heads(const TextConfig *c) { return c->kv_heads ? c->kv_heads : c->heads; }
static int64_t mlp_width(const TextConfig *c) { return c->mlp_width ? c->mlp_width : 4 * c->width; }

static BlockConfig block_config(const TextConfig *c) {
    return (BlockConfig){
        .width = c->width,
        .mlp_width = mlp_width(c),
        .heads = (int)c->heads,
        .kv_heads = (int)kv_heads(c),
        .norm = c->norm,
        .norm_epsilon = c->norm_epsilon,
        .mlp = c->mlp,
        .bias = c->bias,
        .rope = c->rope,
        .rope_base = c->rope_base,
        .dropout = c->dropout,
        .residual_init_scale = 1 / sqrt(2.0 * (double)c->layers),
        .init_std = init_std(c),
    };
}

const char *text_check(const TextConfig *c, Arena *memory) {
    if (c->width < 1 || c->layers < 1 || c->heads < 1 || c->context < 1)
        return "width, layers, heads and context must be at least 1";
    if (c->width % c->heads)
        return arena_printf(memory, "width %lld does not divide into %lld heads; a width of %lld or %lld would",
                            (long long)c->width, (long long)c->heads, (long long)(c->width / c->heads * c->heads),
                            (long long)((c->width / c->heads + 1) * c->heads));
    if (kv_heads(c) < 1 || c->heads % kv_heads(c))
        return arena_printf(memory, "%lld heads do not divide into %lld key-value heads; %lld would do",
                            (long long)c->heads, (long long)kv_heads(c), (long long)c->heads);
    if (c->rope && c->width / c->heads % 2)
        return arena_printf(memory, "rotary positions need an even head size, not %lld; %lld heads of %lld would do",
                            (long long)(c->width / c->heads), (long long)c->heads,
                            (long long)(c->width / c->heads + 1));
    return NULL;
}

int64_t text_common(const TextConfig *c) {
    BlockConfig block = block_config(c);
    return block_common(&block);
}

// ---- parameters ----

// (V, C), of which each tensor rank holds its share of the words
static Tensor *declare_words(Parameters *p, const char *name, const TextConfig *c) {
    Init normal = {.kind = INIT_NORMAL, .value = EMBEDDING_STD};
    Split words = {.dimension = 0, .segments = 1, .size = {c->vocabulary}};
    Tensor *table = parameters_add_split(p, name, SHAPE(c->vocabulary, c->width), normal, true, words);
    parameters_set_words(p, table);
    return table;
}

bool text_declare(Text *m, Parameters *p, Arena *memory, const char *prefix, const TextConfig *c, Error *error) {
    const char *wrong = text_check(c, memory);
    if (wrong) return error_set(error, ERROR_USAGE, "%s: %s", prefix, wrong);
    if (c->vocabulary < 1)
        return error_set(error, ERROR_USAGE, "%s: the vocabulary is empty; give a tokenizer", prefix);
    BlockConfig block = block_config(c);
    Init normal = {.kind = INIT_NORMAL, .value = EMBEDDING_STD};
    *m = (Text){.config = *c, .parallel = parameters_parallel(p)};
    m->tokens = declare_words(p, arena_printf(memory, "%s.tokens", prefix), c);
    if (!c->rope)
        m->positions =
            parameters_add(p, arena_printf(memory, "%s.positions", prefix), SHAPE(c->context, c->width), normal, false);
    m->blocks = arena_array(memory, Block, c->layers);
    for (int i = 0; i < c->layers; i++)
        m->blocks[i] = block_declare(p, arena_printf(memory, "%s.blocks.%d", prefix, i), &block, i);
    m->norm = stack_norm_declare(p, arena_printf(memory, "%s.norm", prefix), c->width, c->norm, c->norm_epsilon);
    m->head = c->tied ? m->tokens : declare_words(p, arena_printf(memory, "%s.head", prefix), c);
    return true;
}

void text_declare_replica(Text *m, Parameters *p, Arena *memory, const char *prefix) {
    check(m->config.tied && m->head == m->tokens);
    m->head = parameters_add_replica(p, arena_printf(memory, "%s.tokens@head", prefix), m->tokens);
}

// ---- passes ----

Tensor *text_embed(Tape *t, const Text *m, Tensor *ids) {
    Comm *tensor = m->parallel->tensor;
    int64_t words = m->config.vocabulary;
    if (parallel_ranks(m->parallel) == 1) return embedding(t, ids, m->tokens);
    Tensor *part = split_embedding(t, ids, m->tokens, comm_share(words, comm_rank(tensor), comm_size(tensor)), words);
    Tensor *x = tensor_reduce(t, part, tensor);
    tape_drop(t, part);
    return x;
}

Tensor *text_enter(Tape *t, const Text *m, Tensor *x, BlockContext *context) {
    const TextConfig *c = &m->config;
    if (m->positions) x = add(t, x, embedding(t, context->positions, m->positions));
    x = stack_enter(t, m->parallel, x, context);
    return residual_dropout(t, x, c->dropout, 2 * (uint64_t)c->layers, context);
}

Tensor *text_leave(Tape *t, const Text *m, Residual r, const BlockContext *context) {
    return stack_leave(t, m->parallel, residual_norm(t, &m->norm, &r), context);
}

Tensor *text_forward(Tape *t, const Text *m, Tensor *x, const BlockContext *given) {
    BlockContext context = *given;
    bool fills = context.cache && !context.slots;
    if (fills && x) context.slots = kv_cache_slots(t, context.cache, x->shape[1]);
    Residual r = residual_of(text_enter(t, m, x, &context));
    for (int i = 0; i < m->config.layers; i++) r = block_forward(t, &m->blocks[i], r, &context);
    if (fills && r.x) context.cache->used += r.x->shape[1];
    return text_leave(t, m, r, &context);
}

Tensor *text_score(Tape *t, const Text *m, Tensor *hidden, Tensor *targets) {
    Comm *tensor = m->parallel->tensor;
    if (parallel_ranks(m->parallel) == 1) return linear_cross_entropy(t, hidden, m->head, targets, NULL);
    return split_cross_entropy(t, tensor_copy(t, hidden, tensor), m->head, targets, NULL, m->config.vocabulary, tensor);
}

Tensor *text_score_sum(Tape *t, const Text *m, Tensor *hidden, Tensor *targets) {
    bool whole = parallel_ranks(m->parallel) == 1;
    return whole ? cross_entropy_sum(t, hidden, m->head, targets, NULL) : text_score(t, m, hidden, targets);
}

Tensor *text_logits(Tape *t, const Text *m, Tensor *hidden) {
    check(parallel_ranks(m->parallel) == 1);
    Backend *be = tape_backend(t);
    if (!hidden || !be->few_rows || tape_recording(t) || m->head->dtype != hidden->dtype)
        return linear(t, hidden, m->head, NULL);
    FewRows p = {.rows = tensor_rows(hidden),
                 .n = m->head->shape[0],
                 .k = m->head->shape[1],
                 .x = hidden->data,
                 .w = m->head->data};
    if (!be->few_rows_wins(be, &p, hidden->dtype)) return linear(t, hidden, m->head, NULL);
    Tensor *logits = tape_tensor(t, hidden->dtype, SHAPE(p.rows, p.n));
    p.y = logits->data;
    be->few_rows(be, &p, hidden->dtype);
    return logits;
}

KvCache *text_cache_new(Backend *backend, const Text *m, int64_t batch, int64_t capacity) {
    BlockConfig block = block_config(&m->config);
    return kv_cache_new(backend, &block, (int)m->config.layers, batch, capacity, m->tokens->dtype);
}

double text_flop(const TextConfig *c, double tokens, double pairs) {
    BlockConfig block = block_config(c);
    return (double)c->layers * block_flop(&block, tokens, pairs);
}

double text_weights(const TextConfig *c, const ParallelSizes *sizes) {
    BlockConfig block = block_config(c);
    double words = (double)c->vocabulary * (c->tied ? 1 : 2) / (sizes ? sizes->tensor : 1);
    double rows = words + (c->rope ? 0 : (double)c->context);
    return (double)c->layers * block_weights(&block, sizes) + rows * (double)c->width;
}

double text_activations(const TextConfig *c, double tokens, Recompute recompute, const ParallelSizes *sizes) {
    BlockConfig block = block_config(c);
    return (double)c->layers * block_activations(&block, tokens, recompute, sizes) + 2 * tokens * (double)c->width;
}
