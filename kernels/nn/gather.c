/* Values of parameters from all data ranks; see buckets.h. At stages 1 and 2 they are waited for where they are used.
 * At stage 3 a bucket's values are here only while they are used: gathered on use, ahead of it where the step before
 * tells what comes next, given back when others are needed sooner.
 *
 * Gathering takes all data ranks, whose graphs may differ (a rank without pictures). So they go in rounds: each rank
 * proposes up to PROPOSALS buckets, the proposals are exchanged, and all ranks gather all that was proposed, in one
 * order. What a rank proposes, and when, follows from its graph and the rounds before alone, never from time, so ranks
 * that share a graph (over tensor) agree. parameters_meet takes part in rounds until nobody wants any. */
#include "kernels/comm/comm_device.h"
#include "kernels/nn/buffers.h"
#include "kernels/nn/parameters_state.h"
#include <stdlib.h>
#include <string.h>

enum {
    PROPOSALS = 2, // buckets of a rank in a round
    MOST = 4,      // buckets that are here at once, where a node does not need more
    NONE = -1,     // a proposal: nothing for now
    DONE = -2,     // nothing until all ranks say so
};

typedef struct Visit {    // of one bucket
    CommRequest *request; // its gathering; NULL: none is under way
    void *spare;          // where a gathering goes that only others want, as the values are here already
    bool here;            // or on the way
    int64_t round;        // the last that asked for it
} Visit;

struct Gather {
    Comm *group; // of the data ranks
    Buffers *buffers;
    Visit *visits;          // (buckets)
    int pinned[MAX_INPUTS]; // (pinned_count) buckets of the node that went on to another bucket last
    int pinned_count;
    int *before, *now; // (before_count, now_count) buckets in the order of use: of the step before, of this one
    int before_count, now_count, before_room, now_room;
    int last;                    // bucket used last, which is here; -1: none is for certain
    int at;                      // where in `before` this step stands; -1: lost
    CommRequest *round;          // the exchange of proposals that is under way, where there is more than a rehearsal
    bool proposed;               // a round is under way
    int32_t *proposals;          // (ranks, PROPOSALS)
    int64_t rounds;              // taken in so far
    bool all_done;               // so the last one said
    int64_t gathers, unforeseen; // buckets
};

// ---- what comes next ----

static void append(int **items, int *count, int *room, int value) {
    if (*count == *room) {
        *room = *room ? 2 * *room : 256;
        *items = realloc(*items, (size_t)*room * sizeof **items);
        check(*items);
    }
    (*items)[(*count)++] = value;
}

// The bucket is used: finds it in the step before.
static void note_use(Gather *g, int number) {
    append(&g->now, &g->now_count, &g->now_room, number);
    for (int i = g->at < 0 ? 0 : g->at; i < g->before_count; i++) {
        if (g->before[i] != number) continue;
        g->at = i + 1;
        return;
    }
    g->at = -1;
}

// How many uses of other buckets come first; INT32_MAX: none is known.
static int next_use(const Gather *g, int number) {
    for (int i = g->at; i >= 0 && i < g->before_count; i++)
        if (g->before[i] == number) return i - g->at;
    return INT32_MAX;
}

// The next buckets that are not here, among as many different ones as a rank may propose. Returns how many.
static int foresee(const Gather *g, int room, int32_t *out) {
    int seen[PROPOSALS], different = 0, count = 0;
    for (int i = g->at; i >= 0 && i < g->before_count && different < PROPOSALS; i++) {
        bool known = false;
        for (int k = 0; k < different; k++) known |= seen[k] == g->before[i];
        for (int k = 0; k < g->pinned_count; k++) known |= g->pinned[k] == g->before[i];
        if (known) continue;
        seen[different++] = g->before[i];
        if (!g->visits[g->before[i]].here && count < room) out[count++] = g->before[i];
    }
    return count;
}

// ---- values that come and go ----

// Until the bucket's gathering has ended.
static void settle(Gather *g, int number) {
    Visit *v = &g->visits[number];
    comm_wait(v->request);
    buffers_give(g->buffers, v->spare);
    v->request = NULL;
    v->spare = NULL;
}

static void give_back(Parameters *p, int number) {
    Gather *g = p->gather;
    settle(g, number);
    buffers_give(g->buffers, p->buckets[number].values);
    bucket_set_values(&p->buckets[number], NULL);
    g->visits[number].here = false;
}

// Gives back what is needed latest, until one more has room; never what the running node uses.
static void make_room(Parameters *p) {
    Gather *g = p->gather;
    for (;;) {
        int here = 0, latest = -1, distance = -1;
        for (int i = 0; i < p->bucket_count; i++) {
            if (!g->visits[i].here) continue;
            here++;
            bool pinned = false;
            for (int k = 0; k < g->pinned_count; k++) pinned |= g->pinned[k] == i;
            int next = next_use(g, i);
            if (!pinned && next > distance) latest = i, distance = next;
        }
        if (here < MOST || latest < 0) return;
        give_back(p, latest);
    }
}

static void start(Parameters *p, int number) {
    Gather *g = p->gather;
    Bucket *b = &p->buckets[number];
    Visit *v = &g->visits[number];
    settle(g, number);
    void *out;
    if (v->here) {
        out = v->spare = buffers_take(g->buffers, bucket_bytes(b->blocks, b->dtype));
    } else {
        make_room(p);
        out = buffers_take(g->buffers, bucket_bytes(b->blocks, b->dtype));
        bucket_set_values(b, out);
        v->here = true;
    }
    g->gathers++;
    v->request = comm_device_start_all_gather(p->backend, g->group, out, b->own_values, b->blocks,
                                              (int64_t)bucket_bytes(1, b->dtype), "parameters");
}

