/* See loader.h. Workers take the next step's number in turn, build its batch and put it into a ring of slots; the
 * caller takes batches out in order. A jump to another step empties the ring and starts from there. */
#include "data/loader.h"
#include "base/clock.h"
#include "base/files.h"
#include "data/loader_batch.h"
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

enum {
    NAMED = 5,          // bad samples named in the log as warnings; the rest at debug level
    LEAST_BAD = 20,     // below this the budget is not looked at
    MOST_WORKERS = 256, // threads
};

typedef enum { SLOT_EMPTY, SLOT_BUILDING, SLOT_READY } SlotState;

typedef struct Slot {
    SlotState state;
    int64_t step;
    BatchSpace space;
    bool failed;
    Error error;
} Slot;

struct Loader {
    LoaderConfig config;
    BatchPlan plan;
    Source *sources; // (config.source_count)
    Log *log;
    int64_t steps; // of an epoch

    pthread_mutex_t mutex;
    pthread_cond_t work, ready; // for workers: a slot is free; for the caller: a batch is done
    pthread_t *threads;
    int thread_count;
    Slot *slots;
    int slot_count, building;
    int64_t held, next; // the step whose batch the caller has, or -1; the step to be built next
    bool started, stop;

    uint8_t **bad; // (sources) a bit a sample: known to be bad
    int64_t skipped, draws, bad_draws;
    double waited;
};

// Whether the slot of `next` may be filled. In validation nothing is behind the last step.
static bool may_build(const Loader *l) {
    if (!l->started || l->slots[l->next % l->slot_count].state != SLOT_EMPTY) return false;
    return !l->config.validation || l->next < l->steps;
}

static void *work(void *context) {
    Loader *l = context;
    Scratch scratch = {.sources = l->config.source_count};
    scratch.plans = calloc((size_t)scratch.sources, sizeof *scratch.plans);
    check(scratch.plans);
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (!l->stop && !may_build(l)) pthread_cond_wait(&l->work, &l->mutex);
        if (l->stop) break;
        Slot *slot = &l->slots[l->next % l->slot_count];
        slot->state = SLOT_BUILDING;
        slot->step = l->next++;
        l->building++;
        pthread_mutex_unlock(&l->mutex);
        slot->failed = !batch_build(&l->plan, slot->step, &slot->space, &scratch, &slot->error);
        pthread_mutex_lock(&l->mutex);
        slot->state = SLOT_READY;
        l->building--;
        pthread_cond_broadcast(&l->ready);
    }
    pthread_mutex_unlock(&l->mutex);
    scratch_free(&scratch);
    return NULL;
}

// Signals are the caller's business.
static void start_threads(Loader *l) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    l->threads = calloc((size_t)l->config.threads, sizeof *l->threads);
    check(l->threads);
    for (; l->thread_count < l->config.threads; l->thread_count++)
        check(!pthread_create(&l->threads[l->thread_count], NULL, work, l));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static bool check_config(const LoaderConfig *c, unsigned objectives, Error *error) {
    int64_t least = (int64_t)c->image_tokens + 2;
    if (c->threads < 1 || c->threads > MOST_WORKERS || c->ahead < 1)
        return error_set(error, ERROR_USAGE, "a loader needs 1 to %d threads and 1 batch ahead or more", MOST_WORKERS);
    if (objectives & ~(1u << OBJECTIVE_LM) && c->side < 1)
        return error_set(error, ERROR_USAGE, "pictures need a size, not %d pixels", c->side);
    if (objectives >> OBJECTIVE_LM & 1 && c->text_length < 2)
        return error_set(error, ERROR_USAGE, "lm rows of %" PRId64 " tokens are too short", c->text_length);
    if (objectives >> OBJECTIVE_CAPTION & 1 && c->caption_length < least)
        return error_set(error, ERROR_USAGE,
                         "caption rows of %" PRId64 " positions cannot hold %d image slots and text", c->caption_length,
                         c->image_tokens);
    if (objectives >> OBJECTIVE_CONTRASTIVE & 1 && c->contrastive_length < 3)
        return error_set(error, ERROR_USAGE, "contrastive rows of %" PRId64 " tokens are too short",
                         c->contrastive_length);
    return true;
}

static bool open_sources(Loader *l, const Tokenizer *tokenizer, Error *error) {
    const LoaderConfig *c = &l->config;
    unsigned objectives = 0;
    for (int i = 0; i < c->source_count; i++) objectives |= c->sources[i].objectives;
    check(tokenizer || !(objectives & ~(1u << OBJECTIVE_MAE)));
    if (!check_config(c, objectives, error) || (tokenizer && !tokenizer_check_marks(tokenizer, error))) return false;
    l->sources = calloc((size_t)c->source_count + 1, sizeof *l->sources);
    l->bad = calloc((size_t)c->source_count + 1, sizeof *l->bad);
    check(l->sources && l->bad);
    for (int i = 0; i < c->source_count; i++) {
        Source *s = &l->sources[i];
        if (!source_open(s, c, i, c->cache_bytes / c->source_count, tokenizer, l->log, error)) return false;
        if (!s->data) continue;
        l->bad[i] = calloc(s->order.count / 8 + 1, 1);
        check(l->bad[i]);
        l->skipped += s->lm.unreadable;
        int64_t steps = source_steps(s);
        if (steps > l->steps) l->steps = steps;
    }
    l->plan = (BatchPlan){c, l->sources, tokenizer, tokenizer ? sequence_ids(tokenizer) : (SequenceIds){0}};
    return l->steps || error_set(error, ERROR_USAGE, "no source gives %s", c->validation ? "validation data" : "data");
}

