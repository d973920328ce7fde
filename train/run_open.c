/* Opening and closing a run. After each stage the ranks agree whether all of them could do it, so that what is wrong on
 * one ends all of them with one message, before the first step. */
#include "base/affinity.h"
#include "base/files.h"
#include "base/philox.h"
#include "base/threads.h"
#include "data/image.h"
#include "kernels/comm/watch.h"
#include "kernels/device.h"
#include "train/agree.h"
#include "train/device_fit.h"
#include "train/memory.h"
#include "train/run_state.h"
#include "train/schedule_trace.h"
#include <stdlib.h>
#include <string.h>

// ---- what is written once, or by every rank for itself ----

static Buffer config_text(Run *r) {
    Buffer yaml = {0};
    ConfigSchema schema = train_schema(r->memory);
    config_write(&schema, &r->config, &yaml);
    return yaml;
}

static bool write_config(Run *r, Error *error) {
    char path[4096];
    Buffer yaml = config_text(r);
    snprintf(path, sizeof path, "%s/config.yaml", r->options->run);
    bool ok = file_write(path, yaml.data, yaml.size, error);
    buffer_free(&yaml);
    return ok;
}

// Rank 0's log is the run's; every other rank keeps one of its own.
static bool open_log(Run *r, Error *error) {
    char path[4096];
    int rank = comm_rank(r->options->world);
    if (!folder_create(r->options->run, error)) return false;
    snprintf(path, sizeof path, "%s/log.txt", r->options->run);
    if (r->leads) return log_open_file(r->log, path, error);
    snprintf(path, sizeof path, "%s/logs", r->options->run);
    if (!folder_create(path, error)) return false;
    snprintf(path, sizeof path, "%s/logs/rank-%05d.txt", r->options->run, rank);
    return log_open_file(r->log, path, error);
}

// ---- what the run is ----

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

// What all ranks must have in common: false on those whose `hash` is not rank 0's.
static bool same_as_first(const Run *r, uint64_t hash, const char *what, Error *error) {
    uint64_t first = hash;
    comm_broadcast(r->options->world, &first, sizeof first, 0, what);
    return first == hash || error_set(error, ERROR_USAGE, "%s here is not the same as on rank 0", what);
}

// Which units are where, before anything is made.
static bool cut_model(Run *r, Error *error) {
    int64_t asked = r->config.parallel.stage_memory;
    size_t left = 0, all = 0;
    bool apart = r->backend->memory && r->backend->memory(r->backend, &left, &all);
    double limit = asked ? (double)asked : apart ? (double)left : memory_available(r->hosts.local);
    if (r->layout.size[MESH_PIPELINE] == 1) return true;
    return stages_resolve(&r->config, &r->layout, limit, r->options->world, r->memory, &r->stages, error);
}

static int threads_of(const Run *r) { return r->config.threads ? (int)r->config.threads : r->hosts.threads; }

// fp8 needs tensor cores that have it, and scales that stay where they are.
static bool can_multiply(const Run *r, Error *error) {
    if (!r->config.model.fp8) return true;
    if (!r->backend->matmul_fp8)
        return error_set(error, ERROR_USAGE,
                         "precision: fp8 needs a GPU of compute capability 8.9 or newer; this one (%s) is %s; use bf16",
                         r->backend->device, r->backend->isa);
    return r->config.parallel.zero < 3 ||
           error_set(error, ERROR_USAGE, "precision: fp8 goes with parallel.zero 0 to 2; use one of them, or bf16");
}

// Collective. Before the run's folder exists: a run that has no device leaves nothing behind.
static bool open_device(Run *r, Error *error) {
    DeviceOptions device = {.device = (Device)r->config.device, .local_rank = r->hosts.local_rank};
    r->seat = device_seat(&device);
    r->node = hosts_bind(&r->hosts, r->options->world, &r->seat, "/sys");
    device.threads = threads_of(r);
    r->backend = device_backend_new(&device, r->log, error);
    return agree(r->options->world, r->backend && can_multiply(r, error), error);
}

// Collective. Whether the run fits into the memory of its device, before anything of it is there.
static bool fit_device(Run *r, Error *error) {
    DeviceRoom room = {r->backend, r->hosts.local, r->seat.gpus, r->options->resume ? r->options->run : NULL,
                       r->memory};
    bool ok = r->backend->memory || r->config.device == DEVICE_CPU ||
              memory_check(&r->config, &r->layout, memory_available(r->hosts.local), error);
    return agree(r->options->world, ok, error) &&
           device_fit_start(&r->config, &r->layout, &room, r->options->world, r->log, &r->planned, error);
}

