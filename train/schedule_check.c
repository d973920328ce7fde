/* See schedule_check.h. All stages are run at once over marks of what is done, a row whenever what it reads is there;
 * since rows only ever wait for marks that stay, the order in which stages are visited does not matter. */
#include "train/schedule_check.h"

typedef enum { DONE_FORWARD = 1, DONE_INPUT = 2, DONE_WEIGHT = 4, DONE_ALL = 7 } Mark;

typedef struct Run {
    const PipelineTable *table;
    uint8_t *marks;  // (parts, microbatches)
    int *next;       // (stages): the row that comes next
    int (*taken)[3]; // (parts): forwards, input gradients, weight gradients
    StagePeak *now;  // (stages)
    StagePeak *peaks;
} Run;

static const Mark makes[WORKS] = {DONE_FORWARD, DONE_INPUT, DONE_WEIGHT, DONE_INPUT | DONE_WEIGHT};
static const Mark wants[WORKS] = {0, DONE_FORWARD, DONE_FORWARD | DONE_INPUT, DONE_FORWARD};

static uint8_t *marks_of(const Run *r, int part, int microbatch) {
    return r->marks + (int64_t)part * r->table->shape.microbatches + microbatch;
}

static bool fault(const Run *r, int stage, const char *what, Error *error) {
    const Slot *row = &r->table->rows[stage][r->next[stage]];
    return error_set(error, ERROR_FAILED, "stage %d, row %d (%s of microbatch %d, chunk %d): %s", stage, r->next[stage],
                     (unsigned)row->work < WORKS ? work_names[row->work] : "?", row->microbatch, row->chunk, what);
}

// What a stage alone decides.
static bool legal(const Run *r, int stage, Error *error) {
    const PipelineShape *s = &r->table->shape;
    const Slot *row = &r->table->rows[stage][r->next[stage]];
    if ((unsigned)row->work >= WORKS || row->microbatch < 0 || row->microbatch >= s->microbatches || row->chunk < 0 ||
        row->chunk >= s->chunks)
        return fault(r, stage, "there is no such thing", error);
    int part = pipeline_part(s, stage, row->chunk);
    uint8_t done = *marks_of(r, part, row->microbatch);
    if (done & makes[row->work]) return fault(r, stage, "done before", error);
    if ((done & wants[row->work]) != wants[row->work])
        return fault(r, stage, done & DONE_FORWARD ? "before its input gradient" : "before its forward", error);
    for (int i = 0; i < 3; i++)
        if (makes[row->work] >> i & 1 && r->taken[part][i] != row->microbatch)
            return fault(r, stage, "not in the order of microbatches", error);
    return true;
}

// Whether what the row reads from another part is there.
static bool ready(const Run *r, int stage) {
    const PipelineShape *s = &r->table->shape;
    const Slot *row = &r->table->rows[stage][r->next[stage]];
    int source = pipeline_source(s, row->work, pipeline_part(s, stage, row->chunk));
    Mark wanted = row->work == WORK_FORWARD ? DONE_FORWARD : DONE_INPUT;
    return source < 0 || *marks_of(r, source, row->microbatch) & wanted;
}

static void advance(Run *r, int stage) {
    const Slot *row = &r->table->rows[stage][r->next[stage]++];
    int part = pipeline_part(&r->table->shape, stage, row->chunk);
    Mark made = makes[row->work];
    StagePeak *now = &r->now[stage], *peak = &r->peaks[stage];
    *marks_of(r, part, row->microbatch) |= (uint8_t)made;
    if (made & DONE_FORWARD) {
        now->live++;
        now->whole++;
    }
    if (now->live > peak->live) peak->live = now->live;
    if (now->whole > peak->whole) peak->whole = now->whole;
    if (made & DONE_INPUT) now->whole--;
    if (made & DONE_WEIGHT) now->live--;
    for (int i = 0; i < 3; i++) r->taken[part][i] += made >> i & 1;
}

static bool run_all(Run *r, Error *error) {
    const PipelineTable *t = r->table;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < t->shape.stages; i++)
            for (; r->next[i] < t->counts[i]; moved = true) {
                if (!legal(r, i, error)) return false;
                if (!ready(r, i)) break;
                advance(r, i);
            }
    }
    for (int i = 0; i < t->shape.stages; i++)
        if (r->next[i] < t->counts[i]) return fault(r, i, "waits for ever for what it reads", error);
    return true;
}

static bool complete(const Run *r, Error *error) {
    const PipelineShape *s = &r->table->shape;
    for (int part = 0; part < s->stages * s->chunks; part++)
        for (int k = 0, stage, chunk; k < s->microbatches; k++) {
            uint8_t done = *marks_of(r, part, k);
            if (done == DONE_ALL) continue;
            pipeline_place(s, part, &stage, &chunk);
            int missing =
                done & DONE_FORWARD ? (done & DONE_INPUT ? WORK_WEIGHT_GRADIENT : WORK_INPUT_GRADIENT) : WORK_FORWARD;
            return error_set(error, ERROR_FAILED, "stage %d never runs the %s of microbatch %d, chunk %d", stage,
                             work_names[missing], k, chunk);
        }
    return true;
}

bool pipeline_check(const PipelineTable *t, StagePeak *peaks, Error *error) {
    const PipelineShape *s = &t->shape;
    int64_t parts = (int64_t)s->stages * s->chunks;
    Arena *arena = arena_new((size_t)(parts * s->microbatches + 64 * parts + 4096));
    Run r = {.table = t,
             .marks = arena_array(arena, uint8_t, parts * s->microbatches),
             .next = arena_array(arena, int, s->stages),
             .taken = arena_zeroed(arena, sizeof(int[3]) * (size_t)parts),
             .now = arena_array(arena, StagePeak, s->stages),
             .peaks = arena_array(arena, StagePeak, s->stages)};
    bool ok = run_all(&r, error) && complete(&r, error);
    for (int i = 0; ok && peaks && i < s->stages; i++) peaks[i] = r.peaks[i];
    arena_free(arena);
    return ok;
}
