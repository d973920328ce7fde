/* Moves the calls of a process on. Started calls are moved by the communication thread, beside the caller's arithmetic;
 * a thread that waits does the work itself meanwhile, so that a blocking call costs no change of threads. Nobody spins
 * for long: after some microseconds without anything new whoever looks sleeps between looks. See comm_internal.h. */
#include "base/clock.h"
#include "base/trace.h"
#include "kernels/comm/comm_internal.h"
#include "kernels/comm/device_link.h"
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

// Without anything new whoever looks first looks again and again, for SPIN; once the others are known to have come, for
// SPIN_UNDER_WAY more: as long as MESSAGE_BYTES take on a slow link.
#define SPIN_BESIDE    20e-6  // beside arithmetic
#define SPIN_WAITING   200e-6 // where the core has nothing else to do
#define SPIN_UNDER_WAY 2e-3
// Then sleeps between looks: an eighth of the time without news within the first bounds, and in a long wait a fiftieth
// up to the last. So much later than a late rank the others go on.
#define SHORTEST_SLEEP 5e-6
#define NAP_BESIDE     500e-6
#define NAP_WAITING    100e-6
#define LONGEST_SLEEP  500e-6
#define SLACK          1000UL // nanoseconds by which the system may lengthen a sleep
#define SLEEP_IF_WOKEN 0.1

typedef struct WatchedLink { // between devices
    DeviceLink *link;
    const Comm *group;
    int64_t number; // of the call that it was seen in last; 0: in none
    double since;   // when that was seen first
} WatchedLink;

struct Engine {
    const Transport *transport;
    void *state;
    pthread_t thread;
    pthread_mutex_t drive; // held by the one thread that moves calls on; taken before `lock`
    pthread_mutex_t lock;  // of all that follows; never held while a transport works
    pthread_cond_t work;   // for the communication thread: there is something to do, or to end
    pthread_cond_t news;   // for who sleeps between looks
    uint64_t events;       // of news
    bool stopping;
    int waiting;                       // threads that wait, and so move calls on
    int64_t unfinished;                // calls started and not done
    CommRequest *inbox, **inbox_end;   // started, not seen by who moves calls on
    CommRequest *active, **active_end; // under way, in the order of their start; changed under both locks
    int next_group;
    struct Trace *trace;
    void (*before_waits)(void *context);
    void *before_context;
    pthread_t before_thread; // whose waits
    WatchedLink *links;      // (link_count)
    int link_count;
    double waited;         // seconds
    _Atomic int64_t bytes; // sent
};

static void append(CommRequest ***end, CommRequest *c) {
    c->next = NULL;
    **end = c;
    *end = &c->next;
}

// ---- moving calls on; under `drive` ----

static void begin_round(Engine *e, CommRequest *c) {
    c->count = c->complete = 0;
    if (c->at_round == 0) call_take_work(c);
    c->round(c, c->at_round);
    for (int i = 0; i < c->count; i++) {
        const Message *m = &c->messages[i];
        if (m->send) atomic_fetch_add_explicit(&e->bytes, m->bytes, memory_order_relaxed);
        e->transport->post(e->state, &c->messages[i]);
    }
    if (c->compute) c->compute(c, c->at_round);
}

// Whether anything was new.
static bool advance(Engine *e, CommRequest *c) {
    int before = c->complete;
    while (c->complete < c->count && e->transport->test(e->state, &c->messages[c->complete])) c->complete++;
    if (c->complete < c->count) return c->complete > before;
    do { // a round of arithmetic alone has ended once it began
        if (++c->at_round < c->rounds) begin_round(e, c);
    } while (c->at_round < c->rounds && c->count == 0);
    return true;
}

static void begin(Engine *e, CommRequest *c) { // under both locks
    c->since = clock_seconds();
    c->trace_begin = trace_now();
    append(&e->active_end, c);
}

