/* See pipeline.h. A row takes what its microbatch's message brings, runs, and leaves a message for the next part; it
 * waits for nothing else. What cannot be run any more, after an error on this stage, is replaced by zeros: the other
 * stages wait for its messages all the same. */
#include "train/pipeline.h"
#include "kernels/nn/buckets.h"
#include "train/pipeline_lane.h"
#include "train/pipeline_message.h"
#include "train/schedule_trace.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRACK "stage"

// A microbatch on its way through a chunk, from its forward to the gradient of its weights.
typedef struct Flight {
    struct Flight *next; // of all
    bool under_way;
    Tape *tape;
    JointStreams in, out;   // what came from the part before, and what goes to the part behind
    MessageLayout to_take;  // gradients that come from the part behind: of some streams of `out`
    MessageLayout to_leave; // and that go to the part before: of some of `in`
    Tensor *total;          // of the losses formed here; NULL: none
} Flight;

// A part of the model on this stage. Lanes are NULL at the ends of the model.
typedef struct Chunk {
    int part, first, end;                          // units
    Lane *in, *out, *gradients_in, *gradients_out; // streams from before, to behind; gradients from behind, to before
    MessageLayout *arriving;                       // (microbatches) what comes from before
    Flight **flights;                              // (microbatches); NULL: not under way
} Chunk;

struct Pipeline {
    PipelineSetup setup;
    PipelineShape shape;
    int stage, lane_count;
    TapeMemory *memory;
    LaneBuffers *buffers;
    Lane **lanes;  // (2 parts): all there are
    Chunk *chunks; // (shape.chunks)
    Flight *flights;
    PipelineLeave *leave; // takes losses; NULL: they are read
    void *leave_context;
    bool check_finite, found_elsewhere; // by a stage that had it first
    char not_finite[512];
};

// A pass over the rows.
typedef struct Pass {
    Pipeline *pipeline;
    PipelineMode mode;
    const PipelineMicrobatch *microbatches;
    PipelineResult *results;
    const int64_t *first_pair;
    float *images, *texts;
    Error *error; // the first on this stage
} Pass;

// ---- building up and taking down ----

static Lane *lane_to(Pipeline *p, int stage, int tag) {
    Lane *l = lane_new(p->buffers, p->setup.group, stage, tag, p->shape.microbatches);
    return p->lanes[p->lane_count++] = l;
}

// The boundary in front of `part` is a lane in each direction; inside a stage both ends have the same ones.
static void join(Pipeline *p, int part) {
    int stage[2], chunk[2];
    for (int i = 0; i < 2; i++) pipeline_place(&p->shape, part - 1 + i, &stage[i], &chunk[i]);
    Chunk *before = stage[0] == p->stage ? &p->chunks[chunk[0]] : NULL;
    Chunk *behind = stage[1] == p->stage ? &p->chunks[chunk[1]] : NULL;
    if (!before && !behind) return;
    int peer = before ? stage[1] : stage[0];
    Lane *streams = lane_to(p, peer, 2 * chunk[1]), *gradients = lane_to(p, peer, 2 * chunk[0] + 1);
    if (before) {
        before->out = streams;
        before->gradients_in = gradients;
    }
    if (behind) {
        behind->in = streams;
        behind->gradients_out = gradients;
    }
}

static void open_chunk(Pipeline *p, int number) {
    int part = pipeline_part(&p->shape, p->stage, number), first = p->setup.units[part], end = p->setup.units[part + 1];
    size_t microbatches = (size_t)p->shape.microbatches;
    Chunk *c = &p->chunks[number];
    *c = (Chunk){.part = part,
                 .first = first,
                 .end = end,
                 .arriving = calloc(microbatches, sizeof *c->arriving),
                 .flights = calloc(microbatches, sizeof(Flight *))};
    check(c->arriving && c->flights && first < end);
}

Pipeline *pipeline_new(const PipelineSetup *setup) {
    Pipeline *p = calloc(1, sizeof *p);
    const PipelineShape *shape = &setup->table->shape;
    int parts = shape->stages * shape->chunks;
    check(p && comm_size(setup->group) == shape->stages);
    check(setup->units[parts] == joint_units(joint_config(setup->joint), NULL));
    *p = (Pipeline){.setup = *setup,
                    .shape = *shape,
                    .stage = comm_rank(setup->group),
                    .memory = tape_memory_new(parameters_backend(joint_parameters(setup->joint))),
                    .buffers = lane_buffers_new(),
                    .lanes = calloc((size_t)(2 * parts), sizeof(Lane *)),
                    .chunks = calloc((size_t)shape->chunks, sizeof *p->chunks)};
    check(p->lanes && p->chunks);
    for (int i = 0; i < shape->chunks; i++) open_chunk(p, i);
    for (int part = 1; part < parts; part++) join(p, part);
    return p;
}

