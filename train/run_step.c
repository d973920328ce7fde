/* One training step of a run: its batch, its work, its update, its record. Where the device judges a step by itself
 * (step_gate.h), the host is a step ahead: it starts the next one while a step runs, and what there is to say about a
 * step is said when its successor is on its way, or when run_settle asks for it. */
#include "train/run_step.h"
#include "base/clock.h"
#include "kernels/comm/watch.h"
#include "train/agree.h"
#include <math.h>
#include <string.h>

StepSetup run_setup(const Run *r, Tape *tape) {
    int place = r->mesh.place[MESH_DATA];
    return (StepSetup){.tape = tape,
                       .joint = r->joint,
                       .gradients = r->gradients,
                       .data = r->parallel.data,
                       .pipeline = r->pipeline,
                       .stages = r->parallel.pipeline,
                       .pieces = r->layout.pieces,
                       .pairs = r->pairs,
                       .first = layout_first(&r->layout, place),
                       .end = layout_first(&r->layout, place + 1),
                       .seed = (uint64_t)r->config.seed,
                       .trace = r->trace};
}

// Step `number` again with every tensor looked at, to name the first bad one. Collective, like what it explains.
static bool explain_not_finite(Run *r, int64_t number, const Batch *batch, const char *what, Error *error) {
    StepLoss again;
    StepSetup setup = run_setup(r, r->tape);
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
        (long long)number, what);
}

// Every rank has its part of the step's batch, or all stop: asked to, or because one of them cannot go on.
static const Batch *take_batch(Run *r, Vote *sum, Error *error) {
    const TrainOptions *o = r->options;
    double waited = loader_waited(r->loader), begin = trace_now();
    const Batch *batch = loader_next(r->loader, r->state.step, error);
    trace_slice(r->trace, "loader", "wait for data", begin, trace_now());
    const Error *behind = r->late.work ? step_failed(r->late.work) : NULL;
    bool ready = batch && !r->unwritten.kind && !behind;
    if (r->unwritten.kind) *error = r->unwritten;
    if (behind) *error = *behind;
    Vote own = {.failed = !ready, .stop = o->stop ? *o->stop : 0, .written = checkpoint_written(r->saver)};
    loader_tried(r->loader, &own.bad, &own.draws);
    own.data_wait = loader_waited(r->loader) - waited;
    if (batch) {
        own.tokens = batch->lm.token_count + batch->caption.token_count + batch->contrastive.token_count;
        own.flop = joint_flop_parts(&r->config.model, batch);
        own.by_count = joint_flop_by_count(&r->config.model, &r->utilisation.count, batch);
    }
    *sum = agree_on(o->world, &own, r->mesh.place[MESH_TENSOR] == 0 && r->mesh.place[MESH_PIPELINE] == 0);
    if (sum->failed || !batch) return agree(o->world, ready, error), NULL; // no batch: this rank has failed
    sum->images = batch->all_images;
    return loader_budget(sum->bad, sum->draws, r->config.bad_samples, error) ? batch : NULL;
}

static json_t *step_record(Run *r, int64_t number, const StepLoss *loss, const Vote *sum, double norm,
                           const Traffic *traffic) {
    char name[64];
    json_t *step = json_pack("{s:I, s:f}", "step", (json_int_t)number, "loss", loss->total);
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!loss->count[o]) continue;
        snprintf(name, sizeof name, "loss/%s", objective_names[o]);
        json_object_set_new(step, name, json_real(loss->mean[o]));
    }
    json_object_set_new(step, "learning_rate",
                        json_real(learning_rate_at(&r->config.optimizer, number, r->config.steps)));
    json_object_set_new(step, "gradient_norm", json_real(norm));
    json_object_set_new(step, "tokens", json_integer(sum->tokens));
    json_object_set_new(step, "images", json_integer(sum->images));
    json_object_set_new(step, "seconds", json_real(traffic->seconds));
    json_object_set_new(step, "waited", json_real(sum->data_wait));
    if (r->layout.ranks > 1) json_object_set_new(step, "communication", json_real(traffic->waited));
    utilisation_step(&r->utilisation, &sum->flop, &sum->by_count, traffic->seconds, step);
    return step;
}

// One rank writes, the others need not know before the next vote.
void run_record(Run *r, json_t *what) {
    if (r->leads && !r->unwritten.kind)
        metrics_write(r->metrics, what, &r->unwritten);
    else
        json_decref(what);
}

static void show(Run *r, int64_t number, const StepLoss *loss, const Vote *sum, double seconds) {
    char detail[256];
    size_t n = (size_t)snprintf(detail, sizeof detail, "loss %.4f", loss->total);
    for (int o = 0; o < OBJECTIVES; o++)
        if (loss->count[o] && n < sizeof detail)
            n += (size_t)snprintf(detail + n, sizeof detail - n, " %s %.4f", objective_names[o], loss->mean[o]);
    if (n < sizeof detail)
        n += (size_t)snprintf(detail + n, sizeof detail - n, "; %.0f tokens/s %.0f images/s",
                              (double)sum->tokens / seconds, (double)sum->images / seconds);
    double share = utilisation_share(&r->utilisation, &sum->flop, seconds);
    if (n < sizeof detail && share > 0)
        n += (size_t)snprintf(detail + n, sizeof detail - n, "; MFU %.1f %%", 100 * share);
    if (n < sizeof detail && sum->data_wait > 0.2 * seconds)
        snprintf(detail + n, sizeof detail - n, "; waits for data");
    progress_update(r->progress, number, detail);
}