// ---- rounds ----

// Takes in the round under way, if there is one and it has ended, or after waiting for it.
static void take_round(Parameters *p, bool wait) {
    Gather *g = p->gather;
    int count = comm_size(g->group) * PROPOSALS;
    if (!g->proposed || (!wait && !comm_done(g->round))) return;
    comm_wait(g->round);
    g->round = NULL;
    g->proposed = false;
    g->rounds++;
    g->all_done = true;
    for (int i = 0; i < count; i++) {
        int32_t number = g->proposals[i];
        g->all_done &= number == DONE;
        if (number < 0 || g->visits[number].round == g->rounds) continue;
        g->visits[number].round = g->rounds;
        start(p, number);
    }
}

static void propose(Parameters *p, const int32_t wanted[PROPOSALS]) {
    Gather *g = p->gather;
    int rank = comm_rank(g->group), size = comm_size(g->group);
    take_round(p, true);
    for (int r = 0; r < size; r++) // what comes from other ranks; in a rehearsal nothing does: they want the same
        memcpy(g->proposals + r * PROPOSALS, wanted, PROPOSALS * sizeof *wanted);
    g->proposed = true;
    g->round = comm_start_all_gather(g->group, g->proposals, g->proposals + rank * PROPOSALS, size,
                                     PROPOSALS * sizeof *wanted, "wanted parameters");
}

// Waits until the bucket's values are here.
static void need(Parameters *p, int number) {
    Gather *g = p->gather;
    Visit *v = &g->visits[number];
    if (!v->here) take_round(p, true);
    if (!v->here) {
        g->unforeseen++;
        int32_t wanted[PROPOSALS] = {number};
        for (int i = 1 + foresee(g, PROPOSALS - 1, wanted + 1); i < PROPOSALS; i++) wanted[i] = NONE;
        propose(p, wanted);
        take_round(p, true);
    }
    check(v->here);
    if (!v->spare) settle(g, number); // else what is under way is for others
}

// Has the buckets that come next gathered, beside what is computed now.
void parameters_look_ahead(Parameters *p) {
    int32_t wanted[PROPOSALS];
    int count = p->gather ? foresee(p->gather, PROPOSALS, wanted) : 0;
    if (!count) return;
    for (; count < PROPOSALS; count++) wanted[count] = NONE;
    propose(p, wanted);
}

// ---- for others ----

void parameters_use(Parameters *p, const Node *n) {
    Gather *g = p->gather;
    int needed[MAX_INPUTS], count = 0;
    bool moves = false;
    for (int i = 0; i < MAX_INPUTS; i++)
        if (n->in[i] && n->in[i]->is_parameter) needed[count++] = ((const Parameter *)n->in[i])->bucket;
    for (int i = 0; i < count; i++) check(needed[i] >= 0 && "a parameter that is on this rank");
    for (int i = 0; i < count; i++) bucket_settle(&p->buckets[needed[i]]);
    if (!g) return;
    for (int i = 0; i < count; i++) moves |= needed[i] != g->last;
    take_round(p, moves); // before anything changes: what it gives back does not depend on when it ended
    if (!moves) return;
    memcpy(g->pinned, needed, sizeof needed);
    g->pinned_count = count;
    for (int i = 0; i < count; i++) note_use(g, g->last = needed[i]);
    for (int i = 0; i < count; i++) need(p, needed[i]);
    parameters_look_ahead(p);
}

static void use_hook(void *context, const Node *n) { parameters_use(context, n); }

void parameters_follow(Parameters *p, Tape *tape) {
    if (p->stage) tape_set_hooks(tape, &(TapeHooks){.context = p, .use = use_hook});
}

void parameters_meet(Parameters *p) {
    static const int32_t nothing[PROPOSALS] = {DONE, DONE};
    Gather *g = p->gather;
    for (int i = 0; i < p->bucket_count; i++) bucket_settle(&p->buckets[i]);
    if (!g) return;
    take_round(p, true);
    g->pinned_count = 0;
    g->last = -1;
    do {
        propose(p, nothing);
        take_round(p, true);
    } while (!g->all_done);
    for (int i = 0; i < p->bucket_count; i++) settle(g, i);
}

void parameters_give_back(Parameters *p) {
    Gather *g = p->gather;
    if (!g) return;
    take_round(p, true);
    for (int i = 0; i < p->bucket_count; i++)
        if (g->visits[i].here) give_back(p, i);
    int *used = g->before, room = g->before_room;
    g->before = g->now, g->before_count = g->now_count, g->before_room = g->now_room;
    g->now = used, g->now_count = 0, g->now_room = room;
    g->at = 0;
    g->last = -1;
    g->pinned_count = 0;
}

void parameters_gathered(const Parameters *p, int64_t *gathers, int64_t *unforeseen) {
    *gathers = p->gather ? p->gather->gathers : 0;
    *unforeseen = p->gather ? p->gather->unforeseen : 0;
}

size_t gather_bytes(const Gather *g) { return g ? buffers_bytes(g->buffers) : 0; }

Gather *gather_new(Backend *backend, Comm *sharing, int buckets) {
    Gather *g = calloc(1, sizeof *g);
    check(g);
    g->last = -1;
    g->group = sharing;
    g->buffers = buffers_new(backend);
    g->visits = calloc((size_t)buckets + 1, sizeof *g->visits);
    g->proposals = calloc((size_t)comm_size(sharing) * PROPOSALS, sizeof *g->proposals);
    check(g->visits && g->proposals);
    return g;
}

void gather_free(Gather *g) {
    if (!g) return;
    buffers_free(g->buffers);
    free(g->visits);
    free(g->before);
    free(g->now);
    free(g->proposals);
    free(g);
}