static bool open_config(Run *r, char found[1024], Error *error) {
    Comm *world = r->options->world;
    r->hosts = hosts_gather(world, r->memory);
    bool ok = find_start(r->options, found, r->leads ? r->log : NULL, error) && read_config(r, error) &&
              layout_resolve(&r->config, comm_size(world), &r->layout, error) &&
              (r->config.device != DEVICE_CPU ||
               memory_check(&r->config, &r->layout, memory_available(r->hosts.local), error));
    if (!agree(world, ok, error)) return false;
    Buffer yaml = config_text(r);
    ok = same_as_first(r, hash_u64(yaml.data, yaml.size), "the configuration", error);
    buffer_free(&yaml);
    if (!agree(world, ok, error) || !open_device(r, error) || !fit_device(r, error) || !cut_model(r, error) ||
        !agree(world, open_log(r, error), error))
        return false;
    comm_broadcast(world, found, 1024, 0, "the checkpoint to go on from");
    r->state.seed = r->config.seed;
    return true;
}

// ---- how it is spread ----

static bool open_layout(Run *r, Error *error) {
    Comm *world = r->options->world;
    const ParallelConfig *c = &r->config.parallel;
    if (!mesh_open(&r->mesh, world, r->layout.size, error) || !mesh_use_device(&r->mesh, r->backend, error))
        return false;
    const int *size = r->layout.size;
    r->parallel = (Parallel){.tensor = size[MESH_TENSOR] > 1 ? r->mesh.axis[MESH_TENSOR] : NULL,
                             .sequence = c->sequence,
                             .data = size[MESH_DATA] > 1 ? r->mesh.axis[MESH_DATA] : NULL,
                             .zero = (int)c->zero,
                             .bucket_bytes = c->bucket,
                             .ordered = r->config.reproducible == REPRODUCIBLE_LAYOUT,
                             .pipeline = size[MESH_PIPELINE] > 1 ? r->mesh.axis[MESH_PIPELINE] : NULL,
                             .offload = r->config.offload == OFFLOAD_STATES};
    if (r->parallel.pipeline) schedule_trace_note(r->trace, &r->layout.pipeline, size, r->mesh.place);
    return true;
}

// ---- data and model ----

static LoaderConfig loader_config(const Run *r, bool validation) {
    const TrainConfig *c = &r->config;
    LoaderConfig l = {.sources = c->data.items,
                      .source_count = c->data.count,
                      .validation = validation,
                      .side = c->model.has_vision ? (int)c->model.vision.image_size : 0,
                      .image_tokens = c->model.has_vision ? joint_image_tokens(&c->model) : 0,
                      .text_length = c->lm_length,
                      .caption_length = c->caption_length,
                      .contrastive_length = c->contrastive_length,
                      .seed = (uint64_t)c->seed,
                      .part = r->mesh.place[MESH_DATA],
                      .parts = r->layout.size[MESH_DATA],
                      .threads = (int)c->loader_threads,
                      .ahead = (int)c->loader_ahead,
                      .cache_bytes = c->loader_cache,
                      .bad_samples_per_million = c->bad_samples};
    check(image_colour(c->background, l.background)); // train_config_read saw to it
    return l;
}

static bool open_loaders(Run *r, Error *error) {
    LoaderConfig training = loader_config(r, false);
    bool any = false;
    r->loader = loader_open(&training, r->tokenizer, r->log, error);
    if (!r->loader) return false;
    for (int i = 0; i < training.source_count; i++) {
        any |= *training.sources[i].validation != 0;
        snprintf(r->state.roots[i], sizeof r->state.roots[i], "%s", loader_root(r->loader, i));
    }
    r->state.root_count = training.source_count;
    if (!any || !r->config.validation_every) return true;
    LoaderConfig validation = loader_config(r, true);
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
                                 .mesh = &r->mesh,
                                 .log = r->log,
                                 .trace = r->trace};
    Saver *saver = saver_new(&options);
    if (r->config.checkpoint_every) checkpoint_prepare(saver);
    return saver;
}

