/* See rehearsal.h. */
#include "train/rehearsal.h"
#include "base/error.h"
#include "kernels/nn/parameters.h"
#include <stdlib.h>

static const float ORDINARY = 0.01F; // neither zero nor denormal: as costly to compute with as any

static size_t stream_bytes(const StreamShape *s) {
    size_t bytes = dtype_size(s->dtype);
    for (int i = 0; i < s->rank; i++) bytes *= (size_t)s->shape[i];
    return bytes;
}

// As on a rank that holds none of it, which would record nothing; so each parameter says that it is here.
Parallel rehearsal_parallel(const TrainConfig *c) {
    int tensor = (int)c->parallel.size[MESH_TENSOR];
    return (Parallel){.tensor = tensor > 1 ? comm_dry_new(tensor) : NULL, .sequence = c->parallel.sequence};
}

void rehearsal_parallel_free(Parallel *p) { comm_free(p->tensor); }

Joint *rehearsal_model(Backend *dry, const JointConfig *config, const Parallel *parallel, Dtype compute, Error *error) {
    check(dry->dry);
    int units = joint_units(config, NULL), *elsewhere = malloc(((size_t)units + 1) * sizeof *elsewhere);
    check(elsewhere);
    for (int u = 0; u < units; u++) elsewhere[u] = -1;
    Joint *joint = joint_new_part(dry, config, parallel, elsewhere, compute, 1, error);
    free(elsewhere);
    if (!joint) return NULL;
    Parameters *parameters = joint_parameters(joint);
    for (int i = 0; i < parameters_count(parameters); i++) {
        Parameter *p = parameters_at(parameters, i);
        p->tensor.needs_grad = !p->frozen;
        p->tensor.data = p->tensor.grad = p; // any address: nobody looks there
    }
    return joint;
}

static size_t largest_stream(const Joint *joint, const Batch *batch, int units) {
    size_t most = 0;
    for (int u = 0; u <= units; u++)
        for (int s = 0; s < JOINT_STREAMS; s++) {
            StreamShape shape;
            if (!joint_stream_shape(joint, batch, NULL, (JointStream)s, u, &shape)) continue;
            if (stream_bytes(&shape) > most) most = stream_bytes(&shape);
        }
    return most;
}

void rehearsal_open(Rehearsal *r, Backend *backend, Joint *joint, const Batch *batches, int count) {
    size_t most = sizeof(float);
    int pairs = 0;
    *r = (Rehearsal){.joint = joint,
                     .memory = tape_memory_new(backend),
                     .units = joint_units(joint_config(joint), NULL),
                     .arena = arena_new(1 << 16)};
    for (int i = 0; i < count; i++) {
        size_t bytes = backend->dry ? 0 : largest_stream(joint, &batches[i], r->units); // dry nobody reads what arrives
        if (bytes > most) most = bytes;
        if (batches[i].contrastive.rows > pairs) pairs = batches[i].contrastive.rows;
    }
    float *values = arena_allocate(r->arena, most + sizeof(float));
    for (size_t i = 0; i * sizeof(float) < most; i++) values[i] = ORDINARY; // in bf16 two ordinary numbers as well
    r->arriving = values;
    r->features = arena_array(r->arena, float, (int64_t)pairs *joint_config(joint)->embedding + 1);
}

void rehearsal_close(Rehearsal *r) {
    tape_memory_free(r->memory);
    arena_free(r->arena);
    *r = (Rehearsal){0};
}

void rehearsal_renew(Rehearsal *r, Backend *backend) {
    tape_memory_free(r->memory);
    r->memory = tape_memory_new(backend);
}

// The loss over pairs of a step in several pieces is formed elsewhere.
static JointPass pass_of(const Rehearsal *r, const UnitRun *run) {
    bool elsewhere = run->batch->parts > 1 && run->batch->contrastive.rows;
    return (JointPass){.seed = 1,
                       .training = true,
                       .image_gradient = elsewhere ? r->features : NULL,
                       .text_gradient = elsewhere ? r->features : NULL,
                       .scale_gradient = r->features,
                       .bias_gradient = r->features,
                       .features_only = run->features_only};
}

void rehearse_arrive(Rehearsal *r, UnitRun *run) {
    JointPass pass = pass_of(r, run);
    run->arrival = 0;
    for (int s = 0; s < JOINT_STREAMS; s++) {
        StreamShape shape;
        run->in.of[s] = NULL;
        if (!joint_stream_shape(r->joint, run->batch, &pass, (JointStream)s, run->first, &shape)) continue;
        run->in.of[s] =
            tape_arrival(run->tape, shape.dtype, shape.rank, shape.shape, r->arriving, run->wanted >> s & 1);
        run->arrival += (double)stream_bytes(&shape);
    }
}

void rehearse_forward(Rehearsal *r, UnitRun *run) {
    JointPass pass = pass_of(r, run);
    JointLoss loss = {0};
    run->out = run->in;
    joint_run(run->tape, r->joint, run->batch, &pass, run->first, run->end, &run->out, &loss);
    check(!tape_error(run->tape));
    run->total = loss.total;
    run->leaving = 0;
    for (int s = 0; s < JOINT_STREAMS && run->end < r->units; s++)
        if (run->out.of[s] && run->out.of[s]->needs_grad) run->leaving |= 1U << s;
}

void rehearse_seed(Rehearsal *r, UnitRun *run) {
    for (int s = 0; s < JOINT_STREAMS; s++)
        if (run->leaving >> s & 1) tape_seed(run->tape, run->out.of[s], r->arriving);
    if (run->total) tape_seed(run->tape, run->total, NULL);
}

void rehearse_backward(UnitRun *run, Halves halves) {
    tape_backward_seeded(run->tape, halves);
    check(!tape_error(run->tape));
}

void rehearse_leave(UnitRun *run) {
    for (int s = 0; s < JOINT_STREAMS; s++)
        if (run->in.of[s] && tape_has_gradient(run->in.of[s])) tape_read_gradient(run->tape, run->in.of[s], NULL);
}
