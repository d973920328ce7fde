/* See run.h. */
#include "base/clock.h"
#include "kernels/comm/watch.h"
#include "train/agree.h"
#include "train/memory.h"
#include "train/run_state.h"
#include <math.h>
#include <string.h>

// ---- a step ----

static StepSetup setup_of(const Run *r, Tape *tape) {
    int place = r->mesh.place[MESH_DATA];
    return (StepSetup){.tape = tape,
                       .joint = r->joint,
                       .gradients = r->gradients,
                       .data = r->parallel.data,
                       .pipeline = r->pipeline,
                       .stages = r->parallel.pipeline,
                       .pieces = r->layout.pieces,
                       .first = layout_first(&r->layout, place),
                       .end = layout_first(&r->layout, place + 1),
                       .seed = (uint64_t)r->config.seed,
                       .trace = r->trace};
}

// The step again with every tensor looked at, to name the first bad one. Collective, like what it explains.
static bool explain_not_finite(Run *r, const Batch *batch, const char *what, Error *error) {
    StepLoss again;
    StepSetup setup = setup_of(r, r->tape);
    step_check_finite(&setup, true);
    bool ok = step_run(&setup, batch, &again, error);
    const char *found = step_not_finite(&setup);
    if (ok && found) ok = error_set(error, ERROR_FAILED, "%s", found);
    if (agree(r->options->world, ok, error))
        error_set(error, ERROR_FAILED, "every activation and gradient by itself is finite, their sum is not");
    step_check_finite(&setup, false);
    return error_prefix(
        error,
        "step %lld: %s is not a finite number; nothing was updated. Lower optimizer.learning_rate, or look at the data",
        (long long)r->state.step + 1, what);
}

// Every rank has its part of the step's batch, or all stop: asked to, or because one of them cannot go on.
static const Batch *take_batch(Run *r, Vote *sum, Error *error) {
    const TrainOptions *o = r->options;
    double waited = loader_waited(r->loader), begin = trace_now();
    const Batch *batch = loader_next(r->loader, r->state.step, error);
    trace_slice(r->trace, "loader", "wait for data", begin, trace_now());
    bool ready = batch && !r->unwritten.kind;
    if (r->unwritten.kind) *error = r->unwritten;
    Vote own = {.failed = !ready, .stop = o->stop ? *o->stop : 0, .written = checkpoint_written(r->saver)};
    loader_tried(r->loader, &own.bad, &own.draws);
    own.data_wait = loader_waited(r->loader) - waited;
    if (batch) {
        own.tokens = batch->lm.token_count + batch->caption.token_count + batch->contrastive.token_count;
        own.flop = joint_flop(&r->config.model, batch);
    }
    *sum = agree_on(o->world, &own, r->mesh.place[MESH_TENSOR] == 0 && r->mesh.place[MESH_PIPELINE] == 0);
    if (sum->failed || !batch) return agree(o->world, ready, error), NULL; // no batch: this rank has failed
    sum->images = batch->all_images;
    return loader_budget(sum->bad, sum->draws, r->config.bad_samples, error) ? batch : NULL;
}

static json_t *step_record(const Run *r, const StepLoss *loss, const Vote *sum, double norm, const Traffic *traffic) {
    char name[64];
    json_t *step = json_pack("{s:I, s:f}", "step", (json_int_t)r->state.step, "loss", loss->total);
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!loss->count[o]) continue;
        snprintf(name, sizeof name, "loss/%s", objective_names[o]);
        json_object_set_new(step, name, json_real(loss->mean[o]));
    }
    json_object_set_new(step, "learning_rate",
                        json_real(learning_rate_at(&r->config.optimizer, r->state.step, r->config.steps)));
    json_object_set_new(step, "gradient_norm", json_real(norm));
    json_object_set_new(step, "tokens", json_integer(sum->tokens));
    json_object_set_new(step, "images", json_integer(sum->images));
    json_object_set_new(step, "seconds", json_real(traffic->seconds));
    json_object_set_new(step, "waited", json_real(sum->data_wait));
    if (r->layout.ranks > 1) json_object_set_new(step, "communication", json_real(traffic->waited));
    json_object_set_new(step, "flop", json_real(sum->flop));
    return step;
}

// One rank writes, the others need not know before the next vote.
static void record(Run *r, json_t *what) {
    if (r->leads && !r->unwritten.kind)
        metrics_write(r->metrics, what, &r->unwritten);
    else
        json_decref(what);
}

static void show(Run *r, const StepLoss *loss, const Vote *sum, double seconds) {
    char detail[256];
    size_t n = (size_t)snprintf(detail, sizeof detail, "loss %.4f", loss->total);
    for (int o = 0; o < OBJECTIVES; o++)
        if (loss->count[o] && n < sizeof detail)
            n += (size_t)snprintf(detail + n, sizeof detail - n, " %s %.4f", objective_names[o], loss->mean[o]);
    if (n < sizeof detail)
        snprintf(detail + n, sizeof detail - n, "; %.0f tokens/s %.0f images/s%s", (double)sum->tokens / seconds,
                 (double)sum->images / seconds, sum->data_wait > 0.2 * seconds ? "; waits for data" : "");
    progress_update(r->progress, r->state.step, detail);
}