// Takes what was started: what need not wait for others of its group is under way now.
static void take_inbox(Engine *e) {
    pthread_mutex_lock(&e->lock);
    CommRequest *c = e->inbox;
    e->inbox = NULL;
    e->inbox_end = &e->inbox;
    for (CommRequest *next; c; c = next) {
        next = c->next;
        Comm *group = c->comm;
        if (c->in_turn && group->running) {
            append(&group->queue_end, c);
            continue;
        }
        if (c->in_turn) group->running = c;
        begin(e, c);
    }
    pthread_mutex_unlock(&e->lock);
}

static void trace_call(const Engine *e, const CommRequest *c) {
    char name[256];
    if (!e->trace) return;
    snprintf(name, sizeof name, "%s %s (%s)", c->call, c->what, c->comm->name);
    trace_slice(e->trace, "communication", name, c->trace_begin, trace_now());
}

// Ends the call at *link. It may be freed as soon as it is done.
static void retire(Engine *e, CommRequest **link) {
    CommRequest *c = *link;
    Comm *group = c->comm;
    pthread_mutex_lock(&e->lock);
    *link = c->next;
    if (!*link) e->active_end = link;
    if (c->in_turn) {
        CommRequest *following = group->running = group->queue;
        if (following) {
            group->queue = following->next;
            if (!group->queue) group->queue_end = &group->queue;
            begin(e, following);
        }
    }
    trace_call(e, c);
    e->unfinished--;
    group->unfinished--;
    e->events++;
    pthread_cond_broadcast(&e->news);
    atomic_store_explicit(&c->done, true, memory_order_release);
    pthread_mutex_unlock(&e->lock);
}

// Whether anything was new. *under_way: of some call the others have come.
static bool progress(Engine *e, bool *under_way) {
    bool moved = false;
    *under_way = false;
    take_inbox(e);
    for (CommRequest **link = &e->active; *link;) {
        CommRequest *c = *link;
        moved |= advance(e, c);
        if (c->at_round >= c->rounds) {
            retire(e, link);
            continue;
        }
        *under_way |= c->at_round > 0 || c->complete > 0;
        link = &c->next;
    }
    return moved;
}

static uint64_t events_of(Engine *e) {
    pthread_mutex_lock(&e->lock);
    uint64_t events = e->events;
    pthread_mutex_unlock(&e->lock);
    return events;
}

typedef struct Patience { // of who looks, in seconds
    double spin, nap;
} Patience;

static const Patience beside = {SPIN_BESIDE, NAP_BESIDE}, waiting = {SPIN_WAITING, NAP_WAITING};

static double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

static double sleep_after(double idle, double nap) {
    return clamp(idle / 50, clamp(idle / 8, SHORTEST_SLEEP, nap), LONGEST_SLEEP);
}

// Until it is worth looking again, `idle` seconds after the last news; events: when they were looked for.
static void pause_between(Engine *e, uint64_t events, double idle, Patience patience) {
    if (!e->transport->wakes && idle < patience.spin) {
        sched_yield();
        return;
    }
    double seconds = e->transport->wakes ? SLEEP_IF_WOKEN : sleep_after(idle, patience.nap);
    struct timespec until;
    prctl(PR_SET_TIMERSLACK, SLACK); // of this thread, which may be any
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(seconds * 1e9);
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&e->lock);
    if (e->events == events) pthread_cond_timedwait(&e->news, &e->lock, &until);
    pthread_mutex_unlock(&e->lock);
}

// One look, and a pause where there was nothing. *news: when there was something last.
static void look(Engine *e, uint64_t events, Patience patience, double *news) {
    bool under_way;
    pthread_mutex_lock(&e->drive);
    bool moved = progress(e, &under_way);
    pthread_mutex_unlock(&e->drive);
    double now = clock_seconds();
    if (under_way) patience.spin += SPIN_UNDER_WAY;
    if (moved)
        *news = now;
    else
        pause_between(e, events, now - *news, patience);
}

// ---- the communication thread ----

static void *communicate(void *argument) {
    Engine *e = argument;
    double news = clock_seconds();
    for (;;) {
        pthread_mutex_lock(&e->lock);
        while (!e->stopping && (e->unfinished == 0 || e->waiting > 0)) {
            pthread_cond_wait(&e->work, &e->lock);
            news = clock_seconds();
        }
        bool stopping = e->stopping;
        uint64_t events = e->events;
        pthread_mutex_unlock(&e->lock);
        if (stopping) return NULL;
        look(e, events, beside, &news);
    }
}

