/* See device_fit.h. More pieces never take more memory but for sums that wait, so the first number that fits is found
 * by halving. */
#include "train/device_fit.h"
#include "base/files.h"
#include "fusion/joint_units.h"
#include "kernels/device.h"
#include "train/agree.h"
#include "train/device_use.h"
#include "train/memory.h"
#include "train/recompute_plan.h"
#include "train/synthetic.h"
#include <inttypes.h>
#include <stdio.h>

static const double GIB = 0x1p30;

static int64_t most_rows(const TrainConfig *c) {
    int64_t rows[OBJECTIVES], most = 1;
    synthetic_rows(c, rows);
    for (int o = 0; o < OBJECTIVES; o++)
        if (rows[o] > most) most = rows[o];
    return most;
}

// The number of pieces that is `step` steps up: each data rank has as many, and a tree over them a power of two.
static int pieces_at(const TrainConfig *c, int data, int step) {
    return c->reproducible == REPRODUCIBLE_LAYOUT ? data << step : data * (step + 1);
}

// Whether a step in so many pieces fits; not where a layout cannot have them.
static bool fits(const TrainConfig *given, int ranks, int pieces, DeviceLimit limit, bool *yes, Error *error) {
    TrainConfig c = *given;
    Layout l;
    DeviceMemory m = {0};
    Error none = {0};
    c.microbatches = pieces;
    *yes = layout_resolve(&c, ranks, &l, &none);
    if (!*yes) return true;
    bool ok = device_memory_plan(&c, &l, limit, &m, error);
    *yes = m.fits;
    return ok;
}

bool device_fit_pieces(const TrainConfig *c, int ranks, DeviceLimit limit, int *pieces, Error *error) {
    Layout l;
    *pieces = 0;
    if (!layout_resolve(c, ranks, &l, error)) return false;
    int data = l.size[MESH_DATA], low = 0, high = 0;
    bool yes = false;
    while (pieces_at(c, data, high) < most_rows(c)) high++; // a row in each: no piece is smaller
    if (!fits(c, ranks, pieces_at(c, data, high), limit, &yes, error)) return false;
    if (!yes) return true;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (!fits(c, ranks, pieces_at(c, data, middle), limit, &yes, error)) return false;
        if (yes)
            high = middle;
        else
            low = middle + 1;
    }
    *pieces = pieces_at(c, data, high);
    return true;
}

// Of three: a fourth, for repainted pictures, has little to run beside.
int device_fit_most_lanes(const TrainConfig *c, const Layout *l) {
    JointConfig three = c->model;
    three.lanes = 3;
    return l->size[MESH_TENSOR] > 1 || l->size[MESH_PIPELINE] > 1 ? 1 : joint_lanes(&three);
}

// Lanes cost memory, but less time than computing again.
bool device_fit_lanes(TrainConfig *c, const Layout *l, DeviceLimit limit, Error *error) {
    TrainConfig tried = *c;
    DeviceMemory m;
    int lanes = c->model.lanes ? 1 : device_fit_most_lanes(c, l);
    if (tried.model.recompute == RECOMPUTE_AUTO) tried.model.recompute = RECOMPUTE_NONE;
    for (; lanes > 1; lanes--) {
        tried.model.lanes = lanes;
        if (!device_memory_plan(&tried, l, limit, &m, error)) return false;
        if (m.fits) break;
    }
    if (!c->model.lanes) c->model.lanes = lanes;
    return true;
}

// What would fit, in words: with the config's own recomputation, and with all of it.
static bool find_remedy(const TrainConfig *c, const Layout *l, DeviceLimit limit, char *out, size_t size,
                        Error *error) {
    TrainConfig changed = *c;
    int pieces = 0;
    if (!device_fit_pieces(&changed, l->ranks, limit, &pieces, error)) return false;
    if (!pieces && c->model.recompute != RECOMPUTE_FULL) {
        changed.model.recompute = RECOMPUTE_FULL;
        if (!device_fit_pieces(&changed, l->ranks, limit, &pieces, error)) return false;
    }
    if (!pieces) {
        snprintf(out, size,
                 "not even single samples do: make model.* smaller, or share it out (parallel.zero, "
                 "parallel.tensor, parallel.pipeline)");
        return true;
    }
    snprintf(out, size, "the largest microbatch that does is of %" PRId64 " sample%s: train.microbatches=%d%s",
             (most_rows(c) + pieces - 1) / pieces, most_rows(c) > pieces ? "s" : "", pieces,
             changed.model.recompute != c->model.recompute ? " with train.recompute=full" : "");
    return true;
}

