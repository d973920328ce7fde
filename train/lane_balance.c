/* See lane_balance.h. */
#include "train/lane_balance.h"
#include "fusion/joint_units.h"
#include "train/device_fit.h"
#include "train/kernel_costs.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const double BALANCED = 0.9; // of the longest lane's work

// ---- what lanes do ----

static void take_times(void *context, const Backend *b) {
    LaneTimes *t = context;
    double met = 0;
    for (int i = 0; i < t->lanes; i++) {
        DryLane lane = dry_lane(b, i);
        t->work[i] = lane.busy;
        memcpy(t->waited[i], lane.waited, sizeof lane.waited);
        if (i && lane.now > met) met = lane.now;
        if (lane.now > t->chain) t->chain = lane.now;
    }
    t->behind = dry_lane(b, 0).now - met;
    t->work[0] -= t->behind;
    t->alone = dry_seconds(b), t->floor = dry_floor(b);
}

bool lane_times(const TrainConfig *c, const Layout *l, const GpuKind *gpu, LaneTimes *t, Error *error) {
    DryRates rates = kernel_rates_expected(gpu);
    RehearsedStep step;
    *t = (LaneTimes){.lanes = joint_lanes(&c->model)};
    return device_step_rehearse(c, l, &rates, &step, take_times, t, error);
}

// ---- balance ----

static double longest_of(const double *work, int lanes, unsigned which) {
    double longest = 0;
    for (int i = 0; i < lanes; i++)
        if (which >> i & 1) longest = fmax(longest, work[i]);
    return longest;
}

// Lanes that grow when these do.
static unsigned grown_with(unsigned lanes, const LaneSource *s, int sources) {
    for (unsigned before = 0; before != lanes;) {
        before = lanes;
        for (int i = 0; i < sources; i++)
            if (s[i].lanes & lanes) lanes |= s[i].lanes;
    }
    return lanes;
}

static int64_t rounded(double batch, int multiple) {
    return batch < multiple ? llround(batch) : multiple * llround(batch / multiple);
}

LaneBalance lane_balance(const double *work, int lanes, const LaneSource *s, int sources, int multiple,
                         int64_t *batches) {
    double longest = longest_of(work, lanes, ~0U);
    bool waits = false, changes = false;
    for (int i = 0; i < lanes; i++) waits |= work[i] < BALANCED * longest;
    for (int i = 0; i < sources; i++) {
        double own = longest_of(work, lanes, grown_with(s[i].lanes, s, sources));
        batches[i] = s[i].batch;
        if (own > 0 && own < BALANCED * longest) batches[i] = rounded((double)s[i].batch * longest / own, multiple);
        changes |= batches[i] != s[i].batch;
    }
    return !waits ? LANES_BALANCED : changes ? LANES_WAIT : LANES_TIED;
}

// ---- of a run ----

enum { LM = 1 << OBJECTIVE_LM, CAPTION = 1 << OBJECTIVE_CAPTION, PAIRS = 1 << OBJECTIVE_CONTRASTIVE };
static const struct {
    const char *name;
    JointStream stream;
    unsigned objectives; // any of them
} parts[] = {{"pictures", STREAM_TRUNK, CAPTION | PAIRS},
             {"captions", STREAM_CAPTION, CAPTION},
             {"rows of text", STREAM_LM, LM},
             {"texts of pairs", STREAM_PAIRS, PAIRS},
             {"repainted pictures", STREAM_MAE, 1 << OBJECTIVE_MAE}};
enum { PARTS = sizeof parts / sizeof *parts };

static unsigned trained(const JointConfig *m) {
    unsigned objectives = 0;
    for (int o = 0; o < OBJECTIVES; o++) objectives |= m->weight[o] > 0 ? 1U << o : 0;
    return objectives;
}

static unsigned lanes_of(const JointConfig *m, unsigned objectives) {
    unsigned lanes = 0;
    for (int i = 0; i < PARTS; i++)
        if (parts[i].objectives & objectives & trained(m)) lanes |= 1U << joint_lane(m, parts[i].stream);
    return lanes;
}

