/* See joint_units.h: which units a model has, what crosses between two of them, where parameters belong. */
#include "fusion/joint_units.h"
#include "base/error.h"
#include "fusion/joint_parts.h"
#include "kernels/nn/tensor_parallel.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIT(stream) (1u << (stream))

const char *const joint_stream_names[JOINT_STREAMS] = {
    [STREAM_TRUNK] = "trunk",
    [STREAM_MAE] = "mae",
    [STREAM_IMAGE_FEATURES] = "image features",
    [STREAM_IMAGE_TOKENS] = "image tokens",
    [STREAM_LM] = "lm",
    [STREAM_CAPTION] = "caption",
    [STREAM_PAIRS] = "pairs",
    [STREAM_TEXT_FEATURES] = "text features",
};

// ---- the list ----

typedef struct UnitList {
    JointUnit *units; // NULL: only counted
    int count;
} UnitList;

// layers 0: one unit, called `name`; else so many, "name.0", "name.1", ...
static void add_units(UnitList *list, UnitKind kind, const char *name, int64_t layers, unsigned reads,
                      unsigned writes) {
    for (int i = 0; i < (layers ? layers : 1); i++, list->count++) {
        if (!list->units) continue;
        JointUnit *u = &list->units[list->count];
        *u = (JointUnit){.kind = kind, .layer = i, .reads = reads, .writes = writes};
        if (layers)
            snprintf(u->name, sizeof u->name, "%s.%d", name, i);
        else
            snprintf(u->name, sizeof u->name, "%s", name);
    }
}

static void add_vision(UnitList *list, const JointConfig *c) {
    bool caption = c->weight[OBJECTIVE_CAPTION] > 0, pairs = c->weight[OBJECTIVE_CONTRASTIVE] > 0;
    bool mae = c->weight[OBJECTIVE_MAE] > 0;
    unsigned seen = (caption || pairs ? BIT(STREAM_TRUNK) : 0) | (mae ? BIT(STREAM_MAE) : 0);
    add_units(list, UNIT_PATCHES, "vision.patches", 0, 0, seen);
    add_units(list, UNIT_VISION_BLOCK, "vision.blocks", c->vision.layers, seen, seen);
    add_units(list, UNIT_VISION_NORM, "vision.norm", 0, seen, seen);
    if (pairs) add_units(list, UNIT_POOLING, "vision.pooling", 0, BIT(STREAM_TRUNK), BIT(STREAM_IMAGE_FEATURES));
    if (caption) add_units(list, UNIT_CONNECTOR, "connector", 0, BIT(STREAM_TRUNK), BIT(STREAM_IMAGE_TOKENS));
    if (!mae) return;
    add_units(list, UNIT_MAE_EMBED, "mae.embed", 0, BIT(STREAM_MAE), BIT(STREAM_MAE));
    add_units(list, UNIT_MAE_BLOCK, "mae.blocks", c->mae.decoder_layers, BIT(STREAM_MAE), BIT(STREAM_MAE));
    add_units(list, UNIT_MAE_HEAD, "mae.head", 0, BIT(STREAM_MAE), 0);
}

static void add_text(UnitList *list, const JointConfig *c) {
    bool caption = c->weight[OBJECTIVE_CAPTION] > 0, pairs = c->weight[OBJECTIVE_CONTRASTIVE] > 0;
    unsigned rows = (c->weight[OBJECTIVE_LM] > 0 ? BIT(STREAM_LM) : 0) | (caption ? BIT(STREAM_CAPTION) : 0) |
                    (pairs ? BIT(STREAM_PAIRS) : 0);
    add_units(list, UNIT_TEXT_EMBED, "text.embed", 0, caption ? BIT(STREAM_IMAGE_TOKENS) : 0, rows);
    add_units(list, UNIT_TEXT_BLOCK, "text.blocks", c->text.layers, rows, rows);
    add_units(list, UNIT_TEXT_HEAD, "text.head", 0, rows | (pairs ? BIT(STREAM_IMAGE_FEATURES) : 0),
              pairs ? BIT(STREAM_TEXT_FEATURES) : 0);
}

