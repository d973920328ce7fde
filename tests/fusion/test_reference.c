/* Our models against Hugging Face transformers (goldens: tests/oracles/make_goldens.py): outputs, losses and the
 * gradient of every parameter. In f32 each tensor agrees to 1e-5 of its largest element; in bf16 its distance from the
 * f32 answer (Euclidean) is at most twice that of PyTorch's own bf16. */
#include "fusion/joint.h"
#include "kernels/cpu/cpu.h"
#include "reference_names.h"
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const double F32_LIMIT = 1e-5;
static const double BF16_FACTOR = 2;
// Half a unit in the last place of bf16: an answer that is itself stored in bf16 cannot be nearer.
static const double BF16_FLOOR = 1.0 / 512;

typedef struct Golden { // one file and the model that is to reproduce it
    SafeTensors file;
    const NameRule *names;
    Dtype dtype;
    Backend *backend;
    Arena *memory;
    Joint *joint;           // or NULL, then:
    Parameters *parameters; // owned where there is no joint model
    Tape *tape;
    double worst; // largest ratio of error to limit so far
} Golden;

// ---- comparison ----

static double distance(const float *a, const float *b, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(s);
}

static double length(const float *a, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += (double)a[i] * a[i];
    return sqrt(s);
}

// Largest absolute value of a - b (b NULL: of a); NaN counts as infinite.
static double largest(const float *a, const float *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (b ? b[i] : 0));
        if (!isfinite(d)) return INFINITY;
        if (d > most) most = d;
    }
    return most;
}

static void compare(Golden *g, const char *name, const float *ours, const float *f32, const float *bf16, int64_t n) {
    double error, limit;
    if (g->dtype == F32) {
        error = largest(ours, f32, n);
        limit = F32_LIMIT * largest(f32, NULL, n);
    } else {
        error = distance(ours, f32, n);
        limit = BF16_FACTOR * distance(bf16, f32, n) + BF16_FLOOR * length(f32, n);
    }
    if (!(error <= limit)) fail_msg("%s: error %g is above %g (%lld elements)", name, error, limit, (long long)n);
    if (limit > 0 && error / limit > g->worst) g->worst = error / limit;
}

// A tensor's values as f32 on the host; malloc'd.
static float *host_values(const Golden *g, const void *data, Dtype dtype, int64_t n) {
    float *out = malloc((size_t)n * sizeof *out);
    if (dtype == F32) {
        g->backend->download(g->backend, out, data, (size_t)n * sizeof *out);
        return out;
    }
    uint16_t *half = malloc((size_t)n * sizeof *half);
    g->backend->download(g->backend, half, data, (size_t)n * sizeof *half);
    for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(half[i]);
    free(half);
    return out;
}

static void compare_output(Golden *g, const char *name, const Tensor *ours) {
    char key[128];
    assert_non_null(ours);
    int64_t n = tensor_count(ours);
    float *values = host_values(g, ours->data, ours->dtype, n);
    float *f32 = malloc((size_t)n * sizeof *f32), *bf16 = malloc((size_t)n * sizeof *bf16);
    snprintf(key, sizeof key, "f32/%s", name);
    assert_true(reference_values(&g->file, key, f32, n));
    snprintf(key, sizeof key, "bf16/%s", name);
    assert_true(reference_values(&g->file, key, bf16, n));
    compare(g, name, values, f32, bf16, n);
    free(values);
    free(f32);
    free(bf16);
}

static void compare_gradients(Golden *g) {
    int compared = 0;
    for (int i = 0; i < parameters_count(g->parameters); i++) {
        const Parameter *p = parameters_at(g->parameters, i);
        if (p->frozen) continue;
        int64_t n = tensor_count(&p->tensor);
        float *ours = host_values(g, p->tensor.grad, F32, n);
        float *f32 = malloc((size_t)n * sizeof *f32), *bf16 = malloc((size_t)n * sizeof *bf16);
        assert_true(reference_read(&g->file, g->names, "f32/grad/", &p->tensor, f32));
        assert_true(reference_read(&g->file, g->names, "bf16/grad/", &p->tensor, bf16));
        compare(g, p->tensor.name, ours, f32, bf16, n);
        compared++;
        free(ours);
        free(f32);
        free(bf16);
    }
    assert_true(compared > 10);
}

