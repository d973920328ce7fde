/* See splitter.h. A window is one chunk of every stage, or two at once, that is cut anew while the others stay. Whether
 * it can be cut so that no stage exceeds given limits is decided by a table over (stage, units taken of the first
 * chunk, units taken of the second): both are taken from their outer end, stage by stage, which also serves the V of
 * zb-v. All sums grow with the units, so of the second chunk a stage may take any number up to a bound that falls as it
 * takes more of the first. The least limit is found by bisection; costs are whole numbers, so that equal is equal. */
#include "train/splitter.h"
#include "base/buffer.h"
#include <math.h>
#include <string.h>

static const double GIB = 0x1p30;
static const int TIME_BITS = 30; // of the sum of all times

typedef struct Limits {
    double time, part, memory; // of a stage, of a part, of a stage: none may have more
} Limits;

typedef struct Load { // of a stage
    double time, memory, work;
} Load;

typedef struct Window {
    int chunk, chains; // chunks [chunk, chunk + chains) of all stages, chains 1 or 2
    int first, end;    // their units
} Window;

typedef struct Chain { // the units that one chunk of all stages shares out
    int first, end, chunk;
    bool down; // stage 0 takes from the end
} Chain;

typedef struct Splitter {
    const SplitProblem *problem;
    Arena *arena;
    double unit;                             // whole numbers of a unit of time
    double *time, *parameters, *activations; // (units + 1) of all units before
    double **work;                           // [k] (units) largest of 2^k units from here on
    // The window at work:
    int chains;
    Chain chain[2];
    Load *others;   // (stages) of the parts that stay
    double *before; // (stages + 1) time of the others of all stages before
    int *good;      // (stages + 1, units + 1, units + 2): states with fewer units of the second that can be completed
} Splitter;

// ---- costs as whole numbers ----

// The power of two that makes the sum of all times less than 2^TIME_BITS, so that whole numbers stay exact.
static double time_unit(const SplitProblem *p) {
    double sum = 0;
    int exponent = 0;
    for (int u = 0; u < p->units; u++) {
        const UnitCost *c = &p->costs[u];
        double times[] = {c->forward, c->input, c->weight, c->parameters, c->activations, c->work};
        for (int i = 0; i < 6; i++) check(times[i] >= 0 && isfinite(times[i]));
        sum += c->forward + c->input + c->weight;
    }
    frexp(sum, &exponent);
    return sum > 0 ? ldexp(1, TIME_BITS - exponent) : 1;
}

static void read_costs(Splitter *s) {
    const SplitProblem *p = s->problem;
    int levels = 1;
    s->unit = time_unit(p);
    while (1 << levels <= p->units) levels++;
    s->time = arena_array(s->arena, double, p->units + 1);
    s->parameters = arena_array(s->arena, double, p->units + 1);
    s->activations = arena_array(s->arena, double, p->units + 1);
    s->work = arena_array(s->arena, double *, levels);
    for (int k = 0; k < levels; k++) s->work[k] = arena_array(s->arena, double, p->units);
    for (int u = 0; u < p->units; u++) {
        const UnitCost *c = &p->costs[u];
        s->time[u + 1] = s->time[u] + nearbyint((c->forward + c->input + c->weight) * s->unit);
        s->parameters[u + 1] = s->parameters[u] + ceil(c->parameters);
        s->activations[u + 1] = s->activations[u] + ceil(c->activations);
        s->work[0][u] = ceil(c->work);
    }
    for (int k = 1; k < levels; k++)
        for (int u = 0; u + (1 << k) <= p->units; u++)
            s->work[k][u] = fmax(s->work[k - 1][u], s->work[k - 1][u + (1 << (k - 1))]);
}

static double largest_work(const Splitter *s, int first, int end) {
    int k = 0;
    while (2 << k <= end - first) k++;
    return fmax(s->work[k][first], s->work[k][end - (1 << k)]);
}

// ---- what stages have ----