Loader *loader_open(const LoaderConfig *config, const Tokenizer *tokenizer, Log *log, Error *error) {
    Loader *l = calloc(1, sizeof *l);
    check(l && !pthread_mutex_init(&l->mutex, NULL) && !pthread_cond_init(&l->work, NULL) &&
          !pthread_cond_init(&l->ready, NULL));
    l->config = *config;
    l->log = log;
    l->held = -1;
    if (!open_sources(l, tokenizer, error)) {
        loader_close(l);
        return NULL;
    }
    l->slot_count = config->ahead + 1;
    l->slots = calloc((size_t)l->slot_count, sizeof *l->slots);
    check(l->slots);
    start_threads(l);
    return l;
}

void loader_close(Loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    for (int i = 0; i < l->thread_count; i++) pthread_join(l->threads[i], NULL);
    if (l->skipped)
        log_warning(l->log, "%" PRId64 " samples could not be used and were skipped; `bifocal data verify` says more",
                    l->skipped);
    for (int i = 0; i < l->slot_count; i++) batch_space_free(&l->slots[i].space);
    for (int i = 0; l->sources && i < l->config.source_count; i++) {
        source_close(&l->sources[i]);
        free(l->bad[i]);
    }
    free(l->sources);
    free(l->bad);
    free(l->slots);
    free(l->threads);
    pthread_cond_destroy(&l->ready);
    pthread_cond_destroy(&l->work);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}

// Under the mutex: everything prepared is thrown away, and building goes on at `step`.
static void seek(Loader *l, int64_t step) {
    l->started = false;
    while (l->building) pthread_cond_wait(&l->ready, &l->mutex);
    for (int i = 0; i < l->slot_count; i++) l->slots[i].state = SLOT_EMPTY;
    l->next = step;
    l->started = true;
}

// Gives the last batch back and waits for that of `step`.
static Slot *take(Loader *l, int64_t step) {
    double start = clock_seconds();
    Slot *slot = &l->slots[step % l->slot_count];
    pthread_mutex_lock(&l->mutex);
    if (l->held >= 0) l->slots[l->held % l->slot_count].state = SLOT_EMPTY;
    if (!l->started || step != l->held + 1) seek(l, step);
    l->held = step;
    pthread_cond_broadcast(&l->work);
    while (slot->state != SLOT_READY) pthread_cond_wait(&l->ready, &l->mutex);
    pthread_mutex_unlock(&l->mutex);
    l->waited += clock_seconds() - start;
    return slot;
}

bool loader_budget(int64_t bad, int64_t draws, double per_million, Error *error) {
    double found = draws ? (double)bad * 1e6 / (double)draws : 0;
    if (bad < LEAST_BAD || found <= per_million) return true;
    return error_set(error, ERROR_FAILED,
                     "%" PRId64 " of %" PRId64
                     " samples could not be used, more than the %g per million that are allowed; "
                     "mend the data (`bifocal data verify`) or raise the limit",
                     bad, draws, per_million);
}

// Counts what the batch had to skip. In the order of steps, so that a run stops at the same step whatever the threads.
static bool count_bad(Loader *l, const BatchSpace *space, Error *error) {
    l->draws += space->draws;
    for (const BadSample *bad = space->bad; bad; bad = bad->next) {
        uint8_t *byte = &l->bad[bad->source][bad->number / 8], bit = (uint8_t)(1u << bad->number % 8);
        l->bad_draws++;
        if (*byte & bit) continue;
        *byte |= bit;
        l->skipped++;
        log_write(l->log, l->skipped <= NAMED ? LOG_WARNING : LOG_DEBUG, "skipped: %s: %s",
                  path_base(dataset_path(l->sources[bad->source].data)), bad->message);
    }
    return l->config.parts > 1 || loader_budget(l->bad_draws, l->draws, l->config.bad_samples_per_million, error);
}

const Batch *loader_next(Loader *l, int64_t step, Error *error) {
    check(step >= 0);
    if (l->config.validation && step >= l->steps) {
        error_set(error, ERROR_FAILED, "validation step %" PRId64 " is behind the last, %" PRId64, step, l->steps - 1);
        return NULL;
    }
    Slot *slot = take(l, step);
    if (slot->failed) {
        *error = slot->error;
        return NULL;
    }
    return count_bad(l, &slot->space, error) ? &slot->space.batch : NULL;
}

int64_t loader_steps_per_epoch(const Loader *l) { return l->steps; }
int64_t loader_skipped(const Loader *l) { return l->skipped; }
void loader_tried(const Loader *l, int64_t *bad, int64_t *draws) {
    *bad = l->bad_draws;
    *draws = l->draws;
}
double loader_waited(const Loader *l) { return l->waited; }

const char *loader_root(const Loader *l, int source) {
    check(source >= 0 && source < l->config.source_count);
    return l->sources[source].data ? dataset_root(l->sources[source].data) : "";
}
