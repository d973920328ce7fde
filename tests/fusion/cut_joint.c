/* See cut_joint.h. */
#include "tests/fusion/cut_joint.h"
#include "tests/support/test.h"
#include <stdlib.h>
#include <string.h>

void cut_message_free(CutMessage *m) {
    for (int s = 0; s < JOINT_STREAMS; s++) free(m->data[s]);
    *m = (CutMessage){0};
}

static void *room_for(const Tensor *x) {
    void *host = malloc(tensor_bytes(x) + 1);
    check(host);
    return host;
}

static bool is_of_shape(const Tensor *x, const StreamShape *s) {
    return x->rank == s->rank && x->dtype == s->dtype &&
           !memcmp(x->shape, s->shape, sizeof *s->shape * (size_t)s->rank);
}

// As declared, neither more nor less.
static void write_streams(const CutPart *p, CutMessage *out) {
    for (int s = 0; s < JOINT_STREAMS; s++) {
        const Tensor *x = p->out.of[s];
        bool declared = joint_stream_shape(p->joint, p->batch, p->pass, (JointStream)s, p->end, &out->shape[s]);
        if (declared != (x != NULL)) fail_msg("%s in front of unit %d", joint_stream_names[s], p->end);
        if (!x) continue;
        if (!is_of_shape(x, &out->shape[s])) fail_msg("shape of %s in front of unit %d", joint_stream_names[s], p->end);
        out->wanted[s] = x->needs_grad;
        out->data[s] = room_for(x);
        tape_read(p->tape, x, out->data[s]);
    }
}

void cut_forward(CutPart *p, const CutMessage *in, CutMessage *out) {
    p->in = (JointStreams){0}, p->loss = (JointLoss){0};
    for (int s = 0; in && s < JOINT_STREAMS; s++)
        if (in->data[s])
            p->in.of[s] = tape_arrival(p->tape, in->shape[s].dtype, in->shape[s].rank, in->shape[s].shape, in->data[s],
                                       in->wanted[s]);
    p->out = p->in;
    joint_run(p->tape, p->joint, p->batch, p->pass, p->first, p->end, &p->out, &p->loss);
    if (tape_error(p->tape)) fail_msg("%s", tape_error(p->tape));
    write_streams(p, out);
}

void cut_backward(CutPart *p, const CutMessage *out, CutMessage *in, Halves halves) {
    if (halves & INPUT_GRADIENTS) {
        for (int s = 0; s < JOINT_STREAMS; s++)
            if (p->out.of[s] && out && out->data[s]) tape_seed(p->tape, p->out.of[s], out->data[s]);
        if (p->loss.total) tape_seed(p->tape, p->loss.total, NULL);
    }
    tape_backward_seeded(p->tape, halves);
    for (int s = 0; (halves & INPUT_GRADIENTS) && s < JOINT_STREAMS; s++) {
        Tensor *x = p->in.of[s];
        if (!x || !tape_has_gradient(x)) continue;
        in->data[s] = room_for(x);
        tape_read_gradient(p->tape, x, in->data[s]);
    }
}

static void run_backward(CutPart *part, int parts, CutMode mode) {
    CutMessage behind = {0};
    for (int p = parts - 1; p >= 0; p--) {
        CutMessage before = {0};
        cut_backward(&part[p], &behind, &before, mode == CUT_HALVES ? INPUT_GRADIENTS : ALL_GRADIENTS);
        cut_message_free(&behind);
        behind = before;
    }
    cut_message_free(&behind);
    for (int p = parts - 1; mode == CUT_HALVES && p >= 0; p--) cut_backward(&part[p], NULL, NULL, WEIGHT_GRADIENTS);
}

static void run_forward(CutPart *part, int parts, float mean[OBJECTIVES]) {
    CutMessage in = {0};
    for (int p = 0; p < parts; p++) {
        CutMessage out = {0};
        cut_forward(&part[p], &in, &out);
        cut_message_free(&in);
        in = out;
        for (int o = 0; o < OBJECTIVES; o++) {
            const Tensor *x = part[p].loss.mean[o];
            if (!x) continue;
            assert_true(mean[o] == 0); // formed once
            tape_read(part[p].tape, x, &mean[o]);
        }
    }
    cut_message_free(&in);
}

void cut_run(Joint *joint, Backend *backend, const Batch *batch, const JointPass *pass, int parts, const int *first,
             CutMode mode, float mean[OBJECTIVES]) {
    TapeMemory *memory = tape_memory_new(backend);
    CutPart *part = calloc((size_t)parts, sizeof *part);
    assert_non_null(part);
    for (int p = 0; p < parts; p++)
        part[p] = (CutPart){.joint = joint,
                            .batch = batch,
                            .pass = pass,
                            .first = first[p],
                            .end = first[p + 1],
                            .tape = tape_new_in(memory, mode != CUT_FORWARD)};
    memset(mean, 0, OBJECTIVES * sizeof *mean);
    run_forward(part, parts, mean);
    if (mode != CUT_FORWARD) {
        parameters_begin_step(joint_parameters(joint));
        run_backward(part, parts, mode);
        parameters_end_backward(joint_parameters(joint));
    }
    for (int p = 0; p < parts; p++) tape_free(part[p].tape);
    tape_memory_free(memory);
    free(part);
}
