/* The table of a training run's keys, and the checks over several of them. */
#include "train/train_config.h"
#include "base/files.h"
#include "data/image.h"
#include "kernels/device.h"
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define SOURCE(member) offsetof(SourceConfig, member)
static const ConfigKey source_keys[] = {
    {.name = "path", .type = CONFIG_STRING, .offset = SOURCE(path), .help = "dataset folder to train on"},
    {.name = "validation",
     .type = CONFIG_STRING,
     .offset = SOURCE(validation),
     .fallback = "",
     .help = "dataset folder for validation losses"},
    {.name = "objectives",
     .type = CONFIG_CHOICES,
     .offset = SOURCE(objectives),
     .choices = "lm|caption|contrastive|mae",
     .help = "what its samples are used for; one picture may serve several"},
    {.name = "batch",
     .type = CONFIG_INT,
     .offset = SOURCE(batch),
     .fallback = "32",
     .least = 1,
     .most = 1 << 20,
     .unit = "samples",
     .help = "samples (or rows of packed text) in one step"},
    {.name = "text",
     .type = CONFIG_STRING,
     .offset = SOURCE(text),
     .fallback = "",
     .help = "caption as a template over JSON fields, \"a photo of {class}\"; variants behind ||; empty: the .txt"},
    {.name = "question",
     .type = CONFIG_STRING,
     .offset = SOURCE(question),
     .fallback = "",
     .help = "template of a question; with answer: rows of question and answer"},
    {.name = "answer",
     .type = CONFIG_STRING,
     .offset = SOURCE(answer),
     .fallback = "",
     .help = "template of the answer, the only part that is scored"},
    {.name = "one_per",
     .type = CONFIG_STRING,
     .offset = SOURCE(one_per),
     .fallback = "",
     .help = "JSON field: each step takes one sample of each of its values"},
    {.name = "documents",
     .type = CONFIG_BOOL,
     .offset = SOURCE(documents),
     .fallback = "true",
     .help = "lm: attention stays inside a document; false: one stream of text"},
    {.name = "crop_scale_least",
     .type = CONFIG_FLOAT,
     .offset = SOURCE(crop_scale[0]),
     .fallback = "0.9",
     .least = 0.01,
     .most = 1,
     .help = "random crop: least share of the area"},
    {.name = "crop_scale_most",
     .type = CONFIG_FLOAT,
     .offset = SOURCE(crop_scale[1]),
     .fallback = "1",
     .least = 0.01,
     .most = 1,
     .help = "random crop: largest share of the area"},
    {.name = "crop_ratio_least",
     .type = CONFIG_FLOAT,
     .offset = SOURCE(crop_ratio[0]),
     .fallback = "0.75",
     .least = 0.1,
     .most = 10,
     .help = "random crop: least width / height"},
    {.name = "crop_ratio_most",
     .type = CONFIG_FLOAT,
     .offset = SOURCE(crop_ratio[1]),
     .fallback = "1.3333333333333333",
     .least = 0.1,
     .most = 10,
     .help = "random crop: largest width / height"},
    {.name = "flip",
     .type = CONFIG_FLOAT,
     .offset = SOURCE(flip),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "probability of mirroring a picture"},
    {.name = "jitter",
     .type = CONFIG_FLOAT,
     .offset = SOURCE(jitter),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "brightness, contrast and saturation each by a factor drawn from [1 - jitter, 1 + jitter]"},
};
static const ConfigSchema source_schema = {source_keys, sizeof source_keys / sizeof *source_keys, sizeof(SourceConfig)};

