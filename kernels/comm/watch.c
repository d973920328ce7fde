/* See watch.h. Ranks 0 and 1, the judges, hold a connection to every rank, all others one to each judge. A rank that
 * finds that the run is over, for whatever reason, says so on all its connections before it ends: so the end of a
 * connection without a word is a death, and nothing else. */
#include "kernels/comm/watch.h"
#include "base/clock.h"
#include "kernels/comm/comm_device.h"
#include "kernels/comm/connect.h"
#include "kernels/comm/watch_link.h"
#include "kernels/comm/watch_report.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    JUDGES = 2,
    CONNECT_SECONDS = 60,
    FAREWELL_SECONDS = 1, // for the others to hear why
    LAST_SECONDS = 4,     // then the process ends, whatever holds it
};
static const double LONGEST_BEAT = 1, JUDGES_FIRST = 2; // seconds

struct Watch {
    Comm *world;
    Log *log;
    int rank, size, wake;      // wake: an eventfd that interrupts the thread's poll
    WatchIdentity *identities; // (size)
    WatchReport *reports;      // (size) what each rank last said; judges hear all, others the judges
    WatchLink *links;          // (size) by rank; socket -1 where there is none
    struct pollfd *polled;     // (size + 1)
    pid_t parent;
    double ticked, awake; // clock_seconds(): the last beat; when this process last came back from being stopped
    pthread_t thread;
    _Atomic int64_t step;
    _Atomic double limit;
    atomic_bool closing;
};

// ---- the end ----

static void farewell(Watch *w) { // until all others have closed their ends, so that none takes this end for a death
    double until = clock_seconds() + FAREWELL_SECONDS;
    for (int r = 0; r < w->size; r++)
        if (w->links[r].socket >= 0) shutdown(w->links[r].socket, SHUT_WR);
    for (int r = 0; r < w->size; r++) {
        WatchLink *link = &w->links[r];
        struct pollfd wait = {.fd = link->socket, .events = POLLIN};
        while (link->socket >= 0 && clock_seconds() < until) {
            buffer_clear(&link->in);
            if (poll(&wait, 1, 50) > 0 && !watch_receive(link)) watch_link_close(link);
        }
    }
}

// why: the sentence that every rank gets.
_Noreturn static void end_all(Watch *w, const Buffer *why) {
    Buffer doing = {0};
    alarm(LAST_SECONDS); // a log that blocks, say; its default action ends the process
    for (int r = 0; r < w->size; r++) watch_send(&w->links[r], WATCH_END, why->data, why->size);
    watch_observe(&w->reports[w->rank], w->world, atomic_load(&w->step), w->awake);
    watch_doing(&doing, &w->reports[w->rank].state);
    log_error(w->log, "%s. Rank %d, at step %lld, was %s; it ends", why->data, w->rank,
              (long long)atomic_load(&w->step), doing.data);
    farewell(w);
    comm_device_abort(w->world);
    _exit(1);
}

static void end_by_death(Watch *w, int rank) {
    Buffer why = {0};
    const WatchState *last = &w->reports[rank].state;
    watch_name(&why, rank, &w->identities[rank]);
    buffer_printf(&why, " died; %.1f s ago it was at step %lld, ", clock_seconds() - w->links[rank].heard,
                  (long long)last->step);
    watch_doing(&why, last);
    end_all(w, &why);
}

// Those that are silent, and the call that has waited longest.
static void end_by_waiting(Watch *w, double now, double silence) {
    Buffer why = {0};
    const char *between = "";
    for (int r = 0; r < w->size; r++) {
        const WatchLink *link = &w->links[r];
        if (link->socket < 0 || link->goodbye || now - link->heard < silence) continue;
        buffer_text(&why, between);
        watch_name(&why, r, &w->identities[r]);
        buffer_printf(&why, " has given no sign of life for %.1f s, since step %lld", now - link->heard,
                      (long long)w->reports[r].state.step);
        w->reports[r].silent = true;
        between = "; ";
    }
    int longest = watch_longest(w->reports, w->size);
    if (longest >= 0) {
        buffer_text(&why, between);
        watch_account(&why, w->reports, longest);
    }
    end_all(w, &why);
}

static void end_by_link(Watch *w, const char *fault) {
    Buffer why = {0};
    watch_name(&why, w->rank, &w->identities[w->rank]);
    buffer_printf(&why, ": %s", fault);
    end_all(w, &why);
}

static void end_as_orphan(Watch *w) {
    Buffer why = {0};
    buffer_text(&why, "the process that started the ranks (mpirun, srun) is gone");
    end_all(w, &why);
}

