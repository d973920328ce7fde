/* See layout.h. */
#include "train/layout.h"
#include "fusion/joint_units.h"
#include <inttypes.h>

static bool power_of_two(int64_t n) { return (n & (n - 1)) == 0; }

static int64_t next_power_of_two(int64_t n) {
    int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

// Sums go along one binary tree over the pieces, of which each data rank holds a whole branch.
static bool check_reproducible(const TrainConfig *c, int64_t data, Error *error) {
    if (c->reproducible != REPRODUCIBLE_LAYOUT) return true;
    if (!power_of_two(data))
        return error_set(error, ERROR_USAGE,
                         "train.reproducible: layout needs a power of two of data ranks, not %" PRId64 "; %" PRId64
                         " or %" PRId64 " would work, or train.reproducible: run",
                         data, next_power_of_two(data) / 2, next_power_of_two(data));
    if (power_of_two(c->microbatches) && c->microbatches % data == 0) return true;
    int64_t above = next_power_of_two(c->microbatches > data ? c->microbatches : data);
    return error_set(error, ERROR_USAGE,
                     "train.reproducible: layout needs train.microbatches to be a power of two and a multiple of the "
                     "data ranks (%" PRId64 "), not %" PRId64 "; %" PRId64 " or %" PRId64 " would work",
                     data, c->microbatches, above, 2 * above);
}

static bool check_model(const TrainConfig *c, int tensor, Error *error) {
    Arena *memory = arena_new(4096);
    const char *wrong = joint_check_parallel(&c->model, tensor, memory);
    bool ok = !wrong || error_set(error, ERROR_USAGE, "%s", wrong);
    arena_free(memory);
    return ok;
}

// Where the processes do not divide by parallel.tensor: what does, and fits the model. With a pipeline mesh_resolve
// says it.
static bool check_ranks(const TrainConfig *c, int ranks, Error *error) {
    int tensor = (int)c->parallel.size[MESH_TENSOR];
    if (ranks % tensor == 0 || c->parallel.size[MESH_PIPELINE] > 1) return true;
    Arena *memory = arena_new(4096);
    Buffer fit = {0};
    for (int t = 1; t <= ranks; t++)
        if (ranks % t == 0 && !joint_check_parallel(&c->model, t, memory))
            buffer_printf(&fit, "%s%d", fit.size ? ", " : "", t);
    error_set(error, ERROR_USAGE,
              "%d processes cannot be shared out with parallel.tensor %d: start a multiple of %d, or set "
              "parallel.tensor to one of %s",
              ranks, tensor, tensor, fit.data);
    buffer_free(&fit);
    arena_free(memory);
    return false;
}

// Of the pipeline alone; its parts are cut later (stages.h).
static bool check_pipeline(const TrainConfig *c, Layout *l, Error *error) {
    const ParallelConfig *p = &c->parallel;
    int stages = l->size[MESH_PIPELINE], units = joint_units(&c->model, NULL);
    if (stages == 1) {
        l->pipeline = (PipelineShape){PIPELINE_1F1B, 1, l->pieces / l->size[MESH_DATA], 1};
        return true;
    }
    l->pipeline = (PipelineShape){(PipelineKind)p->schedule, stages, l->pieces / l->size[MESH_DATA],
                                  pipeline_chunks((PipelineKind)p->schedule, (int)p->chunks)};
    if (c->model.recompute == RECOMPUTE_AUTO)
        return error_set(error, ERROR_USAGE,
                         "train.recompute: auto does not go with parallel.pipeline %d: choose none, selective or full "
                         "by what `bifocal plan stages` says of each",
                         stages);
    if (p->zero >= 2)
        return error_set(error, ERROR_USAGE,
                         "parallel.zero %d does not go with parallel.pipeline %d: every microbatch would %s; take "
                         "parallel.zero 1, which shares out the states",
                         (int)p->zero, stages,
                         p->zero == 2 ? "have its gradients reduced by itself"
                                      : "have the parameters gathered again for each of its passes");
    if (!pipeline_shape_valid(&l->pipeline, error))
        return error_prefix(error, "parallel.schedule %s, parallel.pipeline %d, train.microbatches %d",
                            pipeline_names[p->schedule], stages, l->pieces);
    int parts = stages * l->pipeline.chunks;
    if (parts > units)
        return error_set(error, ERROR_USAGE,
                         "parallel.pipeline %d with %d part%s on each stage: this model has %d units, too few for %d "
                         "parts; at most %d stages would do%s",
                         stages, l->pipeline.chunks, l->pipeline.chunks == 1 ? "" : "s", units, parts,
                         units / l->pipeline.chunks,
                         l->pipeline.chunks > 1 ? ", or a schedule of one part a stage" : "");
    return true;
}

bool layout_resolve(const TrainConfig *c, int ranks, Layout *l, Error *error) {
    *l = (Layout){.ranks = ranks};
    for (int a = 0; a < MESH_AXES; a++) l->size[a] = (int)c->parallel.size[a];
    if (!check_ranks(c, ranks, error) || !mesh_resolve(l->size, ranks, error)) return false;
    int64_t data = l->size[MESH_DATA];
    if (!check_model(c, l->size[MESH_TENSOR], error) || !check_reproducible(c, data, error)) return false;
    l->pieces = (int)((c->microbatches + data - 1) / data * data);
    return check_pipeline(c, l, error);
}

int layout_first(const Layout *l, int data_place) {
    return (int)((int64_t)l->pieces * data_place / l->size[MESH_DATA]);
}

int layout_idle(const TrainConfig *c, const Layout *l) {
    int64_t rows[OBJECTIVES] = {0}, data = l->size[MESH_DATA];
    int idle = 0;
    for (int i = 0; i < c->data.count; i++) {
        const SourceConfig *s = (const SourceConfig *)c->data.items + i;
        for (int o = 0; o < OBJECTIVES; o++) rows[o] += s->objectives >> o & 1 ? s->batch : 0;
    }
    for (int64_t d = 0; d < data; d++) {
        bool any = false;
        for (int o = 0; o < OBJECTIVES; o++) any |= batch_share(rows[o], d, data) < batch_share(rows[o], d + 1, data);
        idle += !any;
    }
    return idle;
}

void layout_describe(const TrainConfig *c, const Layout *l, Buffer *out) {
    const ParallelConfig *p = &c->parallel;
    buffer_printf(out, "%d process%s: data %d", l->ranks, l->ranks == 1 ? "" : "es", l->size[MESH_DATA]);
    for (int a = MESH_PIPELINE; a < MESH_AXES; a++)
        if (l->size[a] > 1) buffer_printf(out, " x %s %d", mesh_axis_names[a], l->size[a]);
    if (l->size[MESH_PIPELINE] > 1) buffer_printf(out, " (%s)", pipeline_names[l->pipeline.kind]);
    buffer_printf(out, "%s, ZeRO %d; %d piece%s a step, %d on each data rank%s", p->sequence ? " (with sequence)" : "",
                  (int)p->zero, l->pieces, l->pieces == 1 ? "" : "s", l->pieces / l->size[MESH_DATA],
                  c->reproducible == REPRODUCIBLE_LAYOUT ? "; the same bits for every number of data ranks and stages"
                                                         : "");
}
