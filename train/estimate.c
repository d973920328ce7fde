/* See estimate.h. */
#include "train/estimate.h"

double estimate_parameters(const TextSizes *t) {
    double h = t->width, blocks = 12 * t->layers * h;
    return blocks * h * (1 + 13 / (12 * h) + (t->vocabulary + t->context) / blocks);
}

// times: what a layer's FLOP are of B L s h^2; attention: of s/h. Words are multiplied three times, never again.
static double flop(const TextSizes *t, double batch, double times, double attention) {
    double L = t->layers, h = t->width, s = t->context;
    return times * batch * L * s * h * h * (1 + attention * s / h + 6 * t->vocabulary / (times * L * h));
}

double estimate_model_flop(const TextSizes *t, double batch) { return flop(t, batch, 72, 1.0 / 6); }

double estimate_hardware_flop(const TextSizes *t, double batch, Recompute again) {
    if (again == RECOMPUTE_FULL) return flop(t, batch, 96, 1.0 / 6);
    return flop(t, batch, 72, again == RECOMPUTE_SELECTIVE ? 1.0 / 3 : 1.0 / 6);
}

double estimate_seconds(double parameters, double tokens, Recompute again, double devices, double flops) {
    return (again == RECOMPUTE_FULL ? 8 : 6) * parameters * tokens / (devices * flops);
}

double estimate_zero_bytes(int stage, double ranks) {
    const double values = 2, gradients = 2, states = 12;
    return values / (stage >= 3 ? ranks : 1) + gradients / (stage >= 2 ? ranks : 1) + states / (stage >= 1 ? ranks : 1);
}

double estimate_zero_traffic(int stage) { return stage >= 3 ? 1.5 : 1; }

double estimate_state_bytes(double trained, double frozen, bool offloaded) {
    return (offloaded ? 4 : 16) * trained + 2 * frozen;
}
