/* See reference_names.h. */
#include "reference_names.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MOST = 512 };

const NameRule gpt2_names[] = {
    {"text.tokens", "transformer.wte.weight", false},
    {"text.positions", "transformer.wpe.weight", false},
    {"text.blocks.#.norm1.scale", "transformer.h.#.ln_1.weight", false},
    {"text.blocks.#.norm1.shift", "transformer.h.#.ln_1.bias", false},
    {"text.blocks.#.qkv.weight", "transformer.h.#.attn.c_attn.weight", true},
    {"text.blocks.#.qkv.bias", "transformer.h.#.attn.c_attn.bias", false},
    {"text.blocks.#.projection.weight", "transformer.h.#.attn.c_proj.weight", true},
    {"text.blocks.#.projection.bias", "transformer.h.#.attn.c_proj.bias", false},
    {"text.blocks.#.norm2.scale", "transformer.h.#.ln_2.weight", false},
    {"text.blocks.#.norm2.shift", "transformer.h.#.ln_2.bias", false},
    {"text.blocks.#.up.weight", "transformer.h.#.mlp.c_fc.weight", true},
    {"text.blocks.#.up.bias", "transformer.h.#.mlp.c_fc.bias", false},
    {"text.blocks.#.down.weight", "transformer.h.#.mlp.c_proj.weight", true},
    {"text.blocks.#.down.bias", "transformer.h.#.mlp.c_proj.bias", false},
    {"text.norm.scale", "transformer.ln_f.weight", false},
    {"text.norm.shift", "transformer.ln_f.bias", false},
    {NULL, NULL, false},
};

const NameRule llama_names[] = {
    {"text.tokens", "model.embed_tokens.weight", false},
    {"text.blocks.#.norm1.scale", "model.layers.#.input_layernorm.weight", false},
    {"text.blocks.#.qkv.weight",
     "model.layers.#.self_attn.q_proj.weight+model.layers.#.self_attn.k_proj.weight+"
     "model.layers.#.self_attn.v_proj.weight",
     false},
    {"text.blocks.#.projection.weight", "model.layers.#.self_attn.o_proj.weight", false},
    {"text.blocks.#.norm2.scale", "model.layers.#.post_attention_layernorm.weight", false},
    {"text.blocks.#.up.weight", "model.layers.#.mlp.gate_proj.weight+model.layers.#.mlp.up_proj.weight", false},
    {"text.blocks.#.down.weight", "model.layers.#.mlp.down_proj.weight", false},
    {"text.norm.scale", "model.norm.weight", false},
    {"text.head", "lm_head.weight", false},
    {NULL, NULL, false},
};

// Blocks of ViT and of MAE's decoder: OURS and THEIRS are string literals.
#define VIT_BLOCK(OURS, THEIRS)                                                                                        \
    {OURS ".norm1.scale", THEIRS ".layernorm_before.weight", false},                                                   \
        {OURS ".norm1.shift", THEIRS ".layernorm_before.bias", false},                                                 \
        {OURS ".qkv.weight",                                                                                           \
         THEIRS ".attention.q_proj.weight+" THEIRS ".attention.k_proj.weight+" THEIRS ".attention.v_proj.weight",      \
         false},                                                                                                       \
        {OURS ".qkv.bias",                                                                                             \
         THEIRS ".attention.q_proj.bias+" THEIRS ".attention.k_proj.bias+" THEIRS ".attention.v_proj.bias", false},    \
        {OURS ".projection.weight", THEIRS ".attention.o_proj.weight", false},                                         \
        {OURS ".projection.bias", THEIRS ".attention.o_proj.bias", false},                                             \
        {OURS ".norm2.scale", THEIRS ".layernorm_after.weight", false},                                                \
        {OURS ".norm2.shift", THEIRS ".layernorm_after.bias", false},                                                  \
        {OURS ".up.weight", THEIRS ".mlp.fc1.weight", false}, {OURS ".up.bias", THEIRS ".mlp.fc1.bias", false},        \
        {OURS ".down.weight", THEIRS ".mlp.fc2.weight", false}, {                                                      \
        OURS ".down.bias", THEIRS ".mlp.fc2.bias", false                                                               \
    }

