/* See bench_presets.h. */
#include "train/bench_presets.h"
#include <stdio.h>
#include <string.h>

#define GPT(V, T, C, H, L)                                                                                             \
    {                                                                                                                  \
        .vocabulary = V, .context = T, .width = C, .heads = H, .layers = L, .mlp = MLP_GELU_TANH, .bias = true,        \
        .tied = true, .norm_epsilon = 1e-5                                                                             \
    }
#define VIT(S, P, C, H, L)                                                                                             \
    {                                                                                                                  \
        .image_size = S, .patch = P, .width = C, .heads = H, .layers = L, .mlp = MLP_GELU_TANH, .class_token = true,   \
        .patch_bias = true, .norm_epsilon = 1e-5                                                                       \
    }
#define MAE_DECODER                                                                                                    \
    { .mask_ratio = 0.75, .decoder_width = 512, .decoder_layers = 8, .decoder_heads = 16, .normalize = true }
// ViT-B/16 and a text transformer of GPT-2's size: 128 pictures, each with a caption behind its 196 tokens, and plain
// text of 16 rows.
#define JOINT(NAME, ...)                                                                                               \
    {                                                                                                                  \
        .name = NAME, .kind = BENCH_JOINT, .batch = 128, .embedding = 512, .text = GPT(32768, 1024, 768, 12, 12),      \
        .vision = VIT(224, 16, 768, 12, 12), .mae = MAE_DECODER, .weight = {__VA_ARGS__}, .lm_rows = 16,               \
        .caption_length = 256                                                                                          \
    }

static const BenchPreset presets[] = {
    {.name = "nanochar", .kind = BENCH_LANGUAGE, .batch = 12, .text = GPT(65, 64, 128, 4, 4)},
    {.name = "gpt_mini", .kind = BENCH_LANGUAGE, .batch = 16, .text = GPT(4096, 256, 256, 8, 6)},
    {.name = "gpt2", .kind = BENCH_LANGUAGE, .batch = 4, .text = GPT(50257, 256, 768, 12, 12)},
    {.name = "gpt2_1k", .kind = BENCH_LANGUAGE, .batch = 1, .text = GPT(50257, 1024, 768, 12, 12)},
    {.name = "vit_mini", .kind = BENCH_CLASSIFIER, .batch = 64, .classes = 1000, .vision = VIT(64, 8, 192, 3, 6)},
    {.name = "vitb16", .kind = BENCH_CLASSIFIER, .batch = 8, .classes = 1000, .vision = VIT(224, 16, 768, 12, 12)},
    {.name = "maeb16", .kind = BENCH_AUTOENCODER, .batch = 8, .vision = VIT(224, 16, 768, 12, 12), .mae = MAE_DECODER},
    {.name = "clipb32",
     .kind = BENCH_PAIRS,
     .batch = 32,
     .embedding = 512,
     .vision = VIT(224, 32, 768, 12, 12),
     .text = GPT(49408, 77, 512, 8, 12)},

    // Steps for a GPU
    {.name = "gpt2_124m", .kind = BENCH_LANGUAGE, .batch = 32, .text = GPT(50257, 1024, 768, 12, 12)},
    {.name = "gpt2_1558m", .kind = BENCH_LANGUAGE, .batch = 32, .pieces = 4, .text = GPT(50257, 1024, 1600, 25, 48)},
    {.name = "gpt_6m", .kind = BENCH_LANGUAGE, .batch = 32, .text = GPT(4096, 256, 256, 8, 6)},
    {.name = "vit_ti", .kind = BENCH_CLASSIFIER, .batch = 64, .classes = 1000, .vision = VIT(224, 16, 192, 3, 12)},
    {.name = "vit_b16", .kind = BENCH_CLASSIFIER, .batch = 256, .classes = 1000, .vision = VIT(224, 16, 768, 12, 12)},
    {.name = "vit_l16", .kind = BENCH_CLASSIFIER, .batch = 128, .classes = 1000, .vision = VIT(224, 16, 1024, 16, 24)},
    {.name = "mae_vit_l",
     .kind = BENCH_AUTOENCODER,
     .batch = 256,
     .vision = VIT(224, 16, 1024, 16, 24),
     .mae = MAE_DECODER},
    {.name = "clip_b32",
     .kind = BENCH_PAIRS,
     .batch = 4096,
     .embedding = 512,
     .vision = VIT(224, 32, 768, 12, 12),
     .text = GPT(49408, 77, 512, 8, 12)},
    JOINT("joint_b", 1, 1, 1, 1),
    JOINT("joint_b_lm", 1, 0, 0, 0), // its parts, each alone
    JOINT("joint_b_caption", 0, 1, 0, 0),
    JOINT("joint_b_contrastive", 0, 0, 1, 0),
    JOINT("joint_b_mae", 0, 0, 0, 1),
};
enum { PRESETS = sizeof presets / sizeof *presets };
const char *const bench_presets[] = {"nanochar",    "gpt_mini", "gpt2",       "gpt2_1k",         "vit_mini",
                                     "vitb16",      "maeb16",   "clipb32",    "gpt2_124m",       "gpt2_1558m",
                                     "gpt_6m",      "vit_ti",   "vit_b16",    "vit_l16",         "mae_vit_l",
                                     "clip_b32",    "joint_b",  "joint_b_lm", "joint_b_caption", "joint_b_contrastive",
                                     "joint_b_mae", NULL};

