/* See pipeline_ways.h. All stages run at once over marks of what is done, with no time: a row takes what comes on its
 * way until it has what it reads, and waits where what it sends has no room. Where nobody can go on, all ways that
 * somebody waits for room on get room for one more (Parks 1995), until all rows have run. */
#include "train/pipeline_ways.h"
#include <stdlib.h>
#include <string.h>

typedef struct Queue { // of a way
    int *messages;     // (most) keys in the order they were sent
    int sent, taken;
} Queue;

typedef struct Play {
    const PipelineTable *table;
    const PipelineShape *shape;
    PipelineWay *ways;
    int count, parts;
    Queue *queues; // (count)
    bool *here;    // (2 parts microbatches) the message has been taken
    int *row;      // (stages) the next one
} Play;

static int stage_of(const PipelineShape *s, int part) {
    int stage, chunk;
    pipeline_place(s, part, &stage, &chunk);
    return stage;
}

static int find(const PipelineWay *ways, int count, int from, int to) {
    int i = 0;
    while (i < count && (ways[i].from != from || ways[i].to != to)) i++;
    return i;
}

static int compare(const void *x, const void *y) {
    const PipelineWay *a = x, *b = y;
    int low[2] = {a->from < a->to ? a->from : a->to, b->from < b->to ? b->from : b->to};
    if (low[0] % 2 != low[1] % 2) return low[0] % 2 - low[1] % 2;
    if (low[0] != low[1]) return low[0] - low[1];
    return a->from != b->from ? a->from - b->from : a->to - b->to;
}

static int list_ways(const PipelineShape *s, PipelineWay *ways) {
    int count = 0;
    for (int part = 1; part < s->stages * s->chunks; part++) {
        int ends[2] = {stage_of(s, part - 1), stage_of(s, part)};
        for (int back = 0; back < 2 && ends[0] != ends[1]; back++)
            if (find(ways, count, ends[back], ends[!back]) == count)
                ways[count++] = (PipelineWay){ends[back], ends[!back], LEAST_ROOM};
    }
    qsort(ways, (size_t)count, sizeof *ways, compare);
    return count;
}

// What row `r` reads, and what it sends: number of the message and the stage at its other end; -1: nothing of another.
typedef struct Ends {
    int reads, from, sends, to;
} Ends;

static Ends ends_of(const Play *p, int stage, const Slot *r) {
    const PipelineShape *s = p->shape;
    int part = pipeline_part(s, stage, r->chunk), back = r->work != WORK_FORWARD, m = s->microbatches;
    int source = pipeline_source(s, r->work, part), target = back ? part - 1 : part + 1;
    Ends e = {-1, -1, -1, -1};
    if (r->work == WORK_WEIGHT_GRADIENT) return e;
    if (source >= 0 && stage_of(s, source) != stage) {
        e.from = stage_of(s, source);
        e.reads = (2 * part + back) * m + r->microbatch;
    }
    if (target >= 0 && target < p->parts && stage_of(s, target) != stage) {
        e.to = stage_of(s, target);
        e.sends = (2 * target + back) * m + r->microbatch;
    }
    return e;
}

// Whether the row has run; else *way is the one that lacks room, or -1.
static bool run_row(Play *p, int stage, const Slot *r, int *way) {
    Ends e = ends_of(p, stage, r);
    *way = -1;
    if (e.reads >= 0) {
        Queue *q = &p->queues[find(p->ways, p->count, e.from, stage)];
        while (!p->here[e.reads] && q->taken < q->sent) p->here[q->messages[q->taken++]] = true;
        if (!p->here[e.reads]) return false;
    }
    if (e.sends < 0) return true;
    int out = find(p->ways, p->count, stage, e.to);
    Queue *q = &p->queues[out];
    if (q->sent - q->taken >= p->ways[out].room) {
        *way = out;
        return false;
    }
    q->messages[q->sent++] = e.sends;
    return true;
}

// Runs rows as long as any can; those of gradients where `back`. lacks (count): whether somebody waits for room on it.
static bool run_rows(Play *p, bool back, bool *lacks) {
    bool moved = true, all = false;
    while (moved) {
        moved = false, all = true;
        memset(lacks, 0, (size_t)p->count * sizeof *lacks);
        for (int s = 0; s < p->shape->stages; s++)
            for (int way; p->row[s] < p->table->counts[s]; p->row[s]++, moved = true) {
                const Slot *r = &p->table->rows[s][p->row[s]];
                if ((!back && r->work != WORK_FORWARD) || run_row(p, s, r, &way)) continue;
                if (way >= 0) lacks[way] = true;
                all = false;
                break;
            }
    }
    return all;
}

static void play(Play *p, bool back, bool *lacks) {
    int microbatches = p->shape->microbatches;
    memset(p->row, 0, (size_t)p->shape->stages * sizeof *p->row);
    memset(p->here, 0, (size_t)(2 * p->parts * microbatches) * sizeof *p->here);
    for (int i = 0; i < p->count; i++) p->queues[i].sent = p->queues[i].taken = 0;
    while (!run_rows(p, back, lacks)) {
        bool more = false;
        for (int i = 0; i < p->count; i++) {
            p->ways[i].room += lacks[i];
            more |= lacks[i];
        }
        check(more && "a valid table comes to its end");
    }
}

int pipeline_ways(const PipelineTable *table, Arena *arena, PipelineWay **ways) {
    const PipelineShape *s = &table->shape;
    int parts = s->stages * s->chunks;
    *ways = arena_array(arena, PipelineWay, 2 * parts);
    ArenaMark mark = arena_mark(arena);
    Play p = {.table = table, .shape = s, .ways = *ways, .count = list_ways(s, *ways), .parts = parts};
    p.queues = arena_array(arena, Queue, p.count);
    for (int i = 0; i < p.count; i++) p.queues[i].messages = arena_array(arena, int, 2 * parts * s->microbatches);
    p.here = arena_array(arena, bool, 2 * parts * s->microbatches);
    p.row = arena_array(arena, int, s->stages);
    bool *lacks = arena_array(arena, bool, p.count);
    play(&p, true, lacks);
    play(&p, false, lacks);
    arena_rewind(arena, mark);
    return p.count;
}