const NameRule vit_names[] = {
    {"vision.patches.weight", "embeddings.patch_embeddings.projection.weight", false},
    {"vision.patches.bias", "embeddings.patch_embeddings.projection.bias", false},
    {"vision.class_token", "embeddings.cls_token", false},
    {"vision.positions", "embeddings.position_embeddings", false},
    VIT_BLOCK("vision.blocks.#", "layers.#"),
    {"vision.norm.scale", "layernorm.weight", false},
    {"vision.norm.shift", "layernorm.bias", false},
    {NULL, NULL, false},
};

const NameRule mae_names[] = {
    {"vision.patches.weight", "vit.embeddings.patch_embeddings.projection.weight", false},
    {"vision.patches.bias", "vit.embeddings.patch_embeddings.projection.bias", false},
    {"vision.class_token", "vit.embeddings.cls_token", false},
    {"vision.positions", "vit.embeddings.position_embeddings", false},
    VIT_BLOCK("vision.blocks.#", "vit.layers.#"),
    {"vision.norm.scale", "vit.layernorm.weight", false},
    {"vision.norm.shift", "vit.layernorm.bias", false},
    {"mae.embed.weight", "decoder.decoder_embed.weight", false},
    {"mae.embed.bias", "decoder.decoder_embed.bias", false},
    {"mae.mask_token", "decoder.mask_token", false},
    {"mae.positions", "decoder.decoder_pos_embed", false},
    VIT_BLOCK("mae.blocks.#", "decoder.decoder_layers.#"),
    {"mae.norm.scale", "decoder.decoder_norm.weight", false},
    {"mae.norm.shift", "decoder.decoder_norm.bias", false},
    {"mae.pixels.weight", "decoder.decoder_pred.weight", false},
    {"mae.pixels.bias", "decoder.decoder_pred.bias", false},
    {NULL, NULL, false},
};

// Blocks of CLIP's two towers.
#define CLIP_BLOCK(OURS, THEIRS)                                                                                       \
    {OURS ".norm1.scale", THEIRS ".layer_norm1.weight", false},                                                        \
        {OURS ".norm1.shift", THEIRS ".layer_norm1.bias", false},                                                      \
        {OURS ".qkv.weight",                                                                                           \
         THEIRS ".self_attn.q_proj.weight+" THEIRS ".self_attn.k_proj.weight+" THEIRS ".self_attn.v_proj.weight",      \
         false},                                                                                                       \
        {OURS ".qkv.bias",                                                                                             \
         THEIRS ".self_attn.q_proj.bias+" THEIRS ".self_attn.k_proj.bias+" THEIRS ".self_attn.v_proj.bias", false},    \
        {OURS ".projection.weight", THEIRS ".self_attn.out_proj.weight", false},                                       \
        {OURS ".projection.bias", THEIRS ".self_attn.out_proj.bias", false},                                           \
        {OURS ".norm2.scale", THEIRS ".layer_norm2.weight", false},                                                    \
        {OURS ".norm2.shift", THEIRS ".layer_norm2.bias", false},                                                      \
        {OURS ".up.weight", THEIRS ".mlp.fc1.weight", false}, {OURS ".up.bias", THEIRS ".mlp.fc1.bias", false},        \
        {OURS ".down.weight", THEIRS ".mlp.fc2.weight", false}, {                                                      \
        OURS ".down.bias", THEIRS ".mlp.fc2.bias", false                                                               \
    }

