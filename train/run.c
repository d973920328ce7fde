/* See run.h. */
#include "train/run.h"
#include "base/clock.h"
#include "base/progress.h"
#include "data/image.h"
#include "kernels/cpu/cpu.h"
#include "train/checkpoint.h"
#include "train/memory.h"
#include "train/metrics.h"
#include "train/step.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Run {
    const TrainOptions *options;
    Log *log;
    Arena *memory; // strings of the config
    TrainConfig config;
    Tokenizer *tokenizer;
    Backend *backend;
    Joint *joint;
    Optimizer *optimizer;
    Loader *loader, *validation; // validation: NULL where no source has any
    Tape *tape, *inference;
    Metrics *metrics;
    Progress *progress;
    TrainState state;
    Saver *saver;
    int64_t saved; // step of the newest checkpoint that was begun; -1: none yet
} Run;

// ---- opening ----

static bool write_config(Run *r, Error *error) {
    char path[4096];
    Buffer yaml = {0};
    ConfigSchema schema = train_schema(r->memory);
    config_write(&schema, &r->config, &yaml);
    snprintf(path, sizeof path, "%s/config.yaml", r->options->run);
    bool ok = file_write(path, yaml.data, yaml.size, error);
    buffer_free(&yaml);
    return ok;
}

// Finds out whether the run starts or goes on. `found` gets the checkpoint's folder, or "".
static bool find_start(const TrainOptions *o, char found[1024], Log *log, Error *error) {
    Error none = {0};
    found[0] = 0;
    if (!model_find_checkpoint(o->run, found, log, &none)) found[0] = 0;
    if (found[0] && !o->resume)
        return error_set(error, ERROR_USAGE,
                         "%s already holds a checkpoint (%s); go on with --resume, or give another --run", o->run,
                         found);
    return true;
}

static bool read_config(Run *r, Error *error) {
    const TrainOptions *o = r->options;
    char own[4096];
    snprintf(own, sizeof own, "%s/config.yaml", o->run);
    if (!o->config && o->resume && !file_exists(own))
        return error_set(error, ERROR_USAGE, "%s: no such file: there is no run to resume; give its CONFIG", own);
    const char *path = o->config ? o->config : o->resume ? arena_string(r->memory, own) : NULL;
    return train_config_read(&r->config, path, o->overrides, o->n_overrides, r->memory, error);
}

static LoaderConfig loader_config(const TrainConfig *c, bool validation) {
    LoaderConfig l = {.sources = c->data.items,
                      .source_count = c->data.count,
                      .validation = validation,
                      .side = c->model.has_vision ? (int)c->model.vision.image_size : 0,
                      .image_tokens = c->model.has_vision ? joint_image_tokens(&c->model) : 0,
                      .text_length = c->lm_length,
                      .caption_length = c->caption_length,
                      .contrastive_length = c->contrastive_length,
                      .seed = (uint64_t)c->seed,
                      .threads = (int)c->loader_threads,
                      .ahead = (int)c->loader_ahead,
                      .cache_bytes = c->loader_cache,
                      .bad_samples_per_million = c->bad_samples};
    check(image_colour(c->background, l.background)); // train_config_read saw to it
    return l;
}

static bool open_loaders(Run *r, Error *error) {
    LoaderConfig training = loader_config(&r->config, false);
    bool any = false;
    r->loader = loader_open(&training, r->tokenizer, r->log, error);
    if (!r->loader) return false;
    for (int i = 0; i < training.source_count; i++) {
        any |= *training.sources[i].validation != 0;
        snprintf(r->state.roots[i], sizeof r->state.roots[i], "%s", loader_root(r->loader, i));
    }
    r->state.root_count = training.source_count;
    if (!any || !r->config.validation_every) return true;
    LoaderConfig validation = loader_config(&r->config, true);
    r->validation = loader_open(&validation, r->tokenizer, r->log, error);
    return r->validation != NULL;
}

