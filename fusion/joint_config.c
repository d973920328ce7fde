/* The keys of a joint model's config, and what of them does not fit together. */
#include "fusion/joint_parts.h"
#include "kernels/nn/tensor_parallel.h"

enum { MOST = 1 << 20, DEEPEST = 2048 }; // of any width, count or length; blocks: far above what fits into memory

static const char MLPS[] = "gelu|gelu_tanh|gelu_quick|silu|swiglu"; // in the order of MlpKind

static const ConfigKey keys[] = {
    {"model.weight.lm", CONFIG_FLOAT, offsetof(JointConfig, weight[OBJECTIVE_LM]), "1", 0, 1e6, NULL, NULL, "",
     "weight of language modelling on plain text; 0: off"},
    {"model.weight.caption", CONFIG_FLOAT, offsetof(JointConfig, weight[OBJECTIVE_CAPTION]), "0", 0, 1e6, NULL, NULL,
     "", "weight of text given images (captions, answers); 0: off"},
    {"model.weight.contrastive", CONFIG_FLOAT, offsetof(JointConfig, weight[OBJECTIVE_CONTRASTIVE]), "0", 0, 1e6, NULL,
     NULL, "", "weight of matching images and captions; 0: off"},
    {"model.weight.mae", CONFIG_FLOAT, offsetof(JointConfig, weight[OBJECTIVE_MAE]), "0", 0, 1e6, NULL, NULL, "",
     "weight of painting masked patches; 0: off"},
    {"model.freeze", CONFIG_STRINGS, offsetof(JointConfig, freeze), "", 0, 0, NULL, NULL, "",
     "parts that are not trained: vision, text, vision.blocks.0, ..."},

    {"model.vision.enabled", CONFIG_BOOL, offsetof(JointConfig, has_vision), "false", 0, 0, NULL, NULL, "",
     "whether the model sees; caption, contrastive and mae need it"},
    {"model.vision.image_size", CONFIG_INT, offsetof(JointConfig, vision.image_size), "64", 1, MOST, NULL, NULL,
     "pixels", "side of the square picture"},
    {"model.vision.patch", CONFIG_INT, offsetof(JointConfig, vision.patch), "8", 1, MOST, NULL, NULL, "pixels",
     "side of a patch; divides image_size"},
    {"model.vision.width", CONFIG_INT, offsetof(JointConfig, vision.width), "192", 1, MOST, NULL, NULL, "channels",
     "width of the residual stream"},
    {"model.vision.layers", CONFIG_INT, offsetof(JointConfig, vision.layers), "6", 1, DEEPEST, NULL, NULL, "blocks",
     "depth of the trunk"},
    {"model.vision.heads", CONFIG_INT, offsetof(JointConfig, vision.heads), "3", 1, MOST, NULL, NULL, "heads",
     "attention heads; divides width"},
    {"model.vision.mlp_width", CONFIG_INT, offsetof(JointConfig, vision.mlp_width), "0", 0, MOST, NULL, NULL,
     "channels", "width inside the MLP; 0: four times the width"},
    {"model.vision.mlp", CONFIG_CHOICE, offsetof(JointConfig, vision.mlp), "gelu", 0, 0, MLPS, NULL, "",
     "activation of the MLP"},
    {"model.vision.pooling", CONFIG_CHOICE, offsetof(JointConfig, vision.pooling), "mean", 0, 0, "class|mean|attention",
     NULL, "", "how an image becomes one feature"},
    {"model.vision.positions", CONFIG_CHOICE, offsetof(JointConfig, vision.positions), "learned", 0, 0,
     "learned|sincos", NULL, "", "positions of patches: learned, or fixed sines and cosines"},
    {"model.vision.class_token", CONFIG_BOOL, offsetof(JointConfig, vision.class_token), "false", 0, 0, NULL, NULL, "",
     "a learned token in front of the patches; pooling: class needs it"},
    {"model.vision.patch_bias", CONFIG_BOOL, offsetof(JointConfig, vision.patch_bias), "true", 0, 0, NULL, NULL, "",
     "bias of the patch embedding (CLIP has none)"},
    {"model.vision.pre_norm", CONFIG_BOOL, offsetof(JointConfig, vision.pre_norm), "false", 0, 0, NULL, NULL, "",
     "a norm before the first block (as CLIP)"},
    {"model.vision.norm_epsilon", CONFIG_FLOAT, offsetof(JointConfig, vision.norm_epsilon), "1e-6", 1e-15, 1, NULL,
     NULL, "", "added to the variance in norms"},
    {"model.vision.dropout", CONFIG_FLOAT, offsetof(JointConfig, vision.dropout), "0", 0, 0.99, NULL, NULL, "share",
     "dropped from embeddings and residual branches in training"},

    {"model.text.vocabulary", CONFIG_INT, offsetof(JointConfig, text.vocabulary), "0", 0, 1 << 24, NULL, NULL, "tokens",
     "size of the vocabulary; 0: the tokenizer's"},
    {"model.text.context", CONFIG_INT, offsetof(JointConfig, text.context), "256", 1, 1 << 24, NULL, NULL, "tokens",
     "longest sequence, image slots included"},
    {"model.text.width", CONFIG_INT, offsetof(JointConfig, text.width), "192", 1, MOST, NULL, NULL, "channels",
     "width of the residual stream"},
    {"model.text.layers", CONFIG_INT, offsetof(JointConfig, text.layers), "4", 1, DEEPEST, NULL, NULL, "blocks",
     "depth of the text transformer"},
    {"model.text.heads", CONFIG_INT, offsetof(JointConfig, text.heads), "3", 1, MOST, NULL, NULL, "heads",
     "attention heads; divides width"},
    {"model.text.kv_heads", CONFIG_INT, offsetof(JointConfig, text.kv_heads), "0", 0, MOST, NULL, NULL, "heads",
     "heads of keys and values (grouped-query attention); divides heads; 0: heads"},
    {"model.text.mlp_width", CONFIG_INT, offsetof(JointConfig, text.mlp_width), "0", 0, MOST, NULL, NULL, "channels",
     "width inside the MLP; 0: four times the width"},
    {"model.text.norm", CONFIG_CHOICE, offsetof(JointConfig, text.norm), "layernorm", 0, 0, "layernorm|rmsnorm", NULL,
     "", "norm: layernorm as GPT-2, rmsnorm as LLaMA"},
    {"model.text.mlp", CONFIG_CHOICE, offsetof(JointConfig, text.mlp), "gelu_tanh", 0, 0, MLPS, NULL, "",
     "activation of the MLP: gelu_tanh as GPT-2, swiglu as LLaMA"},
    {"model.text.rope", CONFIG_BOOL, offsetof(JointConfig, text.rope), "false", 0, 0, NULL, NULL, "",
     "rotary positions (as LLaMA) instead of learned ones"},
    {"model.text.rope_base", CONFIG_FLOAT, offsetof(JointConfig, text.rope_base), "10000", 1, 1e9, NULL, NULL, "",
     "base of the rotary frequencies"},
    {"model.text.bias", CONFIG_BOOL, offsetof(JointConfig, text.bias), "true", 0, 0, NULL, NULL, "",
     "biases in the blocks (as GPT-2)"},
    {"model.text.tied", CONFIG_BOOL, offsetof(JointConfig, text.tied), "true", 0, 0, NULL, NULL, "",
     "the output projection is the token embedding"},
    {"model.text.norm_epsilon", CONFIG_FLOAT, offsetof(JointConfig, text.norm_epsilon), "1e-5", 1e-15, 1, NULL, NULL,
     "", "added to the variance in norms"},
    {"model.text.dropout", CONFIG_FLOAT, offsetof(JointConfig, text.dropout), "0", 0, 0.99, NULL, NULL, "share",
     "dropped from embeddings and residual branches in training"},
    {"model.text.init_std", CONFIG_FLOAT, offsetof(JointConfig, text.init_std), "0", 0, 1, NULL, NULL, "",
     "deviation of the blocks' matrices at the start; 0: GPT-2's 0.02 at width 768, as 1 / sqrt(width) at others"},

    {"model.mae.mask_ratio", CONFIG_FLOAT, offsetof(JointConfig, mae.mask_ratio), "0.75", 0, 1, NULL, NULL, "share",
     "of the patches hidden from the trunk"},
    {"model.mae.decoder_width", CONFIG_INT, offsetof(JointConfig, mae.decoder_width), "128", 1, MOST, NULL, NULL,
     "channels", "width of the decoder"},
    {"model.mae.decoder_layers", CONFIG_INT, offsetof(JointConfig, mae.decoder_layers), "2", 1, DEEPEST, NULL, NULL,
     "blocks", "depth of the decoder"},
    {"model.mae.decoder_heads", CONFIG_INT, offsetof(JointConfig, mae.decoder_heads), "4", 1, MOST, NULL, NULL, "heads",
     "attention heads of the decoder; divides its width"},
    {"model.mae.normalize", CONFIG_BOOL, offsetof(JointConfig, mae.normalize), "true", 0, 0, NULL, NULL, "",
     "targets by their own patch's mean and variance"},

    {"model.connector", CONFIG_CHOICE, offsetof(JointConfig, connector), "mlp", 0, 0, "linear|mlp", NULL, "",
     "how image tokens come into the text's width"},
    {"model.contrastive", CONFIG_CHOICE, offsetof(JointConfig, contrastive), "softmax", 0, 0, "softmax|sigmoid", NULL,
     "", "contrastive loss: softmax as CLIP, sigmoid as SigLIP"},
    {"model.embedding", CONFIG_INT, offsetof(JointConfig, embedding), "256", 1, MOST, NULL, NULL, "channels",
     "width of the space that images and captions share"},
    {"model.pixel_mean.red", CONFIG_FLOAT, offsetof(JointConfig, pixel_mean[0]), "0.5", 0, 1, NULL, NULL, "of 0..1",
     "taken from red"},
    {"model.pixel_mean.green", CONFIG_FLOAT, offsetof(JointConfig, pixel_mean[1]), "0.5", 0, 1, NULL, NULL, "of 0..1",
     "taken from green"},
    {"model.pixel_mean.blue", CONFIG_FLOAT, offsetof(JointConfig, pixel_mean[2]), "0.5", 0, 1, NULL, NULL, "of 0..1",
     "taken from blue"},
    {"model.pixel_std.red", CONFIG_FLOAT, offsetof(JointConfig, pixel_std[0]), "0.5", 1e-3, 1, NULL, NULL, "of 0..1",
     "red's divisor"},
    {"model.pixel_std.green", CONFIG_FLOAT, offsetof(JointConfig, pixel_std[1]), "0.5", 1e-3, 1, NULL, NULL, "of 0..1",
     "green's divisor"},
    {"model.pixel_std.blue", CONFIG_FLOAT, offsetof(JointConfig, pixel_std[2]), "0.5", 1e-3, 1, NULL, NULL, "of 0..1",
     "blue's divisor"},
};