static void add_part(const Splitter *s, Load *load, int stage, int chunk, int first, int end) {
    const SplitProblem *p = s->problem;
    double live = p->live ? p->live[stage * p->shape.chunks + chunk] : 1;
    load->time += s->time[end] - s->time[first];
    load->memory += s->parameters[end] - s->parameters[first] + live * (s->activations[end] - s->activations[first]);
    load->work = fmax(load->work, largest_work(s, first, end));
}

// Of a stage, but for its chunks [from, to).
static Load load_without(const Splitter *s, const int *first, int stage, int from, int to) {
    const PipelineShape *shape = &s->problem->shape;
    Load load = {0};
    for (int c = 0; c < shape->chunks; c++) {
        int part = pipeline_part(shape, stage, c);
        if (c < from || c >= to) add_part(s, &load, stage, c, first[part], first[part + 1]);
    }
    return load;
}

// The most of any stage.
static Limits needs_of(const Splitter *s, const int *first) {
    const PipelineShape *shape = &s->problem->shape;
    Limits most = {0};
    for (int i = 0; i < shape->stages; i++) {
        Load load = load_without(s, first, i, 0, 0);
        most.time = fmax(most.time, load.time);
        most.memory = fmax(most.memory, load.memory + load.work);
    }
    for (int i = 0; i < shape->stages * shape->chunks; i++)
        most.part = fmax(most.part, s->time[first[i + 1]] - s->time[first[i]]);
    return most;
}

// ---- whether a window can be cut within limits ----

static int chain_units(const Splitter *s, int chain) {
    return chain < s->chains ? s->chain[chain].end - s->chain[chain].first : 0;
}

// Time of the first `taken` units of a chain.
static double chain_time(const Splitter *s, int chain, int taken) {
    const Chain *c = &s->chain[chain];
    if (chain >= s->chains) return 0;
    return c->down ? s->time[c->end] - s->time[c->end - taken] : s->time[c->first + taken] - s->time[c->first];
}

// Whether a stage may take units [from[c], to[c]) of each chain.
static bool fits(const Splitter *s, const Limits *limits, int stage, const int from[2], const int to[2]) {
    Load load = s->others[stage];
    check(s->chains <= 2);
    for (int c = 0; c < s->chains; c++) {
        const Chain *chain = &s->chain[c];
        int first = chain->down ? chain->end - to[c] : chain->first + from[c];
        int end = first + to[c] - from[c];
        if (s->time[end] - s->time[first] > limits->part) return false;
        add_part(s, &load, stage, chain->chunk, first, end);
    }
    return load.time <= limits->time && load.memory + load.work <= limits->memory;
}

static int *good_row(const Splitter *s, int stage, int taken) {
    int64_t rows = chain_units(s, 0) + 1, columns = chain_units(s, 1) + 2;
    return s->good + ((int64_t)stage * rows + taken) * columns;
}

// What a stage takes in a state that `from` units were taken before: the fewest units of the first chain, then the
// fewest of the second, such that the stages behind can take the rest. next NULL: only whether there is such a thing.
static bool step(const Splitter *s, const Limits *limits, int stage, const int from[2], int *next) {
    int least = from[1] + (s->chains > 1), to[2] = {from[0] + 1, least};
    for (; to[1] < chain_units(s, 1) && fits(s, limits, stage, from, (int[2]){to[0], to[1] + 1}); to[1]++) continue;
    for (; to[0] <= chain_units(s, 0); to[0]++) {
        while (to[1] >= least && !fits(s, limits, stage, from, to)) to[1]--;
        if (to[1] < least) return false;
        const int *good = good_row(s, stage + 1, to[0]);
        if (good[to[1] + 1] == good[least]) continue;
        if (!next) return true;
        next[0] = to[0];
        for (next[1] = least; good[next[1] + 1] == good[least];) next[1]++;
        return true;
    }
    return false;
}

