/* See staged.h. */
#include "tests/train/staged.h"
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/ranks.h"
#include "train/mesh.h"
#include "train/microbatch.h"
#include "train/optimizer.h"
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 16, PATCH = 8, SLOTS = 4, VOCABULARY = 37, LENGTH = 12, PICTURES = 7, WIDTH = 16 };

JointConfig staged_config(void) {
    JointConfig c;
    Arena *memory = arena_new(1 << 12);
    config_defaults(&joint_schema, &c, memory);
    arena_free(memory); // nothing in it is kept below
    c.freeze = (StringList){0};
    c.has_vision = true;
    c.vision.image_size = SIDE, c.vision.patch = PATCH, c.vision.width = WIDTH, c.vision.layers = 2, c.vision.heads = 2;
    c.vision.dropout = 0.1;
    c.text.vocabulary = VOCABULARY, c.text.context = 16, c.text.width = WIDTH, c.text.layers = 3, c.text.heads = 2;
    c.text.dropout = 0.1;
    c.mae.decoder_width = WIDTH, c.mae.decoder_layers = 1, c.mae.decoder_heads = 2;
    c.embedding = 8;
    c.connector = CONNECTOR_MLP;
    for (int o = 0; o < OBJECTIVES; o++) c.weight[o] = 1 - 0.2 * o;
    return c;
}

int staged_units(const JointConfig *c, JointUnit units[64]) {
    int count = joint_units(c, NULL);
    assert_true(count <= 64);
    return joint_units(c, units);
}

int staged_unit(const JointConfig *c, const char *name) {
    JointUnit units[64];
    int count = staged_units(c, units);
    for (int i = 0; i < count; i++)
        if (strcmp(units[i].name, name) == 0) return i;
    fail_msg("no unit %s", name);
    return -1;
}

// ---- a batch ----

static uint32_t draw(uint64_t site, uint64_t below) {
    Rng rng = rng_for(17, PURPOSE_TEST, site);
    return (uint32_t)rng_below(&rng, below);
}

// Random tokens; each sees what came before in its row.
static Sequences texts(Arena *memory, int rows, int length, uint64_t seed) {
    int64_t n = (int64_t)rows * length;
    Sequences s = {.rows = rows, .length = length, .token_count = n, .target_count = (int64_t)rows * (length - 1)};
    s.tokens = arena_array(memory, int32_t, n + 1);
    s.targets = arena_array(memory, int32_t, n + 1);
    s.positions = arena_array(memory, int32_t, n + 1);
    s.range = arena_array(memory, int32_t, 2 * n + 1);
    s.image_rows = arena_array(memory, int32_t, n + 1);
    s.ends = arena_array(memory, int32_t, rows + 1);
    for (int64_t i = 0; i < n; i++) {
        s.tokens[i] = (int32_t)draw((seed << 32) + (uint64_t)i, VOCABULARY);
        s.positions[i] = (int32_t)(i % length);
        s.range[2 * i + 1] = s.positions[i] + 1;
        s.image_rows[i] = -1;
        s.ends[i / length] = length - 1;
    }
    for (int64_t i = 0; i < n; i++) s.targets[i] = i % length == length - 1 ? TOKEN_NONE : s.tokens[i + 1];
    return s;
}

// Row r begins with r mod 3 pictures.
static void put_pictures(Sequences *s) {
    for (int row = 0; row < s->rows; row++)
        for (int k = 0; k < row % 3 * SLOTS; k++) {
            int i = row * s->length + k;
            s->tokens[i] = TOKEN_NONE;
            s->image_rows[i] = (row + k / SLOTS) % PICTURES * SLOTS + k % SLOTS;
            if (k > 0 && s->targets[i - 1] != TOKEN_NONE) {
                s->targets[i - 1] = TOKEN_NONE;
                s->target_count--;
            }
            s->token_count--;
        }
}

