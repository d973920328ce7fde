/* See spread.h. */
#include "tests/train/spread.h"
#include "base/philox.h"
#include "fusion/joint_units.h"
#include "kernels/cpu/cpu.h"
#include <string.h>

static const char *const keys[] = {
    "model.weight.lm=1",          "model.weight.caption=1",      "model.weight.contrastive=1",
    "model.weight.mae=1",         "model.embedding=8",           "model.vision.enabled=true",
    "model.vision.image_size=16", "model.vision.patch=8",        "model.vision.width=16",
    "model.vision.layers=2",      "model.vision.heads=4",        "model.text.vocabulary=64",
    "model.text.context=32",      "model.text.width=16",         "model.text.layers=1",
    "model.text.heads=4",         "model.mae.decoder_width=16",  "model.mae.decoder_layers=1",
    "model.mae.decoder_heads=4",  "model.freeze=vision.blocks.0"};

static int stages_of(const Spread *how) { return how->pipeline ? how->pipeline : 1; }

int spread_ranks(const Spread *how) { return how->data * stages_of(how) * how->tensor; }

// Of each unit, as joint_new_part takes it: units go to parts in turn, parts to stages, so that embedding and head are
// on different ones.
static const int *chunks_of(const SpreadModel *m, const JointConfig *config, const Spread *how) {
    int units = joint_units(config, NULL), stages = stages_of(how), *chunk = arena_array(m->memory, int, units);
    for (int u = 0; u < units; u++) {
        int part = u * 2 * stages / units;
        chunk[u] = part % stages == m->mesh.place[MESH_PIPELINE] ? part / stages : -1;
    }
    return how->pipeline ? chunk : NULL;
}

void spread_open(SpreadModel *m, Comm *world, Spread how, Dtype compute) {
    Error error = {0};
    JointConfig config;
    const int size[MESH_AXES] = {how.data, stages_of(&how), 1, how.tensor};
    *m = (SpreadModel){.memory = arena_new(1 << 14)};
    assert_done(mesh_open(&m->mesh, world, size, &error), &error);
    m->parallel = (Parallel){.tensor = how.tensor > 1 ? m->mesh.axis[MESH_TENSOR] : NULL,
                             .sequence = true,
                             .data = how.data > 1 ? m->mesh.axis[MESH_DATA] : NULL,
                             .pipeline = how.pipeline ? m->mesh.axis[MESH_PIPELINE] : NULL,
                             .zero = how.zero,
                             .ordered = how.ordered,
                             .bucket_bytes = 32 << 10};
    assert_done(config_read(&joint_schema, NULL, keys, sizeof keys / sizeof *keys, &config, m->memory, &error), &error);
    m->backend = cpu_backend_new(1, NULL, NULL);
    m->joint = joint_new_part(m->backend, &config, &m->parallel, chunks_of(m, &config, &how), compute, 1, &error);
    assert_done(m->joint != NULL, &error);
    OptimizerConfig adamw = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8};
    m->optimizer = optimizer_new(m->backend, joint_parameters(m->joint), &adamw, 100);
}

void spread_close(SpreadModel *m) {
    optimizer_free(m->optimizer);
    joint_free(m->joint);
    backend_free(m->backend);
    mesh_close(&m->mesh);
    arena_free(m->memory);
}

// Of element `global` of a whole tensor; a copy's are its original's.
static float value_of(const StateRange *r, const Parameter *p, int64_t global, uint64_t salt) {
    const char *name = p->is_replica ? p->replica->tensor.name : p->tensor.name;
    const uint64_t place[4] = {hash_u64(name, strlen(name)), (uint64_t)r->kind, (uint64_t)global, salt};
    return (float)(hash_u64(place, sizeof place) >> 40) * 0x1p-24f;
}

typedef void (*Visit)(float *element, float value);

static void visit_all(const SpreadModel *m, uint64_t salt, Visit visit) {
    StateRange *ranges;
    Arena *memory = arena_new(1 << 14);
    int count = optimizer_ranges(m->optimizer, memory, &ranges);
    for (int i = 0; i < count; i++) {
        StateRange *r = &ranges[i];
        const Parameter *p = parameters_at(joint_parameters(m->joint), r->parameter);
        for (int64_t done = 0; done < r->count;) {
            int64_t global, run;
            parameter_run(p, &m->parallel, r->first + done, &global, &run);
            for (int64_t k = 0; k < run && done < r->count; k++, done++)
                visit(&r->data[done], value_of(r, p, global + k, salt));
        }
    }
    arena_free(memory);
}

static void set(float *element, float value) { *element = value; }
static void compare(float *element, float value) { assert_true(*element == value); }

void spread_fill(SpreadModel *m, uint64_t salt) {
    visit_all(m, salt, set);
    parameters_refresh(joint_parameters(m->joint));
}

void assert_spread_holds(const SpreadModel *m, uint64_t salt) { visit_all(m, salt, compare); }

Saver *spread_saver(const SpreadModel *m, const char *run, int64_t keep, int64_t keep_every) {
    CheckpointOptions options = {.run = run,
                                 .keep = keep,
                                 .keep_every = keep_every,
                                 .joint = m->joint,
                                 .optimizer = m->optimizer,
                                 .backend = m->backend,
                                 .mesh = &m->mesh};
    return saver_new(&options);
}

bool spread_save(SpreadModel *m, const char *run, int64_t step, Error *error) {
    TrainState state = {.step = step, .seed = 7, .root_count = 1, .roots = {"root"}};
    Saver *saver = spread_saver(m, run, 2, 0);
    bool ok = checkpoint_start(saver, &state, error) && checkpoint_finish(saver, error);
    saver_free(saver);
    return ok;
}

bool spread_load(SpreadModel *m, const char *folder, TrainState *state, Error *error) {
    return checkpoint_load(folder, state, m->joint, m->optimizer, m->backend, &m->mesh, error);
}