void pipeline_free(Pipeline *p) {
    if (!p) return;
    for (int i = 0; i < p->shape.chunks; i++) {
        free(p->chunks[i].arriving);
        free(p->chunks[i].flights);
    }
    for (int i = 0; i < p->lane_count; i++) lane_free(p->lanes[i]);
    for (Flight *f = p->flights, *next; f; f = next) {
        next = f->next;
        tape_free(f->tape);
        free(f);
    }
    free(p->chunks);
    free(p->lanes);
    lane_buffers_free(p->buffers);
    tape_memory_free(p->memory);
    free(p);
}

// ---- microbatches under way ----

static Flight *new_flight(Pipeline *p) {
    Flight *f = calloc(1, sizeof *f);
    check(f);
    f->tape = tape_new_in(p->memory, p->setup.gradients != NULL);
    if (p->setup.gradients)
        gradients_follow(p->setup.gradients, f->tape);
    else
        parameters_follow(joint_parameters(p->setup.joint), f->tape);
    tape_check_finite(f->tape, p->check_finite);
    f->next = p->flights;
    return p->flights = f;
}

static Flight *depart(Pass *r, Chunk *c, int microbatch) {
    Pipeline *p = r->pipeline;
    Flight *f = p->flights;
    while (f && f->under_way) f = f->next;
    if (!f) f = new_flight(p);
    *f = (Flight){.next = f->next, .under_way = true, .tape = f->tape};
    tape_set_recording(f->tape, r->mode == PIPELINE_TRAIN);
    return c->flights[microbatch] = f;
}

static void land(Chunk *c, int microbatch) {
    Flight *f = c->flights[microbatch];
    tape_reset(f->tape);
    f->under_way = false;
    c->flights[microbatch] = NULL;
}

static bool failed(Pass *r, const Flight *f) {
    if (r->error->kind) return true;
    const char *message = tape_error(f->tape);
    return message && !error_set(r->error, ERROR_FAILED, "%s", message);
}

// What the tape found that is not finite, if it is the first of all stages.
static void look_for_not_finite(Pipeline *p, const Flight *f) {
    const char *found = p->check_finite ? tape_not_finite(f->tape) : NULL;
    if (found && !p->not_finite[0] && !p->found_elsewhere) snprintf(p->not_finite, sizeof p->not_finite, "%s", found);
}

static JointPass pass_of(const Pass *r, int microbatch) {
    JointPass pass = r->microbatches[microbatch].pass;
    pass.features_only = r->mode == PIPELINE_FEATURES;
    return pass;
}

// ---- messages ----

static MessageLayout layout_at(const Pass *r, int microbatch, int unit) {
    JointPass pass = pass_of(r, microbatch);
    return message_layout(r->pipeline->setup.joint, &r->microbatches[microbatch].batch, &pass, unit);
}

static MessageHeader header_of(const Pass *r, int microbatch, int boundary, bool gradients) {
    const Pipeline *p = r->pipeline;
    return (MessageHeader){.step = r->microbatches[microbatch].batch.step,
                           .microbatch = microbatch,
                           .boundary = boundary,
                           .gradients = gradients,
                           .not_finite = p->not_finite[0] || p->found_elsewhere};
}

static void *receive(Pass *r, Lane *lane) {
    if (!lane) return NULL;
    double begin = trace_now();
    bool waits = lane_waits(lane);
    void *message = lane_receive(lane);
    if (waits) trace_slice(r->pipeline->setup.trace, TRACK, "wait", begin, trace_now());
    return message;
}

static const MessageHeader *check_message(Pass *r, const void *message, const MessageLayout *layout,
                                          const MessageHeader *expected) {
    Pipeline *p = r->pipeline;
    const MessageHeader *h = message;
    Error error = {0};
    if (!message_check(message, layout, expected, &error) && !r->error->kind) {
        error_prefix(&error, "stage %d", p->stage);
        *r->error = error;
    }
    p->found_elsewhere |= h->not_finite && !p->not_finite[0];
    return h;
}

// Streams that came, as tensors of the tape.
static void arrive(Pass *r, const Chunk *c, Flight *f, int microbatch, void *message) {
    const MessageLayout *l = &c->arriving[microbatch];
    const MessageHeader expected = header_of(r, microbatch, c->part, false);
    const MessageHeader *h = check_message(r, message, l, &expected);
    f->to_leave = message_layout_of(l, h->wanted);
    for (int s = 0; s < JOINT_STREAMS && !failed(r, f); s++)
        if (l->streams >> s & 1)
            f->in.of[s] = tape_arrival(f->tape, l->shapes[s].dtype, l->shapes[s].rank, l->shapes[s].shape,
                                       message_at(message, l, s), h->wanted >> s & 1);
}

