/* See unit_costs.h. A unit runs alone (rehearsal.h): forward, gradients of activations, gradients of weights; a clock
 * is read between them, that of the machine or that of the dry backend. Units that differ in nothing but their place
 * (the blocks of a stack) are run once. */
#include "train/unit_costs.h"
#include "base/clock.h"
#include "kernels/device.h"
#include "kernels/dry.h"
#include "kernels/nn/parameters.h"
#include "train/rehearsal.h"
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

enum { WARM = 1, REPEATS = 3 };

// A device as it is ordinarily: products at half their peak.
static const MachineRates core = {6e10, 1e10}, gpu = {1.5e14, 1.5e12};
static const double BF16_GAIN = 2, FP8_GAIN = 2; // of products over f32, and over bf16

typedef struct Costing {
    const TrainConfig *config;
    Backend *backend;
    MachineRates rates; // of a dry backend
    bool both;          // the schedule takes both gradients in one row
    UnitCosts *costs;
    double *elements, *trained; // (units) of parameters
    Arena *arena;
} Costing;

MachineRates machine_rates(const TrainConfig *c) {
    MachineRates r = c->device == DEVICE_CPU ? core : gpu;
    if (c->precision) r.flops *= BF16_GAIN;
    return r;
}

// ---- what there is to run ----

static bool same_shape(const SyntheticShape *a, const SyntheticShape *b) {
    for (int o = 0; o < OBJECTIVES; o++)
        if (a->rows[o] != b->rows[o]) return false;
    return a->images == b->images && a->seen == b->seen;
}

static void find_shapes(Costing *k) {
    UnitCosts *c = k->costs;
    SyntheticShape *all = arena_array(k->arena, SyntheticShape, c->pieces);
    int *example = arena_array(k->arena, int, c->pieces); // (shapes) a piece that has it
    synthetic_shapes(k->config, c->pieces, all);
    c->shape = arena_array(k->arena, int, c->pieces);
    for (int i = 0; i < c->pieces; i++) {
        int s = 0;
        while (s < c->shapes && !same_shape(&all[example[s]], &all[i])) s++;
        c->shape[i] = s;
        if (s == c->shapes) example[c->shapes++] = i;
    }
    c->batches = arena_array(k->arena, Batch, c->shapes);
    for (int s = 0; s < c->shapes; s++) c->batches[s] = synthetic_batch(k->config, example[s], c->pieces, k->arena);
}

static double whole_count(const Parameter *p) {
    double count = 1;
    for (int d = 0; d < p->tensor.rank; d++) count *= (double)p->global_shape[d];
    return count;
}

static void count_parameters(Costing *k, Joint *joint) {
    const UnitCosts *c = k->costs;
    Parameters *p = joint_parameters(joint);
    for (int i = 0; i < parameters_count(p); i++) {
        const Parameter *item = parameters_at(p, i);
        int unit = joint_unit_of(c->list, c->units, item->tensor.name);
        check(unit >= 0 && !item->is_replica);
        k->elements[unit] += whole_count(item);
        if (!item->frozen) k->trained[unit] += whole_count(item);
    }
}

static Costing begin(const TrainConfig *config, const Layout *l, MachineRates rates, Arena *arena, UnitCosts *c) {
    PipelineKind kind = l->pipeline.kind;
    Costing k = {.config = config,
                 .rates = rates,
                 .both = kind == PIPELINE_GPIPE || kind == PIPELINE_1F1B || kind == PIPELINE_INTERLEAVED,
                 .costs = c,
                 .arena = arena};
    *c = (UnitCosts){.units = joint_units(&config->model, NULL), .pieces = l->pieces};
    c->list = arena_array(arena, JointUnit, c->units);
    c->mean = arena_array(arena, UnitCost, c->units);
    joint_units(&config->model, c->list);
    find_shapes(&k);
    c->times = arena_array(arena, UnitTime, (int64_t)c->units * c->shapes);
    c->wanted = arena_array(arena, unsigned, (int64_t)(c->units + 1) * c->shapes);
    k.elements = arena_array(arena, double, c->units);
    k.trained = arena_array(arena, double, c->units);
    return k;
}