int joint_units(const JointConfig *c, JointUnit *units) {
    UnitList list = {units, 0};
    if (c->has_vision) add_vision(&list, c);
    if (joint_needs_text(c)) add_text(&list, c);
    check(list.count <= MOST_UNITS);
    return list.count;
}

// ---- lanes ----

static int lane_of_pairs(const JointConfig *c, int most) {
    bool rows = c->weight[OBJECTIVE_LM] > 0, captions = c->weight[OBJECTIVE_CAPTION] > 0;
    if (!rows || !captions) return 1;
    return most > 2 ? 2 : 0;
}

// Behind those of the others.
static int lane_of_mae(const JointConfig *c, int most) {
    bool rows = c->weight[OBJECTIVE_LM] > 0, captions = c->weight[OBJECTIVE_CAPTION] > 0;
    bool pairs = c->weight[OBJECTIVE_CONTRASTIVE] > 0;
    int others = 1 + (rows || pairs) + (rows && pairs && captions);
    return most > 3 && (captions || pairs) ? others : 0;
}

static bool sees(const JointConfig *c) {
    return c->weight[OBJECTIVE_CAPTION] > 0 || c->weight[OBJECTIVE_CONTRASTIVE] > 0 || c->weight[OBJECTIVE_MAE] > 0;
}

int joint_lane(const JointConfig *c, JointStream stream) {
    if (c->lanes < 2 || !sees(c)) return 0;
    switch (stream) {
    case STREAM_LM:
        return 1;
    case STREAM_PAIRS:
    case STREAM_TEXT_FEATURES:
        return lane_of_pairs(c, c->lanes);
    case STREAM_MAE:
        return lane_of_mae(c, c->lanes);
    default:
        return 0;
    }
}

int joint_lanes(const JointConfig *c) {
    const struct {
        Objective objective;
        JointStream stream;
    } streams[] = {{OBJECTIVE_LM, STREAM_LM}, {OBJECTIVE_CONTRASTIVE, STREAM_PAIRS}, {OBJECTIVE_MAE, STREAM_MAE}};
    int most = 0;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        int lane = c->weight[streams[i].objective] > 0 ? joint_lane(c, streams[i].stream) : 0;
        if (lane > most) most = lane;
    }
    return most + 1;
}

unsigned joint_boundary(const JointUnit *units, int count, int unit) {
    unsigned written = 0, read = 0;
    check(unit >= 0 && unit <= count);
    for (int i = 0; i < unit; i++) written |= units[i].writes;
    for (int i = unit; i < count; i++) read |= units[i].reads;
    return written & read;
}

// ---- where parameters belong ----

// What lies under `prefix` belongs to a unit of this kind; the first that fits counts.
static const struct {
    const char *prefix;
    UnitKind kind;
} owners[] = {
    {"vision.blocks", UNIT_VISION_BLOCK},
    {"vision.norm", UNIT_VISION_NORM},
    {"vision.pool", UNIT_POOLING},
    {"vision", UNIT_PATCHES},
    {"connector", UNIT_CONNECTOR},
    {"contrastive.image", UNIT_POOLING},
    {"contrastive", UNIT_TEXT_HEAD},
    {"mae.blocks", UNIT_MAE_BLOCK},
    {"mae.norm", UNIT_MAE_HEAD},
    {"mae.pixels", UNIT_MAE_HEAD},
    {"mae", UNIT_MAE_EMBED},
    {"text.blocks", UNIT_TEXT_BLOCK},
    {"text.norm", UNIT_TEXT_HEAD},
    {"text.head", UNIT_TEXT_HEAD},
    {"text.tokens@head", UNIT_TEXT_HEAD},
    {"text", UNIT_TEXT_EMBED},
};

static int find_unit(const JointUnit *units, int count, UnitKind kind, int layer) {
    for (int i = 0; i < count; i++)
        if (units[i].kind == kind && units[i].layer == layer) return i;
    return -1;
}

static bool is_block(UnitKind kind) {
    return kind == UNIT_VISION_BLOCK || kind == UNIT_MAE_BLOCK || kind == UNIT_TEXT_BLOCK;
}

