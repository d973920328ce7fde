/* See schedule_trace.h. */
#include "train/schedule_trace.h"
#include <stdio.h>
#include <string.h>

static const char *const row_names[WORKS] = {"forward", "input", "weight", "both"};

void schedule_trace_note(Trace *t, const PipelineShape *s, const int size[MESH_AXES], const int place[MESH_AXES]) {
    char values[256];
    snprintf(values, sizeof values,
             "{\"schedule\": \"%s\", \"stages\": %d, \"microbatches\": %d, \"chunks\": %d, \"stage\": %d, \"data\": "
             "[%d, %d], \"tensor\": [%d, %d]}",
             pipeline_names[s->kind], s->stages, s->microbatches, s->chunks, place[MESH_PIPELINE], place[MESH_DATA],
             size[MESH_DATA], place[MESH_TENSOR], size[MESH_TENSOR]);
    trace_note(t, "pipeline", values);
}

void schedule_trace_name(const Slot *row, char name[48]) {
    snprintf(name, 48, "%s %d.%d", row_names[row->work], row->microbatch, row->chunk);
}

bool schedule_trace_slot(const char *name, Slot *row) {
    char work[16];
    int end = 0;
    if (sscanf(name, "%15s %d.%d%n", work, &row->microbatch, &row->chunk, &end) != 3 || name[end]) return false;
    for (int w = 0; w < WORKS; w++)
        if (!strcmp(work, row_names[w])) return row->work = (Work)w, true;
    return false;
}

void schedule_trace_row(Trace *t, const Slot *row, double begin, double end) {
    char name[48];
    if (!t) return;
    schedule_trace_name(row, name);
    trace_slice(t, "stage", name, begin, end);
}