static UnitTime *time_at(const Costing *k, int unit, int shape) {
    return &k->costs->times[(int64_t)unit * k->costs->shapes + shape];
}
static unsigned *wanted_at(const Costing *k, int unit, int shape) {
    return &k->costs->wanted[(int64_t)unit * k->costs->shapes + shape];
}

// ---- one unit ----

typedef double (*Clock)(Backend *); // seconds

static double machine_clock(Backend *b) {
    b->wait(b);
    return clock_seconds();
}

static double dry_clock(Backend *b) { return dry_seconds(b); }

static UnitRun run_of(Rehearsal *r, const Costing *k, int unit, int shape) {
    return (UnitRun){.tape = tape_new_in(r->memory, true),
                     .first = unit,
                     .end = unit + 1,
                     .batch = &k->costs->batches[shape],
                     .wanted = *wanted_at(k, unit, shape)};
}

static UnitTime run_halves(Rehearsal *r, UnitRun *run, const Costing *k, Clock clock) {
    double at[6];
    parameters_begin_step(joint_parameters(r->joint));
    rehearse_arrive(r, run);
    at[0] = clock(k->backend);
    rehearse_forward(r, run);
    at[1] = clock(k->backend);
    rehearse_seed(r, run);
    at[2] = clock(k->backend);
    rehearse_backward(run, INPUT_GRADIENTS);
    at[3] = clock(k->backend);
    rehearse_leave(run);
    at[4] = clock(k->backend);
    rehearse_backward(run, WEIGHT_GRADIENTS);
    at[5] = clock(k->backend);
    tape_reset(run->tape);
    return (UnitTime){.forward = at[1] - at[0], .input = at[3] - at[2], .weight = at[5] - at[4]};
}

// Both gradients in one go: what they need alike (logits, say) is computed once.
static double run_both(Rehearsal *r, UnitRun *run, const Costing *k, Clock clock) {
    parameters_begin_step(joint_parameters(r->joint));
    rehearse_arrive(r, run);
    rehearse_forward(r, run);
    rehearse_seed(r, run);
    double begin = clock(k->backend);
    rehearse_backward(run, ALL_GRADIENTS);
    double seconds = clock(k->backend) - begin;
    tape_reset(run->tape);
    return seconds;
}

// Where the step has several pieces: forward for the features of pairs, not recorded.
static double run_features(Rehearsal *r, UnitRun *run, const Costing *k, Clock clock) {
    if (run->batch->parts == 1 || !run->batch->contrastive.rows) return 0;
    run->features_only = true;
    tape_set_recording(run->tape, false);
    rehearse_arrive(r, run);
    double begin = clock(k->backend);
    rehearse_forward(r, run);
    double seconds = clock(k->backend) - begin;
    tape_reset(run->tape);
    tape_set_recording(run->tape, true);
    run->features_only = false;
    return seconds;
}

static UnitTime run_once(Rehearsal *r, UnitRun *run, const Costing *k, Clock clock) {
    UnitTime t = run_halves(r, run, k, clock);
    t.features = run_features(r, run, k, clock);
    if (!k->both || t.input + t.weight <= 0) return t;
    double share = run_both(r, run, k, clock) / (t.input + t.weight);
    t.input *= share;
    t.weight *= share;
    return t;
}

// ---- modelled ----