// ---- the model that is compared ----

static void open_golden(Golden *g, const char *name, const NameRule *names, Dtype dtype) {
    char path[1024];
    Error error = {0};
    snprintf(path, sizeof path, "%s/tests/oracles/%s.safetensors", SOURCE_FOLDER, name);
    *g = (Golden){.names = names, .dtype = dtype, .memory = arena_new(1 << 16)};
    if (!safetensors_open(&g->file, path, &error)) fail_msg("%s", error.message);
    g->backend = cpu_backend_new(2, NULL, NULL);
    g->tape = tape_new(g->backend, true);
}

static void load_weights(Golden *g) {
    for (int i = 0; i < parameters_count(g->parameters); i++) {
        const Parameter *p = parameters_at(g->parameters, i);
        float *values = malloc((size_t)tensor_count(&p->tensor) * sizeof *values);
        if (!reference_read(&g->file, g->names, "weight/", &p->tensor, values)) fail_msg("%s", p->tensor.name);
        g->backend->upload(g->backend, p->master, values, (size_t)tensor_count(&p->tensor) * sizeof *values);
        free(values);
    }
    parameters_refresh(g->parameters);
    parameters_begin_step(g->parameters);
}

static void make_joint(Golden *g, const JointConfig *config) {
    Error error = {0};
    g->joint = joint_new(g->backend, config, NULL, g->dtype, 1, &error);
    if (!g->joint) fail_msg("%s", error.message);
    g->parameters = joint_parameters(g->joint);
    load_weights(g);
}

static void finish_parameters(Golden *g) {
    Error error = {0};
    assert_true(parameters_finish(g->parameters, g->dtype, 1, &error));
    load_weights(g);
}

static void close_golden(Golden *g) {
    if (tape_error(g->tape)) fail_msg("%s", tape_error(g->tape));
    print_message("worst error is %.2f of its limit\n", g->worst);
    tape_free(g->tape);
    if (g->joint)
        joint_free(g->joint);
    else
        parameters_free(g->parameters);
    backend_free(g->backend);
    safetensors_close(&g->file);
    arena_free(g->memory);
}

// An input of the file, copied to aligned memory.
static void *input(Golden *g, const char *name) {
    char key[128];
    snprintf(key, sizeof key, "input/%s", name);
    const SafeTensor *t = safetensors_find(&g->file, key);
    assert_non_null(t);
    return memcpy(arena_allocate(g->memory, (size_t)t->bytes), t->data, (size_t)t->bytes);
}

// Rows of ids, each token attending to those before it in its row; targets are the next tokens.
static Sequences sequences(Golden *g, int rows, int length, bool targets) {
    Sequences s = {.rows = rows, .length = length, .tokens = input(g, "ids")};
    int n = rows * length;
    s.targets = arena_array(g->memory, int32_t, n);
    s.positions = arena_array(g->memory, int32_t, n);
    s.range = arena_array(g->memory, int32_t, 2 * n);
    s.image_rows = arena_array(g->memory, int32_t, n);
    s.ends = arena_array(g->memory, int32_t, rows);
    for (int i = 0; i < n; i++) {
        int t = i % length;
        s.targets[i] = targets && t + 1 < length ? s.tokens[i + 1] : TOKEN_NONE;
        s.target_count += s.targets[i] != TOKEN_NONE;
        s.positions[i] = t;
        s.range[2 * i + 1] = t + 1;
        s.image_rows[i] = -1;
    }
    s.token_count = n;
    return s;
}

static void run_step(Golden *g, const Batch *batch, Objective objective) {
    JointPass pass = {.seed = 1, .training = true};
    JointLoss loss = joint_loss(g->tape, g->joint, batch, &pass);
    compare_output(g, "loss", loss.mean[objective]);
    tape_backward(g->tape, loss.total, ALL_GRADIENTS);
    parameters_end_backward(g->parameters);
    compare_gradients(g);
    tape_reset(g->tape);
}

// ---- language models ----

static void check_language_model(const char *name, const NameRule *names, const TextConfig *text, Dtype dtype) {
    Golden g;
    open_golden(&g, name, names, dtype);
    JointConfig config = {.text = *text, .weight = {[OBJECTIVE_LM] = 1}};
    make_joint(&g, &config);
    Batch batch = {.lm = sequences(&g, 3, 20, true)};
    run_step(&g, &batch, OBJECTIVE_LM);
    Tensor *hidden = joint_hidden(g.tape, g.joint, &batch.lm, NULL, NULL);
    compare_output(&g, "logits", joint_logits(g.tape, g.joint, hidden));
    close_golden(&g);
}