int joint_unit_of(const JointUnit *units, int count, const char *parameter) {
    for (size_t i = 0; i < sizeof owners / sizeof *owners; i++) {
        size_t length = strlen(owners[i].prefix);
        if (strncmp(parameter, owners[i].prefix, length) || (parameter[length] && parameter[length] != '.')) continue;
        UnitKind kind = owners[i].kind;
        const char *rest = parameter + length;
        int layer = is_block(kind) && *rest ? (int)strtol(rest + 1, NULL, 10) : 0;
        int unit = find_unit(units, count, kind, layer);
        // A pool that nothing trains, for want of pairs, stays with the trunk.
        return unit < 0 && kind == UNIT_POOLING ? find_unit(units, count, UNIT_VISION_NORM, 0) : unit;
    }
    return -1;
}

// ---- what a stream is ----

static bool has_stream(const JointHolds *h, JointStream stream, UnitKind next) {
    switch (stream) {
    case STREAM_TRUNK: // as long as somebody ahead looks at it
        return (h->count[OBJECTIVE_CONTRASTIVE] && next <= UNIT_POOLING) || (h->slots && next <= UNIT_CONNECTOR);
    case STREAM_MAE:
        return h->count[OBJECTIVE_MAE] > 0;
    case STREAM_IMAGE_TOKENS:
        return h->slots;
    case STREAM_LM:
        return h->count[OBJECTIVE_LM] > 0;
    case STREAM_CAPTION:
        return h->count[OBJECTIVE_CAPTION] > 0;
    case STREAM_IMAGE_FEATURES:
    case STREAM_PAIRS:
    case STREAM_TEXT_FEATURES:
        return h->count[OBJECTIVE_CONTRASTIVE] > 0;
    case JOINT_STREAMS:
        break;
    }
    check_failed("a stream", __FILE__, __LINE__);
}

unsigned joint_present(const Joint *j, const JointHolds *h, int unit) {
    unsigned alive = joint_boundary(j->units, j->unit_count, unit), present = 0;
    bool end = unit == j->unit_count;
    if (end && h->features_only) alive = BIT(STREAM_IMAGE_FEATURES) | BIT(STREAM_TEXT_FEATURES);
    UnitKind next = end ? UNIT_KINDS : j->units[unit].kind;
    for (int s = 0; s < JOINT_STREAMS; s++)
        if ((alive & BIT(s)) && has_stream(h, (JointStream)s, next)) present |= BIT(s);
    return present;
}

// (batch, length, width) in the compute type; inside a stack this rank's share of the rows.
static StreamShape rows_shape(const Joint *j, int64_t batch, int64_t length, int64_t width, bool inside) {
    const Parallel *p = parameters_parallel(j->parameters);
    StreamShape s = {.rank = 3, .dtype = j->compute, .shape = {batch, length, width}};
    if (!inside || !parallel_shares_rows(p)) return s;
    int rank = comm_rank(p->tensor), ranks = comm_size(p->tensor);
    s.shape[0] = 1;
    s.shape[1] = comm_share(batch * length, rank + 1, ranks) - comm_share(batch * length, rank, ranks);
    return s;
}

unsigned joint_shared_streams(UnitKind next) {
    unsigned text = BIT(STREAM_LM) | BIT(STREAM_CAPTION) | BIT(STREAM_PAIRS);
    if (next <= UNIT_VISION_NORM) return text | BIT(STREAM_TRUNK) | BIT(STREAM_MAE);
    return next > UNIT_MAE_EMBED ? text | BIT(STREAM_MAE) : text;
}

static StreamShape mae_shape(const Joint *j, const Batch *b, UnitKind next, bool inside) {
    const VitConfig *vit = &j->config.vision;
    if (next <= UNIT_MAE_EMBED)
        return rows_shape(j, b->mae_images, mae_kept(&j->config.mae, vit) + vit->class_token, vit->width, inside);
    return rows_shape(j, b->mae_images, vit_tokens(vit), j->config.mae.decoder_width, inside);
}