// Whether what was taken before `stage`, and what is left, can be taken by as many stages at all.
static bool in_bounds(const Splitter *s, const Limits *limits, int stage, const int taken[2]) {
    int stages = s->problem->shape.stages, behind = stages - stage;
    double done = s->before[stage], left = s->before[stages] - done;
    for (int c = 0; c < s->chains; c++) {
        if (taken[c] < stage || chain_units(s, c) - taken[c] < behind) return false;
        done += chain_time(s, c, taken[c]);
        left += chain_time(s, c, chain_units(s, c)) - chain_time(s, c, taken[c]);
    }
    return done <= stage * limits->time && left <= behind * limits->time;
}

// Fills the table of states from which the window can be completed. Returns whether the first one is among them.
static bool possible(Splitter *s, const Limits *limits) {
    int stages = s->problem->shape.stages, all[2] = {chain_units(s, 0), chain_units(s, 1)}, taken[2];
    for (int stage = stages; stage >= 0; stage--)
        for (taken[0] = 0; taken[0] <= all[0]; taken[0]++) {
            int *good = good_row(s, stage, taken[0]);
            good[0] = 0;
            for (taken[1] = 0; taken[1] <= all[1]; taken[1]++) {
                bool ok = stage == stages ? taken[0] == all[0] && taken[1] == all[1]
                                          : in_bounds(s, limits, stage, taken) && step(s, limits, stage, taken, NULL);
                good[taken[1] + 1] = good[taken[1]] + ok;
            }
        }
    return good_row(s, 0, 0)[1] > 0;
}

// ---- the best cut of a window ----

// Between its two chains, how many places there are for the middle; one chain: 1.
static int middles(const Splitter *s, const Window *w) {
    int places = w->end - w->first - 2 * s->problem->shape.stages + 1;
    return w->chains == 1 ? 1 : places;
}

static void set_middle(Splitter *s, const Window *w, int place) {
    bool back = s->problem->shape.kind == PIPELINE_ZB_V;
    int middle = w->first + s->problem->shape.stages + place;
    s->chains = w->chains;
    s->chain[0] = (Chain){w->first, w->chains == 1 ? w->end : middle, w->chunk, back && w->chunk == 1};
    s->chain[1] = (Chain){middle, w->end, w->chunk + 1, back && w->chunk == 0};
}

static void open_window(Splitter *s, const Window *w, const int *first) {
    int stages = s->problem->shape.stages;
    int64_t units = w->end - w->first, states = w->chains == 1 ? 2 * (units + 1) : (units + 4) * (units + 4) / 4;
    s->others = arena_array(s->arena, Load, stages);
    s->before = arena_array(s->arena, double, stages + 1);
    s->good = arena_allocate(s->arena, (size_t)((stages + 1) * states) * sizeof(int));
    for (int i = 0; i < stages; i++) {
        s->others[i] = load_without(s, first, i, w->chunk, w->chunk + w->chains);
        s->before[i + 1] = s->before[i] + s->others[i].time;
    }
}

static bool possible_anywhere(Splitter *s, const Window *w, const Limits *limits) {
    for (int i = 0; i < middles(s, w); i++) {
        set_middle(s, w, i);
        if (possible(s, limits)) return true;
    }
    return false;
}

// Makes one of the limits, a whole number that is possible, as small as it can be.
static void lower(Splitter *s, const Window *w, Limits *limits, double *limit) {
    for (int i = 0; i < middles(s, w); i++) {
        double best = *limit, low = -1;
        set_middle(s, w, i);
        *limit = best - 1;
        if (best >= 1 && possible(s, limits)) {
            for (best = *limit; best - low > 1;) {
                *limit = floor((low + best) / 2);
                *(possible(s, limits) ? &best : &low) = *limit;
            }
        }
        *limit = best;
    }
}

// Units up to which each stage takes of each chain, (stages, 2), for the middle that is set.
static void walk(const Splitter *s, const Limits *limits, int *ends) {
    int from[2] = {0, 0};
    for (int i = 0; i < s->problem->shape.stages; i++) {
        check(step(s, limits, i, from, ends + 2 * i));
        memcpy(from, ends + 2 * i, sizeof from);
    }
}