static void run_dry(Rehearsal *r, Costing *k, int unit, int shape) {
    UnitCost *mean = &k->costs->mean[unit];
    UnitRun run = run_of(r, k, unit, shape);
    rehearse_arrive(r, &run);
    rehearse_forward(r, &run);
    *wanted_at(k, unit + 1, shape) = run.leaving;
    double held = (double)tape_memory_held(r->memory) - run.arrival;
    rehearse_seed(r, &run);
    rehearse_backward(&run, ALL_GRADIENTS);
    mean->activations = fmax(mean->activations, held);
    mean->work = fmax(mean->work, (double)tape_memory_peak(r->memory) - held);
    tape_reset(run.tape);
    double flops = k->rates.flops;
    DryRates rates = {.bf16 = flops, .f32 = flops, .fp8 = FP8_GAIN * flops, .bandwidth = k->rates.bandwidth};
    dry_set_rates(k->backend, &rates); // from 0: equal units get equal times
    *time_at(k, unit, shape) = run_once(r, &run, k, dry_clock);
    tape_free(run.tape);
    rehearsal_renew(r, k->backend);
}

// ---- averages ----

static double bytes_of(const Costing *k, const Layout *l, double elements, double trained) {
    int data = l->size[MESH_DATA], zero = data > 1 ? (int)k->config->parallel.zero : 0;
    ParameterMemory m = parameters_formula(elements, trained, k->config->precision ? BF16 : F32, zero, data);
    if (k->config->offload != OFFLOAD_STATES) return m.parameters + m.gradients + m.states;
    double masters = k->config->precision ? 4 * trained / (zero > 0 ? data : 1) : 0; // in bf16 beside the values
    return m.parameters - masters + m.gradients;
}

// Tied words count where they are embedded and, as there may be a copy of them, in the head.
static void weigh_parameters(Costing *k, const Layout *l) {
    UnitCosts *c = k->costs;
    const TextConfig *text = &k->config->model.text;
    for (int u = 0; u < c->units; u++) {
        c->mean[u].parameters = bytes_of(k, l, k->elements[u], k->trained[u]);
        if (c->list[u].kind != UNIT_TEXT_HEAD || !text->tied) continue;
        double words = (double)(text->vocabulary * text->width);
        c->copy = bytes_of(k, l, words, k->trained[u] > 0 ? words : 0);
        c->mean[u].parameters += c->copy;
    }
}

static void average_times(Costing *k) {
    const UnitCosts *c = k->costs;
    for (int u = 0; u < c->units; u++) {
        UnitCost *mean = &c->mean[u];
        mean->forward = mean->input = mean->weight = 0;
        for (int i = 0; i < c->pieces; i++) {
            UnitTime time = unit_time(c, u, i);
            mean->forward += (time.forward + time.features) / c->pieces;
            mean->input += time.input / c->pieces;
            mean->weight += time.weight / c->pieces;
        }
    }
}

// Tensor ranks share out parameters, about evenly.
static void share_parameters(UnitCosts *c, const Layout *l) {
    double share = 1.0 / l->size[MESH_TENSOR];
    for (int u = 0; u < c->units; u++) c->mean[u].parameters *= share;
    c->copy *= share;
}

// ---- the model ----

static bool model(Costing *k, const Layout *l, Error *error) {
    UnitCosts *c = k->costs;
    Rehearsal r;
    k->backend = dry_backend_new();
    Parallel parallel = rehearsal_parallel(k->config);
    Joint *joint = rehearsal_model(k->backend, &k->config->model, &parallel, k->config->precision ? BF16 : F32, error);
    if (joint) {
        count_parameters(k, joint);
        rehearsal_open(&r, k->backend, joint, c->batches, c->shapes);
        for (int s = 0; s < c->shapes; s++)
            for (int u = 0; u < c->units; u++) run_dry(&r, k, u, s);
        rehearsal_close(&r);
        weigh_parameters(k, l);
    }
    joint_free(joint);
    rehearsal_parallel_free(&parallel);
    backend_free(k->backend);
    return joint != NULL;
}

bool unit_costs_model(const TrainConfig *config, const Layout *l, MachineRates rates, Arena *arena, UnitCosts *out,
                      Error *error) {
    Costing k = begin(config, l, rates, arena, out);
    if (!model(&k, l, error)) return false;
    share_parameters(out, l);
    average_times(&k);
    return true;
}

