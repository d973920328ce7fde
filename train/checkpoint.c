/* See checkpoint.h. A save goes through phases; each ends when checkpoint_commit finds that all ranks have done their
 * part: WRITING, when every rank's thread writes its files, and SEALING, when rank 0's makes a checkpoint of them. One
 * rank by itself seals in the thread that wrote. */
#include "train/checkpoint.h"
#include "base/clock.h"
#include "train/agree.h"
#include "train/checkpoint_write.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef enum Phase { IDLE, WRITING, SEALING } Phase;

struct Saver {
    CheckpointOptions options;
    Comm *world;    // NULL: alone
    Comm *exchange; // the same ranks, for the threads: their calls wait for none of the training's
    int ranks;
    Arena *memory, *ranges; // of the saver; of a save
    CheckpointLayout *layout;
    CheckpointJob job;
    CheckpointFile *files; // (ranks, CHECKPOINT_PARTS) what all ranks wrote
    Phase phase;           // of the save under way
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
    *s = (Saver){.options = *options, .saved = -1, .copied = true, .done = true, .ok = true};
    s->world = options->mesh ? options->mesh->world : NULL;
    s->ranks = comm_size(s->world);
    if (s->ranks > 1) s->exchange = comm_split(s->world, 0, comm_rank(s->world), "checkpoint");
    s->memory = arena_new(1 << 16);
    s->ranges = arena_new(1 << 16);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->news, NULL);
    s->layout = checkpoint_layout_new(parameters, s->ranks, s->memory);
    s->files = arena_array(s->memory, CheckpointFile, s->ranks * CHECKPOINT_PARTS);
    s->job.options = &s->options;
    s->job.layout = s->layout;
    s->job.rank = comm_rank(s->world);
    checkpoint_copy_init(&s->job.copy, options->backend, parameters, s->layout, options->mesh, s->memory);
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
    comm_free(s->exchange);
    checkpoint_copy_free(&s->job.copy);
    checkpoint_layout_free(s->layout);
    buffer_free(&s->job.description);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->news);
    arena_free(s->memory);
    arena_free(s->ranges);
    free(s);
}

// ---- the thread ----

static void tell(Saver *s, bool *what) {
    pthread_mutex_lock(&s->mutex);
    *what = true;
    pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->mutex);
}

static bool heard(Saver *s, const bool *what) {
    pthread_mutex_lock(&s->mutex);
    bool value = *what;
    pthread_mutex_unlock(&s->mutex);
    return value;
}

// Returns what has become of it after `seconds` at the latest; 0: when it is true.
static bool wait_for(Saver *s, const bool *what, int seconds) {
    double start = clock_seconds();
    struct timespec until;
    int failed = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    pthread_mutex_lock(&s->mutex);
    while (!*what && !failed)
        failed = seconds ? pthread_cond_timedwait(&s->news, &s->mutex, &until) : pthread_cond_wait(&s->news, &s->mutex);
    bool value = *what;
    pthread_mutex_unlock(&s->mutex);
    s->held += clock_seconds() - start;
    return value;
}

static void *touch(void *saver) {
    Saver *s = saver;
    checkpoint_copy_touch(&s->job.copy);
    tell(s, &s->done);
    return NULL;
}

static void copy_all(Saver *s) {
    double begin = trace_now();
    checkpoint_copy_exchange(&s->job.copy, s->exchange);
    checkpoint_copy_own(&s->job.copy);
    checkpoint_copy_end(&s->job.copy);
    trace_slice(s->options.trace, "save", "copy", begin, trace_now());
    tell(s, &s->copied);
}

static void *write_all(void *saver) {
    Saver *s = saver;
    if (!s->options.backend->apart) copy_all(s);
    double begin = trace_now();
    s->ok = checkpoint_job_write(&s->job, &s->error);
    if (s->ok && s->ranks == 1) s->ok = checkpoint_job_seal(&s->job, s->job.own, CHECKPOINT_PARTS, &s->error);
    trace_slice(s->options.trace, "save", "write", begin, trace_now());
    tell(s, &s->done);
    return NULL;
}

static void *seal_all(void *saver) {
    Saver *s = saver;
    s->ok = checkpoint_job_seal(&s->job, s->files, s->ranks * CHECKPOINT_PARTS, &s->error);
    tell(s, &s->done);
    return NULL;
}

