/* See progress.h. An update stores the count and looks at the clock; only one thread at a time draws, and the others go
 * on. The rate is smoothed over redraws and starts at the first update, so that a run that goes on in the middle shows
 * its own speed. */
#include "base/progress.h"
#include "base/buffer.h"
#include "base/clock.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define TERMINAL_SECONDS 0.1
#define OLD_RATE         0.8 // weight of the rate so far in the smoothed rate

struct Progress {
    Log *log; // not owned
    char *label, *unit;
    int64_t total, before;  // total 0: not known; before: done by an earlier call
    double period, started; // seconds
    pthread_mutex_t lock;
    _Atomic int64_t done;
    _Atomic double next_draw;     // clock_seconds
    double first_time, last_time; // of the first update and of the last redraw; 0: none yet
    int64_t first_done, last_done;
    double rate; // units a second; 0: not known
};

Progress *progress_start(Log *log, const char *label, const char *unit, int64_t total) {
    if (!log) return NULL;
    Progress *progress = calloc(1, sizeof *progress);
    check(progress && pthread_mutex_init(&progress->lock, NULL) == 0);
    progress->log = log;
    progress->label = strdup(label);
    progress->unit = strdup(unit);
    check(progress->label && progress->unit);
    progress->total = total;
    progress->period = log_is_terminal(log) ? TERMINAL_SECONDS : PROGRESS_PLAIN_SECONDS;
    progress->started = clock_seconds();
    return progress;
}

void progress_resume(Progress *progress, int64_t done) {
    if (!progress) return;
    progress->before = done;
    atomic_store(&progress->done, done);
}

static void append_time(Buffer *text, double seconds) {
    int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 3600)
        buffer_printf(text, "%lldh%02lldm", (long long)(s / 3600), (long long)(s / 60 % 60));
    else if (s >= 60)
        buffer_printf(text, "%lldm%02llds", (long long)(s / 60), (long long)(s % 60));
    else
        buffer_printf(text, "%llds", (long long)s);
}

static void append_rate(Buffer *text, const Progress *progress, double rate) {
    if (rate > 0) buffer_printf(text, ", %.*f %s/s", rate < 10 ? 2 : rate < 100 ? 1 : 0, rate, progress->unit);
}

// "building shards: 1200/5000 images (24%), 310 images/s, 12s left; waits for the disk"
static void describe(const Progress *progress, int64_t done, const char *detail, Buffer *text) {
    buffer_printf(text, "%s: %lld", progress->label, (long long)done);
    if (progress->total) buffer_printf(text, "/%lld", (long long)progress->total);
    buffer_printf(text, " %s", progress->unit);
    if (progress->total) buffer_printf(text, " (%.0f%%)", 100.0 * (double)done / (double)progress->total);
    append_rate(text, progress, progress->rate);
    if (progress->rate > 0 && progress->total > done) {
        buffer_text(text, ", ");
        append_time(text, (double)(progress->total - done) / progress->rate);
        buffer_text(text, " left");
    }
    if (detail && *detail) buffer_printf(text, "; %s", detail);
}

static void measure(Progress *progress, int64_t done, double now) {
    if (progress->first_time == 0) {
        progress->first_time = now;
        progress->first_done = done;
    } else if (now > progress->last_time) {
        double latest = (double)(done - progress->last_done) / (now - progress->last_time);
        progress->rate = progress->rate > 0 ? OLD_RATE * progress->rate + (1 - OLD_RATE) * latest : latest;
    }
    progress->last_time = now;
    progress->last_done = done;
}

// Plain lines begin a period after the first update: short work needs none.
static void draw(Progress *progress, int64_t done, const char *detail, double now) {
    Buffer text = {0};
    bool terminal = log_is_terminal(progress->log), first = progress->first_time == 0;
    measure(progress, done, now);
    describe(progress, done, detail, &text);
    if (terminal)
        log_status(progress->log, text.data);
    else if (!first)
        log_info(progress->log, "%s", text.data);
    buffer_free(&text);
}

void progress_update(Progress *progress, int64_t done, const char *detail) {
    if (!progress) return;
    double now = clock_seconds();
    atomic_store_explicit(&progress->done, done, memory_order_relaxed);
    if (now < atomic_load_explicit(&progress->next_draw, memory_order_relaxed)) return;
    if (pthread_mutex_trylock(&progress->lock) != 0) return;
    atomic_store_explicit(&progress->next_draw, now + progress->period, memory_order_relaxed);
    draw(progress, done, detail, now);
    pthread_mutex_unlock(&progress->lock);
}

void progress_end(Progress *progress) {
    if (!progress) return;
    Buffer text = {0};
    double now = clock_seconds(), seconds = now - progress->started;
    int64_t done = atomic_load(&progress->done), here = done - progress->before;
    log_status(progress->log, NULL);
    buffer_printf(&text, "%s: %lld %s in ", progress->label, (long long)here, progress->unit);
    append_time(&text, seconds);
    if (progress->first_time > 0 && done > progress->first_done && now > progress->first_time)
        append_rate(&text, progress, (double)(done - progress->first_done) / (now - progress->first_time));
    else if (seconds > 0)
        append_rate(&text, progress, (double)here / seconds);
    log_info(progress->log, "%s", text.data);
    buffer_free(&text);
    pthread_mutex_destroy(&progress->lock);
    free(progress->label);
    free(progress->unit);
    free(progress);
}