static bool unknown(const char *name, Error *error) {
    char names[512] = "";
    size_t used = 0;
    for (int i = 0; i < PRESETS; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", presets[i].name);
    return error_set(error, ERROR_USAGE, "no preset '%s'; there are %s", name, names);
}

bool bench_preset(BenchPreset *out, const char *name, Error *error) {
    for (int i = 0; i < PRESETS; i++) {
        if (strcmp(presets[i].name, name) != 0) continue;
        *out = presets[i];
        if (!out->pieces) out->pieces = 1;
        return true;
    }
    return unknown(name, error);
}

void bench_preset_shrink(BenchPreset *p) {
    p->batch = 2 * p->pieces;
    if (p->classes) p->classes = 11;
    if (p->embedding) p->embedding = 16;
    if (p->lm_rows) p->lm_rows = 2;
    p->text.vocabulary = 97, p->text.context = 24, p->text.width = 32, p->text.heads = 2, p->text.layers = 2;
    p->vision.image_size = 4 * p->vision.patch, p->vision.width = 32, p->vision.heads = 2, p->vision.layers = 2;
    p->mae.decoder_width = 16, p->mae.decoder_heads = 2, p->mae.decoder_layers = 1;
    p->caption_length = 24; // of which 16 are a picture
}

const char *bench_preset_unit(const BenchPreset *p) { return p->kind == BENCH_LANGUAGE ? "tokens" : "images"; }

double bench_preset_units(const BenchPreset *p) {
    return (double)p->batch * (p->kind == BENCH_LANGUAGE ? (double)p->text.context : 1);
}

static double text_forward_flop(const BenchPreset *p) {
    double length = (double)p->text.context, rows = (double)p->batch;
    return text_flop(&p->text, rows * length, rows * length * (length + 1) / 2);
}

double bench_preset_flop(const BenchPreset *p) {
    double rows = (double)p->batch, see = (double)p->vision.width, read = (double)p->text.width, forward = 0;
    switch (p->kind) {
    case BENCH_LANGUAGE:
        forward = text_forward_flop(p) + 2 * rows * (double)p->text.context * read * (double)p->text.vocabulary;
        break;
    case BENCH_CLASSIFIER:
        forward = vit_flop(&p->vision, rows, vit_tokens(&p->vision)) + 2 * rows * see * (double)p->classes;
        break;
    case BENCH_AUTOENCODER:
        forward = mae_flop(&p->mae, &p->vision, rows);
        break;
    case BENCH_PAIRS:
        forward = vit_flop(&p->vision, rows, vit_tokens(&p->vision)) + text_forward_flop(p) +
                  2 * rows * (double)p->embedding * (see + read + rows);
        break;
    case BENCH_JOINT: // by its batch
        break;
    }
    return 3 * forward;
}
