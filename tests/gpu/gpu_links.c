/* Links between GPUs (kernels/comm/comm_device.h), for tests/gpu.sh. A process alone links its GPU with itself, by NCCL
 * where it is there: every collective, outside of lists and in them, so as a CUDA graph too. Several processes
 * (tests/support/tcprun.sh) check every call against the host's, to the bit: on GPUs of their own by NCCL, on one that
 * they share through the hosts; and messages both ways at once. A JSON line from rank 0. Exit status 0: all holds, 77:
 * there is no GPU; what does not hold ends the process. */
#include "base/error.h"
#include "kernels/comm/device_link.h"
#include "kernels/cuda.h"
#include "tests/kernels/device_calls.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_GPU = 77, STEPS = 5, ROWS = 257, MESSAGES = 12 };

// ---- one rank ----

// Where a rank is alone every call gives back what it was given.
static void check_alone(Backend *b, DeviceLink *link, DeviceCall c) {
    size_t bytes = c.kind == CALL_ALL_TO_ALL ? (size_t)c.in_bytes[0] : (size_t)device_call_bytes(&c);
    bool in_place = c.kind == CALL_ALL_REDUCE || c.kind == CALL_BROADCAST;
    char *memory = b->allocate(b, 2 * bytes);
    unsigned char *sent = malloc(bytes), *seen = malloc(bytes);
    check(memory && sent && seen);
    c.in = memory;
    c.out = in_place ? memory : memory + bytes;
    for (int step = 0; step < STEPS; step++) {
        for (size_t i = 0; i < bytes; i++) sent[i] = (unsigned char)(i % 61 + (size_t)step); // finite in every type
        b->zero(b, memory, 2 * bytes);
        if (step) backend_sequence_begin(b, "links");
        b->upload(b, memory, sent, bytes);
        link->wait(link, link->start(link, &c));
        if (step) backend_sequence_end(b);
        b->download(b, seen, c.out, bytes);
        if (memcmp(seen, sent, bytes) != 0) {
            fprintf(stderr, "call %d of type %d, step %d: gives something else\n", (int)c.kind, (int)c.type, step);
            exit(1);
        }
    }
    b->release(b, memory, 2 * bytes);
    free(sent);
    free(seen);
}

static void check_calls_alone(Backend *b, DeviceLink *link) {
    static const CommType types[] = {COMM_F32, COMM_BF16, COMM_I32, COMM_U8};
    const int64_t bytes = 4 * ROWS;
    for (int i = 0; i < 4; i++)
        for (int order = COMM_FAST; order <= COMM_ORDERED; order++) {
            DeviceCall c = {.kind = CALL_ALL_REDUCE, .rows = ROWS, .width = 3, .type = types[i], .what = "test"};
            c.order = (CommOrder)order;
            c.reduction = i < 2 ? COMM_SUM : COMM_MAX;
            check_alone(b, link, c);
            c.kind = CALL_REDUCE_SCATTER;
            c.reduction = COMM_SUM;
            if (i < 2) check_alone(b, link, c);
        }
    static const DeviceCallKind moves[] = {CALL_ALL_GATHER, CALL_BROADCAST, CALL_ALL_TO_ALL};
    for (int i = 0; i < 3; i++)
        check_alone(b, link,
                    (DeviceCall){.kind = moves[i],
                                 .rows = bytes,
                                 .width = 1,
                                 .type = COMM_U8,
                                 .in_bytes = &bytes,
                                 .out_bytes = &bytes,
                                 .what = "test"});
}

static void alone(Backend *b) {
    DeviceIdentity own;
    DeviceLinkId place;
    Error error = {0};
    memset(&own, 0, sizeof own);
    if (b->links) b->links->identify(b, &own);
    if (!own.can_link || own.wrong) {
        printf("{\"links\": \"one rank\", \"holds\": null, \"why\": \"%s\"}\n", own.why_not);
        return;
    }
    DeviceLink *link =
        b->links->new_id(b, &place, &error) ? b->links->open(b, LINK_COLLECTIVE, &place, 0, 1, "alone", &error) : NULL;
    if (!link) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
    check_calls_alone(b, link);
    const char *fault = link->fault(link);
    printf("{\"links\": \"one rank\", \"nccl\": %d, \"holds\": %s}\n", own.version, fault ? "false" : "true");
    if (fault) fprintf(stderr, "%s\n", fault);
    link->close(link);
    if (fault) exit(1);
}

