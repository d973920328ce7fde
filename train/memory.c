/* See memory.h. The estimate is a lower bound (fusion/joint_memory.c): weights, gradients, moments, and the activations
 * of one microbatch. */
#include "train/memory.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

static const double GIB = 0x1p30;

// The number behind "name" in /proc/meminfo, in bytes; 0 where it is not there.
static double machine_bytes(const char *name) {
    char line[128];
    double kib = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && sscanf(line + strlen(name), ": %lf", &kib) == 1) break;
    if (file) fclose(file);
    return kib * 1024;
}

// The limit of the control group, as a container has one; INFINITY where there is none.
static double group_limit(void) {
    static const char *const names[] = {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    for (int i = 0; i < 2; i++) {
        double bytes = 0;
        FILE *file = fopen(names[i], "re");
        int found = file ? fscanf(file, "%lf", &bytes) : 0; // "max": no number
        if (file) fclose(file);
        if (found == 1 && bytes > 0) return bytes;
    }
    return INFINITY;
}

double memory_available(int processes) {
    double machine = machine_bytes("MemAvailable") + machine_bytes("SwapFree");
    double least = fmin(machine > 0 ? machine : INFINITY, group_limit()) / processes;
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        least = fmin(least, (double)limit.rlim_cur);
    return least;
}

// Of one piece of a step. A source that goes by the values of a field has as many rows as there are values: at least
// one.
static JointSizes pass_sizes(const TrainConfig *c, int pieces) {
    JointSizes s = {0};
    for (int i = 0; i < c->data.count; i++) {
        const SourceConfig *source = (const SourceConfig *)c->data.items + i;
        double rows = *source->one_per ? 1 : (double)source->batch / pieces;
        bool lm = source->objectives >> OBJECTIVE_LM & 1, caption = source->objectives >> OBJECTIVE_CAPTION & 1;
        bool pairs = source->objectives >> OBJECTIVE_CONTRASTIVE & 1, mae = source->objectives >> OBJECTIVE_MAE & 1;
        if (lm) s.tokens += rows * (double)c->lm_length;
        if (caption) s.tokens += rows * (double)c->caption_length;
        if (pairs) s.tokens += rows * (double)c->contrastive_length;
        if (caption || pairs) s.images += rows;
        if (mae) s.mae_images += rows;
    }
    return s;
}

JointMemory memory_estimate(const TrainConfig *c, const Layout *l) {
    JointSizes sizes = pass_sizes(c, l->pieces);
    ParallelSizes spread = {.tensor = l->size[MESH_TENSOR],
                            .data = l->size[MESH_DATA],
                            .sequence = c->parallel.sequence,
                            .zero = (int)c->parallel.zero};
    JointMemory all = joint_memory(&c->model, &sizes, c->precision ? BF16 : F32, &spread);
    double stages = l->size[MESH_PIPELINE]; // one of them holds at least so much
    return (JointMemory){all.model / stages, all.activations / stages};
}

// Masters, and both moments of what is trained: shared out over all ranks, whatever they hold.
double memory_copy(const TrainConfig *c, const Layout *l) {
    double bytes = (c->model.freeze.count ? 1 : 3) * (double)sizeof(float);
    return bytes * joint_weights(&c->model) / l->ranks;
}

bool memory_check(const TrainConfig *c, const Layout *l, double available, Error *error) {
    JointMemory need = memory_estimate(c, l);
    double copy = memory_copy(c, l), all = need.model + need.activations + copy;
    if (all <= available) return true;
    bool much = need.activations > need.model;
    bool can_share = l->size[MESH_DATA] > 1 && c->parallel.zero < (l->size[MESH_PIPELINE] > 1 ? 1 : 3);
    return error_set(error, ERROR_USAGE,
                     "the run does not fit into memory: it needs at least %.1f GiB%s (%.1f for weights, gradients and "
                     "moments, %.1f for the activations of a microbatch, %.1f to write checkpoints from), %.1f GiB are "
                     "free; make model.* or the batches smaller%s%s%s",
                     all / GIB, l->ranks > 1 ? " in each process" : "", need.model / GIB, need.activations / GIB,
                     copy / GIB, available / GIB, much ? ", or raise train.microbatches" : "",
                     much && c->model.recompute != RECOMPUTE_FULL ? ", or set train.recompute: full" : "",
                     can_share ? ", or raise parallel.zero" : "");
}

static double total(ParameterMemory m) { return m.parameters + m.gradients + m.states; }

void memory_report(const Parameters *p, Dtype compute, const Gradients *gradients, Log *log) {
    const double mb = 1e6;
    int ranks = comm_size(parameters_parallel(p)->data), stage = ranks > 1 ? parameters_parallel(p)->zero : 0;
    ParameterMemory got = gradients_memory(gradients),
                    want = parameters_formula((double)parameters_elements(p, false),
                                              (double)parameters_elements(p, true), compute, stage, ranks);
    got.states = 2 * sizeof(float) * (double)parameters_states(p);
    log_info(log,
             "memory of this process, in MB, and by the formula of ZeRO %d over %d: parameters %.1f (%.1f), gradients "
             "%.1f (%.1f), moments %.1f (%.1f), together %.1f (%.1f); beside them buckets on their way %.1f",
             stage, ranks, got.parameters / mb, want.parameters / mb, got.gradients / mb, want.gradients / mb,
             got.states / mb, want.states / mb, total(got) / mb, total(want) / mb, got.buckets / mb);
}