static Saver *open_saver(Run *r) {
    CheckpointOptions options = {.run = r->options->run,
                                 .keep = r->config.checkpoint_keep,
                                 .keep_every = r->config.checkpoint_keep_every,
                                 .joint = r->joint,
                                 .tokenizer = r->tokenizer,
                                 .optimizer = r->optimizer,
                                 .backend = r->backend,
                                 .log = r->log};
    return saver_new(&options);
}

static bool open_model(Run *r, Error *error) {
    Dtype compute = r->config.precision ? BF16 : F32;
    r->tokenizer = tokenizer_load(r->config.tokenizer, error);
    if (!r->tokenizer) return false;
    if (tokenizer_vocabulary(r->tokenizer) > r->config.model.text.vocabulary)
        return error_set(
            error, ERROR_USAGE, "model.text.vocabulary is %lld, but %s has %d pieces; leave it out to take theirs",
            (long long)r->config.model.text.vocabulary, r->config.tokenizer, tokenizer_vocabulary(r->tokenizer));
    r->backend = cpu_backend_new((int)r->config.threads, NULL, r->log);
    r->joint = joint_new(r->backend, &r->config.model, NULL, compute, (uint64_t)r->config.seed, error);
    if (!r->joint) return false;
    r->optimizer = optimizer_new(r->backend, joint_parameters(r->joint), &r->config.optimizer, r->config.steps);
    r->tape = tape_new(r->backend, true);
    r->inference = tape_new(r->backend, false);
    r->saver = open_saver(r);
    return true;
}

static bool same_data(const Run *r, const TrainState *saved, Error *error) {
    static const char remedy[] = "restore what it was, or go on all the same with --allow-changed-data";
    if (r->options->allow_changed_data) return true;
    if (saved->root_count != r->state.root_count)
        return error_set(error, ERROR_FAILED, "the run was trained on %d datasets, the config names %d; %s",
                         saved->root_count, r->state.root_count, remedy);
    for (int i = 0; i < saved->root_count; i++)
        if (strcmp(saved->roots[i], r->state.roots[i]) != 0)
            return error_set(error, ERROR_FAILED,
                             "data.%d.path: %s is not the dataset this run was trained on (its root is %.16s, was "
                             "%.16s); %s",
                             i, ((const SourceConfig *)r->config.data.items)[i].path, r->state.roots[i],
                             saved->roots[i], remedy);
    return true;
}

static bool load_checkpoint(Run *r, const char *folder, Error *error) {
    TrainState saved;
    if (!model_check_tokenizer(folder, r->tokenizer, r->config.tokenizer, error) ||
        !checkpoint_load(folder, &saved, r->joint, r->optimizer, r->backend, NULL, error))
        return false;
    if (!same_data(r, &saved, error)) return false;
    if (saved.seed != r->config.seed)
        log_warning(r->log, "the run was started with seed %lld, goes on with %lld", (long long)saved.seed,
                    (long long)r->config.seed);
    r->state.step = r->saved = saved.step;
    log_info(r->log, "resuming after step %lld from %s", (long long)saved.step, folder);
    return true;
}

static bool open_run(Run *r, Error *error) {
    char found[1024], log_path[4096];
    r->saved = -1;
    r->memory = arena_new(1 << 16);
    if (!find_start(r->options, found, r->log, error) || !read_config(r, error) ||
        !memory_check(&r->config, memory_available(), error) || !folder_create(r->options->run, error))
        return false;
    snprintf(log_path, sizeof log_path, "%s/log.txt", r->options->run);
    if (!log_open_file(r->log, log_path, error)) return false;
    r->state.seed = r->config.seed;
    if (!open_model(r, error) || !open_loaders(r, error)) return false;
    if (found[0] && !load_checkpoint(r, found, error)) return false;
    if (r->options->resume && !found[0])
        log_warning(r->log, "%s holds no checkpoint yet: starting from the beginning", r->options->run);
    if (!write_config(r, error)) return false;
    r->metrics = metrics_open(r->options->run, r->state.step, error);
    return r->metrics != NULL;
}

