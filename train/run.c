/* See run.h. */
#include "base/clock.h"
#include "train/agree.h"
#include "train/device_trace.h"
#include "train/device_use.h"
#include "train/memory.h"
#include "train/run_step.h"
#include <string.h>

static void report_traffic(const Run *r) {
    const Traffic *t = &r->traffic;
    if (r->layout.ranks == 1 || !t->steps) return;
    log_info(r->log, "this rank sent %.2f MB to others in a step, and waited for them %.1f %% of the time",
             t->sent / 1e6 / (double)t->steps, 100 * t->waited / t->seconds);
}

// ---- now and then ----

static bool validate(Run *r, Error *error) {
    StepLoss one;
    StepSetup setup = run_setup(r, r->inference);
    Comm *world = r->options->world;
    double sum[OBJECTIVES] = {0};
    int64_t count[OBJECTIVES] = {0}, batches = loader_steps_per_epoch(r->validation);
    if (batches > r->config.validation_batches) batches = r->config.validation_batches;
    for (int64_t i = 0; i < batches; i++) {
        const Batch *batch = loader_next(r->validation, i, error);
        if (!agree(world, batch != NULL, error) || !run_all_done(r, step_run(&setup, batch, &one, error), error))
            return error_prefix(error, "validation after step %lld", (long long)r->state.step);
        for (int o = 0; o < OBJECTIVES; o++) {
            sum[o] += one.count[o] ? one.mean[o] * (double)one.count[o] : 0;
            count[o] += one.count[o];
        }
    }
    char name[64], line[256] = "";
    json_t *found = json_pack("{s:I}", "step", (json_int_t)r->state.step);
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!count[o]) continue;
        snprintf(name, sizeof name, "validation/%s", objective_names[o]);
        json_object_set_new(found, name, json_real(sum[o] / (double)count[o]));
        size_t n = strlen(line);
        snprintf(line + n, sizeof line - n, " %s %.4f", objective_names[o], sum[o] / (double)count[o]);
    }
    log_info(r->log, "step %lld: validation%s", (long long)r->state.step, line);
    run_record(r, found);
    return true;
}

static bool save(Run *r, Error *error) {
    if (r->saved == r->state.step) return true;
    if (r->unwritten.kind) *error = r->unwritten;
    if (!agree(r->options->world, !r->unwritten.kind, error)) return false;
    r->saved = r->state.step;
    double begin = trace_now();
    bool ok = checkpoint_start(r->saver, &r->state, error);
    trace_slice(r->trace, "compute", "checkpoint", begin, trace_now());
    return ok;
}

// What memory a step really took, beside what it was expected to.
static void report_memory(const Run *r) {
    memory_report(joint_parameters(r->joint), r->config.precision ? BF16 : F32, r->gradients, r->log);
    if (!r->pipeline) return;
    int stage = r->mesh.place[MESH_PIPELINE];
    PipelineMemory got = pipeline_memory(r->pipeline);
    log_info(
        r->log,
        "activations of stage %d and their gradients, in MB: %.1f at the most (expected %.1f), with %d microbatches "
        "under way; beside them messages %.1f",
        stage, got.tapes / 1e6, r->stages.tapes[stage] / 1e6, got.held, got.messages / 1e6);
}

// The step just done, and how it was numbered.
static void trace_step(const Run *r, double begin) {
    char name[32];
    snprintf(name, sizeof name, "step %lld", (long long)r->state.step);
    trace_slice(r->trace, "compute", name, begin, trace_now());
}

static bool every(int64_t period, int64_t step) { return period > 0 && step % period == 0; }

static bool steps(Run *r, int *stop, Error *error) {
    const TrainConfig *c = &r->config;
    int64_t first = r->state.step;
    while (r->state.step < c->steps) {
        double begin = trace_now();
        if (!run_step(r, stop, error)) return false;
        if (*stop) break;
        trace_step(r, begin);
        if (r->state.step == first + 1) // buckets have come and gone once
            report_memory(r);
        bool last = r->state.step == c->steps;
        bool validates = r->validation && (last || every(c->validation_every, r->state.step));
        bool saves = last || every(c->checkpoint_every, r->state.step);
        if ((validates || saves) && !run_settle(r, error)) return false;
        if (validates && !validate(r, error)) return false;
        if (saves && !save(r, error)) return false;
    }
    return run_settle(r, error) && save(r, error) && checkpoint_finish(r->saver, error);
}

bool train_run(const TrainOptions *options, TrainResult *result, Log *log, Error *error) {
    Run r;
    int stop = 0;
    double start = clock_seconds();
    bool opened = run_open(&r, options, log, error);
    DeviceTrace *device = opened ? device_trace_begin(r.backend, r.trace) : NULL;
    bool ok = opened && steps(&r, &stop, error);
    if (opened) parameters_meet(joint_parameters(r.joint)); // what some ranks gather ahead takes all of them
    if (ok) report_traffic(&r);
    if (ok) utilisation_report(&r.utilisation, r.log);
    if (ok) device_use_report(r.backend, &r.planned, r.log);
    device_trace_end(device, r.log);
    ok = ok && run_trace_write(r.trace, options->trace, options->world, error);
    Error ignored;
    if (!ok && r.saver) checkpoint_finish(r.saver, &ignored); // all ranks stop: what was begun before is whole
    if (!ok) run_trace_leave(r.trace, options->trace, comm_rank(options->world));
    *result = (TrainResult){ok ? stop : 0, r.state.step, clock_seconds() - start};
    run_close(&r);
    return ok;
}