bool device_fit_check(const TrainConfig *c, const Layout *l, DeviceLimit limit, DeviceMemory *found, Error *error) {
    DeviceMemory m;
    char remedy[256];
    if (!device_memory_plan(c, l, limit, &m, error)) return false;
    if (found) *found = m;
    if (m.fits) return true;
    if (!find_remedy(c, l, limit, remedy, sizeof remedy, error)) return false;
    return error_set(
        error, ERROR_USAGE,
        "the run does not fit into the GPU's memory: a step takes %.2f GiB (%.2f for parameters, gradients "
        "and moments, %.2f for the activations of a microbatch, %.2f for work space, %.2f for %s), %.2f "
        "GiB are there; %s",
        device_memory_total(&m) / GIB, (m.values + m.gradients + m.moments) / GIB, (m.activations + m.validation) / GIB,
        (m.scratch + m.products + m.sent + m.buckets) / GIB, m.context / GIB,
        m.measured ? "CUDA and other processes, as measured" : "CUDA itself", limit.bytes / GIB, remedy);
}

// ---- at the start of a run ----

// Of this rank: what is left of its device, with what is taken of it already.
static DeviceLimit room_of(const TrainConfig *c, const Layout *l, const DeviceRoom *room) {
    DeviceUse use;
    if (!room->backend->memory) return device_limit(memory_available(room->local) - memory_copy(c, l));
    if (!device_use(room->backend, &use)) return (DeviceLimit){.bytes = 1};
    return device_use_limit(&use, room->gpus > 0 ? (room->local + room->gpus - 1) / room->gpus : 1);
}

// The same on all ranks, each of which has opened its device by then: those that share one have all taken their part.
static DeviceLimit common_room(const TrainConfig *c, const Layout *l, const DeviceRoom *room, Comm *world) {
    double open = 1;
    if (room->backend->memory) device_use_first(room->backend);
    comm_all_reduce(world, &open, 1, COMM_F64, COMM_MIN, COMM_FAST, "devices that are open");
    DeviceLimit limit = room_of(c, l, room);
    double least[2] = {limit.bytes, -limit.context};
    comm_all_reduce(world, least, 2, COMM_F64, COMM_MIN, COMM_FAST, "memory of devices");
    limit.bytes = least[0], limit.context = -least[1];
    return limit;
}

// What a run that goes on has chosen before, in its own folder; RECOMPUTE_AUTO where it says nothing.
static Recompute chosen_before(const DeviceRoom *room, StringList *units) {
    char path[4096];
    TrainConfig before;
    Error error = {0};
    ConfigSchema schema = train_schema(room->memory);
    snprintf(path, sizeof path, "%s/config.yaml", room->resumed ? room->resumed : "");
    bool known =
        room->resumed && file_exists(path) && config_read(&schema, path, NULL, 0, &before, room->memory, &error);
    if (known) *units = before.model.recompute_units;
    return known ? before.model.recompute : RECOMPUTE_AUTO;
}

static bool choose_lanes(TrainConfig *c, const Layout *l, DeviceLimit limit, Log *log, Error *error) {
    bool chosen = !c->model.lanes;
    if (!device_fit_lanes(c, l, limit, error)) return false;
    if (chosen && c->model.lanes > 1) log_info(log, "train.lanes: auto takes %d", c->model.lanes);
    return true;
}

static bool choose(TrainConfig *c, const Layout *l, const DeviceRoom *room, DeviceLimit limit, Log *log, Error *error) {
    RecomputePlan plan = {0};
    StringList units = c->model.recompute_units;
    Buffer text = {0};
    c->model.recompute = chosen_before(room, &units);
    bool before = c->model.recompute != RECOMPUTE_AUTO;
    if (before)
        c->model.recompute_units = units;
    else if (!recompute_plan(c, l, limit, room->memory, &plan, error))
        return false;
    recompute_plan_write(&plan, c, &text);
    if (before)
        log_info(log, "train.recompute: auto takes %s, as before", text.data);
    else
        log_info(log, "train.recompute: auto takes %s: a step takes %.2f GiB, %.2f are there", text.data,
                 device_memory_total(&plan.memory) / GIB, limit.bytes / GIB);
    buffer_free(&text);
    return true;
}

bool device_fit_start(TrainConfig *c, const Layout *l, const DeviceRoom *room, Comm *world, Log *log,
                      DeviceMemory *planned, Error *error) {
    bool gpu = room->backend->memory != NULL;
    int asked = c->device;
    DeviceLimit limit = common_room(c, l, room, world);
    *planned = (DeviceMemory){0};
    if (l->size[MESH_PIPELINE] > 1) return true;
    c->device = gpu ? DEVICE_CUDA : DEVICE_CPU;
    bool ok = !gpu || choose_lanes(c, l, limit, log, error);
    ok = ok && (c->model.recompute != RECOMPUTE_AUTO || choose(c, l, room, limit, log, error));
    ok = ok && (!gpu || device_fit_check(c, l, limit, planned, error));
    c->device = asked;
    return agree(world, ok, error);
}
