/* Everything a training run is told: one table of keys over one struct. The model's part is fusion's own table. */
#pragma once
#include "base/config.h"
#include "data/loader.h"
#include "fusion/joint.h"
#include "train/mesh.h"
#include "train/schedules.h"

enum { MOST_SOURCES = 64 }; // datasets of a run

typedef enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT } Schedule;

typedef struct OptimizerConfig {
    double learning_rate, final_ratio; // peak; the last step's rate is final_ratio x peak
    int schedule;                      // Schedule
    int64_t warmup_steps;
    double weight_decay, beta1, beta2, epsilon;
    double gradient_clip; // global norm; 0: off
} OptimizerConfig;

typedef enum { OFFLOAD_NONE, OFFLOAD_STATES } Offload;
typedef enum { REPRODUCIBLE_RUN, REPRODUCIBLE_LAYOUT } Reproducible;

typedef struct ParallelConfig {
    int64_t size[MESH_AXES]; // of the mesh; data 0: what the others leave
    bool sequence;
    int64_t zero, bucket; // stage; bytes
    int schedule;         // PipelineKind
    int64_t chunks;       // parts of the model on each stage; 0: the schedule's own
    const char *split;    // "cost", "measured", "blocks", or names of units
    int64_t stage_memory; // bytes; 0: what is free
    double watchdog;      // seconds; 0: off
} ParallelConfig;

enum { PRECISION_FP8 = 2 }; // bf16, and products of blocks in fp8 (kernels/fp8.h)

typedef struct TrainConfig {
    int64_t seed, threads;
    int device;            // Device
    int precision;         // 0 f32, 1 bf16, PRECISION_FP8
    const char *tokenizer; // path of the model
    ConfigList data;       // of SourceConfig
    JointConfig model;
    OptimizerConfig optimizer;
    int64_t steps, microbatches; // microbatches: pieces of a step, over all ranks
    int reproducible;            // Reproducible
    int offload;                 // Offload
    ParallelConfig parallel;
    int64_t lm_length, caption_length, contrastive_length; // tokens; resolved from 0 by train_config_read
    int64_t loader_threads, loader_ahead, loader_cache;    // cache: bytes
    double bad_samples;                                    // per million
    const char *background;                                // "#rrggbb"
    int64_t validation_every, validation_batches;
    int64_t checkpoint_every, checkpoint_keep, checkpoint_keep_every;
} TrainConfig;

// The whole table; its keys live in the arena.
ConfigSchema train_schema(Arena *);
// Reads file and overrides, then checks what no single key can: sizes that do not divide, files that are missing,
// objectives without a weight, a warm-up longer than the run. Nothing is allocated but the strings.
bool train_config_read(TrainConfig *, const char *path, const char *const *overrides, int n_overrides, Arena *,
                       Error *);
// The same of a run that is only planned: neither its datasets nor, where the vocabulary is given, its tokenizer must
// be there.
bool train_config_read_planned(TrainConfig *, const char *path, const char *const *overrides, int n_overrides, Arena *,
                               Error *);
