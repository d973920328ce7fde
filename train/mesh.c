/* See mesh.h. Rank = ((data * pipelines + pipeline) * experts + expert) * tensors + tensor. */
#include "train/mesh.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char *const mesh_axis_names[MESH_AXES] = {"data", "pipeline", "expert", "tensor"};

enum { MOST_ROWS = 64 }; // of the table

// "parallel.pipeline 2 x parallel.tensor 4": the axes that are asked for.
static const char *asked(const int size[MESH_AXES], char text[96]) {
    bool both = size[MESH_PIPELINE] > 1 && size[MESH_TENSOR] > 1;
    if (both)
        snprintf(text, 96, "parallel.pipeline %d x parallel.tensor %d", size[MESH_PIPELINE], size[MESH_TENSOR]);
    else if (size[MESH_PIPELINE] > 1)
        snprintf(text, 96, "parallel.pipeline %d", size[MESH_PIPELINE]);
    else
        snprintf(text, 96, "parallel.tensor %d", size[MESH_TENSOR]);
    return text;
}

bool mesh_resolve(int size[MESH_AXES], int ranks, Error *error) {
    char text[96];
    check(ranks > 0);
    if (size[MESH_EXPERT] != 1)
        return error_set(error, ERROR_USAGE, "parallel.expert is %d; only 1 works for now", size[MESH_EXPERT]);
    int64_t model = (int64_t)size[MESH_PIPELINE] * size[MESH_TENSOR];
    if (ranks % model)
        return error_set(error, ERROR_USAGE, "%d process%s cannot be shared out with %s: start a multiple of %" PRId64,
                         ranks, ranks == 1 ? "" : "es", asked(size, text), model);
    int data = (int)(ranks / model);
    if (size[MESH_DATA] && size[MESH_DATA] != data)
        return error_set(error, ERROR_USAGE,
                         "parallel.data %d x %s asks for %" PRId64 " processes, but there %s %d; with "
                         "these, set parallel.data to %d (or to 0, which takes what the others leave)",
                         size[MESH_DATA], asked(size, text), size[MESH_DATA] * model, ranks == 1 ? "is" : "are", ranks,
                         data);
    size[MESH_DATA] = data;
    return true;
}

void mesh_place(const int size[MESH_AXES], int rank, int place[MESH_AXES]) {
    for (int a = MESH_AXES - 1; a >= 0; a--) {
        place[a] = rank % size[a];
        rank /= size[a];
    }
}

// The ranks that differ from this one along `axis` alone have one number.
static int line_of(const Mesh *m, MeshAxis axis) {
    int line = 0;
    for (int a = 0; a < MESH_AXES; a++) line = line * m->size[a] + (a == (int)axis ? 0 : m->place[a]);
    return line;
}

bool mesh_open(Mesh *m, Comm *world, const int size[MESH_AXES], Error *error) {
    int64_t ranks = 1;
    *m = (Mesh){.world = world};
    for (int a = 0; a < MESH_AXES; a++) ranks *= m->size[a] = size[a];
    if (ranks != comm_size(world))
        return error_set(error, ERROR_USAGE, "a mesh of %" PRId64 " places for %d processes", ranks, comm_size(world));
    mesh_place(size, comm_rank(world), m->place);
    for (int a = 0; a < MESH_AXES; a++)
        m->axis[a] = comm_split(world, line_of(m, (MeshAxis)a), m->place[a], mesh_axis_names[a]);
    return true;
}

bool mesh_use_device(Mesh *m, Backend *backend, Error *error) {
    for (int a = 0; a < MESH_AXES; a++)
        if (!comm_device_open(m->axis[a], backend, error)) return false;
    return true;
}

void mesh_close(Mesh *m) {
    for (int a = MESH_AXES - 1; a >= 0; a--) {
        comm_device_close(m->axis[a]);
        comm_free(m->axis[a]);
    }
    *m = (Mesh){0};
}

void mesh_describe(const int size[MESH_AXES], const char *const *hosts, Buffer *out) {
    int ranks = 1, place[MESH_AXES], widest = 4;
    for (int a = 0; a < MESH_AXES; a++) ranks *= size[a];
    for (int r = 0; hosts && r < ranks && r < MOST_ROWS; r++)
        if ((int)strlen(hosts[r]) > widest) widest = (int)strlen(hosts[r]);
    buffer_printf(out, "%6s", "rank");
    if (hosts) buffer_printf(out, "  %-*s", widest, "host");
    for (int a = 0; a < MESH_AXES; a++) buffer_printf(out, "  %8s", mesh_axis_names[a]);
    for (int r = 0; r < ranks && r < MOST_ROWS; r++) {
        mesh_place(size, r, place);
        buffer_printf(out, "\n%6d", r);
        if (hosts) buffer_printf(out, "  %-*s", widest, hosts[r]);
        for (int a = 0; a < MESH_AXES; a++) buffer_printf(out, "  %8d", place[a]);
    }
    if (ranks > MOST_ROWS) buffer_printf(out, "\n   ... and %d more", ranks - MOST_ROWS);
}