#define AT(member) offsetof(TrainConfig, member)
static const ConfigKey train_keys[] = {
    {.name = "seed",
     .type = CONFIG_INT,
     .offset = AT(seed),
     .fallback = "1",
     .least = 0,
     .most = 9e15,
     .help = "of every random number of the run"},
    {.name = "device",
     .type = CONFIG_CHOICE,
     .offset = AT(device),
     .fallback = "cpu",
     .choices = DEVICE_CHOICES,
     .help = DEVICE_HELP},
    {.name = "threads",
     .type = CONFIG_INT,
     .offset = AT(threads),
     .fallback = "0",
     .least = 0,
     .most = 1024,
     .help = "of the arithmetic; 0: one per core"},
    {.name = "precision",
     .type = CONFIG_CHOICE,
     .offset = AT(precision),
     .fallback = "f32",
     .choices = "f32|bf16|fp8",
     .help = "of activations and matrix products; masters are f32; fp8: bf16, and products of blocks in fp8"},
    {.name = "tokenizer", .type = CONFIG_STRING, .offset = AT(tokenizer), .help = "SentencePiece model file"},
    {.name = "data", .type = CONFIG_LIST, .offset = AT(data), .item = &source_schema, .help = "the datasets of a step"},
    {.name = "sequence.lm",
     .type = CONFIG_INT,
     .offset = AT(lm_length),
     .fallback = "0",
     .least = 0,
     .most = 1 << 20,
     .unit = "tokens",
     .help = "row of packed text; 0: the text model's context"},
    {.name = "sequence.caption",
     .type = CONFIG_INT,
     .offset = AT(caption_length),
     .fallback = "0",
     .least = 0,
     .most = 1 << 20,
     .unit = "tokens",
     .help = "row of pictures and text, image slots included; 0: the context"},
    {.name = "sequence.contrastive",
     .type = CONFIG_INT,
     .offset = AT(contrastive_length),
     .fallback = "0",
     .least = 0,
     .most = 1 << 20,
     .unit = "tokens",
     .help = "caption of a pair; 0: the context"},
    {.name = "train.steps",
     .type = CONFIG_INT,
     .offset = AT(steps),
     .fallback = "1000",
     .least = 1,
     .most = 1e12,
     .help = "optimizer steps in all"},
    {.name = "train.microbatches",
     .type = CONFIG_INT,
     .offset = AT(microbatches),
     .fallback = "1",
     .least = 1,
     .most = 1 << 16,
     .help = "pieces in which a step runs, over all processes; raised to a multiple of parallel.data"},
    {.name = "train.reproducible",
     .type = CONFIG_CHOICE,
     .offset = AT(reproducible),
     .fallback = "run",
     .choices = "run|layout",
     .help = "same bits from run to run, or also whatever data ranks, stages, ZeRO and recomputation are"},
    {.name = "parallel.data",
     .type = CONFIG_INT,
     .offset = AT(parallel.size[MESH_DATA]),
     .fallback = "0",
     .least = 0,
     .most = 1 << 20,
     .unit = "processes",
     .help = "that share out the samples of a step; 0: what the other axes leave"},
    {.name = "parallel.pipeline",
     .type = CONFIG_INT,
     .offset = AT(parallel.size[MESH_PIPELINE]),
     .fallback = "1",
     .least = 1,
     .most = 1 << 20,
     .unit = "processes",
     .help = "stages: each has some of the model's units, and microbatches go from one to the next"},
    {.name = "parallel.schedule",
     .type = CONFIG_CHOICE,
     .offset = AT(parallel.schedule),
     .fallback = "zb-h1",
     .choices = "gpipe|1f1b|interleaved|zb-h1|zb-h2|zb-v",
     .help = "what a stage does with which microbatch when; see `bifocal plan schedule`"},
    {.name = "parallel.chunks",
     .type = CONFIG_INT,
     .offset = AT(parallel.chunks),
     .fallback = "0",
     .least = 0,
     .most = MOST_CHUNKS,
     .unit = "parts",
     .help = "of the model on each stage; 0: as many as the schedule is usually run with"},
    {.name = "parallel.split",
     .type = CONFIG_STRING,
     .offset = AT(parallel.split),
     .fallback = "cost",
     .help = "units of each part: cost (modelled), measured (a short calibration), blocks (equally many), or the first "
             "unit of each part but the first, as vision.blocks.6,text.embed; see `bifocal plan stages`"},
    {.name = "parallel.stage_memory",
     .type = CONFIG_INT,
     .offset = AT(parallel.stage_memory),
     .fallback = "0",
     .least = 0,
     .most = 1e15,
     .unit = "bytes",
     .help = "that a stage may take; 0: what its machine has free"},
    {.name = "parallel.expert",
     .type = CONFIG_INT,
     .offset = AT(parallel.size[MESH_EXPERT]),
     .fallback = "1",
     .least = 1,
     .most = 1 << 20,
     .unit = "processes",
     .help = "that share out experts; 1 alone for now"},
    {.name = "parallel.tensor",
     .type = CONFIG_INT,
     .offset = AT(parallel.size[MESH_TENSOR]),
     .fallback = "1",
     .least = 1,
     .most = 1 << 20,
     .unit = "processes",
     .help = "that share out the heads and widths of every block"},
    {.name = "parallel.sequence",
     .type = CONFIG_BOOL,
     .offset = AT(parallel.sequence),
     .fallback = "false",
     .help = "norms and dropout between split layers are shared out too, over parallel.tensor"},
    {.name = "parallel.zero",
     .type = CONFIG_INT,
     .offset = AT(parallel.zero),
     .fallback = "0",
     .least = 0,
     .most = 3,
     .unit = "stage",
     .help = "shared out over parallel.data: 0 nothing, 1 states, 2 and gradients, 3 and parameters"},
    {.name = "parallel.bucket",
     .type = CONFIG_INT,
     .offset = AT(parallel.bucket),
     .fallback = "26214400",
     .least = 4096,
     .most = 1e12,
     .unit = "bytes",
     .help = "of gradients reduced, and parameters gathered, in one call"},
    {.name = "parallel.watchdog",
     .type = CONFIG_FLOAT,
     .offset = AT(parallel.watchdog),
     .fallback = "600",
     .least = 0,
     .most = 1e9,
     .unit = "seconds",
     .help = "a call that waits longer ends the run and says for whom; 0: off"},
    {.name = "train.recompute",
     .type = CONFIG_CHOICE,
     .offset = AT(model.recompute),
     .fallback = "none",
     .choices = "none|selective|full|auto",
     .help = "what of a block is computed again in backward, to save memory: nothing, norms and activations, all of it; "
             "auto: the least with which the run fits, chosen at its start"},
    {.name = "train.lanes",
     .type = CONFIG_CHOICE,
     .offset = AT(model.lanes),
     .fallback = "auto",
     .choices = "auto|1|2|3|4",
     .help = "of a GPU's work, at most, in which parts of a joint model run beside one another; auto: up to 3, as many "
             "as fit into memory"},
    {.name = "train.offload",
     .type = CONFIG_CHOICE,
     .offset = AT(offload),
     .fallback = "none",
     .choices = "none|states",
     .help = "what of a GPU's memory lies in the host's instead: nothing; states, moments and in bf16 f32 masters, which "
             "go through the GPU in each update"},
    {.name = "train.recompute_units",
     .type = CONFIG_STRINGS,
     .offset = AT(model.recompute_units),
     .fallback = "",
     .help = "units in which train.recompute is done, or what they lie under: vision, text.blocks.0; none: all blocks"},
    {.name = "optimizer.learning_rate",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.learning_rate),
     .fallback = "0.001",
     .least = 0,
     .most = 10,
     .help = "peak"},
    {.name = "optimizer.final_ratio",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.final_ratio),
     .fallback = "0.1",
     .least = 0,
     .most = 1,
     .help = "last learning rate / peak"},
    {.name = "optimizer.schedule",
     .type = CONFIG_CHOICE,
     .offset = AT(optimizer.schedule),
     .fallback = "cosine",
     .choices = "cosine|linear|constant",
     .help = "after the warm-up"},
    {.name = "optimizer.warmup_steps",
     .type = CONFIG_INT,
     .offset = AT(optimizer.warmup_steps),
     .fallback = "100",
     .least = 0,
     .most = 1e12,
     .unit = "steps",
     .help = "the rate rises linearly"},
    {.name = "optimizer.weight_decay",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.weight_decay),
     .fallback = "0.1",
     .least = 0,
     .most = 10,
     .help = "decoupled; matrices only"},
    {.name = "optimizer.beta1",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.beta1),
     .fallback = "0.9",
     .least = 0,
     .most = 0.99999,
     .help = "decay of the first moment"},
    {.name = "optimizer.beta2",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.beta2),
     .fallback = "0.98",
     .least = 0,
     .most = 0.9999999,
     .help = "decay of the second moment"},
    {.name = "optimizer.epsilon",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.epsilon),
     .fallback = "1e-8",
     .least = 1e-16,
     .most = 1,
     .help = "AdamW's"},
    {.name = "optimizer.gradient_clip",
     .type = CONFIG_FLOAT,
     .offset = AT(optimizer.gradient_clip),
     .fallback = "1",
     .least = 0,
     .most = 1e9,
     .help = "largest global norm of the gradient; 0: off"},
    {.name = "loader.threads",
     .type = CONFIG_INT,
     .offset = AT(loader_threads),
     .fallback = "1",
     .least = 1,
     .most = 256,
     .help = "workers that read, decode and tokenize"},
    {.name = "loader.ahead",
     .type = CONFIG_INT,
     .offset = AT(loader_ahead),
     .fallback = "4",
     .least = 1,
     .most = 1024,
     .unit = "batches",
     .help = "prepared ahead of the training loop"},
    {.name = "loader.cache",
     .type = CONFIG_INT,
     .offset = AT(loader_cache),
     .fallback = "1073741824",
     .least = 0,
     .most = 1e15,
     .unit = "bytes",
     .help = "decoded pictures and their texts kept in memory, shared evenly by the datasets"},
    {.name = "loader.bad_samples_per_million",
     .type = CONFIG_FLOAT,
     .offset = AT(bad_samples),
     .fallback = "1000",
     .least = 0,
     .most = 1e6,
     .help = "the run stops beyond this"},
    {.name = "loader.background",
     .type = CONFIG_STRING,
     .offset = AT(background),
     .fallback = "#ffffff",
     .help = "colour under transparent pixels, #rrggbb"},
    {.name = "validation.every",
     .type = CONFIG_INT,
     .offset = AT(validation_every),
     .fallback = "500",
     .least = 0,
     .most = 1e12,
     .unit = "steps",
     .help = "0: never"},
    {.name = "validation.batches",
     .type = CONFIG_INT,
     .offset = AT(validation_batches),
     .fallback = "20",
     .least = 1,
     .most = 1e9,
     .unit = "batches",
     .help = "of one measurement, at most one pass over the data"},
    {.name = "checkpoint.every",
     .type = CONFIG_INT,
     .offset = AT(checkpoint_every),
     .fallback = "1000",
     .least = 0,
     .most = 1e12,
     .unit = "steps",
     .help = "0: at the end alone"},
    {.name = "checkpoint.keep",
     .type = CONFIG_INT,
     .offset = AT(checkpoint_keep),
     .fallback = "2",
     .least = 1,
     .most = 1e6,
     .help = "newest checkpoints that stay"},
    {.name = "checkpoint.keep_every",
     .type = CONFIG_INT,
     .offset = AT(checkpoint_keep_every),
     .fallback = "0",
     .least = 0,
     .most = 1e12,
     .unit = "steps",
     .help = "checkpoints of its multiples stay too; 0: none of these"},
};
enum { TRAIN_KEYS = sizeof train_keys / sizeof *train_keys };

