/* See pipeline_ways.h. */
#include "train/pipeline_ways.h"
#include <stdlib.h>

static int stage_of(const PipelineShape *s, int part) {
    int stage, chunk;
    pipeline_place(s, part, &stage, &chunk);
    return stage;
}

static bool known(const PipelineWay *ways, int count, int from, int to) {
    for (int i = 0; i < count; i++)
        if (ways[i].from == from && ways[i].to == to) return true;
    return false;
}

// Those of stages 0 and 1, 2 and 3 and so on come first, at once; then those between 1 and 2, 3 and 4.
static int compare(const void *x, const void *y) {
    const PipelineWay *a = x, *b = y;
    int low[2] = {a->from < a->to ? a->from : a->to, b->from < b->to ? b->from : b->to};
    if (low[0] % 2 != low[1] % 2) return low[0] % 2 - low[1] % 2;
    if (low[0] != low[1]) return low[0] - low[1];
    return a->from != b->from ? a->from - b->from : a->to - b->to;
}

int pipeline_ways(const PipelineShape *s, PipelineWay *ways) {
    int count = 0;
    for (int part = 1; part < s->stages * s->chunks; part++) {
        int ends[2] = {stage_of(s, part - 1), stage_of(s, part)};
        for (int back = 0; back < 2 && ends[0] != ends[1]; back++)
            if (!known(ways, count, ends[back], ends[!back])) ways[count++] = (PipelineWay){ends[back], ends[!back]};
    }
    qsort(ways, (size_t)count, sizeof *ways, compare);
    return count;
}