static const TextConfig gpt2 = {.vocabulary = 61,
                                .context = 24,
                                .width = 32,
                                .layers = 2,
                                .heads = 4,
                                .norm = NORM_LAYER,
                                .mlp = MLP_GELU_TANH,
                                .bias = true,
                                .tied = true,
                                .norm_epsilon = 1e-5};
static const TextConfig llama = {.vocabulary = 61,
                                 .context = 24,
                                 .width = 32,
                                 .layers = 2,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .mlp_width = 48,
                                 .norm = NORM_RMS,
                                 .mlp = MLP_SWIGLU,
                                 .rope = true,
                                 .rope_base = 10000,
                                 .norm_epsilon = 1e-5};

static void gpt2_equals_the_reference_in_f32(void **state) {
    (void)state;
    check_language_model("gpt2", gpt2_names, &gpt2, F32);
}

static void gpt2_in_bf16_is_as_near_as_the_reference(void **state) {
    (void)state;
    check_language_model("gpt2", gpt2_names, &gpt2, BF16);
}

static void llama_equals_the_reference_in_f32(void **state) {
    (void)state;
    check_language_model("llama", llama_names, &llama, F32);
}

static void llama_in_bf16_is_as_near_as_the_reference(void **state) {
    (void)state;
    check_language_model("llama", llama_names, &llama, BF16);
}

// ---- ViT ----

static const double HALVES[3] = {0.5, 0.5, 0.5}; // mean and deviation of the pixels in all goldens

static Tensor *golden_images(Golden *g, int count, int side) {
    return pixels(g->tape, tape_constant(g->tape, U8, SHAPE(count, side, side, 3), input(g, "images")), NULL, g->dtype,
                  HALVES, HALVES);
}

// (h * direction).sum() is the reference's loss: its gradient with respect to h is the direction.
static void check_vit(Dtype dtype) {
    Golden g;
    Vit vit;
    Error error = {0};
    VitConfig config = {.image_size = 16,
                        .patch = 4,
                        .width = 32,
                        .layers = 2,
                        .heads = 4,
                        .mlp_width = 64,
                        .pooling = POOL_CLASS,
                        .mlp = MLP_GELU_ERF,
                        .norm_epsilon = 1e-12,
                        .class_token = true,
                        .patch_bias = true};
    open_golden(&g, "vit", vit_names, dtype);
    g.parameters = parameters_new(g.backend, NULL);
    assert_true(vit_declare(&vit, g.parameters, g.memory, "vision", &config, &error));
    finish_parameters(&g);
    Tensor *hidden = vit_forward(g.tape, &vit, golden_images(&g, 3, 16), NULL, 0, &(BlockContext){0});
    compare_output(&g, "hidden", hidden);
    int64_t n = tensor_count(hidden);
    float *direction = input(&g, "direction");
    uint16_t *half = arena_array(g.memory, uint16_t, n);
    for (int64_t i = 0; i < n; i++) half[i] = f32_to_bf16(direction[i]);
    tape_backward_from(g.tape, hidden, dtype == BF16 ? (void *)half : (void *)direction, ALL_GRADIENTS);
    compare_gradients(&g);
    close_golden(&g);
}

static void vit_equals_the_reference_in_f32(void **state) {
    (void)state;
    check_vit(F32);
}

static void vit_in_bf16_is_as_near_as_the_reference(void **state) {
    (void)state;
    check_vit(BF16);
}

// ---- MAE ----

