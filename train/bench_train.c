/* See bench_train.h. */
#include "train/bench_train.h"
#include "base/clock.h"
#include "text/transformer.h"
#include "train/optimizer.h"
#include "vision/mae.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef enum { LANGUAGE, CLASSIFIER, AUTOENCODER, CONTRASTIVE_PAIR } PresetKind;

typedef struct Preset {
    const char *name;
    PresetKind kind;
    int64_t batch, classes, embedding;
    TextConfig text;
    VitConfig vision;
    MaeConfig mae;
} Preset;

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

static const Preset presets[] = {
    {.name = "nanochar", .kind = LANGUAGE, .batch = 12, .text = GPT(65, 64, 128, 4, 4)},
    {.name = "gpt_mini", .kind = LANGUAGE, .batch = 16, .text = GPT(4096, 256, 256, 8, 6)},
    {.name = "gpt2", .kind = LANGUAGE, .batch = 4, .text = GPT(50257, 256, 768, 12, 12)},
    {.name = "gpt2_1k", .kind = LANGUAGE, .batch = 1, .text = GPT(50257, 1024, 768, 12, 12)},
    {.name = "vit_mini", .kind = CLASSIFIER, .batch = 64, .classes = 1000, .vision = VIT(64, 8, 192, 3, 6)},
    {.name = "vitb16", .kind = CLASSIFIER, .batch = 8, .classes = 1000, .vision = VIT(224, 16, 768, 12, 12)},
    {.name = "maeb16",
     .kind = AUTOENCODER,
     .batch = 8,
     .vision = VIT(224, 16, 768, 12, 12),
     .mae = {.mask_ratio = 0.75, .decoder_width = 512, .decoder_layers = 8, .decoder_heads = 16, .normalize = true}},
    {.name = "clipb32",
     .kind = CONTRASTIVE_PAIR,
     .batch = 32,
     .embedding = 512,
     .vision = VIT(224, 32, 768, 12, 12),
     .text = GPT(49408, 77, 512, 8, 12)},
};
enum { PRESETS = sizeof presets / sizeof *presets };
const char *const bench_train_presets[] = {"nanochar", "gpt_mini", "gpt2",    "gpt2_1k", "vit_mini",
                                           "vitb16",   "maeb16",   "clipb32", NULL};

typedef struct Bench {
    const Preset *preset;
    Recompute recompute;
    Backend *backend;
    Parameters *parameters;
    Arena *memory;
    Text text;
    Vit vision;
    Mae mae;
    Tensor *head, *see, *read, *log_scale; // classifier; projections and scale of a pair
    int32_t *ids, *targets, *positions, *ends, *labels, *keep, *masked;
    float *pixels;
    Optimizer *optimizer;
    Tape *tape;
} Bench;

// ---- setting up ----

static bool has_text(const Preset *p) { return p->kind == LANGUAGE || p->kind == CONTRASTIVE_PAIR; }
static bool has_vision(const Preset *p) { return p->kind != LANGUAGE; }

static bool declare(Bench *b, Error *error) {
    const Preset *p = b->preset;
    const Init normal = {.kind = INIT_NORMAL, .value = 0.02};
    if (has_text(p) && !text_declare(&b->text, b->parameters, b->memory, "text", &p->text, error)) return false;
    if (has_vision(p) && !vit_declare(&b->vision, b->parameters, b->memory, "vision", &p->vision, error)) return false;
    if (p->kind == AUTOENCODER && !mae_declare(&b->mae, b->parameters, b->memory, "mae", &p->mae, &p->vision, error))
        return false;
    if (p->kind == CLASSIFIER)
        b->head = parameters_add(b->parameters, "head", SHAPE(p->classes, p->vision.width), normal, true);
    if (p->kind != CONTRASTIVE_PAIR) return true;
    b->see = parameters_add(b->parameters, "see", SHAPE(p->embedding, p->vision.width), normal, true);
    b->read = parameters_add(b->parameters, "read", SHAPE(p->embedding, p->text.width), normal, true);
    b->log_scale =
        parameters_add(b->parameters, "log_scale", SHAPE(1), (Init){.kind = INIT_CONSTANT, .value = 2.66}, false);
    return true;
}

static int32_t *random_ids(Bench *b, int64_t count, int64_t below, uint64_t stream) {
    int32_t *ids = arena_array(b->memory, int32_t, count);
    Rng rng = rng_for(1, PURPOSE_TEST, stream);
    for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)rng_below(&rng, (uint64_t)below);
    return ids;
}