static void close_run(Run *r) {
    progress_end(r->progress);
    saver_free(r->saver);
    metrics_close(r->metrics);
    tape_free(r->tape);
    tape_free(r->inference);
    loader_close(r->loader);
    loader_close(r->validation);
    optimizer_free(r->optimizer);
    joint_free(r->joint);
    backend_free(r->backend);
    tokenizer_free(r->tokenizer);
    arena_free(r->memory);
}

// ---- a step ----

// The step again with every tensor looked at, to name the first bad one.
static bool explain_not_finite(Run *r, const Batch *batch, const char *what, Error *error) {
    StepLoss again;
    tape_check_finite(r->tape, true);
    if (step_run(r->tape, r->joint, batch, (int)r->config.microbatches, (uint64_t)r->config.seed, &again, error)) {
        const char *found = tape_not_finite(r->tape);
        error_set(error, ERROR_FAILED, "%s",
                  found ? found : "every activation and gradient by itself is finite, their sum is not");
    }
    tape_check_finite(r->tape, false);
    return error_prefix(
        error,
        "step %lld: %s is not a finite number; nothing was updated. Lower optimizer.learning_rate, or look at the data",
        (long long)r->state.step + 1, what);
}

static int64_t batch_tokens(const Batch *b) {
    return b->lm.token_count + b->caption.token_count + b->contrastive.token_count;
}

static json_t *step_record(const Run *r, const StepLoss *loss, const Batch *batch, double norm, double seconds,
                           double waited) {
    char name[64];
    json_t *record = json_pack("{s:I, s:f}", "step", (json_int_t)r->state.step, "loss", loss->total);
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!loss->count[o]) continue;
        snprintf(name, sizeof name, "loss/%s", objective_names[o]);
        json_object_set_new(record, name, json_real(loss->mean[o]));
    }
    json_object_set_new(record, "learning_rate",
                        json_real(learning_rate_at(&r->config.optimizer, r->state.step, r->config.steps)));
    json_object_set_new(record, "gradient_norm", json_real(norm));
    json_object_set_new(record, "tokens", json_integer(batch_tokens(batch)));
    json_object_set_new(record, "images", json_integer(batch->images));
    json_object_set_new(record, "seconds", json_real(seconds));
    json_object_set_new(record, "waited", json_real(waited));
    json_object_set_new(record, "flop", json_real(joint_flop(&r->config.model, batch)));
    return record;
}

static void show(Run *r, const StepLoss *loss, const Batch *batch, double seconds, double waited) {
    char detail[256];
    size_t n = (size_t)snprintf(detail, sizeof detail, "loss %.4f", loss->total);
    for (int o = 0; o < OBJECTIVES; o++)
        if (loss->count[o] && n < sizeof detail)
            n += (size_t)snprintf(detail + n, sizeof detail - n, " %s %.4f", objective_names[o], loss->mean[o]);
    if (n < sizeof detail)
        snprintf(detail + n, sizeof detail - n, "; %.0f tokens/s %.0f images/s%s",
                 (double)batch_tokens(batch) / seconds, (double)batch->images / seconds,
                 waited > 0.2 * seconds ? "; waits for data" : "");
    progress_update(r->progress, r->state.step, detail);
}

static bool one_step(Run *r, Error *error) {
    StepLoss loss;
    double start = clock_seconds(), waited = loader_waited(r->loader);
    const Batch *batch = loader_next(r->loader, r->state.step, error);
    if (!batch) return false;
    if (!step_run(r->tape, r->joint, batch, (int)r->config.microbatches, (uint64_t)r->config.seed, &loss, error))
        return false;
    if (!isfinite(loss.total)) return explain_not_finite(r, batch, "the loss", error);
    double norm = parameters_gradient_norm(joint_parameters(r->joint));
    if (!isfinite(norm)) return explain_not_finite(r, batch, "the gradient's norm", error);
    checkpoint_hold(r->saver);
    optimizer_step(r->optimizer, r->state.step + 1, norm);
    r->state.step++;
    double seconds = clock_seconds() - start;
    waited = loader_waited(r->loader) - waited;
    show(r, &loss, batch, seconds, waited);
    return metrics_write(r->metrics, step_record(r, &loss, batch, norm, seconds, waited), error);
}