static void check_mae(Dtype dtype) {
    Golden g;
    Vit vit;
    Mae mae;
    Error error = {0};
    VitConfig config = {.image_size = 24,
                        .patch = 4,
                        .width = 32,
                        .layers = 2,
                        .heads = 4,
                        .pooling = POOL_CLASS,
                        .positions = POSITIONS_SINCOS,
                        .mlp = MLP_GELU_ERF,
                        .norm_epsilon = 1e-12,
                        .class_token = true,
                        .patch_bias = true};
    MaeConfig decoder = {
        .mask_ratio = 0.75, .decoder_width = 16, .decoder_layers = 2, .decoder_heads = 2, .normalize = true};
    open_golden(&g, "mae", mae_names, dtype);
    g.parameters = parameters_new(g.backend, NULL);
    assert_true(vit_declare(&vit, g.parameters, g.memory, "vision", &config, &error));
    assert_true(mae_declare(&mae, g.parameters, g.memory, "mae", &decoder, &config, &error));
    finish_parameters(&g);
    const int32_t *keep = input(&g, "keep"), *masked = input(&g, "masked");
    Tensor *images = golden_images(&g, 3, 24);
    Tensor *total = mae_loss(g.tape, &mae, &vit, images, keep, masked, &(BlockContext){0});
    Tensor *loss = sum(g.tape, total, 1.0 / (3 * 27));
    compare_output(&g, "loss", loss);
    tape_backward(g.tape, loss, ALL_GRADIENTS);
    compare_gradients(&g);
    tape_reset(g.tape);
    images = golden_images(&g, 3, 24);
    compare_output(&g, "pixels", mae_predict(g.tape, &mae, &vit, images, keep, masked, &(BlockContext){0}));
    close_golden(&g);
}

static void mae_equals_the_reference_in_f32(void **state) {
    (void)state;
    check_mae(F32);
}

static void mae_in_bf16_is_as_near_as_the_reference(void **state) {
    (void)state;
    check_mae(BF16);
}

// ---- CLIP ----

static JointConfig clip_config(void) {
    return (JointConfig){
        .has_vision = true,
        .vision = {.image_size = 16,
                   .patch = 4,
                   .width = 32,
                   .layers = 2,
                   .heads = 4,
                   .pooling = POOL_CLASS,
                   .mlp = MLP_GELU_QUICK,
                   .norm_epsilon = 1e-5,
                   .class_token = true,
                   .pre_norm = true},
        .text = {.vocabulary = 61,
                 .context = 12,
                 .width = 24,
                 .layers = 2,
                 .heads = 3,
                 .norm = NORM_LAYER,
                 .mlp = MLP_GELU_QUICK,
                 .bias = true,
                 .tied = true,
                 .norm_epsilon = 1e-5},
        .embedding = 16,
        .weight = {[OBJECTIVE_CONTRASTIVE] = 1},
        .pixel_mean = {0.5, 0.5, 0.5},
        .pixel_std = {0.5, 0.5, 0.5},
    };
}

static void check_clip(Dtype dtype) {
    Golden g;
    JointConfig config = clip_config();
    int32_t order[5] = {0, 1, 2, 3, 4};
    open_golden(&g, "clip", clip_names, dtype);
    make_joint(&g, &config);
    Batch batch = {.images = 5,
                   .side = 16,
                   .pixels = input(&g, "images"),
                   .contrastive = sequences(&g, 5, 12, false),
                   .contrastive_image = order};
    batch.contrastive.ends = input(&g, "ends");
    run_step(&g, &batch, OBJECTIVE_CONTRASTIVE);
    Tensor *images = joint_pixels(g.tape, g.joint, batch.pixels, NULL, batch.images);
    compare_output(&g, "image_features", joint_image_features(g.tape, g.joint, images));
    compare_output(&g, "text_features", joint_text_features(g.tape, g.joint, &batch.contrastive));
    close_golden(&g);
}

static void clip_equals_the_reference_in_f32(void **state) {
    (void)state;
    check_clip(F32);
}

static void clip_in_bf16_is_as_near_as_the_reference(void **state) {
    (void)state;
    check_clip(BF16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_equals_the_reference_in_f32),
        cmocka_unit_test(gpt2_in_bf16_is_as_near_as_the_reference),
        cmocka_unit_test(llama_equals_the_reference_in_f32),
        cmocka_unit_test(llama_in_bf16_is_as_near_as_the_reference),
        cmocka_unit_test(vit_equals_the_reference_in_f32),
        cmocka_unit_test(vit_in_bf16_is_as_near_as_the_reference),
        cmocka_unit_test(mae_equals_the_reference_in_f32),
        cmocka_unit_test(mae_in_bf16_is_as_near_as_the_reference),
        cmocka_unit_test(clip_equals_the_reference_in_f32),
        cmocka_unit_test(clip_in_bf16_is_as_near_as_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
