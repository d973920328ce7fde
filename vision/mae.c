/* See mae.h. Parameters: embed.*, mask_token, positions (fixed), blocks.N.*, norm.*, pixels.*. */
#include "vision/mae.h"
#include "base/error.h"
#include "base/philox.h"
#include "kernels/nn/tensor_parallel.h"
#include <stdlib.h>

// ---- config ----

static BlockConfig block_config(const MaeConfig *c, const VitConfig *vit) {
    return (BlockConfig){
        .width = c->decoder_width,
        .mlp_width = 4 * c->decoder_width,
        .heads = (int)c->decoder_heads,
        .kv_heads = (int)c->decoder_heads,
        .norm = NORM_LAYER,
        .norm_epsilon = vit->norm_epsilon,
        .mlp = vit->mlp,
        .bias = true,
        .residual_init_scale = 1,
    };
}

int64_t mae_kept(const MaeConfig *c, const VitConfig *vit) {
    return (int64_t)((double)vit_patches(vit) * (1 - c->mask_ratio));
}

const char *mae_check(const MaeConfig *c, const VitConfig *vit, Arena *memory) {
    if (c->decoder_width < 1 || c->decoder_layers < 1 || c->decoder_heads < 1)
        return "the decoder's width, layers and heads must be at least 1";
    if (c->decoder_width % c->decoder_heads)
        return arena_printf(memory, "decoder width %lld does not divide into %lld heads; a width of %lld would",
                            (long long)c->decoder_width, (long long)c->decoder_heads,
                            (long long)((c->decoder_width / c->decoder_heads + 1) * c->decoder_heads));
    if (c->decoder_width % 4)
        return arena_printf(memory, "the decoder's sin-cos positions need a width that divides by 4; %lld would do",
                            (long long)(c->decoder_width / 4 * 4 + 4));
    int64_t kept = mae_kept(c, vit), patches = vit_patches(vit);
    if (kept < 1 || kept >= patches)
        return arena_printf(memory, "mask_ratio %g of %lld patches leaves %lld to see; it must leave 1 to %lld",
                            c->mask_ratio, (long long)patches, (long long)kept, (long long)(patches - 1));
    return NULL;
}

int64_t mae_common(const MaeConfig *c, const VitConfig *vit) {
    BlockConfig block = block_config(c, vit);
    return block_common(&block);
}

// The patches whose place in the random order is below `kept` are seen; both lists are ascending.
void mae_mask(uint64_t seed, uint64_t image_key, int64_t patches, int64_t kept, int32_t *keep, int32_t *masked) {
    for (int64_t i = 0; i < patches; i++) {
        uint64_t place = permute_index((uint64_t)i, (uint64_t)patches, seed, PURPOSE_MAE_MASK, image_key);
        if (place < (uint64_t)kept)
            *keep++ = (int32_t)i;
        else
            *masked++ = (int32_t)i;
    }
}

// ---- parameters ----

static Tensor *declare_positions(Parameters *p, const char *name, const MaeConfig *c, const VitConfig *vit) {
    int64_t tokens = vit_tokens(vit);
    float *table = malloc((size_t)(tokens * c->decoder_width) * sizeof *table);
    check(table);
    vit_sincos(table, vit->image_size / vit->patch, c->decoder_width, vit->class_token);
    Tensor *positions =
        parameters_add(p, name, SHAPE(tokens, c->decoder_width), (Init){.kind = INIT_GIVEN, .given = table}, false);
    parameters_freeze(p, name);
    free(table);
    return positions;
}

bool mae_declare(Mae *m, Parameters *p, Arena *memory, const char *prefix, const MaeConfig *c, const VitConfig *vit,
                 Error *error) {
    const char *wrong = mae_check(c, vit, memory);
    if (wrong) return error_set(error, ERROR_USAGE, "%s: %s", prefix, wrong);
    BlockConfig block = block_config(c, vit);
    int64_t width = c->decoder_width;
    *m = (Mae){.config = *c, .parallel = parameters_parallel(p)};
    m->embed = linear_declare(p, arena_printf(memory, "%s.embed", prefix), width, vit->width, true, 0);
    m->mask_token = parameters_add(p, arena_printf(memory, "%s.mask_token", prefix), SHAPE(width),
                                   (Init){.kind = INIT_NORMAL, .value = 0.02}, false);
    m->positions = declare_positions(p, arena_printf(memory, "%s.positions", prefix), c, vit);
    m->blocks = arena_array(memory, Block, c->decoder_layers);
    for (int i = 0; i < c->decoder_layers; i++)
        m->blocks[i] = block_declare(p, arena_printf(memory, "%s.blocks.%d", prefix, i), &block, i);
    m->norm = norm_declare(p, arena_printf(memory, "%s.norm", prefix), width, NORM_LAYER, vit->norm_epsilon);
    m->pixels =
        linear_declare(p, arena_printf(memory, "%s.pixels", prefix), 3 * vit->patch * vit->patch, width, true, 0);
    return true;
}

// ---- passes ----