UnitTime unit_time(const UnitCosts *c, int unit, int piece) {
    return c->times[(int64_t)unit * c->shapes + c->shape[piece]];
}

// ---- measured ----

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const UnitTime *runs, size_t field) {
    double values[REPEATS];
    for (int i = 0; i < REPEATS; i++) values[i] = *(const double *)((const char *)&runs[i] + field);
    qsort(values, REPEATS, sizeof *values, by_size);
    return values[REPEATS / 2];
}

static UnitTime median_time(const UnitTime *runs) {
    return (UnitTime){median(runs, offsetof(UnitTime, forward)), median(runs, offsetof(UnitTime, input)),
                      median(runs, offsetof(UnitTime, weight)), median(runs, offsetof(UnitTime, features))};
}

// A unit that has nothing to do with a microbatch keeps the nothing of the model.
static void measure_shape(Rehearsal *r, Costing *k, int unit, int shape) {
    if (time_at(k, unit, shape)->forward <= 0) return;
    UnitTime runs[WARM + REPEATS];
    UnitRun run = run_of(r, k, unit, shape);
    for (int i = 0; i < WARM + REPEATS; i++) runs[i] = run_once(r, &run, k, machine_clock);
    *time_at(k, unit, shape) = median_time(runs + WARM);
    tape_free(run.tape);
}

// A model of this unit alone, on every shape.
static bool measure_unit(Costing *k, int unit, Error *error) {
    const UnitCosts *c = k->costs;
    int *chunk = arena_array(k->arena, int, c->units);
    Rehearsal r;
    for (int u = 0; u < c->units; u++) chunk[u] = u == unit ? 0 : -1;
    Joint *joint =
        joint_new_part(k->backend, &k->config->model, NULL, chunk, k->config->precision ? BF16 : F32, 1, error);
    if (!joint) return false;
    rehearsal_open(&r, k->backend, joint, k->costs->batches, c->shapes);
    for (int s = 0; s < c->shapes; s++) measure_shape(&r, k, unit, s);
    rehearsal_close(&r);
    joint_free(joint);
    return true;
}

// An earlier unit that differs in nothing but its place: a block of the same stack; -1: none.
static int twin_of(const Costing *k, int unit) {
    const UnitCosts *c = k->costs;
    for (int u = 0; u < unit; u++) {
        bool same = c->list[u].kind == c->list[unit].kind && k->trained[u] == k->trained[unit];
        for (int s = 0; same && s < c->shapes; s++) same = *wanted_at(k, u, s) == *wanted_at(k, unit, s);
        if (same) return u;
    }
    return -1;
}

// What is measured is a whole model; of it each tensor rank does about its share.
static void share_times(UnitCosts *c, const Layout *l) {
    double share = 1.0 / l->size[MESH_TENSOR];
    for (int i = 0; i < c->units * c->shapes; i++) {
        UnitTime *t = &c->times[i];
        *t = (UnitTime){share * t->forward, share * t->input, share * t->weight, share * t->features};
    }
}

bool unit_costs_measure(const TrainConfig *config, const Layout *l, int threads, Arena *arena, UnitCosts *out,
                        Error *error) {
    DeviceOptions device = {.device = (Device)config->device, .threads = threads};
    Costing k = begin(config, l, machine_rates(config), arena, out);
    if (!model(&k, l, error)) return false;
    k.backend = device_backend_new(&device, NULL, error);
    bool ok = k.backend != NULL;
    for (int u = 0; ok && u < out->units; u++) {
        int twin = twin_of(&k, u);
        if (twin < 0) ok = measure_unit(&k, u, error);
        for (int s = 0; twin >= 0 && s < out->shapes; s++) *time_at(&k, u, s) = *time_at(&k, twin, s);
    }
    backend_free(k.backend);
    if (!ok) return false;
    share_times(out, l);
    share_parameters(out, l);
    average_times(&k);
    return true;
}