static Batch batch_of(const Staged *how, int64_t step, Arena *memory) {
    StagedBatch rows = how->rows;
    int bytes = PICTURES * SIDE * SIDE * 3;
    Batch b = {.step = step, .images = PICTURES, .side = SIDE, .mae_images = rows.mae};
    uint64_t seed = 10 * (uint64_t)step;
    b.pixels = arena_array(memory, uint8_t, bytes);
    for (int i = 0; i < bytes; i++) b.pixels[i] = (uint8_t)draw((seed << 32) + (uint64_t)i, 256);
    b.image_keys = arena_array(memory, uint64_t, PICTURES);
    for (int i = 0; i < PICTURES; i++) b.image_keys[i] = seed + (uint64_t)i;
    b.lm = texts(memory, rows.lm, LENGTH - 2, seed + 1);
    b.caption = texts(memory, rows.caption, LENGTH, seed + 2);
    b.contrastive = texts(memory, rows.pairs, LENGTH / 2, seed + 3);
    put_pictures(&b.caption);
    b.contrastive_image = arena_array(memory, int32_t, rows.pairs + 1);
    b.mae_image = arena_array(memory, int32_t, rows.mae + 1);
    for (int i = 0; i < rows.pairs; i++) b.contrastive_image[i] = (i * 3) % PICTURES;
    for (int i = 0; i < rows.mae; i++) b.mae_image[i] = (i * 2) % PICTURES;
    const int all[OBJECTIVES] = {rows.lm, rows.caption, rows.pairs, rows.mae};
    for (int o = 0; o < OBJECTIVES; o++) b.all_rows[o] = all[o];
    b.all_images = PICTURES;
    return b;
}

// ---- a rank ----

typedef struct World {
    const Staged *how;
    StagedOutcome *out;
    pthread_mutex_t lock; // of out
} World;

typedef struct Stage { // a rank's own
    World *world;
    const Staged *how;
    Arena *memory;
    Mesh mesh;
    Parallel parallel;
    Backend *backend;
    Joint *joint;
    Tape *tape;
    Gradients *gradients;
    Optimizer *optimizer;
    Pipeline *pipeline;
    PipelineTable table;
    StagePeak peaks[MOST_PARTS];
    int units[MOST_PARTS + 1];
} Stage;

static int at_least_one(int x) { return x > 0 ? x : 1; }
static int steps_of(const Staged *how) { return how->steps ? how->steps : STAGED_STEPS; }

// First units of the parts, and for each unit which part of this rank it is in.
static void split(Stage *s, int count, int *chunk) {
    const PipelineShape *shape = &s->table.shape;
    int parts = shape->stages * shape->chunks;
    assert_true(parts <= MOST_PARTS && parts <= count);
    for (int p = 0; p <= parts; p++) s->units[p] = s->how->units[parts] ? s->how->units[p] : count * p / parts;
    assert_int_equal(s->units[parts], count);
    for (int p = 0; p < parts; p++)
        for (int u = s->units[p], stage, own; u < s->units[p + 1]; u++) {
            pipeline_place(shape, p, &stage, &own);
            chunk[u] = stage == s->mesh.place[MESH_PIPELINE] ? own : -1;
        }
}

static void open_pipeline(Stage *s) {
    const Staged *how = s->how;
    Error error = {0};
    PipelineShape shape = {.kind = how->kind,
                           .stages = how->stages,
                           .microbatches = how->pieces / at_least_one(how->data),
                           .chunks = at_least_one(how->chunks)};
    assert_done(pipeline_make(&shape, s->memory, &s->table, &error), &error);
    assert_done(pipeline_check(&s->table, s->peaks, &error), &error);
}