ConfigSchema train_schema(Arena *memory) {
    int count = TRAIN_KEYS + joint_schema.count;
    ConfigKey *keys = arena_array(memory, ConfigKey, count);
    memcpy(keys, train_keys, sizeof train_keys);
    for (int i = 0; i < joint_schema.count; i++) {
        keys[TRAIN_KEYS + i] = joint_schema.keys[i];
        keys[TRAIN_KEYS + i].offset += AT(model);
    }
    return (ConfigSchema){keys, count, sizeof(TrainConfig)};
}

// ---- checks over several keys ----

static const SourceConfig *source_at(const TrainConfig *c, int i) { return (const SourceConfig *)c->data.items + i; }

static bool has_objective(const SourceConfig *s, Objective o) { return s->objectives >> o & 1; }

static bool is_dataset(const char *folder) {
    char manifest[4096];
    snprintf(manifest, sizeof manifest, "%s/dataset.json", folder);
    return file_exists(manifest);
}

static bool check_datasets(const SourceConfig *s, int i, Error *error) {
    if (!is_dataset(s->path))
        return error_set(error, ERROR_USAGE,
                         "data.%d.path: %s is not a dataset (no dataset.json); make one with `bifocal data build`", i,
                         s->path);
    if (*s->validation && !is_dataset(s->validation))
        return error_set(error, ERROR_USAGE, "data.%d.validation: %s is not a dataset (no dataset.json)", i,
                         s->validation);
    return true;
}