// ---- now and then ----

static bool validate(Run *r, Error *error) {
    StepLoss one;
    double sum[OBJECTIVES] = {0};
    int64_t count[OBJECTIVES] = {0}, batches = loader_steps_per_epoch(r->validation);
    if (batches > r->config.validation_batches) batches = r->config.validation_batches;
    for (int64_t i = 0; i < batches; i++) {
        const Batch *batch = loader_next(r->validation, i, error);
        if (!batch || !step_run(r->inference, r->joint, batch, 1, (uint64_t)r->config.seed, &one, error))
            return error_prefix(error, "validation after step %lld", (long long)r->state.step);
        for (int o = 0; o < OBJECTIVES; o++) {
            sum[o] += one.count[o] ? one.mean[o] * (double)one.count[o] : 0;
            count[o] += one.count[o];
        }
    }
    char name[64], line[256] = "";
    json_t *record = json_pack("{s:I}", "step", (json_int_t)r->state.step);
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!count[o]) continue;
        snprintf(name, sizeof name, "validation/%s", objective_names[o]);
        json_object_set_new(record, name, json_real(sum[o] / (double)count[o]));
        size_t n = strlen(line);
        snprintf(line + n, sizeof line - n, " %s %.4f", objective_names[o], sum[o] / (double)count[o]);
    }
    log_info(r->log, "step %lld: validation%s", (long long)r->state.step, line);
    return metrics_write(r->metrics, record, error);
}

static bool save(Run *r, Error *error) {
    if (r->saved == r->state.step) return true;
    r->saved = r->state.step;
    return checkpoint_start(r->saver, &r->state, error);
}

static bool every(int64_t period, int64_t step) { return period > 0 && step % period == 0; }

static bool stopping(const Run *r) { return r->options->stop && *r->options->stop; }

static bool steps(Run *r, Error *error) {
    const TrainConfig *c = &r->config;
    while (r->state.step < c->steps && !stopping(r)) {
        if (!one_step(r, error)) return false;
        bool last = r->state.step == c->steps;
        if (r->validation && (last || every(c->validation_every, r->state.step)) && !validate(r, error)) return false;
        if (checkpoint_written(r->saver) && !checkpoint_commit(r->saver, error)) return false;
        if ((last || every(c->checkpoint_every, r->state.step)) && !save(r, error)) return false;
    }
    return save(r, error) && checkpoint_finish(r->saver, error);
}

static void describe_start(const Run *r) {
    const JointConfig *m = &r->config.model;
    log_info(r->log, "%.2f M parameters (%.2f M trained), vocabulary %lld, %s on %s (%s), %d threads",
             (double)parameters_elements(joint_parameters(r->joint), false) / 1e6,
             (double)parameters_elements(joint_parameters(r->joint), true) / 1e6, (long long)m->text.vocabulary,
             r->config.precision ? "bf16" : "f32", r->backend->name, r->backend->isa,
             threads_count(cpu_threads(r->backend)));
}

bool train_run(const TrainOptions *options, TrainResult *result, Log *log, Error *error) {
    Run r = {.options = options, .log = log};
    double start = clock_seconds();
    bool ok = open_run(&r, error);
    if (ok) {
        describe_start(&r);
        r.progress = progress_start(log, "training", "steps", r.config.steps);
        progress_resume(r.progress, r.state.step);
        ok = steps(&r, error);
    }
    *result = (TrainResult){ok && stopping(&r) && r.state.step < r.config.steps, r.state.step, clock_seconds() - start};
    close_run(&r);
    return ok;
}