static void open_stage(Stage *s, World *world, Comm *comm) {
    const Staged *how = world->how;
    Error error = {0};
    const int size[MESH_AXES] = {at_least_one(how->data), at_least_one(how->stages), 1, at_least_one(how->tensor)};
    *s = (Stage){.world = world, .how = how, .memory = arena_new(1 << 16)};
    s->backend = how->open ? how->open() : cpu_backend_new(1, NULL, NULL);
    assert_done(mesh_open(&s->mesh, comm, size, &error), &error);
    assert_done(mesh_use_device(&s->mesh, s->backend, &error), &error);
    Comm **axis = s->mesh.axis;
    s->parallel = (Parallel){.tensor = how->tensor > 1 ? axis[MESH_TENSOR] : NULL,
                             .sequence = true,
                             .data = how->data > 1 ? axis[MESH_DATA] : NULL,
                             .zero = how->zero,
                             .bucket_bytes = 8 << 10,
                             .ordered = how->ordered,
                             .pipeline = how->stages > 0 ? axis[MESH_PIPELINE] : NULL};
    int count = joint_units(&how->config, NULL), *chunk = arena_array(s->memory, int, count);
    if (how->stages) {
        open_pipeline(s);
        split(s, count, chunk);
    }
    s->joint =
        joint_new_part(s->backend, &how->config, &s->parallel, how->stages ? chunk : NULL, how->compute, 5, &error);
    assert_done(s->joint != NULL, &error);
    Parameters *parameters = joint_parameters(s->joint);
    s->tape = tape_new(s->backend, !how->inference);
    if (how->inference && !how->stages) parameters_follow(parameters, s->tape);
    if (!how->inference) s->gradients = gradients_new(parameters, how->stages ? NULL : s->tape, NULL);
    OptimizerConfig adamw = {
        .learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .gradient_clip = 0.5, .weight_decay = 0.1};
    if (s->gradients) s->optimizer = optimizer_new(s->backend, parameters, &adamw, 100);
    PipelineSetup setup = {.table = &s->table,
                           .units = s->units,
                           .group = axis[MESH_PIPELINE],
                           .joint = s->joint,
                           .gradients = s->gradients};
    if (how->stages) s->pipeline = pipeline_new(&setup, &error);
    assert_true(s->pipeline || !how->stages);
}

static void close_stage(Stage *s) {
    pipeline_free(s->pipeline);
    optimizer_free(s->optimizer);
    gradients_free(s->gradients);
    tape_free(s->tape);
    joint_free(s->joint);
    mesh_close(&s->mesh);
    backend_free(s->backend);
    arena_free(s->memory);
}

// ---- what comes of it ----

static int64_t whole_elements(const Parameter *p) {
    int64_t n = 1;
    for (int i = 0; i < p->tensor.rank; i++) n *= p->global_shape[i];
    return n;
}

// The first rank that comes lays out all parameters, of which every one is declared on every rank.
static void name_parameters(StagedOutcome *o, Parameters *parameters) {
    if (o->names) return;
    int count = parameters_count(parameters);
    o->names = calloc((size_t)count, sizeof *o->names);
    o->first = calloc((size_t)count, sizeof *o->first);
    assert_true(o->names && o->first);
    for (int i = 0; i < count; i++) {
        const Parameter *p = parameters_at(parameters, i);
        if (p->is_replica) continue;
        snprintf(o->names[o->count], sizeof *o->names, "%s", p->tensor.name);
        o->first[o->count++] = o->elements;
        o->elements += whole_elements(p);
    }
    o->values = malloc((size_t)o->elements * sizeof *o->values);
    assert_non_null(o->values);
    for (int64_t i = 0; i < o->elements; i++) o->values[i] = NAN;
}

static int64_t first_of(const StagedOutcome *o, const char *name) {
    for (int i = 0; i < o->count; i++)
        if (strcmp(o->names[i], name) == 0) return o->first[i];
    fail_msg("nobody has declared %s", name);
    return -1;
}

static void collect_range(StagedOutcome *o, const Stage *s, const OwnedRange *r) {
    const Parameter *p = r->parameter;
    float *whole = o->values + first_of(o, p->is_replica ? p->replica->tensor.name : p->tensor.name);
    float *own = malloc((size_t)r->count * sizeof *own + 1);
    assert_non_null(own);
    s->backend->download(s->backend, own, r->master, (size_t)r->count * sizeof *own);
    for (int64_t done = 0; done < r->count;) {
        int64_t global, run;
        parameter_run(p, &s->parallel, r->first + done, &global, &run);
        for (int64_t k = 0; k < run && done < r->count; k++, done++) {
            float *to = &whole[global + k], value = own[done];
            assert_true(isnan(*to) || *to == value); // several ranks hold it: the same
            *to = value;
        }
    }
    free(own);
}

static void collect(Stage *s) {
    StagedOutcome *o = s->world->out;
    int count;
    pthread_mutex_lock(&s->world->lock);
    name_parameters(o, joint_parameters(s->joint));
    const OwnedRange *ranges = parameters_owned(joint_parameters(s->joint), &count);
    for (int i = 0; i < count; i++) collect_range(o, s, &ranges[i]);
    int stage = s->mesh.place[MESH_PIPELINE];
    if (s->pipeline && s->mesh.place[MESH_DATA] == 0 && s->mesh.place[MESH_TENSOR] == 0) {
        o->memory[stage] = pipeline_memory(s->pipeline);
        o->peaks[stage] = s->peaks[stage];
    }
    pthread_mutex_unlock(&s->world->lock);
}