// Whether every rank could do its part. Where each piece is run by one rank, all know already that none failed.
static bool all_done(const Run *r, bool ok, Error *error) {
    return ok && !r->parallel.tensor ? true : agree(r->options->world, ok, error);
}

// AdamW, once the values that a checkpoint under way still copies have been copied.
static void update(Run *r, double norm) {
    double begin = trace_now();
    checkpoint_hold(r->saver);
    double held = trace_now();
    optimizer_step(r->optimizer, r->state.step + 1, norm);
    if (checkpoint_under_way(r->saver)) trace_slice(r->trace, "compute", "wait for copies", begin, held);
    trace_slice(r->trace, "compute", "optimizer", held, trace_now());
    r->state.step++;
}

// What there is of it up to now, in steps or not.
static Traffic traffic_of(const Run *r) {
    if (r->layout.ranks == 1) return (Traffic){.seconds = clock_seconds()};
    Comm *world = r->options->world;
    return (Traffic){.sent = (double)comm_sent_bytes(world), .waited = comm_waited(world), .seconds = clock_seconds()};
}

// Since `begin`, a step ago; added to the run's.
static Traffic add_traffic(Run *r, const Traffic *begin) {
    Traffic t = traffic_of(r), *all = &r->traffic;
    t = (Traffic){1, t.sent - begin->sent, t.waited - begin->waited, t.seconds - begin->seconds};
    *all = (Traffic){all->steps + 1, all->sent + t.sent, all->waited + t.waited, all->seconds + t.seconds};
    return t;
}

static void report_traffic(const Run *r) {
    const Traffic *t = &r->traffic;
    if (r->layout.ranks == 1 || !t->steps) return;
    log_info(r->log, "this rank sent %.2f MB to others in a step, and waited for them %.1f %% of the time",
             t->sent / 1e6 / (double)t->steps, 100 * t->waited / t->seconds);
}

static bool one_step(Run *r, int *stop, Error *error) {
    StepLoss loss;
    Vote sum;
    StepSetup setup = setup_of(r, r->tape);
    Traffic begin = traffic_of(r);
    watch_step(r->options->watch, r->state.step + 1);
    const Batch *batch = take_batch(r, &sum, error);
    if (!batch) return false;
    *stop = (int)sum.stop;
    if (*stop) return true;
    if (sum.written == r->layout.ranks && !checkpoint_commit(r->saver, error)) return false;
    if (!all_done(r, step_run(&setup, batch, &loss, error), error)) return false;
    if (!isfinite(loss.total)) return explain_not_finite(r, batch, "the loss", error);
    double norm = gradients_norm(r->gradients);
    if (!isfinite(norm)) return explain_not_finite(r, batch, "the gradient's norm", error);
    update(r, norm);
    Traffic traffic = add_traffic(r, &begin);
    show(r, &loss, &sum, traffic.seconds);
    record(r, step_record(r, &loss, &sum, norm, &traffic));
    return true;
}

// ---- now and then ----

static bool validate(Run *r, Error *error) {
    StepLoss one;
    StepSetup setup = setup_of(r, r->inference);
    Comm *world = r->options->world;
    double sum[OBJECTIVES] = {0};
    int64_t count[OBJECTIVES] = {0}, batches = loader_steps_per_epoch(r->validation);
    if (batches > r->config.validation_batches) batches = r->config.validation_batches;
    for (int64_t i = 0; i < batches; i++) {
        const Batch *batch = loader_next(r->validation, i, error);
        if (!agree(world, batch != NULL, error) || !all_done(r, step_run(&setup, batch, &one, error), error))
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
    record(r, found);
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
        if (!one_step(r, stop, error)) return false;
        if (*stop) break;
        trace_step(r, begin);
        if (r->state.step == first + 1) // buckets have come and gone once
            report_memory(r);
        bool last = r->state.step == c->steps;
        if (r->validation && (last || every(c->validation_every, r->state.step)) && !validate(r, error)) return false;
        if ((last || every(c->checkpoint_every, r->state.step)) && !save(r, error)) return false;
    }
    return save(r, error) && checkpoint_finish(r->saver, error);
}

bool train_run(const TrainOptions *options, TrainResult *result, Log *log, Error *error) {
    Run r;
    int stop = 0;
    double start = clock_seconds();
    bool opened = run_open(&r, options, log, error), ok = opened && steps(&r, &stop, error);
    if (opened) parameters_meet(joint_parameters(r.joint)); // what some ranks gather ahead takes all of them
    if (ok) report_traffic(&r);
    ok = ok && run_trace_write(r.trace, options->trace, options->world, error);
    Error ignored;
    if (!ok && r.saver) checkpoint_finish(r.saver, &ignored); // all ranks stop: what was begun before is whole
    if (!ok) run_trace_leave(r.trace, options->trace, comm_rank(options->world));
    *result = (TrainResult){ok ? stop : 0, r.state.step, clock_seconds() - start};
    run_close(&r);
    return ok;
}