// Up to the parameters: what may fail on one rank alone.
static bool open_model(Run *r, Error *error) {
    Dtype compute = r->config.precision ? BF16 : F32;
    r->tokenizer = tokenizer_load(r->config.tokenizer, error);
    if (!r->tokenizer) return false;
    if (tokenizer_vocabulary(r->tokenizer) > r->config.model.text.vocabulary)
        return error_set(
            error, ERROR_USAGE, "model.text.vocabulary is %lld, but %s has %d pieces; leave it out to take theirs",
            (long long)r->config.model.text.vocabulary, r->config.tokenizer, tokenizer_vocabulary(r->tokenizer));
    const int *chunks =
        r->parallel.pipeline ? stages_chunks(&r->stages, r->mesh.place[MESH_PIPELINE], r->memory) : NULL;
    r->joint =
        joint_new_part(r->backend, &r->config.model, &r->parallel, chunks, compute, (uint64_t)r->config.seed, error);
    if (!r->joint) return false;
    return parameters_whole_elements(joint_parameters(r->joint), true) > 0 ||
           error_set(error, ERROR_USAGE, "model.freeze leaves nothing to train; take something out of it");
}

// Collective: what works on the parameters.
static bool open_step(Run *r, Error *error) {
    Parameters *parameters = joint_parameters(r->joint);
    int ranks = r->layout.ranks, sharing = r->seat.gpus && r->hosts.local > r->seat.gpus ? r->hosts.local : 0;
    utilisation_open(&r->utilisation, r->joint, r->backend, r->config.precision ? BF16 : F32,
                     sharing ? ranks * r->seat.gpus / sharing : ranks);
    r->optimizer = optimizer_new(r->backend, parameters, &r->config.optimizer, r->config.steps);
    r->tape = tape_new(r->backend, true);
    r->inference = tape_new(r->backend, false);
    parameters_follow(parameters, r->inference);
    r->gradients = gradients_new(parameters, r->parallel.pipeline ? NULL : r->tape, r->trace);
    r->pairs = step_pairs_new(r->backend);
    if (r->backend->read_start) // the device judges
        r->gate = step_gate_new(r->backend, r->layout.pieces / r->layout.size[MESH_DATA], r->parallel.data,
                                r->parallel.pipeline);
    if (!r->parallel.pipeline) return true;
    r->pipeline = pipeline_new(&(PipelineSetup){.table = &r->stages.table,
                                                .units = r->stages.first,
                                                .group = r->parallel.pipeline,
                                                .joint = r->joint,
                                                .gradients = r->gradients,
                                                .trace = r->trace},
                               error);
    return r->pipeline != NULL;
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

// Collective, like what it calls; the data are the same on every rank.
static bool load_checkpoint(Run *r, const char *folder, Error *error) {
    TrainState saved;
    bool ok = model_check_tokenizer(folder, r->tokenizer, r->config.tokenizer, error);
    if (!agree(r->options->world, ok, error) ||
        !checkpoint_load(folder, &saved, r->joint, r->optimizer, r->backend, &r->mesh, error))
        return false;
    if (!same_data(r, &saved, error)) return false;
    if (saved.seed != r->config.seed)
        log_warning(r->log, "the run was started with seed %lld, goes on with %lld", (long long)saved.seed,
                    (long long)r->config.seed);
    r->state.step = r->saved = saved.step;
    log_info(r->log, "resuming after step %lld from %s", (long long)saved.step, folder);
    return true;
}

// ---- all of it ----

static bool open_files(Run *r, Error *error) {
    if (!r->leads) return true;
    return write_config(r, error) && (r->metrics = metrics_open(r->options->run, r->state.step, error));
}

// What all ranks hold alike must stay alike to the bit.
static bool same_arithmetic(const Run *r, Error *error) {
    char text[128];
    int n = snprintf(text, sizeof text, "%s %s %s", BIFOCAL_VERSION, r->backend->name, r->backend->isa);
    return same_as_first(r, hash_u64(text, (size_t)n),
                         "the program's version or instruction set (BIFOCAL_CPU=avx2 gives all ranks one)", error);
}

static bool open_in_turn(Run *r, Error *error) {
    Comm *world = r->options->world;
    char found[1024];
    if (!open_config(r, found, error) || !agree(world, open_layout(r, error), error)) return false;
    if (!agree(world, open_model(r, error), error)) return false;
    if (!agree(world, open_step(r, error), error)) return false;
    if (!agree(world, open_loaders(r, error), error)) return false;
    r->saver = open_saver(r);
    if (!agree(world, same_arithmetic(r, error), error)) return false;
    uint64_t roots = hash_u64(r->state.roots, sizeof r->state.roots);
    if (!agree(world, same_as_first(r, roots, "a dataset (or its place in `data`)", error), error)) return false;
    if (found[0] && !load_checkpoint(r, found, error)) return false;
    if (r->options->resume && !found[0] && r->leads)
        log_warning(r->log, "%s holds no checkpoint yet: starting from the beginning", r->options->run);
    return agree(world, open_files(r, error), error);
}

// Which GPU this rank has, its processors, and the way of what goes between GPUs.
static void describe_device(const Run *r) {
    Buffer text = {0};
    cpu_set_t processors;
    if (!r->backend->apart) return;
    buffer_printf(&text, "GPU %d of %d (%s)", r->seat.gpu, r->seat.gpus, r->seat.name);
    if (r->hosts.local > r->seat.gpus) buffer_printf(&text, ", shared by ranks of this machine");
    if (r->node >= 0 && !sched_getaffinity(0, sizeof processors, &processors)) {
        buffer_printf(&text, ", on NUMA node %d, processors ", r->node);
        affinity_print(&text, &processors);
    }
    for (int a = 0; a < MESH_AXES; a++) {
        DeviceRoute route = comm_device_route(r->mesh.axis[a]);
        if (route == ROUTE_HOST) continue;
        bool linked = route == ROUTE_LINKED;
        buffer_printf(&text, "\n%s ranks exchange %s%s", mesh_axis_names[a],
                      linked ? "by NCCL" : "through the hosts' memory: ", comm_device_why(r->mesh.axis[a]));
    }
    log_info(r->log, "%s", text.data);
    buffer_free(&text);
}

static void describe_start(const Run *r) {
    static const char *const precisions[] = {"f32", "bf16", "fp8"};
    const JointConfig *m = &r->config.model;
    Buffer text = {0};
    log_info(r->log, "%.2f M parameters (%.2f M trained), vocabulary %lld, %s on %s (%s), %d threads",
             (double)parameters_whole_elements(joint_parameters(r->joint), false) / 1e6,
             (double)parameters_whole_elements(joint_parameters(r->joint), true) / 1e6, (long long)m->text.vocabulary,
             precisions[r->config.precision], r->backend->name, r->backend->isa, threads_of(r));
    describe_device(r);
    if (r->layout.ranks == 1) return;
    layout_describe(&r->config, &r->layout, &text);
    buffer_text(&text, "\n");
    mesh_describe(r->layout.size, r->hosts.names, &text);
    if (r->parallel.pipeline) {
        buffer_text(&text, "\n");
        stages_describe(&r->stages, &text);
    }
    log_info(r->log, "%s", text.data);
    buffer_free(&text);
    int idle = layout_idle(&r->config, &r->layout);
    if (idle && r->leads)
        log_warning(r->log, "%d of %d data ranks get no sample of any step: raise data.*.batch, or lower parallel.data",
                    idle, r->layout.size[MESH_DATA]);
}

bool run_open(Run *r, const TrainOptions *options, Log *log, Error *error) {
    *r = (Run){.options = options, .log = log, .saved = -1, .leads = comm_rank(options->world) == 0};
    r->memory = arena_new(1 << 16);
    if (!r->leads) { // of the other ranks only warnings are shown
        char prefix[32];
        snprintf(prefix, sizeof prefix, "rank %d: ", comm_rank(options->world));
        log_set_stream(log, LOG_WARNING, prefix);
    }
    if (!run_trace_open(&r->trace, options->trace, options->world, error) || !open_in_turn(r, error)) return false;
    describe_start(r);
    watch_limit(options->watch, r->config.parallel.watchdog);
    if (!r->leads) return true;
    r->progress = progress_start(log, "training", "steps", r->config.steps);
    progress_resume(r->progress, r->state.step);
    return true;
}

void run_close(Run *r) {
    progress_end(r->progress);
    saver_free(r->saver);
    run_trace_free(r->trace, r->options->world);
    metrics_close(r->metrics);
    if (r->late.work) step_finish(r->late.work, NULL, NULL);
    step_gate_free(r->gate);
    step_pairs_free(r->pairs);
    pipeline_free(r->pipeline);
    gradients_free(r->gradients);
    tape_free(r->tape);
    tape_free(r->inference);
    loader_close(r->loader);
    loader_close(r->validation);
    optimizer_free(r->optimizer);
    joint_free(r->joint);
    mesh_close(&r->mesh);
    backend_free(r->backend);
    tokenizer_free(r->tokenizer);
    arena_free(r->memory);
}
