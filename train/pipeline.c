/* See pipeline.h. A row takes what its microbatch's message brings, runs, and leaves a message for the next part; it
 * waits for nothing else. What cannot be run any more, after an error on this stage, is replaced by zeros: the other
 * stages wait for its messages all the same. */
#include "train/pipeline.h"
#include "kernels/comm/comm_device.h"
#include "kernels/nn/buckets.h"
#include "train/pipeline_lane.h"
#include "train/pipeline_message.h"
#include "train/pipeline_ways.h"
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

typedef struct Way {
    int from, to; // stages
    Comm *pair;
    Channel *channel;
} Way;

struct Pipeline {
    PipelineSetup setup;
    PipelineShape shape;
    int stage, lane_count;
    TapeMemory *memory;
    LaneBuffers *buffers;
    Way *ways; // (way_count): those of this stage by which messages go from device to device
    int way_count;
    Lane **lanes;  // (2 parts): all there are
    Chunk *chunks; // (shape.chunks)
    Flight *flights;
    PipelineLeave *leave; // takes losses; NULL: they are read
    void *leave_context;
    bool check_finite, found_elsewhere; // by a stage that had it first
    char not_finite[512];
};

// What the host wants to know, and does not wait for.
typedef struct PendingRead {
    struct PendingRead *next;
    BackendRead *read;
    double *mean; // where it goes
} PendingRead;

// A pass over the rows.
typedef struct Pass {
    Pipeline *pipeline;
    PipelineMode mode;
    const PipelineMicrobatch *microbatches;
    PipelineResult *results;
    const int64_t *first_pair;
    float *images, *texts;
    PendingRead *reads;
    Error *error; // the first on this stage
} Pass;

// ---- building up and taking down ----

static Backend *backend_of(const Pipeline *p) { return parameters_backend(joint_parameters(p->setup.joint)); }

static Lane *lane_between(Pipeline *p, int from, int to, int tag) {
    Channel *channel = NULL;
    for (int i = 0; i < p->way_count; i++)
        if (p->ways[i].from == from && p->ways[i].to == to) channel = p->ways[i].channel;
    int peer = from == p->stage ? to : from;
    Lane *l = lane_new(p->buffers, p->setup.group, channel, peer, tag, p->shape.microbatches);
    return p->lanes[p->lane_count++] = l;
}