// ---- the caller's side ----

// Posts messages that were started and not seen yet, in their order, unless somebody is about to: on a machine whose
// cores all compute it takes milliseconds until the communication thread gets one.
static void post_messages(Engine *e) {
    if (pthread_mutex_trylock(&e->drive) != 0) return;
    take_inbox(e);
    for (CommRequest *c = e->active; c; c = c->next)
        if (!c->in_turn && c->at_round < 0) advance(e, c);
    pthread_mutex_unlock(&e->drive);
}

static void wake_engine(Engine *e) { // under the lock
    e->events++;
    pthread_cond_broadcast(&e->news);
    pthread_cond_signal(&e->work);
}

void engine_start(Engine *e, CommRequest *c, bool wake) {
    bool message = !c->in_turn;
    pthread_mutex_lock(&e->lock);
    c->number = c->in_turn ? ++c->comm->collectives : ++c->comm->messages;
    append(&e->inbox_end, c);
    e->unfinished++;
    c->comm->unfinished++;
    if (wake && !message) wake_engine(e);
    pthread_mutex_unlock(&e->lock);
    if (!wake || !message) return;
    post_messages(e);
    pthread_mutex_lock(&e->lock);
    wake_engine(e);
    pthread_mutex_unlock(&e->lock);
}

// Whatever the call's state: what a list of work consists of must not depend on when others came.
static void ask_before_wait(Engine *e) {
    pthread_mutex_lock(&e->lock);
    void (*ask)(void *) = e->before_waits && pthread_equal(e->before_thread, pthread_self()) ? e->before_waits : NULL;
    pthread_mutex_unlock(&e->lock);
    if (ask) ask(e->before_context);
}

void engine_wait(Engine *e, CommRequest *c) {
    ask_before_wait(e);
    if (atomic_load_explicit(&c->done, memory_order_acquire)) return;
    double begun = clock_seconds(), news = begun;
    pthread_mutex_lock(&e->lock);
    e->waiting++;
    pthread_mutex_unlock(&e->lock);
    for (;;) {
        uint64_t events = events_of(e);
        if (atomic_load_explicit(&c->done, memory_order_acquire)) break;
        look(e, events, waiting, &news);
    }
    pthread_mutex_lock(&e->lock);
    e->waited += clock_seconds() - begun;
    if (--e->waiting == 0 && e->unfinished > 0) pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
}

void engine_wake(Engine *e) {
    pthread_mutex_lock(&e->lock);
    e->events++;
    pthread_cond_broadcast(&e->news);
    pthread_mutex_unlock(&e->lock);
}

Engine *engine_new(const Transport *transport, void *state) {
    Engine *e = calloc(1, sizeof *e);
    pthread_condattr_t attributes;
    check(e && pthread_condattr_init(&attributes) == 0);
    check(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0);
    e->transport = transport;
    e->state = state;
    e->inbox_end = &e->inbox;
    e->active_end = &e->active;
    check(pthread_mutex_init(&e->drive, NULL) == 0 && pthread_mutex_init(&e->lock, NULL) == 0);
    check(pthread_cond_init(&e->work, NULL) == 0 && pthread_cond_init(&e->news, &attributes) == 0);
    check(pthread_create(&e->thread, NULL, communicate, e) == 0);
    pthread_condattr_destroy(&attributes);
    return e;
}

void engine_free(Engine *e) {
    pthread_mutex_lock(&e->lock);
    check(e->unfinished == 0);
    e->stopping = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    e->transport->close(e->state);
    pthread_cond_destroy(&e->news);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->drive);
    free(e->links);
    free(e);
}

int engine_next_group(Engine *e, int least_number) {
    pthread_mutex_lock(&e->lock);
    if (e->next_group < least_number) e->next_group = least_number;
    int number = e->next_group;
    pthread_mutex_unlock(&e->lock);
    return number;
}

const Transport *engine_transport(const Engine *e) { return e->transport; }