static bool smaller(const int *a, const int *b, int count) {
    for (int i = 0; i < count; i++)
        if (a[i] != b[i]) return a[i] < b[i];
    return false;
}

// Takes the cut within limits that gives the first stages fewest units.
static void take_cut(Splitter *s, const Window *w, const Limits *limits, int *first) {
    int stages = s->problem->shape.stages, best = -1;
    int *ends = arena_array(s->arena, int, 2 * stages), *least = arena_array(s->arena, int, 2 * stages);
    for (int i = 0; i < middles(s, w); i++) {
        set_middle(s, w, i);
        if (!possible(s, limits)) continue;
        walk(s, limits, ends);
        if (best >= 0 && !smaller(ends, least, 2 * stages)) continue;
        best = i;
        memcpy(least, ends, 2 * sizeof(int) * (size_t)stages);
    }
    check(best >= 0);
    set_middle(s, w, best);
    for (int c = 0; c < s->chains; c++) {
        const Chain *chain = &s->chain[c];
        for (int i = 0; i < stages; i++) {
            int part = pipeline_part(&s->problem->shape, i, chain->chunk), end = least[2 * i + c];
            first[part + !chain->down] = chain->down ? chain->end - end : chain->first + end;
        }
    }
}

static Limits limits_of(const Splitter *s) {
    const SplitProblem *p = s->problem;
    double all = s->time[p->units];
    return (Limits){all, p->part > 0 ? floor(p->part * s->unit) : all, p->memory > 0 ? p->memory : INFINITY};
}

static bool keeps(const Limits *needs, const Limits *limits) {
    return needs->memory <= limits->memory && needs->part <= limits->part;
}

// Cuts the window as well as can be. Where nothing keeps the limits: so that the fullest stage has least.
static void cut(Splitter *s, const Window *w, int *first) {
    ArenaMark mark = arena_mark(s->arena);
    Limits now = needs_of(s, first), limits = limits_of(s);
    open_window(s, w, first);
    if (keeps(&now, &limits)) limits.time = now.time;
    if (keeps(&now, &limits) || possible_anywhere(s, w, &limits)) {
        lower(s, w, &limits, &limits.time);
        limits.part = fmin(limits.part, limits.time);
        lower(s, w, &limits, &limits.part);
    } else {
        limits = (Limits){limits.time, limits.time, now.memory};
        lower(s, w, &limits, &limits.memory);
    }
    take_cut(s, w, &limits, first);
    arena_rewind(s->arena, mark);
}

// ---- all windows ----

// The split whose costliest part is least, whatever its memory.
static bool begin(const SplitProblem *p, int *first, Error *error) {
    int parts = p->shape.stages * p->shape.chunks;
    SplitProblem each = *p;
    each.shape = (PipelineShape){PIPELINE_GPIPE, parts, p->shape.microbatches, 1};
    each.live = NULL;
    each.memory = each.part = 0;
    return split_units(&each, first, error);
}

// Every window once.
static void cut_all(Splitter *s, int *first) {
    const PipelineShape *shape = &s->problem->shape;
    bool single = shape->chunks == 1 || s->problem->units > EXACT_UNITS;
    for (int c = 0; c + !single < shape->chunks; c++) {
        Window w = {c, single ? 1 : 2, first[c * shape->stages], 0};
        w.end = first[(c + w.chains) * shape->stages];
        cut(s, &w, first);
    }
}

static void improve(Splitter *s, int *first) {
    enum { ROUNDS = 16 };
    int parts = s->problem->shape.stages * s->problem->shape.chunks;
    int *last = arena_array(s->arena, int, parts + 1);
    for (int round = 0; round < ROUNDS && memcmp(last, first, sizeof(int) * (size_t)(parts + 1)) != 0; round++) {
        memcpy(last, first, sizeof(int) * (size_t)(parts + 1));
        cut_all(s, first);
    }
}