static bool check_leaving(Pass *r, const Chunk *c, const Flight *f, int microbatch, const MessageLayout *l) {
    return message_check_leaving(l, &f->out, r->error) ||
           error_prefix(r->error, "stage %d: microbatch %d, boundary in front of part %d", r->pipeline->stage,
                        microbatch, c->part + 1);
}

static void leave_streams(Pass *r, Chunk *c, Flight *f, int microbatch) {
    MessageLayout l = layout_at(r, microbatch, c->end);
    MessageHeader what = header_of(r, microbatch, c->part + 1, false);
    void *message = lane_message(c->out, l.bytes);
    bool ok = !failed(r, f) && check_leaving(r, c, f, microbatch, &l);
    MessageHeader *h = message_begin(message, &l, &what);
    h->streams = l.streams;
    if (!ok) memset((char *)message + message_layout_of(&l, 0).bytes, 0, l.bytes - message_layout_of(&l, 0).bytes);
    for (int s = 0; ok && s < JOINT_STREAMS; s++) {
        if (!(l.streams >> s & 1)) continue;
        tape_read(f->tape, f->out.of[s], message_at(message, &l, s));
        if (r->mode == PIPELINE_TRAIN && f->out.of[s]->needs_grad) h->wanted |= 1U << s;
    }
    f->to_take = message_layout_of(&l, h->wanted);
    lane_send(c->out, message, l.bytes);
    if (r->mode == PIPELINE_TRAIN) lane_expect(c->gradients_in, f->to_take.bytes);
}

static void take_gradients(Pass *r, const Chunk *c, Flight *f, int microbatch, void *message) {
    const MessageHeader expected = header_of(r, microbatch, c->part + 1, true);
    const MessageHeader *h = check_message(r, message, &f->to_take, &expected);
    for (int s = 0; s < JOINT_STREAMS && !failed(r, f); s++)
        if (h->streams >> s & 1) tape_seed(f->tape, f->out.of[s], message_at(message, &f->to_take, s));
}

static void leave_gradients(Pass *r, Chunk *c, Flight *f, int microbatch) {
    const MessageLayout *l = &f->to_leave;
    MessageHeader what = header_of(r, microbatch, c->part, true);
    void *message = lane_message(c->gradients_out, l->bytes);
    MessageHeader *h = message_begin(message, l, &what);
    for (int s = 0; s < JOINT_STREAMS && !failed(r, f); s++) {
        if (!(l->streams >> s & 1) || !tape_has_gradient(f->in.of[s])) continue;
        tape_read_gradient(f->tape, f->in.of[s], message_at(message, l, s));
        h->streams |= 1U << s;
    }
    lane_send(c->gradients_out, message, l->bytes);
}

// ---- rows ----

// Rows that form gradients are told apart from those of other passes.
static void draw(const Pass *r, const Slot *row, double begin) {
    Trace *trace = r->pipeline->setup.trace;
    char name[48];
    if (r->mode == PIPELINE_TRAIN) {
        schedule_trace_row(trace, row, begin, trace_now());
        return;
    }
    snprintf(name, sizeof name, "%s %d.%d", r->mode == PIPELINE_FEATURES ? "features" : "losses", row->microbatch,
             row->chunk);
    trace_slice(trace, TRACK, name, begin, trace_now());
}

// Losses that were formed here; or features, where these are wanted.
static void note(Pass *r, const Chunk *c, Flight *f, int microbatch, const JointLoss *loss) {
    const Pipeline *p = r->pipeline;
    Tensor *images = f->out.of[STREAM_IMAGE_FEATURES], *texts = f->out.of[STREAM_TEXT_FEATURES];
    if (failed(r, f)) return;
    f->total = loss->total;
    if (r->mode == PIPELINE_FEATURES) {
        bool last = c->part == p->shape.stages * p->shape.chunks - 1;
        if (!last || !images || !texts) return;
        int64_t at = r->first_pair[microbatch] * joint_config(p->setup.joint)->embedding;
        tape_read(f->tape, images, r->images + at);
        tape_read(f->tape, texts, r->texts + at);
        return;
    }
    for (int o = 0; o < OBJECTIVES; o++) {
        float value = 0;
        if (!loss->mean[o]) continue;
        if (p->leave) {
            p->leave(p->leave_context, microbatch, (Objective)o, loss->mean[o]);
            continue;
        }
        tape_read(f->tape, loss->mean[o], &value);
        r->results[microbatch].mean[o] = value;
    }
}