bool engine_bare_all_reduce(Engine *e, float *data, int64_t n) {
    if (!e->transport->bare_all_reduce) return false;
    pthread_mutex_lock(&e->drive);
    e->transport->bare_all_reduce(e->state, data, n);
    pthread_mutex_unlock(&e->drive);
    return true;
}

// ---- for the watchdog and the trace ----

// What a link's device is in, if it has been for longer than what `status` tells.
static const Comm *look_at_link(WatchedLink *w, CommStatus *status) {
    DeviceUnderWay now;
    if (!w->link->under_way || !w->link->under_way(w->link, &now)) {
        w->number = 0;
        return NULL;
    }
    if (w->number != now.number) {
        w->number = now.number;
        w->since = clock_seconds();
    }
    if (status->call && status->since <= w->since) return NULL;
    *status = (CommStatus){.number = now.number,
                           .call = now.call,
                           .what = now.what,
                           .since = w->since,
                           .device = true,
                           .peer = now.peer < 0 ? -1 : w->group->world[now.peer]};
    return w->group;
}

// A group may be gone as soon as its last call has ended: what is told of it is copied under the lock.
CommStatus engine_status(Engine *e, Buffer *members) {
    CommStatus status = {0};
    const Comm *group = NULL, *other;
    pthread_mutex_lock(&e->lock);
    const CommRequest *oldest = e->active;
    for (const CommRequest *c = oldest; c; c = c->next)
        if (c->since < oldest->since) oldest = c;
    if (oldest) {
        group = oldest->comm;
        status =
            (CommStatus){.number = oldest->number, .call = oldest->call, .what = oldest->what, .since = oldest->since};
    }
    for (int i = 0; i < e->link_count; i++)
        if ((other = look_at_link(&e->links[i], &status))) group = other;
    if (group) snprintf(status.group, sizeof status.group, "%s", group->name);
    for (int32_t r = 0; group && r < group->size && members; r++)
        buffer_append(members, &group->world[r], sizeof *group->world);
    pthread_mutex_unlock(&e->lock);
    return status;
}

void engine_set_trace(Engine *e, struct Trace *trace) {
    pthread_mutex_lock(&e->lock);
    e->trace = trace;
    pthread_mutex_unlock(&e->lock);
}

double engine_waited(Engine *e) {
    pthread_mutex_lock(&e->lock);
    double waited = e->waited;
    pthread_mutex_unlock(&e->lock);
    return waited;
}

int64_t engine_bytes(const Engine *e) { return atomic_load_explicit(&e->bytes, memory_order_relaxed); }

// ---- links between devices ----

void engine_add_link(Engine *e, DeviceLink *link, const Comm *group) {
    pthread_mutex_lock(&e->lock);
    e->links = realloc(e->links, ((size_t)e->link_count + 1) * sizeof *e->links);
    check(e->links);
    e->links[e->link_count++] = (WatchedLink){.link = link, .group = group};
    pthread_mutex_unlock(&e->lock);
}

void engine_remove_link(Engine *e, DeviceLink *link) {
    pthread_mutex_lock(&e->lock);
    int kept = 0;
    for (int i = 0; i < e->link_count; i++)
        if (e->links[i].link != link) e->links[kept++] = e->links[i];
    e->link_count = kept;
    if (!kept) e->before_waits = NULL; // the backend may go
    pthread_mutex_unlock(&e->lock);
}

void engine_before_waits(Engine *e, void (*function)(void *context), void *context) {
    pthread_mutex_lock(&e->lock);
    e->before_waits = function;
    e->before_context = context;
    e->before_thread = pthread_self();
    pthread_mutex_unlock(&e->lock);
}

bool engine_link_fault(Engine *e, char *why, size_t size) {
    const char *fault = NULL;
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < e->link_count && !fault; i++) fault = e->links[i].link->fault(e->links[i].link);
    if (fault) snprintf(why, size, "%s", fault);
    pthread_mutex_unlock(&e->lock);
    return fault != NULL;
}

void engine_abort_links(Engine *e) {
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < e->link_count; i++) e->links[i].link->abort(e->links[i].link);
    pthread_mutex_unlock(&e->lock);
}
