/* See schedules.h. Stage i counts from 0, of p; m microbatches, v chunks. */
#include "train/schedules.h"
#include "base/config.h"
#include <string.h>

const char *const pipeline_names[PIPELINES] = {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"};
const char *const work_names[WORKS] = {"forward", "input gradient", "weight gradient", "backward"};

// ---- which there are ----

bool pipeline_kind(const char *name, PipelineKind *kind, Error *error) {
    for (int k = 0; k < PIPELINES; k++)
        if (!strcmp(name, pipeline_names[k])) {
            *kind = (PipelineKind)k;
            return true;
        }
    const char *near = nearest_word(name, pipeline_names, PIPELINES);
    return error_set(error, ERROR_USAGE,
                     "no schedule '%s'%s%s%s: there are gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v", name,
                     near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
}

int pipeline_chunks(PipelineKind kind, int asked) {
    if (asked) return asked;
    return kind == PIPELINE_INTERLEAVED || kind == PIPELINE_ZB_V ? 2 : 1;
}

static bool in_range(const char *what, int value, int most, Error *error) {
    if (value >= 1 && value <= most) return true;
    return error_set(error, ERROR_USAGE, "%s %d is not from 1 to %d", what, value, most);
}

static bool interleaved_valid(const PipelineShape *s, Error *error) {
    int p = s->stages, m = s->microbatches, below = m / p * p;
    if (s->chunks < 2)
        return error_set(error, ERROR_USAGE, "interleaved wants at least 2 chunks a stage; with 1 take 1f1b");
    if (m % p == 0) return true;
    if (!below)
        return error_set(error, ERROR_USAGE,
                         "interleaved over %d stages wants microbatches in groups of %d: %d instead of %d, or 1f1b", p,
                         p, p, m);
    return error_set(error, ERROR_USAGE,
                     "interleaved over %d stages wants microbatches in groups of %d: %d or %d instead of %d, or 1f1b",
                     p, p, below, below + p, m);
}

bool pipeline_shape_valid(const PipelineShape *s, Error *error) {
    const char *name = pipeline_names[s->kind];
    if (!in_range("stages", s->stages, MOST_STAGES, error) ||
        !in_range("microbatches", s->microbatches, MOST_MICROBATCHES, error) ||
        !in_range("chunks", s->chunks, MOST_CHUNKS, error))
        return false;
    if (3LL * s->stages * s->microbatches * s->chunks > MOST_ROWS)
        return error_set(error, ERROR_USAGE, "%d stages x %d microbatches x %d chunks are more than %d rows", s->stages,
                         s->microbatches, s->chunks, MOST_ROWS);
    if (s->kind == PIPELINE_INTERLEAVED) return interleaved_valid(s, error);
    if (s->kind == PIPELINE_ZB_V && s->chunks != 2)
        return error_set(error, ERROR_USAGE, "zb-v has 2 chunks a stage, not %d", s->chunks);
    if (s->kind != PIPELINE_ZB_V && s->chunks != 1)
        return error_set(error, ERROR_USAGE, "%s has 1 chunk a stage, not %d; for more take interleaved", name,
                         s->chunks);
    return true;
}

// ---- who holds what ----

// ZB-V goes down the stages and up again; all others start again at the first stage.
int pipeline_part(const PipelineShape *s, int stage, int chunk) {
    bool back = s->kind == PIPELINE_ZB_V && chunk == 1;
    return back ? 2 * s->stages - 1 - stage : chunk * s->stages + stage;
}

void pipeline_place(const PipelineShape *s, int part, int *stage, int *chunk) {
    *chunk = part / s->stages;
    *stage = s->kind == PIPELINE_ZB_V && *chunk == 1 ? 2 * s->stages - 1 - part : part % s->stages;
}

int pipeline_source(const PipelineShape *s, Work work, int part) {
    if (work == WORK_FORWARD) return part - 1;
    if (work == WORK_WEIGHT_GRADIENT || part == s->stages * s->chunks - 1) return -1;
    return part + 1;
}

// ---- rows ----

typedef struct Rows {
    Slot *rows; // NULL: counted only
    int count, microbatches;
} Rows;

// Microbatches behind the last one are left out: a legal table stays legal without them.
static void put(Rows *r, Work work, int microbatch, int chunk) {
    if (microbatch >= r->microbatches) return;
    if (r->rows) r->rows[r->count] = (Slot){work, microbatch, chunk};
    r->count++;
}

static void gpipe(const PipelineShape *s, Rows *r) {
    for (int k = 0; k < s->microbatches; k++) put(r, WORK_FORWARD, k, 0);
    for (int k = 0; k < s->microbatches; k++) put(r, WORK_BOTH_GRADIENTS, k, 0);
}

// As many forwards as there are stages behind; then one forward, one backward.
static void one_forward_one_backward(const PipelineShape *s, int stage, Rows *r) {
    int ahead = s->stages - stage - 1;
    for (int k = 0; k < ahead; k++) put(r, WORK_FORWARD, k, 0);
    for (int k = 0; k < s->microbatches; k++) {
        put(r, WORK_FORWARD, k + ahead, 0);
        put(r, WORK_BOTH_GRADIENTS, k, 0);
    }
}

// Steps in the order of groups of p microbatches, each through all chunks; backwards with the chunks reversed.
static void interleaved(const PipelineShape *s, int stage, Rows *r) {
    int p = s->stages, v = s->chunks, total = s->microbatches * v, ahead = 2 * (p - stage - 1) + (v - 1) * p;
    if (ahead > total) ahead = total;
    for (int k = 0; k < total + ahead; k++) {
        int f = k, b = k - ahead;
        if (f < total) put(r, WORK_FORWARD, f / (p * v) * p + f % p, f % (p * v) / p);
        if (b >= 0) put(r, WORK_BOTH_GRADIENTS, b / (p * v) * p + b % p, v - 1 - b % (p * v) / p);
    }
}

// ZB-H1 and ZB-H2: `ahead` forwards, then forward, input gradient and the weight gradient of `lag` microbatches before.
// What a stage holds back so runs at the end, where it would wait.
static void zero_bubble(const PipelineShape *s, int ahead, int lag, Rows *r) {
    int m = s->microbatches;
    for (int k = 0; k < ahead; k++) put(r, WORK_FORWARD, k, 0);
    for (int k = 0; k < m; k++) {
        put(r, WORK_FORWARD, k + ahead, 0);
        put(r, WORK_INPUT_GRADIENT, k, 0);
        if (k >= lag) put(r, WORK_WEIGHT_GRADIENT, k - lag, 0);
    }
    for (int k = m > lag ? m - lag : 0; k < m; k++) put(r, WORK_WEIGHT_GRADIENT, k, 0);
}

typedef struct Counters { // microbatches of chunk 0 and 1 done so far
    int forward[2], input[2], weight[2];
} Counters;

static void forward(Rows *r, Counters *c, int chunk) { put(r, WORK_FORWARD, c->forward[chunk]++, chunk); }
static void input(Rows *r, Counters *c, int chunk) { put(r, WORK_INPUT_GRADIENT, c->input[chunk]++, chunk); }
static void weight(Rows *r, Counters *c, int chunk) { put(r, WORK_WEIGHT_GRADIENT, c->weight[chunk]++, chunk); }
static void gradients(Rows *r, Counters *c, int chunk) {
    input(r, c, chunk);
    weight(r, c, chunk);
}

// The last stage turns a microbatch round at once, so that it comes back up while others go down. Below 2p - 1
// microbatches it is the table of 2p - 1 without those that are not there.
static void zero_bubble_v(const PipelineShape *s, int stage, Rows *r) {
    int p = s->stages, m = s->microbatches > 2 * p - 1 ? s->microbatches : 2 * p - 1;
    Counters c = {0};
    for (int k = 0; k < 2 * (p - stage) - 1; k++) forward(r, &c, 0);
    for (int k = 0; k < stage; k++) {
        forward(r, &c, 1);
        forward(r, &c, 0);
    }
    for (int k = 0; k < p - stage; k++) {
        forward(r, &c, 1);
        gradients(r, &c, 1);
    }
    while (c.forward[1] < m) {
        if (c.forward[0] < m) forward(r, &c, 0);
        gradients(r, &c, 0);
        forward(r, &c, 1);
        gradients(r, &c, 1);
    }
    for (int k = 0; k < stage; k++) {
        input(r, &c, 0);
        input(r, &c, 1);
    }
    for (int k = 0; k < p - stage; k++) {
        input(r, &c, 0);
        weight(r, &c, 0);
    }
    while (c.weight[1] < c.input[1]) weight(r, &c, 1);
    while (c.weight[0] < c.input[0]) weight(r, &c, 0);
}

int pipeline_rows(const PipelineShape *s, int stage, Slot *rows) {
    Rows r = {.rows = rows, .microbatches = s->microbatches};
    check((unsigned)s->kind < PIPELINES);
    switch (s->kind) {
    case PIPELINE_GPIPE:
        gpipe(s, &r);
        break;
    case PIPELINE_1F1B:
        one_forward_one_backward(s, stage, &r);
        break;
    case PIPELINE_INTERLEAVED:
        interleaved(s, stage, &r);
        break;
    case PIPELINE_ZB_H1:
        zero_bubble(s, s->stages - stage - 1, stage, &r);
        break;
    case PIPELINE_ZB_H2:
        zero_bubble(s, 2 * (s->stages - stage - 1), 2 * stage, &r);
        break;
    default:
        zero_bubble_v(s, stage, &r);
    }
    return r.count;
}

bool pipeline_make(const PipelineShape *s, Arena *arena, PipelineTable *t, Error *error) {
    if (!pipeline_shape_valid(s, error)) return false;
    *t = (PipelineTable){
        .shape = *s, .rows = arena_array(arena, Slot *, s->stages), .counts = arena_array(arena, int, s->stages)};
    for (int i = 0; i < s->stages; i++) {
        t->counts[i] = pipeline_rows(s, i, NULL);
        t->rows[i] = arena_array(arena, Slot, t->counts[i]);
        pipeline_rows(s, i, t->rows[i]);
    }
    return true;
}
