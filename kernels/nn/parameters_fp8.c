/* Scalings of weights whose products are in fp8: a small frozen parameter beside each, so that they are in checkpoints
 * and the same on all ranks; the largest numbers of a step lie apart, together, so that ranks agree on all of them in
 * one sum. */
#include "base/error.h"
#include "kernels/comm/comm_device.h"
#include "kernels/nn/parameters_state.h"
#include <stdio.h>
#include <string.h>

enum { SCALING_FLOATS = FP8_SIDES * (int)(sizeof(Fp8Scaling) / sizeof(float)), NAME_MOST = 256, MARGIN = 0 };

void parameters_use_fp8(Parameters *p) {
    check(!p->finished && !p->count);
    p->fp8 = p->backend->matmul_fp8 != NULL;
}

static Parameter *item_of(Parameters *p, const Tensor *t) {
    for (int i = 0; i < p->count; i++)
        if (&p->items[i]->tensor == t) return p->items[i];
    check_failed("a parameter of this model", __FILE__, __LINE__);
}

void parameters_scale_products(Parameters *p, const Tensor *weight) {
    Fp8Scaling start[FP8_SIDES] = {0};
    char name[NAME_MOST];
    if (!p->fp8) return;
    for (int i = 0; i < FP8_SIDES; i++) start[i].scale = start[i].inverse = 1;
    check(snprintf(name, sizeof name, "%s.scaling", weight->name) < NAME_MOST);
    Init init = {.kind = INIT_GIVEN, .given = (const float *)(const void *)start};
    Parameter *scaling = item_of(p, parameters_add(p, name, SHAPE(SCALING_FLOATS), init, false));
    scaling->scaling = scaling->frozen = true;
    item_of(p, weight)->scaled_by = scaling;
    p->scaled++;
}

void parameters_open_scaling(Parameters *p) {
    Backend *b = p->backend;
    if (!p->scaled) return;
    p->most.bytes = (size_t)p->scaled * FP8_SIDES * sizeof(float);
    p->most.data = b->allocate(b, p->most.bytes);
    check(p->most.data && p->stage < 3);
    b->zero(b, p->most.data, p->most.bytes);
    float *most = p->most.data;
    for (int i = 0; i < p->count; i++) {
        Parameter *item = p->items[i];
        if (!item->scaled_by) continue;
        if (item->chunk >= 0) item->tensor.scaling = item->scaled_by->tensor.data, item->tensor.most = most;
        most += FP8_SIDES;
    }
}

void parameters_advance_scaling(Parameters *p) {
    Comm *groups[] = {p->parallel.data, p->parallel.tensor};
    if (!p->scaled) return;
    for (int i = 0; i < 2; i++) // of numbers without a sign the bits have the same order, NaN above all
        if (comm_size(groups[i]) > 1)
            comm_device_all_reduce(p->backend, groups[i], p->most.data, p->scaled * FP8_SIDES, COMM_I32, COMM_MAX,
                                   COMM_FAST, "scales of fp8");
    for (int i = 0; i < p->count; i++) {
        Tensor *t = &p->items[i]->tensor;
        if (t->scaling) p->backend->fp8_advance(p->backend, t->scaling, t->most, MARGIN);
    }
}