// ---- once a second ----

static double beat_seconds(const Watch *w) {
    double limit = atomic_load(&w->limit);
    return limit > 0 && limit / 4 < LONGEST_BEAT ? limit / 4 : LONGEST_BEAT;
}

static void send_beat(Watch *w) {
    Buffer beat = {0};
    WatchReport *own = &w->reports[w->rank];
    watch_observe(own, w->world, atomic_load(&w->step), w->awake);
    buffer_append(&beat, &own->state, sizeof own->state);
    buffer_append(&beat, own->members.data, own->members.size);
    for (int r = 0; r < w->size; r++) watch_send(&w->links[r], WATCH_BEAT, beat.data, beat.size);
    buffer_free(&beat);
}

static void judge(Watch *w, double now) {
    double limit = atomic_load(&w->limit), patience = limit + (w->rank < JUDGES ? 0 : JUDGES_FIRST);
    if (limit <= 0) return;
    for (int r = 0; r < w->size; r++)
        if (w->links[r].socket >= 0 && !w->links[r].goodbye && now - w->links[r].heard > patience)
            end_by_waiting(w, now, 3 * beat_seconds(w));
    int longest = w->rank < JUDGES ? watch_longest(w->reports, w->size) : -1;
    if (longest >= 0 && w->reports[longest].state.waiting > limit) end_by_waiting(w, now, 3 * beat_seconds(w));
}

static void tick(Watch *w, double now) {
    double gap = now - w->ticked;
    if (gap > 3 * beat_seconds(w)) { // this process was stopped: it cannot say how long the others were silent
        for (int r = 0; r < w->size; r++) w->links[r].heard = now;
        w->awake = now;
    }
    w->ticked = now;
    send_beat(w);
    char fault[256];
    if (comm_device_fault(w->world, fault, sizeof fault)) end_by_link(w, fault);
    if (getppid() != w->parent) end_as_orphan(w);
    judge(w, now);
}

// ---- what the others say ----

static void take_beat(Watch *w, int rank, const char *payload, size_t bytes) {
    WatchReport *report = &w->reports[rank];
    if (bytes < sizeof report->state) return;
    memcpy(&report->state, payload, sizeof report->state);
    buffer_clear(&report->members);
    buffer_append(&report->members, payload + sizeof report->state, bytes - sizeof report->state);
}

static void take_news(Watch *w, WatchLink *link) {
    WatchMessage head;
    const char *payload;
    bool open = watch_receive(link);
    for (size_t taken = 0; watch_next(link, &taken, &head, &payload);) {
        link->heard = clock_seconds();
        if (head.kind == WATCH_BEAT) take_beat(w, link->rank, payload, head.bytes);
        if (head.kind == WATCH_GOODBYE) link->goodbye = true;
        if (head.kind == WATCH_END) {
            Buffer why = {0};
            buffer_append(&why, payload, head.bytes);
            end_all(w, &why);
        }
    }
    if (open) return;
    watch_link_close(link);
    if (!link->goodbye) end_by_death(w, link->rank);
}

static void wait_for_news(Watch *w) {
    double left = w->ticked + beat_seconds(w) - clock_seconds();
    for (int r = 0; r < w->size; r++) w->polled[r] = (struct pollfd){.fd = w->links[r].socket, .events = POLLIN};
    w->polled[w->size] = (struct pollfd){.fd = w->wake, .events = POLLIN};
    if (poll(w->polled, (nfds_t)w->size + 1, left > 0 ? (int)(left * 1e3) + 1 : 0) <= 0) return;
    for (int r = 0; r < w->size; r++)
        if (w->links[r].socket >= 0 && w->polled[r].revents) take_news(w, &w->links[r]);
}

static void *watch_main(void *context) {
    Watch *w = context;
    while (!atomic_load(&w->closing)) {
        wait_for_news(w);
        double now = clock_seconds();
        if (now - w->ticked >= beat_seconds(w)) tick(w, now);
    }
    for (int r = 0; r < w->size; r++) watch_send(&w->links[r], WATCH_GOODBYE, NULL, 0);
    return NULL;
}

// ---- opening and closing ----

static bool accept_ranks(Watch *w, int listener, const LinkAddress *own, double until, Error *error) {
    for (int missing = w->size - 1 - w->rank; missing > 0;) {
        int rank = -1, socket = link_accept(listener, own, w->size, until, &rank);
        if (socket < 0) {
            for (rank = w->rank + 1; rank < w->size - 1 && w->links[rank].socket >= 0;) rank++;
            return error_set(error, ERROR_FAILED, "rank %d (%s) was not heard from within %d s", rank,
                             w->identities[rank].host, CONNECT_SECONDS);
        }
        missing -= w->links[rank].socket < 0;
        if (w->links[rank].socket >= 0) close(w->links[rank].socket); // it tried again
        w->links[rank].socket = socket;
        watch_link_settle(socket);
    }
    return true;
}

