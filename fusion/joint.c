/* See joint.h. A part is declared where an objective with a weight above 0 needs it, so that a checkpoint holds what
 * was trained and no more. */
#include "fusion/joint_parts.h"
#include <math.h>
#include <stdlib.h>

static const double CLIP_SCALE = 1 / 0.07; // Radford et al. 2021
static const double SIGLIP_SCALE = 10;     // Zhai et al. 2023
static const double SIGLIP_BIAS = -10;

static void declare_connector(Joint *j) {
    int64_t from = j->config.vision.width, to = j->config.text.width;
    j->connector[0] = linear_declare(j->parameters, "connector.0", to, from, true, 0);
    if (j->config.connector == CONNECTOR_MLP)
        j->connector[1] = linear_declare(j->parameters, "connector.1", to, to, true, 0);
}

static void declare_contrastive(Joint *j) {
    Parameters *p = j->parameters;
    int64_t image = j->config.vision.width, text = j->config.text.width, shared = j->config.embedding;
    bool softmax = j->config.contrastive == CONTRASTIVE_SOFTMAX;
    Init scale = {.kind = INIT_CONSTANT, .value = log(softmax ? CLIP_SCALE : SIGLIP_SCALE)};
    Init bias = {.kind = INIT_CONSTANT, .value = SIGLIP_BIAS};
    j->image_projection = linear_declare(p, "contrastive.image", shared, image, false, 1 / sqrt((double)image));
    j->text_projection = linear_declare(p, "contrastive.text", shared, text, false, 1 / sqrt((double)text));
    j->log_scale = parameters_add(p, "contrastive.log_scale", SHAPE(1), scale, false);
    if (!softmax) j->bias = parameters_add(p, "contrastive.bias", SHAPE(1), bias, false);
}

// Whether output words are in another part of the model than embedded ones. A pipeline rank that has neither cannot
// tell, yet declares the same parameters.
static bool words_are_apart(const Joint *j, const int *chunk) {
    int embed = joint_unit_of(j->units, j->unit_count, "text.tokens");
    int head = joint_unit_of(j->units, j->unit_count, "text.head");
    int32_t apart = chunk && chunk[embed] != chunk[head];
    comm_all_reduce(parameters_parallel(j->parameters)->pipeline, &apart, 1, COMM_I32, COMM_MAX, COMM_FAST,
                    "tied words");
    return apart;
}

static bool declare_text(Joint *j, const int *chunk, Error *error) {
    const TextConfig *c = &j->config.text;
    if (!text_declare(&j->text, j->parameters, j->memory, "text", c, error)) return false;
    if (c->tied && (words_are_apart(j, chunk) || parameters_parallel(j->parameters)->ordered))
        text_declare_replica(&j->text, j->parameters, j->memory, "text");
    return true;
}

static void place(Joint *j, const int *chunk) {
    for (int u = 0; u < j->unit_count; u++) {
        bool reads = j->units[u].kind == UNIT_PATCHES || j->units[u].kind == UNIT_MAE_HEAD;
        j->sees_pictures |= reads && (!chunk || chunk[u] >= 0);
    }
    for (int i = 0; i < parameters_count(j->parameters); i++) {
        int unit = joint_unit_of(j->units, j->unit_count, parameters_at(j->parameters, i)->tensor.name);
        check(unit >= 0 && "every parameter belongs to a unit");
        if (chunk) parameters_place(j->parameters, i, chunk[unit]);
    }
}

static bool declare(Joint *j, const int *chunk, Error *error) {
    const JointConfig *c = &j->config;
    Parameters *p = j->parameters;
    j->units = arena_array(j->memory, JointUnit, joint_units(c, NULL));
    j->unit_count = joint_units(c, j->units);
    j->recompute = arena_array(j->memory, Recompute, j->unit_count);
    for (int u = 0; u < j->unit_count; u++) j->recompute[u] = joint_unit_recompute(c, &j->units[u]);
    if (c->has_vision && !vit_declare(&j->vision, p, j->memory, "vision", &c->vision, error)) return false;
    if (joint_needs_text(c) && !declare_text(j, chunk, error)) return false;
    if (joint_has(j, OBJECTIVE_CAPTION)) declare_connector(j);
    if (joint_has(j, OBJECTIVE_CONTRASTIVE)) declare_contrastive(j);
    if (joint_has(j, OBJECTIVE_MAE) && !mae_declare(&j->mae, p, j->memory, "mae", &c->mae, &c->vision, error))
        return false;
    place(j, chunk);
    return true;
}

static bool freeze(Joint *j, Error *error) {
    for (int i = 0; i < j->config.freeze.count; i++) {
        const char *prefix = j->config.freeze.items[i];
        if (parameters_freeze(j->parameters, prefix)) continue;
        return error_set(error, ERROR_USAGE,
                         "model.freeze: no parameter is called or lies under '%s'; parts are vision, text, mae, "
                         "connector, contrastive and what is under them, as vision.blocks.0",
                         prefix);
    }
    return true;
}

static void copy_strings(StringList *list, Arena *memory) {
    const char **items = arena_array(memory, const char *, list->count);
    for (int i = 0; i < list->count; i++) items[i] = arena_string(memory, list->items[i]);
    list->items = items;
}

Joint *joint_new(Backend *backend, const JointConfig *config, const Parallel *parallel, Dtype compute, uint64_t seed,
                 Error *error) {
    return joint_new_part(backend, config, parallel, NULL, compute, seed, error);
}

Joint *joint_new_part(Backend *backend, const JointConfig *config, const Parallel *parallel, const int *chunk,
                      Dtype compute, uint64_t seed, Error *error) {
    Joint *j = calloc(1, sizeof *j);
    check(j);
    j->config = *config;
    j->backend = backend;
    j->memory = arena_new(64 << 10);
    j->host = arena_new(256 << 10);
    j->parameters = parameters_new(backend, parallel);
    j->compute = compute;
    if (config->fp8 && compute == BF16) parameters_use_fp8(j->parameters);
    copy_strings(&j->config.freeze, j->memory);
    copy_strings(&j->config.recompute_units, j->memory);
    const char *wrong = joint_check(config, j->memory);
    if (!wrong) wrong = joint_check_parallel(config, parallel ? comm_size(parallel->tensor) : 1, j->memory);
    bool ok = wrong ? error_set(error, ERROR_USAGE, "%s", wrong) : declare(j, chunk, error) && freeze(j, error);
    if (ok && parameters_finish(j->parameters, compute, seed, error)) return j;
    joint_free(j);
    return NULL;
}

bool joint_sees_pictures(const Joint *j) { return j->sees_pictures; }

void joint_free(Joint *j) {
    if (!j) return;
    generate_memory_free(j->speech);
    parameters_free(j->parameters);
    arena_free(j->host);
    arena_free(j->memory);
    free(j);
}

Parameters *joint_parameters(const Joint *j) { return j->parameters; }
const JointConfig *joint_config(const Joint *j) { return &j->config; }
const Text *joint_text(const Joint *j) { return &j->text; }
bool joint_has(const Joint *j, Objective objective) { return j->config.weight[objective] > 0; }