// The boundary in front of `part` is a lane in each direction; inside a stage both ends have the same ones.
static void join(Pipeline *p, int part) {
    int stage[2], chunk[2];
    for (int i = 0; i < 2; i++) pipeline_place(&p->shape, part - 1 + i, &stage[i], &chunk[i]);
    Chunk *before = stage[0] == p->stage ? &p->chunks[chunk[0]] : NULL;
    Chunk *behind = stage[1] == p->stage ? &p->chunks[chunk[1]] : NULL;
    if (!before && !behind) return;
    Lane *streams = lane_between(p, stage[0], stage[1], 2 * chunk[1]);
    Lane *gradients = lane_between(p, stage[1], stage[0], 2 * chunk[0] + 1);
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

// Links the devices of neighbour stages, one way for each direction. Collective; where one stage fails all do.
static bool open_ways(Pipeline *p, Error *error) {
    if (comm_device_route(p->setup.group) != ROUTE_LINKED) return true;
    PipelineWay *all = calloc((size_t)(2 * p->shape.stages * p->shape.chunks), sizeof *all);
    check(all);
    char name[48];
    int count = pipeline_ways(&p->shape, all);
    int32_t ok = 1;
    p->ways = calloc((size_t)count + 1, sizeof *p->ways);
    check(p->ways);
    for (int i = 0; i < count; i++) {
        const PipelineWay *w = &all[i];
        bool sends = w->from == p->stage, own = sends || w->to == p->stage;
        snprintf(name, sizeof name, "stages %d to %d", w->from, w->to);
        Comm *pair = comm_split(p->setup.group, own ? 0 : -1, !sends, name);
        if (!own) continue;
        p->ways[p->way_count] = (Way){.from = w->from, .to = w->to, .pair = pair};
        ok = ok && comm_device_open_messages(pair, backend_of(p), error);
        if (ok) p->ways[p->way_count].channel = channel_new(backend_of(p), pair, WAY_ROOM, message_header_bytes());
        p->way_count++;
    }
    free(all);
    comm_all_reduce(p->setup.group, &ok, 1, COMM_I32, COMM_MIN, COMM_FAST, "ways between stages");
    if (!ok && !error->kind) error_set(error, ERROR_FAILED, "other stages could not be linked: see what they say");
    return ok;
}

static void close_ways(Pipeline *p) {
    for (int i = 0; i < p->way_count; i++) {
        channel_free(p->ways[i].channel);
        comm_device_close(p->ways[i].pair);
        comm_free(p->ways[i].pair);
    }
    free(p->ways);
}

Pipeline *pipeline_new(const PipelineSetup *setup, Error *error) {
    Pipeline *p = calloc(1, sizeof *p);
    const PipelineShape *shape = &setup->table->shape;
    int parts = shape->stages * shape->chunks;
    check(p && comm_size(setup->group) == shape->stages);
    check(setup->units[parts] == joint_units(joint_config(setup->joint), NULL));
    *p = (Pipeline){.setup = *setup,
                    .shape = *shape,
                    .stage = comm_rank(setup->group),
                    .memory = tape_memory_new(parameters_backend(joint_parameters(setup->joint))),
                    .buffers =
                        lane_buffers_new(parameters_backend(joint_parameters(setup->joint)), message_header_bytes()),
                    .lanes = calloc((size_t)(2 * parts), sizeof(Lane *)),
                    .chunks = calloc((size_t)shape->chunks, sizeof *p->chunks)};
    check(p->lanes && p->chunks);
    for (int i = 0; i < shape->chunks; i++) open_chunk(p, i);
    if (!open_ways(p, error)) {
        pipeline_free(p);
        return NULL;
    }
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
    close_ways(p);
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

static LaneMessage *receive(Pass *r, Lane *lane) {
    if (!lane) return NULL;
    double begin = trace_now();
    bool waits = lane_waits(lane);
    LaneMessage *message = lane_receive(lane);
    if (waits) trace_slice(r->pipeline->setup.trace, TRACK, "wait", begin, trace_now());
    return message;
}

static const MessageHeader *check_message(Pass *r, const LaneMessage *message, const MessageLayout *layout,
                                          const MessageHeader *expected) {
    Pipeline *p = r->pipeline;
    const MessageHeader *h = message->header;
    Error error = {0};
    if (!message_check(h, layout, expected, &error) && !r->error->kind) {
        error_prefix(&error, "stage %d", p->stage);
        *r->error = error;
    }
    p->found_elsewhere |= h->not_finite && !p->not_finite[0];
    return h;
}

// Streams that came, as tensors of the tape.
static void arrive(Pass *r, const Chunk *c, Flight *f, int microbatch, const LaneMessage *message) {
    const MessageLayout *l = &c->arriving[microbatch];
    const MessageHeader expected = header_of(r, microbatch, c->part, false);
    const MessageHeader *h = check_message(r, message, l, &expected);
    f->to_leave = message_layout_of(l, h->wanted);
    for (int s = 0; s < JOINT_STREAMS && !failed(r, f); s++) {
        if (!(l->streams >> s & 1)) continue;
        const StreamShape *shape = &l->shapes[s];
        Tensor *x = tape_arrival(f->tape, shape->dtype, shape->rank, shape->shape, NULL, h->wanted >> s & 1);
        lane_get(c->in, message, l->at[s], x->data, tensor_bytes(x));
        f->in.of[s] = x;
    }
}

static bool check_leaving(Pass *r, const Chunk *c, const Flight *f, int microbatch, const MessageLayout *l) {
    return message_check_leaving(l, &f->out, r->error) ||
           error_prefix(r->error, "stage %d: microbatch %d, boundary in front of part %d", r->pipeline->stage,
                        microbatch, c->part + 1);
}

static void leave_streams(Pass *r, Chunk *c, Flight *f, int microbatch) {
    MessageLayout l = layout_at(r, microbatch, c->end);
    MessageHeader what = header_of(r, microbatch, c->part + 1, false);
    LaneMessage *message = lane_message(c->out, l.bytes);
    bool ok = !failed(r, f) && check_leaving(r, c, f, microbatch, &l);
    MessageHeader *h = message_begin(message->header, &l, &what);
    h->streams = l.streams;
    if (!ok) lane_clear(c->out, message, message_header_bytes(), l.bytes - message_header_bytes());
    for (int s = 0; ok && s < JOINT_STREAMS; s++) {
        if (!(l.streams >> s & 1)) continue;
        const Tensor *x = f->out.of[s];
        lane_put(c->out, message, l.at[s], x->data, tensor_bytes(x));
        if (r->mode == PIPELINE_TRAIN && x->needs_grad) h->wanted |= 1U << s;
    }
    f->to_take = message_layout_of(&l, h->wanted);
    lane_send(c->out, message);
    if (r->mode == PIPELINE_TRAIN) lane_expect(c->gradients_in, f->to_take.bytes);
}

static void take_gradients(Pass *r, const Chunk *c, Flight *f, int microbatch, const LaneMessage *message) {
    const MessageHeader expected = header_of(r, microbatch, c->part + 1, true);
    const MessageHeader *h = check_message(r, message, &f->to_take, &expected);
    for (int s = 0; s < JOINT_STREAMS && !failed(r, f); s++) {
        if (!(h->streams >> s & 1)) continue;
        Tensor *x = f->out.of[s];
        void *place = tape_seed_place(f->tape, x);
        if (place) lane_get(c->gradients_in, message, f->to_take.at[s], place, tensor_bytes(x));
    }
}

static void leave_gradients(Pass *r, Chunk *c, Flight *f, int microbatch) {
    const MessageLayout *l = &f->to_leave;
    MessageHeader what = header_of(r, microbatch, c->part, true);
    LaneMessage *message = lane_message(c->gradients_out, l->bytes);
    MessageHeader *h = message_begin(message->header, l, &what);
    for (int s = 0; s < JOINT_STREAMS && !failed(r, f); s++) {
        Tensor *x = f->in.of[s];
        if (!(l->streams >> s & 1) || !tape_has_gradient(x)) continue;
        lane_put(c->gradients_out, message, l->at[s], x->grad, tensor_bytes(x));
        tape_read_gradient(f->tape, x, NULL);
        h->streams |= 1U << s;
    }
    lane_send(c->gradients_out, message);
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

static void want(Pass *r, const Tensor *loss, double *mean) {
    PendingRead *p = malloc(sizeof *p);
    check(p);
    *p = (PendingRead){r->reads, backend_read_start(backend_of(r->pipeline), loss->data, sizeof(float)), mean};
    r->reads = p;
}

static void finish_reads(Pass *r) {
    for (PendingRead *p = r->reads, *next; p; p = next) {
        float value;
        next = p->next;
        backend_read_finish(backend_of(r->pipeline), p->read, &value);
        *p->mean = (double)value;
        free(p);
    }
    r->reads = NULL;
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
        Backend *b = backend_of(p);
        b->copy(b, r->images + at, images->data, tensor_bytes(images));
        b->copy(b, r->texts + at, texts->data, tensor_bytes(texts));
        return;
    }
    for (int o = 0; o < OBJECTIVES; o++) {
        if (!loss->mean[o]) continue;
        if (p->leave)
            p->leave(p->leave_context, microbatch, (Objective)o, loss->mean[o]);
        else
            want(r, loss->mean[o], &r->results[microbatch].mean[o]);
    }
}

static void run_forward(Pass *r, const Slot *row, Chunk *c) {
    const Pipeline *p = r->pipeline;
    LaneMessage *message = receive(r, c->in);
    double begin = trace_now();
    Flight *f = depart(r, c, row->microbatch);
    JointPass pass = pass_of(r, row->microbatch);
    JointLoss loss = {0};
    if (message) {
        arrive(r, c, f, row->microbatch, message);
        lane_give_back(c->in, message);
    }
    f->out = f->in;
    backend_sequence_begin(backend_of(p), "forward row");
    if (!failed(r, f))
        joint_run(f->tape, p->setup.joint, &r->microbatches[row->microbatch].batch, &pass, c->first, c->end, &f->out,
                  &loss);
    look_for_not_finite(r->pipeline, f);
    note(r, c, f, row->microbatch, &loss);
    backend_sequence_end(backend_of(p));
    if (c->out) leave_streams(r, c, f, row->microbatch);
    if (r->mode != PIPELINE_TRAIN) land(c, row->microbatch);
    draw(r, row, begin);
}

// A row that is written down and started as a whole ends with all that it started, other lanes' work included: where
// gradients are summed over ranks they are to go on beside the next rows.
static bool is_sequence(const Pass *r, const Slot *row) {
    const Pipeline *p = r->pipeline;
    bool reduces = comm_size(parameters_parallel(joint_parameters(p->setup.joint))->data) > 1;
    return !reduces || row->microbatch + 1 < p->shape.microbatches;
}

// Gradients of activations go on to the part before as soon as they are there; those of weights are summed.
static void run_gradients(Pass *r, const Slot *row, Chunk *c) {
    static const Halves halves[WORKS] = {0, INPUT_GRADIENTS, WEIGHT_GRADIENTS, ALL_GRADIENTS};
    Gradients *gradients = r->pipeline->setup.gradients;
    Flight *f = c->flights[row->microbatch];
    bool input = row->work != WORK_WEIGHT_GRADIENT, weight = row->work != WORK_INPUT_GRADIENT;
    LaneMessage *message = input ? receive(r, c->gradients_in) : NULL;
    Backend *backend = backend_of(r->pipeline);
    bool sequence = is_sequence(r, row);
    double begin = trace_now();
    if (message) {
        take_gradients(r, c, f, row->microbatch, message);
        lane_give_back(c->gradients_in, message);
    }
    if (sequence) backend_sequence_begin(backend, "gradients row");
    if (weight) gradients_begin_part(gradients, row->chunk, row->microbatch);
    if (!failed(r, f)) {
        if (input && f->total) tape_seed(f->tape, f->total, NULL);
        tape_backward_seeded(f->tape, halves[row->work]);
        failed(r, f);
    }
    look_for_not_finite(r->pipeline, f);
    if (sequence) backend_sequence_end(backend);
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
    Pass r = {p, mode, microbatches, results, first_pair, images, texts, NULL, error};
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
    finish_reads(&r);
    lane_settle(p->buffers);
    for (int i = 0; i < p->way_count; i++)
        if (p->ways[i].channel) channel_settle(p->ways[i].channel);
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
    double messages = lane_buffers_bytes(p->buffers);
    for (int i = 0; i < p->way_count; i++) messages += channel_bytes(p->ways[i].channel);
    for (const Flight *f = p->flights; f; f = f->next) held++;
    return (PipelineMemory){.tapes = (double)tape_memory_peak(p->memory),
                            .messages = messages,
                            .held = held,
                            .allocations = tape_memory_system_allocations(p->memory)};
}