// Whether every rank could do its part. Where each piece is run by one rank, all know already that none failed.
bool run_all_done(const Run *r, bool ok, Error *error) {
    return ok && !r->parallel.tensor ? true : agree(r->options->world, ok, error);
}

// AdamW, once the values that a checkpoint under way still copies have been copied. gate NULL: by a norm that the host
// knows.
static void update(Run *r, double norm, const Gate *gate) {
    double begin = trace_now();
    checkpoint_hold(r->saver);
    double held = trace_now();
    if (gate)
        optimizer_step_gated(r->optimizer, r->state.step + 1, gate);
    else
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

// Since r->begin, where the step began or, if that came later, the one before it was done; added to the run's.
static Traffic add_traffic(Run *r) {
    Traffic t, now = traffic_of(r), *all = &r->traffic, *begin = &r->begin;
    t = (Traffic){1, now.sent - begin->sent, now.waited - begin->waited, now.seconds - begin->seconds};
    *begin = now;
    *all = (Traffic){all->steps + 1, all->sent + t.sent, all->waited + t.waited, all->seconds + t.seconds};
    return t;
}

// ---- the end of a step ----

static void tell(Run *r, int64_t number, const StepLoss *loss, const Vote *sum, double norm) {
    Traffic traffic = add_traffic(r);
    show(r, number, loss, sum, traffic.seconds);
    run_record(r, step_record(r, number, loss, sum, norm, &traffic));
}

// The host waits for the losses, then for the norm, then updates.
static bool finish_now(Run *r, StepUnderWay *work, const Batch *batch, const Vote *sum, Error *error) {
    StepLoss loss;
    int64_t number = r->state.step + 1;
    if (!run_all_done(r, step_finish(work, &loss, error), error)) return false;
    if (!isfinite(loss.total)) return explain_not_finite(r, number, batch, "the loss", error);
    double norm = gradients_norm(r->gradients);
    if (!isfinite(norm)) return explain_not_finite(r, number, batch, "the gradient's norm", error);
    update(r, norm, NULL);
    tell(r, number, &loss, sum, norm);
    return true;
}

// What a step came to that was updated, or not, without the host; every rank sees the same numbers. One that is not
// finite left everything as it was on all ranks, and so did those behind it: their steps are undone, and, where no rank
// knows what was wrong, its batch, which is a function of the step's number, runs again.
static bool finish_late(Run *r, LateStep *late, Error *error) {
    StepLoss loss;
    LateStep step = *late;
    *late = (LateStep){0};
    bool ok = step_finish(step.work, &loss, error);
    if (isfinite(loss.total) && isfinite(loss.norm)) {
        tell(r, step.number, &loss, &step.sum, loss.norm);
        return true;
    }
    const char *what = isfinite(loss.total) ? "the gradient's norm" : "the loss";
    r->state.step = step.number - 1;
    if (!agree(r->options->world, ok, error)) return false;
    const Batch *batch = loader_next(r->loader, r->state.step, error);
    return agree(r->options->world, batch != NULL, error) && explain_not_finite(r, step.number, batch, what, error);
}

bool run_settle(Run *r, Error *error) { return !r->late.work || finish_late(r, &r->late, error); }

// Something else is wrong behind the steps under way: they are told of first, and what is wrong with them comes first.
static bool fail_behind(Run *r, Error *error) {
    Error earlier;
    if (!run_settle(r, &earlier)) *error = earlier;
    return false;
}

// Starts the update of the step just started, and looks at the one before while the device works.
static bool go_on(Run *r, LateStep now, Error *error) {
    enum { IDLE = 100 }; // microseconds: who waits no longer than that found the step done
    if (step_failed(now.work)) step_gate_fail(r->gate); // the next vote ends the run
    update(r, 0, step_gate_close(r->gate, r->gradients, r->config.optimizer.gradient_clip));
    step_send(now.work);
    double begin = clock_seconds();
    bool ok = run_settle(r, error);
    if (clock_seconds() - begin > 1e-6 * IDLE) now.sum.data_wait = 0; // nobody waited for these data but the host
    if (!ok) return step_finish(now.work, NULL, NULL), false;
    r->late = now;
    return true;
}

bool run_step(Run *r, int *stop, Error *error) {
    Vote sum;
    StepSetup setup = run_setup(r, r->tape);
    if (!r->late.work) r->begin = traffic_of(r);
    watch_step(r->options->watch, r->state.step + 1);
    const Batch *batch = take_batch(r, &sum, error);
    if (!batch) return fail_behind(r, error);
    *stop = (int)sum.stop;
    if (*stop) return true;
    if (sum.written == r->layout.ranks && !checkpoint_commit(r->saver, error)) return fail_behind(r, error);
    setup.gate = r->gate;
    StepUnderWay *work = step_start(&setup, batch);
    if (!r->gate) return finish_now(r, work, batch, &sum, error);
    return go_on(r, (LateStep){work, r->state.step + 1, sum}, error);
}