static bool check_source(const TrainConfig *c, int i, bool planned, Error *error) {
    const SourceConfig *s = source_at(c, i);
    if (!s->objectives)
        return error_set(error, ERROR_USAGE, "data.%d.objectives is empty; give some of lm, caption, contrastive, mae",
                         i);
    if (!planned && !check_datasets(s, i, error)) return false;
    if (!c->model.has_vision && (s->objectives & ~(1u << OBJECTIVE_LM)))
        return error_set(error, ERROR_USAGE, "data.%d.objectives needs pictures, but the model has no vision part", i);
    if (!*s->question != !*s->answer)
        return error_set(error, ERROR_USAGE, "data.%d: question and answer go together", i);
    if (*s->question && !has_objective(s, OBJECTIVE_CAPTION))
        return error_set(error, ERROR_USAGE,
                         "data.%d: question and answer make caption rows; add caption to its objectives", i);
    if (*s->one_per && s->objectives == 1u << OBJECTIVE_LM)
        return error_set(error, ERROR_USAGE, "data.%d.one_per chooses pictures, but lm alone has none; leave it out",
                         i);
    if (s->crop_scale[0] > s->crop_scale[1] || s->crop_ratio[0] > s->crop_ratio[1])
        return error_set(error, ERROR_USAGE, "data.%d: the least of a crop range is above the most", i);
    return true;
}