// Every rank's loss and norm are the same to the bit.
static void note(Stage *s, int step, const StepLoss *loss, double norm) {
    StagedOutcome *o = s->world->out;
    pthread_mutex_lock(&s->world->lock);
    if (o->norm[step] == 0) {
        o->loss[step] = *loss;
        o->norm[step] = norm;
    }
    assert_memory_equal(&o->loss[step], loss, sizeof *loss);
    assert_true(o->norm[step] == norm || (isnan(norm) && isnan(o->norm[step])));
    pthread_mutex_unlock(&s->world->lock);
}

static void note_failure(Stage *s, const Error *error) {
    StagedOutcome *o = s->world->out;
    pthread_mutex_lock(&s->world->lock);
    o->failed = true;
    if (!o->error.kind || strncmp(o->error.message, "another rank", 12) == 0) o->error = *error;
    pthread_mutex_unlock(&s->world->lock);
}

static void note_not_finite(Stage *s) {
    StagedOutcome *o = s->world->out;
    const StepSetup setup = {.tape = s->tape, .pipeline = s->pipeline};
    const char *found = step_not_finite(&setup);
    pthread_mutex_lock(&s->world->lock);
    if (found) {
        assert_true(o->not_finite[0] == '\0' || strcmp(o->not_finite, found) == 0);
        snprintf(o->not_finite, sizeof o->not_finite, "%s", found);
    }
    pthread_mutex_unlock(&s->world->lock);
}

static void poison(Stage *s) {
    Parameter *p = parameters_find(joint_parameters(s->joint), s->how->poison);
    assert_non_null(p);
    if (p->chunk >= 0 && p->master) p->master[0] = NAN;
    step_check_finite(&(StepSetup){.tape = s->tape, .pipeline = s->pipeline}, true);
}

static void shrink(Stage *s, int by) {
    Parameter *p = parameters_find(joint_parameters(s->joint), s->how->broken);
    assert_non_null(p);
    p->tensor.shape[1] -= by;
}

static bool run_step(Stage *s, int step) {
    const Staged *how = s->how;
    StepLoss loss;
    Error error = {0};
    int place = s->mesh.place[MESH_DATA], data = at_least_one(how->data);
    ArenaMark mark = arena_mark(s->memory);
    Batch whole = batch_of(how, step, s->memory), batch = microbatch(&whole, place, data, SLOTS, s->memory);
    StepSetup setup = {.tape = s->tape,
                       .joint = s->joint,
                       .gradients = s->gradients,
                       .pipeline = s->pipeline,
                       .stages = s->parallel.pipeline,
                       .data = s->parallel.data,
                       .pieces = how->pieces,
                       .first = how->pieces / data * place,
                       .end = how->pieces / data * (place + 1),
                       .seed = 5};
    bool ok = step_run(&setup, &batch, &loss, &error);
    double norm = ok && s->gradients ? gradients_norm(s->gradients) : 1;
    if (ok) note(s, step, &loss, norm);
    if (s->pipeline && step == 0 && s->mesh.place[MESH_DATA] == 0 && s->mesh.place[MESH_TENSOR] == 0)
        s->world->out->allocations[s->mesh.place[MESH_PIPELINE]] = pipeline_memory(s->pipeline).allocations;
    if (!ok) note_failure(s, &error);
    if (ok && s->optimizer) optimizer_step(s->optimizer, step + 1, norm);
    arena_rewind(s->memory, mark);
    return ok;
}

static void run_rank(int rank, Comm *comm, void *argument) {
    (void)rank;
    Stage s;
    open_stage(&s, argument, comm);
    if (s.how->poison) poison(&s);
    if (s.how->broken) shrink(&s, 1);
    for (int i = 0; i < steps_of(s.how) && run_step(&s, i) && !s.how->poison; i++) continue;
    if (s.how->poison) note_not_finite(&s);
    if (s.how->broken) shrink(&s, -1);
    parameters_meet(joint_parameters(s.joint));
    collect(&s);
    close_stage(&s);
}