const ConfigSchema joint_schema = {keys, (int)(sizeof keys / sizeof *keys), sizeof(JointConfig)};

const char *const objective_weight_keys[OBJECTIVES] = {"model.weight.lm", "model.weight.caption",
                                                       "model.weight.contrastive", "model.weight.mae"};

bool joint_needs_text(const JointConfig *c) {
    return c->weight[OBJECTIVE_LM] > 0 || c->weight[OBJECTIVE_CAPTION] > 0 || c->weight[OBJECTIVE_CONTRASTIVE] > 0;
}

int joint_image_tokens(const JointConfig *c) { return c->has_vision ? (int)vit_patches(&c->vision) : 0; }

static const char *check_objectives(const JointConfig *c, Arena *memory) {
    double all = 0;
    for (int i = 0; i < OBJECTIVES; i++) {
        all += c->weight[i];
        if (i != OBJECTIVE_LM && c->weight[i] > 0 && !c->has_vision)
            return arena_printf(memory, "%s is %g, but the model does not see; set model.vision.enabled: true",
                                objective_weight_keys[i], c->weight[i]);
    }
    return all > 0 ? NULL : "every weight under model.weight is 0: nothing would be learned; set one above 0";
}

static const char *check_room_for_images(const JointConfig *c, Arena *memory) {
    int slots = joint_image_tokens(c);
    if (!(c->weight[OBJECTIVE_CAPTION] > 0) || c->text.rope || slots + 1 < c->text.context) return NULL;
    return arena_printf(memory,
                        "model.text.context %lld has no room for an image of %d tokens and a word; %d would do, or a "
                        "larger model.vision.patch",
                        (long long)c->text.context, slots, slots + 64);
}