static bool check_objectives(const TrainConfig *c, Error *error) {
    for (int i = 0; i < c->data.count; i++)
        for (int o = 0; o < OBJECTIVES; o++)
            if (has_objective(source_at(c, i), (Objective)o) && c->model.weight[o] == 0)
                return error_set(error, ERROR_USAGE,
                                 "data.%d.objectives names %s, but %s is 0; set it above 0, or leave it out there", i,
                                 objective_names[o], objective_weight_keys[o]);
    return true;
}

static bool check_lengths(const TrainConfig *c, Error *error) {
    const struct {
        const char *key;
        int64_t value;
    } lengths[] = {{"sequence.lm", c->lm_length},
                   {"sequence.caption", c->caption_length},
                   {"sequence.contrastive", c->contrastive_length}};
    for (int i = 0; i < 3; i++)
        if (!c->model.text.rope && lengths[i].value > c->model.text.context)
            return error_set(error, ERROR_USAGE, "%s is %lld, but the text model's context is %lld", lengths[i].key,
                             (long long)lengths[i].value, (long long)c->model.text.context);
    int slots = c->model.has_vision ? joint_image_tokens(&c->model) : 0;
    for (int i = 0; i < c->data.count; i++)
        if (has_objective(source_at(c, i), OBJECTIVE_CAPTION) && c->caption_length < slots + 4)
            return error_set(
                error, ERROR_USAGE,
                "sequence.caption is %lld, but a picture takes %d places before any text; give at least %d",
                (long long)c->caption_length, slots, slots + 16);
    return true;
}

static bool check_run(const TrainConfig *c, const char *path, bool planned, Error *error) {
    if (!c->data.count)
        return error_set(error, ERROR_USAGE, "%s: data is empty; name at least one dataset",
                         path ? path : "command line");
    if (c->data.count > MOST_SOURCES)
        return error_set(error, ERROR_USAGE, "data names %d datasets; %d at the most: build some of them into one",
                         c->data.count, MOST_SOURCES);
    if (!planned && !file_exists(c->tokenizer))
        return error_set(error, ERROR_USAGE, "tokenizer: %s does not exist; make one with `bifocal tokenizer train`",
                         c->tokenizer);
    if (c->optimizer.warmup_steps && c->optimizer.warmup_steps >= c->steps)
        return error_set(error, ERROR_USAGE, "optimizer.warmup_steps (%lld) must be below train.steps (%lld)",
                         (long long)c->optimizer.warmup_steps, (long long)c->steps);
    if (!image_colour(c->background, (uint8_t[3]){0}))
        return error_set(error, ERROR_USAGE, "loader.background is '%s'; write a colour as #rrggbb", c->background);
    return true;
}

// The vocabulary where the config leaves it to the tokenizer.
static bool vocabulary_of(TrainConfig *c, Error *error) {
    Tokenizer *tokenizer = tokenizer_load(c->tokenizer, error);
    if (!tokenizer) return error_prefix(error, "tokenizer");
    c->model.text.vocabulary = tokenizer_vocabulary(tokenizer);
    tokenizer_free(tokenizer);
    return true;
}

static bool read_config(TrainConfig *c, const char *path, const char *const *overrides, int n_overrides, bool planned,
                        Arena *memory, Error *error) {
    ConfigSchema schema = train_schema(memory);
    if (!config_read(&schema, path, overrides, n_overrides, c, memory, error)) return false;
    if (!c->lm_length) c->lm_length = c->model.text.context;
    if (!c->caption_length) c->caption_length = c->model.text.context;
    if (!c->contrastive_length) c->contrastive_length = c->model.text.context;
    if (!check_run(c, path, planned, error)) return false;
    for (int i = 0; i < c->data.count; i++)
        if (!check_source(c, i, planned, error)) return false;
    if (!c->model.text.vocabulary && !vocabulary_of(c, error)) return false;
    c->model.fp8 = c->precision == PRECISION_FP8;
    const char *wrong = joint_check(&c->model, memory);
    if (wrong) return error_set(error, ERROR_USAGE, "%s", wrong);
    return check_objectives(c, error) && check_lengths(c, error);
}

bool train_config_read(TrainConfig *c, const char *path, const char *const *overrides, int n_overrides, Arena *memory,
                       Error *error) {
    return read_config(c, path, overrides, n_overrides, false, memory, error);
}

bool train_config_read_planned(TrainConfig *c, const char *path, const char *const *overrides, int n_overrides,
                               Arena *memory, Error *error) {
    return read_config(c, path, overrides, n_overrides, true, memory, error);
}
