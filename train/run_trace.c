/* See run_trace.h. */
#include "train/run_trace.h"
#include "train/agree.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char *part_path(const char *path, int rank) {
    char *part = NULL;
    check(asprintf(&part, "%s.rank-%05d", path, rank) > 0);
    return part;
}

static bool write_part(const Trace *t, const char *path, int rank, bool keep, Error *error) {
    char *part = part_path(path, rank);
    bool ok = trace_write(t, part, error);
    if (ok && !keep) unlink(part);
    free(part);
    return ok;
}

bool run_trace_open(Trace **out, const char *path, Comm *world, Error *error) {
    int rank = comm_rank(world);
    *out = path ? trace_new(rank) : NULL;
    if (!path) return true;
    if (!agree(world, write_part(*out, path, rank, false, error), error)) return false;
    comm_set_trace(world, *out);
    return true;
}

static bool join(const char *path, int ranks, Error *error) {
    char **parts = calloc((size_t)ranks, sizeof *parts);
    check(parts);
    for (int i = 0; i < ranks; i++) parts[i] = part_path(path, i);
    bool ok = trace_join((const char *const *)parts, ranks, path, error);
    for (int i = 0; i < ranks; i++) {
        if (ok) unlink(parts[i]);
        free(parts[i]);
    }
    free(parts);
    return ok;
}

bool run_trace_write(const Trace *t, const char *path, Comm *world, Error *error) {
    int rank = comm_rank(world);
    if (!t) return true;
    if (!agree(world, write_part(t, path, rank, true, error), error)) return false;
    return agree(world, rank > 0 || join(path, comm_size(world), error), error);
}

void run_trace_leave(const Trace *t, const char *path, int rank) {
    Error ignored;
    if (t) write_part(t, path, rank, true, &ignored);
}

void run_trace_free(Trace *t, Comm *world) {
    if (!t) return;
    comm_set_trace(world, NULL);
    trace_free(t);
}
