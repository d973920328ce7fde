/* Pipeline schedules as tables: what each stage does with which microbatch, in which order. A runner executes the rows
 * one by one; the checker (schedule_check.h) and the simulator (schedule_time.h) read the same rows.
 *
 * The model is cut into stages x chunks parts. A microbatch runs forward through the parts in order and its gradient
 * back; the gradient of a part's weights may be taken any time after that of its input. In every table a chunk takes
 * microbatches in their order, forward as well as back: so sums of gradients are the same for all schedules, and what
 * goes from one part to the next arrives in the order in which it is read. */
#pragma once
#include "base/arena.h"
#include "base/error.h"

typedef enum {
    PIPELINE_GPIPE,       // all forwards, then all backwards (Huang et al. 2019)
    PIPELINE_1F1B,        // one forward, one backward (Narayanan et al. 2019)
    PIPELINE_INTERLEAVED, // 1F1B over several chunks a stage: smaller bubble, more messages (Narayanan et al. 2021)
    PIPELINE_ZB_H1,       // weight gradients fill the bubble, in the memory of 1F1B (Qi et al. 2024)
    PIPELINE_ZB_H2,       // the same with about twice the memory (Qi et al. 2024)
    PIPELINE_ZB_V,        // two chunks a stage, there and back again: even memory on all stages (Qi et al. 2024)
    PIPELINES
} PipelineKind;
extern const char *const pipeline_names[PIPELINES];

typedef enum { WORK_FORWARD, WORK_INPUT_GRADIENT, WORK_WEIGHT_GRADIENT, WORK_BOTH_GRADIENTS, WORKS } Work;
extern const char *const work_names[WORKS];

typedef struct Slot { // one row of a stage
    Work work;
    int microbatch, chunk;
} Slot;

typedef struct PipelineShape {
    PipelineKind kind;
    int stages, microbatches, chunks; // chunks: parts of the model that a stage holds
} PipelineShape;

typedef struct PipelineTable {
    PipelineShape shape;
    Slot **rows; // [stage]: its rows in order
    int *counts; // [stage]
} PipelineTable;

enum { MOST_STAGES = 4096, MOST_MICROBATCHES = 65536, MOST_CHUNKS = 64, MOST_ROWS = 1 << 24 };

bool pipeline_kind(const char *name, PipelineKind *, Error *);
int pipeline_chunks(PipelineKind, int asked); // asked 0: as many as the schedule is usually run with
// Whether there is such a schedule; the message says what would do instead.
bool pipeline_shape_valid(const PipelineShape *, Error *);
// Rows of one stage of a valid shape in order. Returns their number; rows == NULL counts only.
int pipeline_rows(const PipelineShape *, int stage, Slot *rows);
bool pipeline_make(const PipelineShape *, Arena *, PipelineTable *, Error *); // all stages, in the arena

// The part of the model that is `chunk` of `stage`: [0, stages x chunks), and back.
int pipeline_part(const PipelineShape *, int stage, int chunk);
void pipeline_place(const PipelineShape *, int part, int *stage, int *chunk);
// Where what a row of a part reads comes from: a forward needs the forward of the part before, a gradient that of the
// part behind, of the same microbatch. -1: from nobody (data; the loss; this stage's own rows).
int pipeline_source(const PipelineShape *, Work, int part);
