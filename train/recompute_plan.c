/* See recompute_plan.h. Blocks of a stack are alike, and the first of them are the best to compute again: a step is
 * fullest at the end of its forward pass, when these hold the least, and when their turn comes the later ones have
 * given theirs back. So a choice is a number of blocks for each stack. Stacks are taken in the order of time for bytes
 * freed, as far as it needs; then each but the last gives back what is too much. */
#include "train/recompute_plan.h"
#include "base/error.h"
#include "fusion/joint_units.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STACKS = 3 };

typedef struct Stack { // of blocks that may be computed again
    int first, count;  // units; they lie together
    double price;      // seconds for a byte that is freed
} Stack;

typedef struct Search {
    TrainConfig *config; // that is tried
    const Layout *layout;
    DeviceLimit limit;
    Arena *arena;
    Error *error;
    JointUnit *units;
    Stack stacks[STACKS];
    int stack_count;
    bool failed; // the config is wrong
} Search;

typedef struct Choice {
    Recompute mode;
    int taken[STACKS]; // the first blocks of each stack
    DeviceMemory memory;
} Choice;

// ---- what there is ----

static void find_stacks(Search *s) {
    int count = joint_units(&s->config->model, NULL);
    s->units = arena_array(s->arena, JointUnit, count);
    joint_units(&s->config->model, s->units);
    JointConfig all = s->config->model;
    all.recompute = RECOMPUTE_FULL; // which units may be
    for (int u = 0; u < count; u++) {
        if (joint_unit_recompute(&all, &s->units[u]) == RECOMPUTE_NONE) continue;
        Stack *last = s->stack_count ? &s->stacks[s->stack_count - 1] : NULL;
        if (last && s->units[last->first].kind == s->units[u].kind && last->first + last->count == u) {
            last->count++;
        } else if (s->stack_count < STACKS) {
            s->stacks[s->stack_count++] = (Stack){.first = u, .count = 1};
        }
    }
}

static int blocks_of(const Search *s) {
    int sum = 0;
    for (int i = 0; i < s->stack_count; i++) sum += s->stacks[i].count;
    return sum;
}

static int taken_of(const Search *s, const Choice *c) {
    int sum = 0;
    for (int i = 0; i < s->stack_count; i++) sum += c->taken[i];
    return sum;
}

// ---- a choice, tried ----

static void apply(const Search *s, const Choice *c, JointConfig *model) {
    int count = taken_of(s, c), at = 0;
    const char **names = arena_array(s->arena, const char *, count + 1);
    model->recompute = count ? c->mode : RECOMPUTE_NONE;
    for (int i = 0; i < s->stack_count; i++)
        for (int k = 0; k < c->taken[i]; k++) names[at++] = s->units[s->stacks[i].first + k].name;
    model->recompute_units = (StringList){names, count};
}

static bool fits(Search *s, Choice *c) {
    apply(s, c, &s->config->model);
    s->failed |= !device_memory_plan(s->config, s->layout, s->limit, &c->memory, s->error);
    return !s->failed && c->memory.fits;
}

static Choice all_of(const Search *s, Recompute mode) {
    Choice c = {.mode = mode};
    for (int i = 0; i < s->stack_count; i++) c.taken[i] = s->stacks[i].count;
    return c;
}

// The least number of blocks of a stack with which it fits, which it does with `most`; *c has it then.
static void least_of(Search *s, Choice *c, int stack, int most) {
    Choice best = *c;
    int low = 0, high = most;
    while (low < high && !s->failed) {
        int middle = low + (high - low) / 2;
        c->taken[stack] = middle;
        if (fits(s, c))
            high = middle, best = *c;
        else
            low = middle + 1;
    }
    *c = best;
}

// ---- a mode ----

static int by_price(const void *a, const void *b) {
    const Stack *x = a, *y = b;
    return x->price != y->price ? (x->price > y->price) - (x->price < y->price) : x->first - y->first;
}

static void order_stacks(Search *s, Recompute mode, const DeviceMemory *none) {
    for (int i = 0; i < s->stack_count && s->stack_count > 1; i++) {
        Choice alone = {.mode = mode};
        alone.taken[i] = s->stacks[i].count;
        (void)fits(s, &alone);
        double freed = none->activations - alone.memory.activations;
        s->stacks[i].price = freed > 0 ? (alone.memory.seconds - none->seconds) / freed : INFINITY;
    }
    qsort(s->stacks, (size_t)s->stack_count, sizeof *s->stacks, by_price);
}

// False where the mode does not do, whatever is chosen.
static bool try_mode(Search *s, Recompute mode, const DeviceMemory *none, Choice *out) {
    *out = all_of(s, mode);
    if (!fits(s, out)) return false;
    order_stacks(s, mode, none);
    *out = (Choice){.mode = mode};
    int last = 0;
    for (; last < s->stack_count; last++) { // whole stacks until it fits
        out->taken[last] = s->stacks[last].count;
        if (fits(s, out)) break;
    }
    for (int i = last; i >= 0 && !s->failed; i--) least_of(s, out, i, out->taken[i]);
    return !s->failed;
}

bool recompute_plan(TrainConfig *c, const Layout *l, DeviceLimit limit, Arena *arena, RecomputePlan *out,
                    Error *error) {
    TrainConfig tried = *c;
    Search s = {.config = &tried, .layout = l, .limit = limit, .arena = arena, .error = error};
    find_stacks(&s);
    Choice best = {.mode = RECOMPUTE_NONE}, none;
    bool found = fits(&s, &best);
    none = best;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL && !none.memory.fits && !s.failed; mode++) {
        Choice choice;
        if (!try_mode(&s, (Recompute)mode, &none.memory, &choice)) continue;
        if (!found || choice.memory.seconds < best.memory.seconds) best = choice;
        found = true;
    }
    if (!found && !s.failed) {
        best = all_of(&s, RECOMPUTE_FULL);
        (void)fits(&s, &best);
    }
    if (s.failed) return false;
    int chosen = taken_of(&s, &best), all = blocks_of(&s);
    StringList named = c->model.recompute_units;
    apply(&s, &best, &c->model);
    if (chosen == 0 || chosen == all) c->model.recompute_units = named;
    *out = (RecomputePlan){best.memory, none.memory.seconds, chosen, all};
    return true;
}

void recompute_plan_write(const RecomputePlan *p, const TrainConfig *c, Buffer *out) {
    static const char *const names[] = {"none", "selective", "full"};
    buffer_text(out, names[c->model.recompute]);
    if (p->chosen && p->chosen < p->blocks) buffer_printf(out, " of %d of %d blocks", p->chosen, p->blocks);
    if (p->chosen && p->without > 0)
        buffer_printf(out, ", for about %.1f %% of a step's time", 100 * (p->memory.seconds / p->without - 1));
}