// Connects everyone behind `judge` with it. Collective.
static bool connect_to(Watch *w, int judge, bool local, Error *error) {
    LinkAddress address = {0};
    bool ok = true;
    int listener = -1;
    double until = clock_seconds() + CONNECT_SECONDS;
    if (w->rank == judge) {
        listener = link_listen(&address, local, 0, error);
        ok = listener >= 0;
    }
    comm_broadcast(w->world, &address, sizeof address, judge, "where to report");
    if (w->rank == judge && ok) ok = accept_ranks(w, listener, &address, until, error);
    if (w->rank > judge) {
        w->links[judge].socket = link_connect(&address, w->rank, until, error);
        if (w->links[judge].socket >= 0) watch_link_settle(w->links[judge].socket);
        ok = w->links[judge].socket >= 0 || error_prefix(error, "rank %d (%s) cannot reach rank %d (%s)", w->rank,
                                                         w->identities[w->rank].host, judge, w->identities[judge].host);
    }
    if (listener >= 0) close(listener);
    return ok;
}

static bool connect_all(Watch *w, Error *error) {
    int32_t all = 1;
    bool local = true;
    watch_identity(&w->identities[w->rank]);
    comm_all_gather(w->world, w->identities, &w->identities[w->rank], w->size, sizeof *w->identities, "who is there");
    for (int r = 1; r < w->size; r++) local &= !strcmp(w->identities[r].machine, w->identities[0].machine);
    for (int j = 0; j < JUDGES && j < w->size - 1; j++) {
        bool ok = all ? connect_to(w, j, local, error) : true;
        all = all && ok;
        comm_all_reduce(w->world, &all, 1, COMM_I32, COMM_MIN, COMM_FAST, "all are connected");
    }
    if (!all && !error->kind) error_set(error, ERROR_FAILED, "another rank could not be connected: see what it says");
    return all;
}

static void watch_free(Watch *w) {
    for (int r = 0; r < w->size; r++) {
        watch_link_close(&w->links[r]);
        watch_report_free(&w->reports[r]);
    }
    if (w->wake >= 0) close(w->wake);
    free(w->identities);
    free(w->reports);
    free(w->links);
    free(w->polled);
    free(w);
}

// Signals are for the other threads; only the alarm of end_all must get through.
static void start_thread(Watch *w) {
    sigset_t none, before;
    sigfillset(&none);
    sigdelset(&none, SIGALRM);
    pthread_sigmask(SIG_SETMASK, &none, &before);
    check(pthread_create(&w->thread, NULL, watch_main, w) == 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

bool watch_open(Watch **out, Comm *world, Log *log, Error *error) {
    *out = NULL;
    if (comm_size(world) == 1) return true;
    Watch *w = calloc(1, sizeof *w);
    check(w);
    *w = (Watch){.world = world,
                 .log = log,
                 .rank = comm_rank(world),
                 .size = comm_size(world),
                 .wake = eventfd(0, EFD_CLOEXEC),
                 .parent = getppid(),
                 .ticked = clock_seconds()};
    const size_t size = (size_t)w->size;
    w->identities = calloc(size, sizeof *w->identities);
    w->reports = calloc(size, sizeof *w->reports);
    w->links = calloc(size, sizeof *w->links);
    w->polled = calloc(size + 1, sizeof *w->polled);
    check(w->wake >= 0 && w->identities && w->reports && w->links && w->polled);
    for (int r = 0; r < w->size; r++) w->links[r] = (WatchLink){.rank = r, .socket = -1};
    if (!connect_all(w, error)) {
        watch_free(w);
        return false;
    }
    w->ticked = clock_seconds();
    for (int r = 0; r < w->size; r++) w->links[r].heard = w->ticked;
    start_thread(w);
    *out = w;
    return true;
}

void watch_limit(Watch *w, double seconds) {
    if (w) atomic_store(&w->limit, seconds);
}

void watch_step(Watch *w, int64_t step) {
    if (w) atomic_store(&w->step, step);
}

void watch_close(Watch *w) {
    uint64_t one = 1;
    if (!w) return;
    comm_barrier(w->world, "end of the run");
    atomic_store(&w->closing, true);
    check(write(w->wake, &one, sizeof one) == sizeof one);
    check(pthread_join(w->thread, NULL) == 0);
    watch_free(w);
}
