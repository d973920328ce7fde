/* See utilisation.h. */
#include "train/utilisation.h"
#include "kernels/bench_ops.h"
#include "kernels/gpus.h"
#include <stdio.h>

static const double TERA = 1e12;

void utilisation_open(Utilisation *u, const Joint *joint, Backend *b, Dtype compute, int devices) {
    *u = (Utilisation){.count = joint_count(joint)};
    if (!b->device) return;
    const GpuKind *kind = gpu_kind(b->device);
    double peak = bench_most_flops(b, compute);
    u->peak = devices * peak;
    snprintf(u->device, sizeof u->device, "%d x %.1f TFLOP/s (%.40s, %s%s)", devices, peak / TERA,
             kind ? kind->key : b->device, compute == BF16 ? "bf16" : "f32", kind ? "" : ", measured");
}

double utilisation_share(const Utilisation *u, const JointFlop *flop, double seconds) {
    return u->peak > 0 ? joint_flop_sum(flop) / seconds / u->peak : 0;
}

void utilisation_step(Utilisation *u, const JointFlop *flop, const JointFlop *by_count, double seconds,
                      json_t *record) {
    json_object_set_new(record, "flop", json_real(joint_flop_sum(flop)));
    if (flop->vision > 0) json_object_set_new(record, "flop/vision", json_real(flop->vision));
    if (flop->text > 0) json_object_set_new(record, "flop/text", json_real(flop->text));
    json_object_set_new(record, "flop/heads", json_real(flop->heads));
    json_object_set_new(record, "flop_6n", json_real(joint_flop_sum(by_count)));
    if (u->peak > 0) {
        json_object_set_new(record, "mfu", json_real(utilisation_share(u, flop, seconds)));
        json_object_set_new(record, "mfu_6n", json_real(utilisation_share(u, by_count, seconds)));
    }
    if (u->steps++ == 0) return;
    joint_flop_add(&u->flop, flop);
    joint_flop_add(&u->by_count, by_count);
    u->seconds += seconds;
}

void utilisation_report(const Utilisation *u, Log *log) {
    double all = joint_flop_sum(&u->flop), counted = joint_flop_sum(&u->by_count);
    char share[224] = "";
    if (!(all > 0) || !(u->seconds > 0)) return;
    if (u->peak > 0)
        snprintf(share, sizeof share, "; of %s: MFU %.1f %%, by 6 N a token and whole attention %.1f %%", u->device,
                 100 * utilisation_share(u, &u->flop, u->seconds),
                 100 * utilisation_share(u, &u->by_count, u->seconds));
    log_info(log, "model FLOP: %.4g T a second (vision %.0f %%, text %.0f %%, heads %.0f %%), by 6 N a token %.4g T%s",
             all / u->seconds / TERA, 100 * u->flop.vision / all, 100 * u->flop.text / all, 100 * u->flop.heads / all,
             counted / u->seconds / TERA, share);
}