// ---- several ----

// Rank 0 sends to rank 1 by `there`, and gets back what came by `back`: MESSAGES on their way at once.
static void check_messages(Backend *b, Comm *there, Comm *back) {
    enum { BYTES = 1 << 16 };
    int rank = comm_rank(there);
    CommRequest *out[MESSAGES], *in[MESSAGES];
    unsigned char *sent = malloc(BYTES), *seen = malloc(BYTES);
    char *memory = b->allocate(b, 2 * MESSAGES * BYTES);
    check(sent && seen && memory);
    for (int i = 0; i < MESSAGES; i++) {
        char *first = memory + (size_t)(2 * i) * BYTES, *second = first + BYTES;
        memset(sent, i + 1, BYTES);
        if (rank == 0) b->upload(b, first, sent, BYTES);
        if (rank == 0) out[i] = comm_device_start_send(b, there, first, BYTES, 1, 0, "test");
        if (rank == 0) in[i] = comm_device_start_receive_behind(b, back, second, BYTES, 0, "test");
        if (rank == 1) comm_wait(comm_device_start_receive_behind(b, there, first, BYTES, 0, "test"));
        if (rank == 1) out[i] = comm_device_start_send(b, back, first, BYTES, 1, 0, "test");
    }
    for (int i = 0; i < MESSAGES; i++) {
        comm_wait(out[i]);
        if (rank == 0) comm_wait(in[i]);
    }
    for (int i = 0; i < MESSAGES && rank == 0; i++) {
        memset(sent, i + 1, BYTES);
        b->download(b, seen, memory + (size_t)(2 * i + 1) * BYTES, BYTES);
        if (memcmp(seen, sent, BYTES) == 0) continue;
        fprintf(stderr, "message %d came back as something else\n", i);
        exit(1);
    }
    b->wait(b);
    b->release(b, memory, 2 * MESSAGES * BYTES);
    free(sent);
    free(seen);
}

static void open_ways(Backend *b, Comm *world) {
    Error error = {0};
    Comm *ways[2];
    int rank = comm_rank(world);
    for (int i = 0; i < 2; i++) {
        ways[i] = comm_split(world, rank < 2 ? 0 : -1, i ? -rank : rank, i ? "back" : "there");
        if (ways[i] && !comm_device_open_messages(ways[i], b, &error)) {
            fprintf(stderr, "%s\n", error.message);
            exit(1);
        }
    }
    if (rank < 2) {
        Comm *there = ways[0], *back = ways[1];
        check_messages(b, there, back);
    }
    for (int i = 0; i < 2; i++) {
        comm_device_close(ways[i]);
        comm_free(ways[i]);
    }
}

static void several(Backend *b, Comm *world) {
    Error error = {0};
    if (!comm_device_open(world, b, &error)) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
    bool linked = comm_device_route(world) == ROUTE_LINKED;
    device_calls_check(b, world, 1);
    device_calls_check_many(b, world, 2);
    device_calls_check_sequences(b, world, 3);
    if (linked) open_ways(b, world);
    if (comm_rank(world) == 0)
        printf("{\"links\": \"%d ranks\", \"way\": \"%s\", \"why\": \"%s\", \"holds\": true}\n", comm_size(world),
               linked ? "NCCL" : "hosts", comm_device_why(world));
    comm_barrier(world, "all are done");
    comm_device_close(world);
}

int main(void) {
    Error error = {0};
    int gpus = cuda_count(&error);
    Comm *world = gpus > 0 ? comm_world_new(NULL, &error) : NULL;
    Backend *b = NULL;
    if (world) b = cuda_backend_new(&(CudaOptions){.device = comm_rank(world) % gpus}, NULL, &error);
    if (!b) {
        fprintf(stderr, "%s\n", error.message);
        return gpus > 0 ? 1 : NO_GPU;
    }
    if (comm_size(world) == 1)
        alone(b);
    else
        several(b, world);
    backend_free(b);
    comm_free(world);
    return 0;
}