static void run_forward(Pass *r, const Slot *row, Chunk *c) {
    const Pipeline *p = r->pipeline;
    void *message = receive(r, c->in);
    double begin = trace_now();
    Flight *f = depart(r, c, row->microbatch);
    JointPass pass = pass_of(r, row->microbatch);
    JointLoss loss = {0};
    if (message) {
        arrive(r, c, f, row->microbatch, message);
        lane_give_back(c->in, message);
    }
    f->out = f->in;
    if (!failed(r, f))
        joint_run(f->tape, p->setup.joint, &r->microbatches[row->microbatch].batch, &pass, c->first, c->end, &f->out,
                  &loss);
    look_for_not_finite(r->pipeline, f);
    note(r, c, f, row->microbatch, &loss);
    if (c->out) leave_streams(r, c, f, row->microbatch);
    if (r->mode != PIPELINE_TRAIN) land(c, row->microbatch);
    draw(r, row, begin);
}

// Gradients of activations go on to the part before as soon as they are there; those of weights are summed.
static void run_gradients(Pass *r, const Slot *row, Chunk *c) {
    static const Halves halves[WORKS] = {0, INPUT_GRADIENTS, WEIGHT_GRADIENTS, ALL_GRADIENTS};
    Gradients *gradients = r->pipeline->setup.gradients;
    Flight *f = c->flights[row->microbatch];
    bool input = row->work != WORK_WEIGHT_GRADIENT, weight = row->work != WORK_INPUT_GRADIENT;
    void *message = input ? receive(r, c->gradients_in) : NULL;
    double begin = trace_now();
    if (message) {
        take_gradients(r, c, f, row->microbatch, message);
        lane_give_back(c->gradients_in, message);
    }
    if (weight) gradients_begin_part(gradients, row->chunk, row->microbatch);
    if (!failed(r, f)) {
        if (input && f->total) tape_seed(f->tape, f->total, NULL);
        tape_backward_seeded(f->tape, halves[row->work]);
        failed(r, f);
    }
    look_for_not_finite(r->pipeline, f);
    if (input && c->gradients_out) leave_gradients(r, c, f, row->microbatch);
    if (weight) {
        gradients_end_part(gradients);
        land(c, row->microbatch);
    }
    draw(r, row, begin);
}

// How large each message from the part before will be.
static void expect(Pass *r, Chunk *c) {
    const Pipeline *p = r->pipeline;
    for (int m = 0; c->in && m < p->shape.microbatches; m++) {
        c->arriving[m] = layout_at(r, m, c->first);
        lane_expect(c->in, c->arriving[m].bytes);
    }
}

bool pipeline_run(Pipeline *p, PipelineMode mode, const PipelineMicrobatch *microbatches, PipelineResult *results,
                  const int64_t *first_pair, float *images, float *texts, Error *error) {
    Pass r = {p, mode, microbatches, results, first_pair, images, texts, error};
    const PipelineTable *table = p->setup.table;
    check(mode != PIPELINE_TRAIN || p->setup.gradients);
    *error = (Error){0};
    for (int m = 0; m < p->shape.microbatches; m++) results[m] = (PipelineResult){0};
    for (int i = 0; i < p->shape.chunks; i++) expect(&r, &p->chunks[i]);
    for (int i = 0; i < table->counts[p->stage]; i++) {
        const Slot *row = &table->rows[p->stage][i];
        Chunk *c = &p->chunks[row->chunk];
        if (row->work == WORK_FORWARD)
            run_forward(&r, row, c);
        else if (mode == PIPELINE_TRAIN)
            run_gradients(&r, row, c);
    }
    lane_settle(p->buffers);
    return !error->kind;
}

void pipeline_leave_losses(Pipeline *p, PipelineLeave *leave, void *context) {
    p->leave = leave;
    p->leave_context = context;
}

// ---- what is known of it ----

bool pipeline_has_last(const Pipeline *p) {
    int stage, chunk;
    pipeline_place(&p->shape, p->shape.stages * p->shape.chunks - 1, &stage, &chunk);
    return stage == p->stage;
}

void pipeline_check_finite(Pipeline *p, bool on) {
    p->check_finite = on;
    p->found_elsewhere = false;
    p->not_finite[0] = '\0';
    for (Flight *f = p->flights; f; f = f->next) tape_check_finite(f->tape, on);
}

const char *pipeline_not_finite(const Pipeline *p) { return p->not_finite[0] ? p->not_finite : NULL; }

PipelineMemory pipeline_memory(const Pipeline *p) {
    int held = 0;
    for (const Flight *f = p->flights; f; f = f->next) held++;
    return (PipelineMemory){.tapes = (double)tape_memory_peak(p->memory),
                            .messages = lane_buffers_bytes(p->buffers),
                            .held = held,
                            .allocations = tape_memory_system_allocations(p->memory)};
}