const char *joint_check(const JointConfig *c, Arena *memory) {
    const char *wrong = check_objectives(c, memory);
    if (wrong) return wrong;
    if (c->has_vision && (wrong = vit_check(&c->vision, memory)))
        return arena_printf(memory, "model.vision: %s", wrong);
    if (joint_needs_text(c) && (wrong = text_check(&c->text, memory)))
        return arena_printf(memory, "model.text: %s", wrong);
    if (c->weight[OBJECTIVE_MAE] > 0 && (wrong = mae_check(&c->mae, &c->vision, memory)))
        return arena_printf(memory, "model.mae: %s", wrong);
    if ((wrong = joint_check_recompute(c, memory))) return wrong;
    return check_room_for_images(c, memory);
}

// Words and rows may be shared out unevenly; heads and the MLP's width may not.
const char *joint_check_parallel(const JointConfig *c, int tensor, Arena *memory) {
    bool seen = c->has_vision, text = joint_needs_text(c), mae = seen && c->weight[OBJECTIVE_MAE] > 0;
    const struct {
        const char *what;
        int64_t common; // 0: not used
    } part[] = {
        {"model.vision (heads, mlp_width)", seen ? vit_common(&c->vision) : 0},
        {"model.text (heads, kv_heads, mlp_width)", text ? text_common(&c->text) : 0},
        {"model.mae (decoder_heads)", mae ? mae_common(&c->mae, &c->vision) : 0},
    };
    int64_t common = 0;
    for (int i = 0; i < 3; i++) common = parallel_common(common, part[i].common);
    for (int i = 0; i < 3; i++)
        if (tensor > 1 && part[i].common % tensor)
            return arena_printf(memory, "parallel.tensor %d: %s does not divide by it; %s would do for this model",
                                tensor, part[i].what, parallel_degrees(common, memory));
    if (text && tensor > 1 && c->text.vocabulary && c->text.vocabulary < tensor)
        return arena_printf(memory, "parallel.tensor %d: model.text.vocabulary %lld has fewer words than that", tensor,
                            (long long)c->text.vocabulary);
    return NULL;
}
