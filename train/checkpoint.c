/* See checkpoint.h. A save goes through phases; each ends when checkpoint_commit finds that all ranks have done their
 * part. One rank by itself seals its files in the thread that wrote them. */
#include "train/checkpoint.h"
#include "base/clock.h"
#include "train/checkpoint_write.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef enum Phase { IDLE, WRITING, SEALING } Phase;

struct Saver {
    CheckpointOptions options;
    Arena *memory;
    CheckpointLayout *layout;
    CheckpointJob job;
    Phase phase; // of the save under way
    int64_t saved;
    double started, held, written; // seconds; `held` is of the save under way, or of the last

    pthread_t thread;
    bool threaded; // `thread` is to be joined
    pthread_mutex_t mutex;
    pthread_cond_t news;
    bool copied, done, ok; // under the mutex: what the thread has got to
    Error error;           // of the thread, once it is done
};

Saver *saver_new(const CheckpointOptions *options) {
    Saver *s = calloc(1, sizeof *s);
    check(s);
    Parameters *parameters = joint_parameters(options->joint);
    StateRange *ranges;
    *s = (Saver){.options = *options, .memory = arena_new(1 << 16), .saved = -1};
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->news, NULL);
    s->layout = checkpoint_layout_new(parameters, 1, s->memory);
    s->job.options = &s->options;
    s->job.layout = s->layout;
    int count = optimizer_ranges(options->optimizer, s->memory, &ranges);
    checkpoint_copy_init(&s->job.copy, options->backend, parameters, s->layout, ranges, count, s->job.rank, s->memory);
    model_describe(options->joint, options->tokenizer, &s->job.description);
    return s;
}

static void join(Saver *s) {
    if (s->threaded) pthread_join(s->thread, NULL);
    s->threaded = false;
}

void saver_free(Saver *s) {
    if (!s) return;
    join(s);
    if (s->phase != IDLE && !s->ok) log_warning(s->options.log, "%s", s->error.message);
    checkpoint_copy_free(&s->job.copy);
    checkpoint_layout_free(s->layout);
    buffer_free(&s->job.description);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->news);
    arena_free(s->memory);
    free(s);
}

// ---- the thread ----

static void tell(Saver *s, bool *what) {
    pthread_mutex_lock(&s->mutex);
    *what = true;
    pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->mutex);
}

static bool heard(const Saver *s, const bool *what) {
    pthread_mutex_t *mutex = (pthread_mutex_t *)(uintptr_t)&s->mutex;
    pthread_mutex_lock(mutex);
    bool value = *what;
    pthread_mutex_unlock(mutex);
    return value;
}

static void *write_all(void *saver) {
    Saver *s = saver;
    checkpoint_copy_own(&s->job.copy);
    checkpoint_copy_end(&s->job.copy);
    tell(s, &s->copied);
    s->ok = checkpoint_job_write(&s->job, &s->error) &&
            checkpoint_job_seal(&s->job, s->job.own, CHECKPOINT_PARTS, &s->error);
    tell(s, &s->done);
    return NULL;
}

// Without signals: those of the run are for the thread that trains. Where no thread can be had, the caller waits.
static void run_beside(Saver *s, void *(*work)(void *)) {
    sigset_t all, before;
    s->done = s->ok = false;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    s->threaded = pthread_create(&s->thread, NULL, work, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!s->threaded) work(s);
}

// ---- phases ----

bool checkpoint_start(Saver *s, const TrainState *state, Error *error) {
    if (!checkpoint_finish(s, error)) return false;
    s->started = clock_seconds();
    s->held = s->written = 0;
    checkpoint_job_begin(&s->job, state);
    bool ok = checkpoint_copy_begin(&s->job.copy, error) && folder_remove(s->job.aside, error) &&
              folder_create(s->job.aside, error);
    if (!ok)
        return error_prefix(error, "checkpoint of step %lld not saved, earlier ones are intact",
                            (long long)state->step);
    s->phase = WRITING;
    s->copied = false;
    run_beside(s, write_all);
    s->held += clock_seconds() - s->started;
    return true;
}

static void wait_for(Saver *s, const bool *what) {
    double start = clock_seconds();
    pthread_mutex_lock(&s->mutex);
    while (!*what) pthread_cond_wait(&s->news, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
    s->held += clock_seconds() - start;
}

void checkpoint_hold(Saver *s) {
    if (s && s->phase == WRITING) wait_for(s, &s->copied);
}

static void report(const Saver *s) {
    CheckpointTimes t = checkpoint_times(s);
    log_info(s->options.log, "checkpoint of step %lld: %.1f MB in %.2f s; training waited %.3f s of them",
             (long long)s->saved, t.bytes / 1e6, t.written, t.held);
}

bool checkpoint_commit(Saver *s, Error *error) {
    check(s->phase != IDLE);
    join(s);
    s->phase = IDLE;
    s->written = clock_seconds() - s->started;
    if (s->ok) {
        s->saved = s->job.state.step;
        report(s);
        return true;
    }
    *error = s->error;
    checkpoint_job_drop(&s->job);
    return error_prefix(error, "checkpoint of step %lld not saved, earlier ones are intact",
                        (long long)s->job.state.step);
}

bool checkpoint_finish(Saver *s, Error *error) {
    while (s->phase != IDLE) {
        wait_for(s, &s->done);
        if (!checkpoint_commit(s, error)) return false;
    }
    return true;
}

// ---- looking ----

bool checkpoint_under_way(const Saver *s) { return s->phase != IDLE; }

bool checkpoint_written(const Saver *s) { return s->phase != IDLE && heard(s, &s->done); }

int64_t checkpoint_saved(const Saver *s) { return s->saved; }

CheckpointTimes checkpoint_times(const Saver *s) {
    return (CheckpointTimes){s->held, s->written, (double)checkpoint_layout_bytes(s->layout, s->job.rank)};
}
