/* See tiny_joint.h. */
#include "tiny_joint.h"
#include "base/philox.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

JointConfig tiny_config(void) {
    return (JointConfig){
        .has_vision = true,
        .vision = {.image_size = TINY_SIDE,
                   .patch = 4,
                   .width = 32,
                   .layers = 2,
                   .heads = 2,
                   .pooling = POOL_MEAN,
                   .mlp = MLP_GELU_ERF,
                   .norm_epsilon = 1e-6,
                   .class_token = true,
                   .patch_bias = true},
        .text = {.vocabulary = TINY_VOCABULARY,
                 .context = 64,
                 .width = 24,
                 .layers = 2,
                 .heads = 2,
                 .mlp = MLP_GELU_TANH,
                 .bias = true,
                 .tied = true,
                 .rope_base = 10000,
                 .norm_epsilon = 1e-5},
        .mae = {.mask_ratio = 0.75, .decoder_width = 16, .decoder_layers = 1, .decoder_heads = 2, .normalize = true},
        .connector = CONNECTOR_MLP,
        .embedding = 12,
        .weight = {1, 1, 1, 1},
        .pixel_mean = {0.5, 0.5, 0.5},
        .pixel_std = {0.5, 0.5, 0.5},
    };
}

void tiny_open(Tiny *m, const JointConfig *config, Dtype dtype) { tiny_open_threads(m, config, dtype, 2); }

void tiny_open_threads(Tiny *m, const JointConfig *config, Dtype dtype, int threads) {
    Error error = {0};
    *m = (Tiny){.backend = cpu_backend_new(threads, NULL, NULL), .memory = arena_new(1 << 16)};
    m->joint = joint_new(m->backend, config, NULL, dtype, 7, &error);
    if (!m->joint) fail_msg("%s", error.message);
    m->tape = tape_new(m->backend, true);
    m->moments = calloc((size_t)parameters_elements(joint_parameters(m->joint), false) * 2, sizeof *m->moments);
}

void tiny_close(Tiny *m) {
    if (tape_error(m->tape)) fail_msg("%s", tape_error(m->tape));
    free(m->moments);
    tape_free(m->tape);
    joint_free(m->joint);
    backend_free(m->backend);
    arena_free(m->memory);
}

Sequences tiny_rows(Arena *memory, int rows, int length, uint64_t seed) {
    int n = rows * length;
    Sequences s = {.rows = rows, .length = length, .token_count = n};
    s.tokens = arena_array(memory, int32_t, n);
    s.targets = arena_array(memory, int32_t, n);
    s.positions = arena_array(memory, int32_t, n);
    s.range = arena_array(memory, int32_t, 2 * n);
    s.image_rows = arena_array(memory, int32_t, n);
    s.ends = arena_array(memory, int32_t, rows);
    for (int i = 0; i < n; i++) {
        Rng rng = rng_for(seed, PURPOSE_TEST, (uint64_t)i);
        s.tokens[i] = (int32_t)rng_below(&rng, TINY_VOCABULARY);
        s.positions[i] = i % length;
        s.range[2 * i + 1] = i % length + 1;
        s.image_rows[i] = -1;
        s.ends[i / length] = length - 1;
    }
    for (int i = 0; i < n; i++) s.targets[i] = i % length == length - 1 ? TOKEN_NONE : s.tokens[i + 1];
    s.target_count = (int64_t)rows * (length - 1);
    return s;
}

// The first positions of a row become the slots of images, which see each other whole.
static void put_images(Sequences *s, int row, const int *images, int count) {
    int slots = count * TINY_SLOTS, first = row * s->length;
    for (int k = 0; k < slots; k++) {
        int i = first + k;
        s->tokens[i] = TOKEN_NONE;
        s->image_rows[i] = images[k / TINY_SLOTS] * TINY_SLOTS + k % TINY_SLOTS;
        s->range[2 * i + 1] = slots;
        s->target_count -= k + 1 < slots;
        s->targets[i] = k + 1 < slots ? TOKEN_NONE : s->targets[i];
    }
    s->token_count -= slots;
}

Batch tiny_batch(Arena *memory) {
    int pixels = TINY_SIDE * TINY_SIDE * 3;
    Batch b = {.images = TINY_IMAGES, .side = TINY_SIDE, .mae_images = TINY_IMAGES};
    b.pixels = arena_array(memory, uint8_t, TINY_IMAGES * pixels);
    b.image_keys = arena_array(memory, uint64_t, TINY_IMAGES);
    b.contrastive_image = arena_array(memory, int32_t, TINY_IMAGES);
    b.mae_image = arena_array(memory, int32_t, TINY_IMAGES);
    for (int i = 0; i < TINY_IMAGES; i++) {
        Rng rng = rng_for(3, PURPOSE_TEST, (uint64_t)i);
        for (int p = 0; p < pixels; p++) b.pixels[i * pixels + p] = (uint8_t)(50 * i + (int)rng_below(&rng, 40));
        b.image_keys[i] = (uint64_t)i;
        b.contrastive_image[i] = i;
        b.mae_image[i] = i;
    }
    b.lm = tiny_rows(memory, 2, 12, 1);
    b.caption = tiny_rows(memory, 3, TINY_LENGTH, 2);
    put_images(&b.caption, 0, (int[]){0}, 1);
    put_images(&b.caption, 1, (int[]){2}, 1);
    put_images(&b.caption, 2, (int[]){3, 1}, 2);
    b.contrastive = tiny_rows(memory, TINY_IMAGES, 6, 4);
    return b;
}

float tiny_value(Tiny *m, const Tensor *t) {
    float value = NAN;
    assert_non_null(t);
    assert_int_equal(tensor_count(t), 1);
    tape_read(m->tape, t, &value);
    return value;
}

static void update(Tiny *m, double learning_rate) {
    Parameters *p = joint_parameters(m->joint);
    float *moments = m->moments;
    m->step++;
    AdamW rule = {learning_rate, 0.9, 0.99, 1e-8, 0, 1, 1 - pow(0.9, (double)m->step), 1 - pow(0.99, (double)m->step)};
    for (int i = 0; i < parameters_count(p); i++) {
        Parameter *item = parameters_at(p, i);
        int64_t n = tensor_count(&item->tensor);
        if (item->frozen) continue;
        uint16_t *shadow = item->tensor.dtype == BF16 ? item->tensor.data : NULL;
        AdamWPart part = {item->master, moments, moments + n, shadow, item->tensor.grad, n, false};
        m->backend->adamw_parts(m->backend, &part, 1, &rule, NULL);
        moments += 2 * n;
    }
}

void tiny_step(Tiny *m, const Batch *batch, double learning_rate, float mean[OBJECTIVES]) {
    Parameters *p = joint_parameters(m->joint);
    JointPass pass = {.seed = 5, .training = true};
    parameters_begin_step(p);
    JointLoss loss = joint_loss(m->tape, m->joint, batch, &pass);
    if (tape_error(m->tape)) fail_msg("%s", tape_error(m->tape));
    for (int o = 0; o < OBJECTIVES; o++) mean[o] = loss.mean[o] ? tiny_value(m, loss.mean[o]) : 0;
    tape_backward(m->tape, loss.total, ALL_GRADIENTS);
    parameters_end_backward(p);
    update(m, learning_rate);
    tape_reset(m->tape);
}