// The rows, in a batch of sequences of `length`, of the patches listed for each image; `first` rows stand before the
// patches. With `lead` the leading rows themselves come first. Device I32 (B (count (+ first)))
static Tensor *rows_of(Tape *t, const int32_t *patches, int64_t batch, int64_t count, int64_t first, int64_t length,
                       bool lead) {
    int64_t leading = lead ? first : 0, each = leading + count;
    int32_t *rows = malloc((size_t)(batch * each) * sizeof *rows);
    check(rows);
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t i = 0; i < leading; i++) rows[b * each + i] = (int32_t)(b * length + i);
        for (int64_t i = 0; i < count; i++)
            rows[b * each + leading + i] = (int32_t)(b * length + first) + patches[b * count + i];
    }
    Tensor *index = tape_constant(t, I32, SHAPE(batch * each), rows);
    free(rows);
    return index;
}

// What the trunk saw, (B, kept (+1), C), and mask tokens elsewhere, in the decoder's width: (B, N (+1), Cd)
static Tensor *unshuffle(Tape *t, const Mae *m, const VitConfig *vit, Tensor *seen, const int32_t *keep) {
    if (!seen) return NULL;
    int64_t batch = seen->shape[0], tokens = vit_tokens(vit), kept = seen->shape[1] - vit->class_token;
    Tensor *rows = rows_of(t, keep, batch, kept, vit->class_token, tokens, true);
    Tensor *x = scatter_rows(t, m->mask_token, linear_layer(t, &m->embed, seen), rows, batch * tokens);
    return x ? tape_reshape(t, x, SHAPE(batch, tokens, m->config.decoder_width)) : NULL;
}

Tensor *mae_enter(Tape *t, const Mae *m, const Vit *trunk, Tensor *seen, const int32_t *keep, BlockContext *context) {
    Tensor *x = add(t, unshuffle(t, m, &trunk->config, seen, keep), m->positions);
    return stack_enter(t, m->parallel, x, context);
}

Tensor *mae_leave(Tape *t, const Mae *m, const Vit *trunk, Residual r, const int32_t *masked,
                  const BlockContext *context) {
    const VitConfig *vit = &trunk->config;
    int64_t hidden = vit_patches(vit) - mae_kept(&m->config, vit);
    Tensor *x = stack_leave(t, m->parallel, residual_sum(t, &r), context);
    if (!x) return NULL;
    x = gather_rows(t, x, rows_of(t, masked, x->shape[0], hidden, vit->class_token, x->shape[1], false));
    return linear_layer(t, &m->pixels, norm_forward(t, &m->norm, x));
}

Tensor *mae_error(Tape *t, const Mae *m, const Vit *trunk, Tensor *painted, Tensor *images, const int32_t *masked) {
    const VitConfig *vit = &trunk->config;
    int64_t patches = vit_patches(vit), hidden = patches - mae_kept(&m->config, vit);
    if (!painted || !images) return NULL;
    Tensor *rows = rows_of(t, masked, images->shape[0], hidden, 0, patches, false);
    return masked_patch_mse(t, painted, images, rows, (int)vit->patch, m->config.normalize);
}

Tensor *mae_predict(Tape *t, const Mae *m, const Vit *trunk, Tensor *images, const int32_t *keep, const int32_t *masked,
                    const BlockContext *context) {
    BlockContext inside = *context; // the decoder's stack
    Tensor *x = vit_forward(t, trunk, images, keep, mae_kept(&m->config, &trunk->config), context);
    Residual r = residual_of(mae_enter(t, m, trunk, x, keep, &inside));
    for (int i = 0; i < m->config.decoder_layers; i++) r = block_forward(t, &m->blocks[i], r, &inside);
    return mae_leave(t, m, trunk, r, masked, &inside);
}

Tensor *mae_loss(Tape *t, const Mae *m, const Vit *trunk, Tensor *images, const int32_t *keep, const int32_t *masked,
                 const BlockContext *context) {
    return mae_error(t, m, trunk, mae_predict(t, m, trunk, images, keep, masked, context), images, masked);
}

double mae_flop(const MaeConfig *c, const VitConfig *vit, double images) {
    BlockConfig block = block_config(c, vit);
    double kept = (double)mae_kept(c, vit), tokens = (double)vit_tokens(vit), width = (double)c->decoder_width;
    double patches = (double)vit_patches(vit), pixels = 3 * (double)(vit->patch * vit->patch);
    double embed = 2 * (kept + (double)vit->class_token) * (double)vit->width * width;
    double decoder = (double)c->decoder_layers * block_flop(&block, tokens, tokens * tokens);
    double paint = 2 * (patches - kept) * width * pixels;
    return vit_flop(vit, images, (int64_t)kept + vit->class_token) + images * (embed + decoder + paint);
}

double mae_weights(const MaeConfig *c, const VitConfig *vit, const ParallelSizes *sizes) {
    BlockConfig block = block_config(c, vit);
    double pixels = 3 * (double)(vit->patch * vit->patch);
    return (double)c->decoder_layers * block_weights(&block, sizes) +
           (double)c->decoder_width * ((double)vit->width + pixels);
}

double mae_activations(const MaeConfig *c, const VitConfig *vit, double images, Recompute recompute,
                       const ParallelSizes *sizes) {
    BlockConfig block = block_config(c, vit);
    double tokens = images * (double)vit_tokens(vit), patches = images * (double)vit_patches(vit);
    double hidden = patches - images * (double)mae_kept(c, vit), pixels = 3 * (double)(vit->patch * vit->patch);
    return vit_activations(vit, images, mae_kept(c, vit) + vit->class_token, recompute, sizes) +
           2 * tokens * (double)c->decoder_width +
           (double)c->decoder_layers * block_activations(&block, tokens, recompute, sizes) + hidden * pixels;
}