static LaneBalance propose(const TrainConfig *c, const Layout *l, const LaneTimes *t, Arena *arena, int64_t *batches) {
    const SourceConfig *of = c->data.items;
    LaneSource *sources = arena_array(arena, LaneSource, c->data.count);
    for (int i = 0; i < c->data.count; i++)
        sources[i] = (LaneSource){lanes_of(&c->model, of[i].objectives), *of[i].one_per ? 0 : of[i].batch};
    return lane_balance(t->work, t->lanes, sources, c->data.count, l->pieces, batches);
}

// ---- in words ----

static void write_lane(const JointConfig *m, const LaneTimes *t, int lane, Buffer *out) {
    Buffer names = {0};
    for (int i = 0; i < PARTS; i++)
        if (parts[i].objectives & trained(m) && joint_lane(m, parts[i].stream) == lane)
            buffer_printf(&names, "%s%s", names.size ? ", " : "", parts[i].name);
    buffer_printf(out, "  %d: %-42s %9.2f ms", lane, names.data, 1e3 * t->work[lane]);
    const char *before = "; waits";
    for (int i = 0; i < t->lanes; i++) {
        if (!(t->waited[lane][i] > 0)) continue;
        buffer_printf(out, "%s %.2f ms for lane %d", before, 1e3 * t->waited[lane][i], i);
        before = ",";
    }
    buffer_text(out, "\n");
    buffer_free(&names);
}

static void write_times(const JointConfig *m, const GpuKind *gpu, const LaneTimes *t, Buffer *out) {
    buffer_printf(out, "lanes of a step (modelled for %s, not measured)\n", gpu->key);
    for (int i = 0; i < t->lanes; i++) write_lane(m, t, i, out);
    buffer_printf(out, "  %-45s %9.2f ms\n", "behind them, in lane 0: the update", 1e3 * t->behind);
    buffer_printf(out, "  a step: %.2f ms with one lane, %.2f with %d that take no speed of one another",
                  1e3 * t->alone, 1e3 * t->chain, t->lanes);
    buffer_printf(out, "; the GPU needs at least %.2f\n", 1e3 * t->floor);
}

// What the batches come to, since not all work of a lane grows with its batch.
static bool write_proposal(const TrainConfig *c, const Layout *l, const GpuKind *gpu, const int64_t *batches,
                           Arena *arena, Buffer *out, Error *error) {
    TrainConfig then = *c;
    LaneTimes t;
    SourceConfig *sources = arena_array(arena, SourceConfig, c->data.count);
    memcpy(sources, c->data.items, (size_t)c->data.count * sizeof *sources);
    then.data.items = sources;
    buffer_text(out, "  batches that balance them:");
    for (int i = 0; i < c->data.count; i++) {
        if (batches[i] == sources[i].batch || *sources[i].one_per) continue;
        buffer_printf(out, " data.%d.batch=%" PRId64, i, batches[i]);
        sources[i].batch = batches[i];
    }
    if (!lane_times(&then, l, gpu, &t, error)) return false;
    buffer_text(out, "\n    lanes then work ");
    for (int i = 0; i < t.lanes; i++) buffer_printf(out, "%s%.2f", i ? ", " : "", 1e3 * t.work[i]);
    buffer_printf(out, " ms, a step takes %.2f, at least %.2f\n", 1e3 * t.chain, 1e3 * t.floor);
    return true;
}

bool lane_balance_plan(const TrainConfig *given, const Layout *l, const GpuKind *gpu, Arena *arena, Buffer *out,
                       Error *error) {
    TrainConfig c = *given;
    LaneTimes t;
    int64_t *batches = arena_array(arena, int64_t, c.data.count);
    if (joint_lanes(&c.model) < 2) c.model.lanes = device_fit_most_lanes(&c, l);
    if (joint_lanes(&c.model) < 2) return true;
    if (!lane_times(&c, l, gpu, &t, error)) return false;
    write_times(&c.model, gpu, &t, out);
    switch (propose(&c, l, &t, arena, batches)) {
    case LANES_BALANCED:
        buffer_text(out, "  balanced\n");
        return true;
    case LANES_TIED:
        buffer_text(
            out, "  balanced as far as batches go: the samples of lanes that wait are the longest's too, or one_per\n");
        return true;
    default:
        return write_proposal(&c, l, gpu, batches, arena, out, error);
    }
}