static void draw_inputs(Bench *b) {
    const Preset *p = b->preset;
    if (has_text(p)) {
        int64_t places = p->batch * p->text.context;
        b->ids = random_ids(b, places, p->text.vocabulary, 1);
        b->targets = random_ids(b, places, p->text.vocabulary, 2);
        b->positions = arena_array(b->memory, int32_t, places);
        for (int64_t i = 0; i < places; i++) b->positions[i] = (int32_t)(i % p->text.context);
        b->ends = arena_array(b->memory, int32_t, p->batch);
        for (int64_t i = 0; i < p->batch; i++) b->ends[i] = (int32_t)((i + 1) * p->text.context - 1);
    }
    if (!has_vision(p)) return;
    int64_t count = p->batch * 3 * p->vision.image_size * p->vision.image_size;
    Rng rng = rng_for(1, PURPOSE_TEST, 3);
    b->pixels = arena_allocate(b->memory, (size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++) b->pixels[i] = (float)rng_normal(&rng);
    if (p->kind == CLASSIFIER) b->labels = random_ids(b, p->batch, p->classes, 4);
    if (p->kind != AUTOENCODER) return;
    int64_t patches = vit_patches(&p->vision), kept = mae_kept(&p->mae, &p->vision);
    b->keep = arena_array(b->memory, int32_t, p->batch * kept);
    b->masked = arena_array(b->memory, int32_t, p->batch * (patches - kept));
    for (int64_t i = 0; i < p->batch; i++)
        mae_mask(1, (uint64_t)i, patches, kept, b->keep + i * kept, b->masked + i * (patches - kept));
}

static bool open_bench(Bench *b, const BenchTrainOptions *o, Log *log, Error *error) {
    for (int i = 0; i < PRESETS; i++)
        if (!strcmp(presets[i].name, o->preset)) b->preset = &presets[i];
    if (!b->preset)
        return error_set(
            error, ERROR_USAGE,
            "no preset '%s'; there are nanochar, gpt_mini, gpt2, gpt2_1k, vit_mini, vitb16, maeb16, clipb32",
            o->preset);
    b->backend = device_backend_new(&(DeviceOptions){.device = o->device, .threads = o->threads}, log, error);
    if (!b->backend) return false;
    b->parameters = parameters_new(b->backend, NULL);
    b->memory = arena_new(1 << 20);
    if (!declare(b, error) || !parameters_finish(b->parameters, o->precision, 1, error)) return false;
    draw_inputs(b);
    OptimizerConfig adamw = {.learning_rate = 1e-4,
                             .schedule = SCHEDULE_CONSTANT,
                             .weight_decay = 0.1,
                             .beta1 = 0.9,
                             .beta2 = 0.999,
                             .epsilon = 1e-8,
                             .gradient_clip = 1};
    b->optimizer = optimizer_new(b->backend, b->parameters, &adamw, 1000);
    b->tape = tape_new(b->backend, true);
    b->recompute = o->recompute;
    return true;
}

static void close_bench(Bench *b) {
    tape_free(b->tape);
    optimizer_free(b->optimizer);
    parameters_free(b->parameters);
    arena_free(b->memory);
    backend_free(b->backend);
}

// ---- one step ----

static Tensor *pictures(Bench *b, Dtype compute) {
    const Preset *p = b->preset;
    Tensor *f32 =
        tape_constant(b->tape, F32, SHAPE(p->batch, 3, p->vision.image_size, p->vision.image_size), b->pixels);
    if (compute == F32) return f32;
    Tensor *x = tape_tensor(b->tape, compute, f32->rank, f32->shape);
    b->backend->convert(b->backend, x->data, compute, f32->data, F32, tensor_count(f32));
    return x;
}

static Tensor *text_states(Bench *b) { // (B T, C)
    const Preset *p = b->preset;
    int64_t places = p->batch * p->text.context;
    BlockContext context = {.causal = true,
                            .positions = tape_constant(b->tape, I32, SHAPE(places), b->positions),
                            .training = true,
                            .recompute = b->recompute};
    Tensor *ids = tape_constant(b->tape, I32, SHAPE(p->batch, p->text.context), b->ids);
    return text_forward(b->tape, &b->text, text_embed(b->tape, &b->text, ids), &context);
}

static Tensor *mean_cross_entropy(Bench *b, Tensor *x, Tensor *w, const int32_t *targets, int64_t count) {
    return sum(b->tape, linear_cross_entropy(b->tape, x, w, tape_constant(b->tape, I32, SHAPE(count), targets), NULL),
               1.0 / (double)count);
}

static Tensor *pair_loss(Bench *b, Tensor *images) {
    const Preset *p = b->preset;
    BlockContext context = {.training = true, .recompute = b->recompute};
    Tensor *seen = vit_pool(b->tape, &b->vision, vit_forward(b->tape, &b->vision, images, NULL, 0, &context));
    Tensor *text = gather_rows(b->tape, text_states(b), tape_constant(b->tape, I32, SHAPE(p->batch), b->ends));
    seen = l2_normalize(b->tape, linear(b->tape, seen, b->see, NULL));
    text = l2_normalize(b->tape, linear(b->tape, text, b->read, NULL));
    return scale(b->tape, clip_loss(b->tape, seen, text, b->log_scale), 1.0 / (double)p->batch);
}

static Tensor *loss_of(Bench *b, Dtype compute) {
    const Preset *p = b->preset;
    BlockContext context = {.training = true, .recompute = b->recompute};
    if (p->kind == LANGUAGE)
        return mean_cross_entropy(b, text_states(b), b->text.head, b->targets, p->batch * p->text.context);
    Tensor *images = pictures(b, compute);
    if (p->kind == CONTRASTIVE_PAIR) return pair_loss(b, images);
    if (p->kind == AUTOENCODER) {
        int64_t masked = p->batch * (vit_patches(&p->vision) - mae_kept(&p->mae, &p->vision));
        return scale(b->tape, mae_loss(b->tape, &b->mae, &b->vision, images, b->keep, b->masked, &context),
                     1.0 / (double)masked);
    }
    Tensor *pooled = vit_pool(b->tape, &b->vision, vit_forward(b->tape, &b->vision, images, NULL, 0, &context));
    return mean_cross_entropy(b, pooled, b->head, b->labels, p->batch);
}

static bool step(Bench *b, Dtype compute, int64_t number, float *loss, Error *error) {
    tape_reset(b->tape);
    parameters_begin_step(b->parameters);
    Tensor *out = loss_of(b, compute);
    if (out) tape_read(b->tape, out, loss);
    if (out) tape_backward(b->tape, out, ALL_GRADIENTS);
    if (tape_error(b->tape)) return error_set(error, ERROR_FAILED, "%s", tape_error(b->tape));
    parameters_end_backward(b->parameters);
    optimizer_step(b->optimizer, number, parameters_gradient_norm(b->parameters));
    b->backend->wait(b->backend);
    return isfinite(*loss) || error_set(error, ERROR_FAILED, "the loss of step %lld is not finite", (long long)number);
}

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarise(const Bench *b, double *times, int count, float loss, BenchTrainResult *out) {
    const Preset *p = b->preset;
    Cost cost = tape_cost(b->tape), again = tape_replayed(b->tape);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    qsort(times, (size_t)count, sizeof *times, by_time);
    double units = p->kind == LANGUAGE ? (double)(p->batch * p->text.context) : (double)p->batch;
    double median = times[count / 2];
    *out = (BenchTrainResult){.unit = p->kind == LANGUAGE ? "tokens" : "images",
                              .per_second = units / median,
                              .median = median,
                              .best = times[0],
                              .worst = times[count - 1],
                              .gflops = (cost.flop - again.flop + cost.backward_flop) / median / 1e9,
                              .peak_bytes = (double)usage.ru_maxrss * 1024,
                              .activation_bytes = (double)tape_peak(b->tape),
                              .parameters = (double)parameters_elements(b->parameters, false),
                              .loss = loss};
}

bool bench_train(const BenchTrainOptions *o, BenchTrainResult *out, Log *log, Error *error) {
    enum { WARM = 2 };
    Bench b = {0};
    float loss = 0;
    int count = o->iterations > 0 ? o->iterations : 1;
    double *times = calloc((size_t)count, sizeof *times);
    check(times);
    bool ok = open_bench(&b, o, log, error);
    for (int i = 0; ok && i < WARM + count; i++) {
        double start = clock_seconds();
        ok = step(&b, o->precision, i + 1, &loss, error);
        if (i >= WARM) times[i - WARM] = clock_seconds() - start;
    }
    if (ok) summarise(&b, times, count, loss, out);
    close_bench(&b);
    free(times);
    return ok;
}