static StreamShape shape_of(const Joint *j, const Batch *b, const JointHolds *h, JointStream stream, UnitKind next) {
    const JointConfig *c = &j->config;
    bool inside = joint_shared_streams(next) & BIT(stream);
    switch (stream) {
    case STREAM_TRUNK:
        return rows_shape(j, h->seen, vit_tokens(&c->vision), c->vision.width, inside);
    case STREAM_MAE:
        return mae_shape(j, b, next, inside);
    case STREAM_IMAGE_TOKENS:
        return rows_shape(j, h->seen, joint_image_tokens(c), c->text.width, inside);
    case STREAM_LM:
        return rows_shape(j, b->lm.rows, b->lm.length, c->text.width, inside);
    case STREAM_CAPTION:
        return rows_shape(j, b->caption.rows, b->caption.length, c->text.width, inside);
    case STREAM_PAIRS:
        return rows_shape(j, b->contrastive.rows, b->contrastive.length, c->text.width, inside);
    case STREAM_IMAGE_FEATURES:
    case STREAM_TEXT_FEATURES:
        return (StreamShape){.rank = 2, .dtype = F32, .shape = {b->contrastive.rows, c->embedding}};
    case JOINT_STREAMS:
        break;
    }
    check_failed("a stream", __FILE__, __LINE__);
}

unsigned joint_stream_shapes(const Joint *j, const Batch *b, const JointPass *pass, int unit,
                             StreamShape out[JOINT_STREAMS]) {
    JointHolds h = joint_holds(&j->config, b, pass, NULL);
    unsigned present = joint_present(j, &h, unit);
    UnitKind next = unit < j->unit_count ? j->units[unit].kind : UNIT_KINDS;
    for (int s = 0; s < JOINT_STREAMS; s++)
        out[s] = present & BIT(s) ? shape_of(j, b, &h, (JointStream)s, next) : (StreamShape){0};
    return present;
}

bool joint_stream_shape(const Joint *j, const Batch *b, const JointPass *pass, JointStream stream, int unit,
                        StreamShape *out) {
    StreamShape all[JOINT_STREAMS];
    unsigned present = joint_stream_shapes(j, b, pass, unit, all);
    *out = all[stream];
    return present & BIT(stream);
}

double joint_streams_bytes(const Joint *j, const Batch *b, const JointPass *pass, int unit, unsigned which) {
    StreamShape shapes[JOINT_STREAMS];
    unsigned present = which & joint_stream_shapes(j, b, pass, unit, shapes);
    double sum = 0;
    for (int s = 0; s < JOINT_STREAMS; s++) {
        if (!(present & BIT(s))) continue;
        double bytes = (double)dtype_size(shapes[s].dtype);
        for (int d = 0; d < shapes[s].rank; d++) bytes *= (double)shapes[s].shape[d];
        sum += bytes;
    }
    return sum;
}

// ---- recomputation ----

static bool lies_under(const JointUnit *u, const char *prefix) {
    size_t length = strlen(prefix);
    return !strncmp(u->name, prefix, length) && (!u->name[length] || u->name[length] == '.');
}

Recompute joint_unit_recompute(const JointConfig *c, const JointUnit *u) {
    bool named = c->recompute_units.count == 0;
    for (int i = 0; i < c->recompute_units.count; i++) named |= lies_under(u, c->recompute_units.items[i]);
    return named && is_block(u->kind) ? c->recompute : RECOMPUTE_NONE;
}

const char *joint_check_recompute(const JointConfig *c, Arena *memory) {
    int count = joint_units(c, NULL);
    JointUnit *units = arena_array(memory, JointUnit, count);
    joint_units(c, units);
    for (int i = 0; i < c->recompute_units.count; i++) {
        bool found = false;
        for (int u = 0; u < count; u++)
            found |= is_block(units[u].kind) && lies_under(&units[u], c->recompute_units.items[i]);
        if (!found)
            return arena_printf(
                memory,
                "train.recompute_units: the model has no block that is called or lies under '%s'; there are "
                "vision, text, mae and what is under them, as vision.blocks.0",
                c->recompute_units.items[i]);
    }
    return NULL;
}