StagedOutcome *staged_run(const Staged *how) {
    World world = {.how = how, .out = calloc(1, sizeof(StagedOutcome))};
    assert_non_null(world.out);
    pthread_mutex_init(&world.lock, NULL);
    ranks_run(at_least_one(how->data) * at_least_one(how->stages) * at_least_one(how->tensor), run_rank, &world);
    pthread_mutex_destroy(&world.lock);
    return world.out;
}

StagedOutcome *staged_join(const Staged *how, Comm *world) {
    World w = {.how = how, .out = calloc(1, sizeof(StagedOutcome))};
    assert_non_null(w.out);
    pthread_mutex_init(&w.lock, NULL);
    run_rank(comm_rank(world), world, &w);
    pthread_mutex_destroy(&w.lock);
    return w.out;
}

void staged_free(StagedOutcome *o) {
    if (!o) return;
    free(o->names);
    free(o->first);
    free(o->values);
    free(o);
}

// ---- comparison ----

static double worst(double most, double x, double y, double scale) {
    double apart = x == y ? 0 : fabs(x - y) / scale;
    return apart <= most ? most : apart; // NaN comes through
}

double staged_apart(const StagedOutcome *a, const StagedOutcome *b) {
    double most = 0, largest = 0;
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->elements, b->elements);
    for (int i = 0; i < STAGED_STEPS; i++) {
        most = worst(most, a->norm[i], b->norm[i], a->norm[i]);
        most = worst(most, a->loss[i].total, b->loss[i].total, a->loss[i].total);
    }
    for (int64_t i = 0; i < a->elements; i++) largest = fmax(largest, fabsf(a->values[i]));
    for (int i = 0; i < a->count; i++) {
        int64_t other = first_of(b, a->names[i]), end = i + 1 < a->count ? a->first[i + 1] : a->elements;
        for (int64_t k = a->first[i]; k < end; k++)
            most = worst(most, a->values[k], b->values[other + k - a->first[i]], largest);
    }
    return most;
}

void assert_staged_part(Comm *world, const StagedOutcome *all, const StagedOutcome *part) {
    StagedOutcome heard = {0};
    if (part->failed) fail_msg("%s", part->error.message);
    if (all) heard = *all;
    heard.values = malloc((size_t)part->elements * sizeof(float));
    assert_non_null(heard.values);
    if (all) memcpy(heard.values, all->values, (size_t)part->elements * sizeof(float));
    comm_broadcast(world, &heard.loss, sizeof heard.loss, 0, "losses");
    comm_broadcast(world, &heard.norm, sizeof heard.norm, 0, "norms");
    comm_broadcast(world, heard.values, part->elements * (int64_t)sizeof(float), 0, "values");
    assert_memory_equal(heard.loss, part->loss, sizeof heard.loss);
    assert_memory_equal(heard.norm, part->norm, sizeof heard.norm);
    int64_t known = 0;
    for (int64_t i = 0; i < part->elements; i++) {
        if (isnan(part->values[i])) continue;
        known++;
        if (!(part->values[i] == heard.values[i]))
            fail_msg("element %lld is %g, not %g", (long long)i, part->values[i], heard.values[i]);
    }
    assert_true(known > 0);
    free(heard.values);
}

void assert_staged_same(const StagedOutcome *a, const StagedOutcome *b, const char *what) {
    if (b->failed) fail_msg("%s: %s", what, b->error.message);
    for (int i = 0; i < STAGED_STEPS; i++) {
        for (int o = 0; o < OBJECTIVES; o++)
            if (!(a->loss[i].mean[o] == b->loss[i].mean[o] && a->loss[i].count[o] == b->loss[i].count[o]))
                fail_msg("%s: step %d: %s is %.17g, not %.17g", what, i, objective_names[o], b->loss[i].mean[o],
                         a->loss[i].mean[o]);
        if (!(a->loss[i].total == b->loss[i].total))
            fail_msg("%s: step %d: loss %.17g, not %.17g", what, i, b->loss[i].total, a->loss[i].total);
        if (!(a->norm[i] == b->norm[i]))
            fail_msg("%s: step %d: norm %.17g, not %.17g", what, i, b->norm[i], a->norm[i]);
    }
    double apart = staged_apart(a, b);
    if (!(apart == 0)) fail_msg("%s: parameters are %g apart", what, apart);
}