// ---- what does not work ----

// "2, 3 or 4", "2 to 9"
static void list_counts(Buffer *out, int least, int most) {
    enum { LISTED = 6 };
    if (most > LISTED)
        buffer_printf(out, "%d to %d", least, most);
    else
        for (int i = least; i <= most; i++) buffer_printf(out, "%s%d", i == least ? "" : i == most ? " or " : ", ", i);
}

static bool enough_units(int units, const PipelineShape *shape, Error *error) {
    int parts = shape->stages * shape->chunks, most = units / shape->chunks;
    Buffer remedy = {0};
    if (parts <= units) return true;
    if (shape->chunks > 1) buffer_printf(&remedy, " (%d stages of %d chunks)", shape->stages, shape->chunks);
    buffer_printf(&remedy, "; ");
    list_counts(&remedy, most >= 2 ? 2 : 1, most >= 2 ? most : units / 2);
    buffer_printf(&remedy, most >= 2 ? " stages would do" : " chunks on each of 2 stages would do");
    error_set(error, ERROR_USAGE, "%d unit%s cannot make %d parts%s", units, units == 1 ? "" : "s", parts, remedy.data);
    buffer_free(&remedy);
    return false;
}

static bool nothing_fits(const SplitProblem *p, double need, Error *error) {
    bool least = p->shape.kind == PIPELINE_1F1B || p->shape.kind == PIPELINE_ZB_H1;
    return error_set(
        error, ERROR_USAGE,
        "no split into %d stages fits into %.3g GiB each: the best has %.3g GiB on its fullest stage; more "
        "memory or stages, smaller microbatches, parallel.zero: 1, train.recompute: full%s would help",
        p->shape.stages, p->memory / GIB, need / GIB,
        least ? "" : " or a schedule that holds fewer microbatches (1f1b)");
}

bool split_units(const SplitProblem *p, int *first, Error *error) {
    const PipelineShape *shape = &p->shape;
    int parts = shape->stages * shape->chunks;
    bool exact = shape->chunks == 1 || (shape->chunks == 2 && p->units <= EXACT_UNITS);
    if (!enough_units(p->units, shape, error)) return false;
    Splitter s = {.problem = p, .arena = arena_new(1 << 18)};
    read_costs(&s);
    for (int i = 0; i <= parts; i++) first[i] = i < parts ? i : p->units;
    if (exact)
        cut_all(&s, first);
    else if (begin(p, first, error))
        improve(&s, first);
    Limits needs = needs_of(&s, first), limits = limits_of(&s);
    arena_free(s.arena);
    if (keeps(&needs, &limits)) return true;
    if (needs.memory > limits.memory) return nothing_fits(p, needs.memory, error);
    return error_set(error, ERROR_USAGE, "no split into %d parts keeps each of them within %g", parts, p->part);
}

// ---- without costs ----

static bool is_block(const JointUnit *u) {
    return u->kind == UNIT_VISION_BLOCK || u->kind == UNIT_MAE_BLOCK || u->kind == UNIT_TEXT_BLOCK;
}
static bool begins_stack(const JointUnit *u) {
    return u->kind == UNIT_PATCHES || u->kind == UNIT_MAE_EMBED || u->kind == UNIT_TEXT_EMBED;
}

void split_evenly(const JointUnit *list, int units, int parts, int *first) {
    int blocks = 0, part = 1, seen = 0;
    check(parts <= units);
    for (int u = 0; u < units; u++) blocks += is_block(&list[u]);
    for (int i = 0; i <= parts; i++) first[i] = (int)((int64_t)units * i / parts);
    for (int u = 0; blocks >= parts && u < units; u++) {
        if (!is_block(&list[u])) continue;
        if (part < parts && seen == (int64_t)blocks * part / parts) {
            int at = u;
            while (begins_stack(&list[at - 1])) at--;
            first[part++] = at;
        }
        seen++;
    }
}
