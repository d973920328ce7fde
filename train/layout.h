/* How a run is spread over its processes: the mesh, and the pieces that a step is cut into. Checked before anything is
 * allocated. */
#pragma once
#include "train/train_config.h"

typedef struct Layout {
    int ranks, size[MESH_AXES];
    int pieces;             // of a step, over all ranks: a multiple of the data ranks
    PipelineShape pipeline; // of a data rank's stages: its microbatches are the pieces of the data rank
} Layout;

// False, naming what would work, where sizes do not fit each other or the model.
bool layout_resolve(const TrainConfig *, int ranks, Layout *, Error *);
// Pieces [first, *end) belong to a data rank: layout_first(l, place) .. layout_first(l, place + 1).
int layout_first(const Layout *, int data_place);
// Data ranks that have no row of any objective in a step: they work, but only wait.
int layout_idle(const TrainConfig *, const Layout *);
// "4 processes: data 2 x tensor 2 (with sequence), ZeRO 1; 8 pieces a step, 4 on each"
void layout_describe(const TrainConfig *, const Layout *, Buffer *out);