const NameRule clip_names[] = {
    {"vision.patches.weight", "vision_model.embeddings.patch_embedding.weight", false},
    {"vision.class_token", "vision_model.embeddings.class_embedding", false},
    {"vision.positions", "vision_model.embeddings.position_embedding.weight", false},
    {"vision.pre_norm.scale", "vision_model.pre_layrnorm.weight", false},
    {"vision.pre_norm.shift", "vision_model.pre_layrnorm.bias", false},
    CLIP_BLOCK("vision.blocks.#", "vision_model.encoder.layers.#"),
    {"vision.norm.scale", "vision_model.post_layernorm.weight", false},
    {"vision.norm.shift", "vision_model.post_layernorm.bias", false},
    {"text.tokens", "text_model.embeddings.token_embedding.weight", false},
    {"text.positions", "text_model.embeddings.position_embedding.weight", false},
    CLIP_BLOCK("text.blocks.#", "text_model.encoder.layers.#"),
    {"text.norm.scale", "text_model.final_layer_norm.weight", false},
    {"text.norm.shift", "text_model.final_layer_norm.bias", false},
    {"contrastive.image.weight", "visual_projection.weight", false},
    {"contrastive.text.weight", "text_projection.weight", false},
    {"contrastive.log_scale", "logit_scale", false},
    {NULL, NULL, false},
};

// Whether `name` is `pattern` with a number at #; the number goes to *layer (-1: none).
static bool matches(const char *pattern, const char *name, int *layer) {
    *layer = -1;
    for (; *pattern; pattern++) {
        if (*pattern == '#') {
            char *end;
            *layer = (int)strtol(name, &end, 10);
            if (end == name) return false;
            name = end;
        } else if (*pattern != *name++)
            return false;
    }
    return !*name;
}

// prefix + their name with the layer's number at #; returns what comes behind the '+', or NULL at the end.
static const char *spell(char out[NAME_MOST], const char *prefix, const char *theirs, int layer) {
    size_t n = (size_t)snprintf(out, NAME_MOST, "%s", prefix);
    for (; *theirs && *theirs != '+'; theirs++)
        n += (size_t)(*theirs == '#' ? snprintf(out + n, NAME_MOST - n, "%d", layer)
                                     : snprintf(out + n, NAME_MOST - n, "%c", *theirs));
    return *theirs ? theirs + 1 : NULL;
}

static int64_t count_of(const SafeTensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->shape[i];
    return n;
}

static void convert(const SafeTensor *t, float *out) {
    bool bf16 = !strcmp(t->dtype, "BF16");
    for (int64_t i = 0; i < count_of(t); i++) {
        uint16_t h;
        if (bf16) {
            memcpy(&h, (const char *)t->data + 2 * i, sizeof h);
            out[i] = bf16_to_f32(h);
        } else
            memcpy(out + i, (const char *)t->data + 4 * i, sizeof *out);
    }
}

bool reference_values(const SafeTensors *file, const char *name, float *out, int64_t count) {
    const SafeTensor *t = safetensors_find(file, name);
    if (!t || count_of(t) != count) return false;
    convert(t, out);
    return true;
}

static void transpose(float *x, int64_t rows, int64_t columns) { // to (rows, columns)
    float *copy = malloc((size_t)(rows * columns) * sizeof *copy);
    memcpy(copy, x, (size_t)(rows * columns) * sizeof *copy);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) x[r * columns + c] = copy[c * rows + r];
    free(copy);
}

bool reference_read(const SafeTensors *file, const NameRule *rules, const char *prefix, const Tensor *tensor,
                    float *out) {
    int layer = -1;
    while (rules->ours && !matches(rules->ours, tensor->name, &layer)) rules++;
    int64_t left = tensor_count(tensor);
    float *to = out;
    for (const char *theirs = rules->theirs; theirs;) {
        char name[NAME_MOST];
        theirs = spell(name, prefix, theirs, layer);
        const SafeTensor *part = safetensors_find(file, name);
        if (!part || count_of(part) > left) return false;
        convert(part, to);
        to += count_of(part);
        left -= count_of(part);
    }
    if (left == 0 && rules->transpose) transpose(out, tensor->shape[0], tensor->shape[1]);
    return rules->ours && left == 0;
}
