/* Which process does what: the ranks of a run as a mesh with axes. Tensor is innermost (neighbours, inside a node),
 * then expert, pipeline, data. */
#pragma once
#include "base/arena.h"
#include "base/buffer.h"
#include "kernels/comm/comm_device.h"

typedef enum MeshAxis { MESH_DATA, MESH_PIPELINE, MESH_EXPERT, MESH_TENSOR, MESH_AXES } MeshAxis;
extern const char *const mesh_axis_names[MESH_AXES]; // "data", "pipeline", "expert", "tensor"

typedef struct Mesh {
    Comm *world;           // borrowed
    Comm *axis[MESH_AXES]; // this rank's group along each axis
    int size[MESH_AXES], place[MESH_AXES];
} Mesh;

// size[MESH_DATA] 0: what the other axes leave. False, naming what would work, where the ranks do not divide.
bool mesh_resolve(int size[MESH_AXES], int ranks, Error *);
bool mesh_open(Mesh *, Comm *world, const int size[MESH_AXES], Error *); // collective
// Collective: the axes' groups may be given memory of the backend (comm_device.h), until mesh_close.
bool mesh_use_device(Mesh *, Backend *, Error *);
void mesh_close(Mesh *); // before the backend's end
void mesh_place(const int size[MESH_AXES], int rank, int place[MESH_AXES]);
void mesh_describe(const int size[MESH_AXES], const char *const *hosts, Buffer *out); // a table; hosts (ranks) or NULL