// Without signals: those of the run are for the thread that trains. Where no thread can be had, the caller waits.
static void run_beside(Saver *s, void *(*work)(void *)) {
    sigset_t all, before;
    s->done = false;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    s->threaded = pthread_create(&s->thread, NULL, work, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!s->threaded) work(s);
}

void checkpoint_prepare(Saver *s) {
    Error ignored; // checkpoint_start tries again
    if (s->phase == IDLE && !s->threaded && checkpoint_copy_reserve(&s->job.copy, &ignored)) run_beside(s, touch);
}

// ---- phases ----

static bool not_saved(const Saver *s, Error *error) {
    return error_prefix(error, "checkpoint of step %lld not saved, earlier ones are intact",
                        (long long)s->job.state.step);
}

// The folder aside, and room for the copy.
static bool make_room(Saver *s, Error *error) {
    bool ok = checkpoint_copy_reserve(&s->job.copy, error);
    if (s->job.rank == 0) ok = ok && folder_remove(s->job.aside, error) && folder_create(s->job.aside, error);
    if (agree(s->world, ok, error)) return true;
    if (s->job.rank == 0) checkpoint_job_drop(&s->job);
    return false;
}

bool checkpoint_start(Saver *s, const TrainState *state, Error *error) {
    StateRange *ranges;
    if (!checkpoint_finish(s, error)) return false;
    s->started = clock_seconds();
    s->held = s->written = 0;
    join(s); // of checkpoint_prepare
    checkpoint_job_begin(&s->job, state);
    if (!make_room(s, error)) return not_saved(s, error);
    arena_reset(s->ranges);
    int count = optimizer_ranges(s->options.optimizer, s->ranges, &ranges);
    checkpoint_copy_begin(&s->job.copy, ranges, count);
    s->phase = WRITING;
    s->copied = false;
    if (s->options.backend->apart) copy_all(s); // a device is used by one thread
    run_beside(s, write_all);
    s->held += clock_seconds() - s->started;
    return true;
}

void checkpoint_hold(Saver *s) {
    if (s && s->phase == WRITING) wait_for(s, &s->copied, 0);
}

// All have written: rank 0 seals while the others have nothing more to do.
static void begin_to_seal(Saver *s) {
    int64_t bytes = (int64_t)sizeof s->job.own;
    comm_all_gather(s->world, s->files, s->job.own, s->ranks, bytes, "checkpoint");
    s->phase = SEALING;
    if (s->job.rank == 0) run_beside(s, seal_all);
}

static void report(const Saver *s) {
    double bytes = 0;
    for (int i = 0; i < s->layout->count; i++) bytes += (double)s->layout->tensors[i].bytes;
    if (s->job.rank == 0)
        log_info(s->options.log, "checkpoint of step %lld: %.1f MB in %.2f s; training waited %.3f s of them",
                 (long long)s->saved, bytes / 1e6, s->written, s->held);
}

bool checkpoint_commit(Saver *s, Error *error) {
    double start = clock_seconds();
    check(s->phase != IDLE);
    join(s);
    *error = s->error;
    bool ok = agree(s->world, s->ok, error);
    if (ok && s->phase == WRITING && s->ranks > 1) {
        begin_to_seal(s);
        s->held += clock_seconds() - start;
        return true;
    }
    s->phase = IDLE;
    s->written = clock_seconds() - s->started;
    s->held += clock_seconds() - start;
    if (ok) {
        s->saved = s->job.state.step;
        report(s);
        return true;
    }
    if (s->job.rank == 0) checkpoint_job_drop(&s->job);
    return not_saved(s, error);
}

// The ranks ask one another every second: a disk may be slow, but no rank waits in a call so long that it looks dead.
bool checkpoint_finish(Saver *s, Error *error) {
    while (s->phase != IDLE) {
        int32_t done = wait_for(s, &s->done, s->ranks > 1);
        comm_all_reduce(s->world, &done, 1, COMM_I32, COMM_MIN, COMM_FAST, "end of a checkpoint");
        if (done && !checkpoint_commit(s, error)) return false;
    }
    return true;
}

// ---- looking ----

bool checkpoint_under_way(const Saver *s) { return s->phase != IDLE; }

bool checkpoint_written(Saver *s) { return s->phase != IDLE && heard(s, &s->done); }

int64_t checkpoint_saved(const Saver *s) { return s->saved; }

CheckpointTimes checkpoint_times(const Saver *s) {
    return (CheckpointTimes){s->held, s->written, (double)checkpoint_layout_bytes(s->layout, s->job.rank)};
}
