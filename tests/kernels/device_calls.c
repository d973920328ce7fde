/* See device_calls.h. */
#include "tests/kernels/device_calls.h"
#include "base/philox.h"
#include "kernels/comm/device_link.h"
#include "base/error.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 8, BESIDE = 256 /* bytes that nothing else uses */ };

typedef struct Case {
    DeviceCallKind kind;
    int64_t rows, width;
    CommType type;
    CommReduction reduction;
    CommOrder order;
    bool in_place;
} Case;

static int64_t bytes_of(const Case *c) { return c->rows * c->width * (int64_t)comm_type_size(c->type); }
static int64_t share_at(const Case *c, const Comm *comm, int rank) {
    return c->rows ? comm_share(c->rows, rank, comm_size(comm)) * (bytes_of(c) / c->rows) : 0;
}

// ---- numbers ----

// Sums without an order are of whole numbers, which come out the same in any.
static void fill(const Case *c, void *out, int64_t bytes, uint64_t seed, int rank) {
    Rng rng = rng_for(seed, PURPOSE_TEST, (uint64_t)rank);
    int64_t n = bytes / (int64_t)comm_type_size(c->type);
    for (int64_t i = 0; i < n; i++) {
        double x = c->order == COMM_ORDERED ? rng_normal(&rng) : (double)(int)(rng_uniform(&rng) * 9) - 4;
        if (c->type == COMM_F32) ((float *)out)[i] = (float)x;
        if (c->type == COMM_BF16) ((uint16_t *)out)[i] = f32_to_bf16((float)x);
        if (c->type == COMM_F64) ((double *)out)[i] = x;
        if (c->type == COMM_I32) ((int32_t *)out)[i] = (int32_t)(1000 * x);
        if (c->type == COMM_I64) ((int64_t *)out)[i] = (int64_t)(1e9 * x);
        if (c->type == COMM_U8) ((uint8_t *)out)[i] = (uint8_t)(int)(16 * x);
    }
}

// ---- one call, of the host where the backend's memory is its own ----

static int partner(const Comm *comm) { return comm_rank(comm) ^ 1; }
static int64_t piece(int from, int to) { return (from * 3 + to * 5) % 4 * 24; }
static void pieces(const Comm *comm, int64_t in[MOST_RANKS], int64_t out[MOST_RANKS]) {
    for (int q = 0; q < comm_size(comm); q++) {
        in[q] = piece(comm_rank(comm), q);
        out[q] = piece(q, comm_rank(comm));
    }
}

static CommRequest *start(Backend *b, Comm *comm, const Case *c, void *out, void *in) {
    int64_t sent[MOST_RANKS], received[MOST_RANKS];
    char *own_in = c->in_place ? (char *)out + share_at(c, comm, comm_rank(comm)) : in;
    char *own_out = c->in_place ? (char *)in + share_at(c, comm, comm_rank(comm)) : out;
    bool paired = partner(comm) < comm_size(comm), sends = comm_rank(comm) % 2 == 0;
    switch (c->kind) {
    case CALL_ALL_REDUCE:
        return comm_device_start_all_reduce(b, comm, in, c->rows * c->width, c->type, c->reduction, c->order, "test");
    case CALL_REDUCE_SCATTER:
        return comm_device_start_reduce_scatter(b, comm, own_out, in, c->rows, c->width, c->type, c->order, "test");
    case CALL_ALL_GATHER:
        return comm_device_start_all_gather(b, comm, out, own_in, c->rows, c->width * (int64_t)comm_type_size(c->type),
                                            "test");
    case CALL_ALL_TO_ALL:
        pieces(comm, sent, received);
        return comm_device_start_all_to_all(b, comm, out, received, in, sent, "test");
    case CALL_BROADCAST:
        return comm_device_start_broadcast(b, comm, in, bytes_of(c), comm_size(comm) - 1, "test");
    case CALL_EXCHANGE:
        return paired ? comm_device_start_exchange(b, comm, out, in, bytes_of(c), partner(comm), 3, "test") : NULL;
    case CALL_SEND:
    case CALL_RECEIVE:
        if (!paired) return NULL;
        return sends ? comm_device_start_send(b, comm, in, bytes_of(c), partner(comm), 3, "test")
                     : comm_device_start_receive(b, comm, out, bytes_of(c), partner(comm), 3, "test");
    }
    return NULL;
}

// ---- comparison ----

typedef struct Trial { // of a case: (room) bytes each, host; and the device's
    Case c;
    int64_t room;
    char *in, *out, *first_in, *first_out;
    void *device_in, *device_out, *beside; // one block; beside: (BESIDE)
    CommRequest *request;
} Trial;

static Trial trial_new(Backend *b, Comm *comm, Case c, uint64_t seed) {
    Trial t = {.c = c, .room = bytes_of(&c) > 1024 ? (bytes_of(&c) + 255) / 256 * 256 : 1024};
    char **all[] = {&t.in, &t.out, &t.first_in, &t.first_out};
    for (int i = 0; i < 4; i++) check((*all[i] = malloc((size_t)t.room)) != NULL);
    fill(&c, t.in, t.room, seed, comm_rank(comm));
    fill(&c, t.out, t.room, seed + 1, comm_rank(comm));
    memcpy(t.first_in, t.in, (size_t)t.room);
    memcpy(t.first_out, t.out, (size_t)t.room);
    t.device_in = b->allocate(b, 2 * (size_t)t.room + BESIDE);
    t.device_out = (char *)t.device_in + t.room;
    t.beside = (char *)t.device_out + t.room;
    return t;
}

static void trial_free(Trial *t, Backend *b) {
    b->release(b, t->device_in, 2 * (size_t)t->room + BESIDE);
    free(t->in);
    free(t->out);
    free(t->first_in);
    free(t->first_out);
}

static void trial_upload(const Trial *t, Backend *b) {
    b->upload(b, t->device_in, t->first_in, (size_t)t->room);
    b->upload(b, t->device_out, t->first_out, (size_t)t->room);
}

static void by_host(Trial *t, Comm *comm) {
    Backend host = {.name = "the host's own memory"};
    comm_wait(start(&host, comm, &t->c, t->out, t->in));
}

static void compare(const Trial *t, Backend *b) {
    char *seen = malloc((size_t)t->room);
    check(seen);
    const char *const names[] = {"goes", "comes"};
    const void *device[] = {t->device_in, t->device_out};
    const char *host[] = {t->in, t->out};
    for (int i = 0; i < 2; i++) {
        b->download(b, seen, device[i], (size_t)t->room);
        if (memcmp(seen, host[i], (size_t)t->room) == 0) continue;
        fprintf(stderr, "kind %d, %lld rows: what %s differs\n", (int)t->c.kind, (long long)t->c.rows, names[i]);
        abort();
    }
    free(seen);
}

static void check_case(Backend *b, Comm *comm, Case c, uint64_t seed) {
    Trial t = trial_new(b, comm, c, seed);
    by_host(&t, comm);
    trial_upload(&t, b);
    CommRequest *request = start(b, comm, &c, t.device_out, t.device_in);
    b->zero(b, t.beside, BESIDE);
    comm_wait(request);
    compare(&t, b);
    trial_free(&t, b);
}

void device_calls_check(Backend *b, Comm *comm, uint64_t seed) {
    static const int64_t rows[] = {0, 1, 2, 5, 8, 67}, widths[] = {1, 3, 40};
    for (int i = 0; i < 18; i++) {
        int64_t n = rows[i % 6], width = widths[i / 6];
        for (int order = COMM_FAST; order <= COMM_ORDERED; order++) {
            for (int narrow = 0; narrow < 2; narrow++) {
                Case c = {CALL_ALL_REDUCE, n, width, narrow ? COMM_BF16 : COMM_F32, COMM_SUM, (CommOrder)order, false};
                check_case(b, comm, c, seed += 2);
                c.kind = CALL_REDUCE_SCATTER;
                c.in_place = i % 2;
                check_case(b, comm, c, seed += 2);
            }
        }
        check_case(b, comm, (Case){CALL_ALL_GATHER, n, width, COMM_U8, COMM_SUM, COMM_ORDERED, i % 2}, seed += 2);
    }
    static const CommType types[] = {COMM_U8, COMM_I32, COMM_I64, COMM_F32, COMM_F64, COMM_BF16};
    for (int i = 0; i < 18; i++)
        check_case(b, comm,
                   (Case){CALL_ALL_REDUCE, 11, 1, types[i % 6], (CommReduction)(i / 6), (CommOrder)(i % 2), false},
                   seed += 2);
    static const DeviceCallKind moves[] = {CALL_ALL_TO_ALL, CALL_BROADCAST, CALL_EXCHANGE, CALL_SEND};
    for (int i = 0; i < 12; i++)
        check_case(b, comm, (Case){moves[i % 4], rows[1 + i / 4], 40, COMM_U8, COMM_SUM, COMM_ORDERED, false},
                   seed += 2);
}

void device_calls_check_many(Backend *b, Comm *comm, uint64_t seed) {
    enum { COUNT = 6 };
    static const DeviceCallKind kinds[COUNT] = {CALL_ALL_REDUCE, CALL_ALL_GATHER,     CALL_EXCHANGE,
                                                CALL_ALL_TO_ALL, CALL_REDUCE_SCATTER, CALL_ALL_REDUCE};
    Trial trials[COUNT];
    for (int i = 0; i < COUNT; i++) {
        Case c = {kinds[i], 37 + i, 5, COMM_F32, COMM_SUM, COMM_ORDERED, false};
        trials[i] = trial_new(b, comm, c, seed + 2 * (uint64_t)i);
        by_host(&trials[i], comm);
        trial_upload(&trials[i], b);
    }
    for (int i = 0; i < COUNT; i++)
        trials[i].request = start(b, comm, &trials[i].c, trials[i].device_out, trials[i].device_in);
    for (int i = 0; i < COUNT; i++) comm_wait(trials[(i * 5 + 3) % COUNT].request);
    for (int i = 0; i < COUNT; i++) {
        compare(&trials[i], b);
        trial_free(&trials[i], b);
    }
}

void device_calls_check_sequences(Backend *b, Comm *comm, uint64_t seed) {
    enum { STEPS = 5 };
    Case sum = {CALL_ALL_REDUCE, 51, 3, COMM_F32, COMM_SUM, COMM_ORDERED, false}, gather = sum;
    gather.kind = CALL_ALL_GATHER;
    Trial s = trial_new(b, comm, sum, seed), g = trial_new(b, comm, gather, seed + 1);
    for (int step = 0; step < STEPS; step++) {
        fill(&sum, s.first_in, s.room, seed + 10 + (uint64_t)step, comm_rank(comm));
        memcpy(s.in, s.first_in, (size_t)s.room);
        memcpy(g.in, g.first_in, (size_t)g.room);
        memcpy(g.out, g.first_out, (size_t)g.room);
        by_host(&s, comm);
        by_host(&g, comm);
        trial_upload(&s, b);
        trial_upload(&g, b);
        backend_sequence_begin(b, "step");
        CommRequest *summing = start(b, comm, &sum, s.device_out, s.device_in);
        CommRequest *gathering = start(b, comm, &gather, g.device_out, g.device_in);
        comm_wait(gathering);
        b->copy(b, s.device_out, g.device_out, (size_t)bytes_of(&gather)); // behind the one, beside the other
        comm_wait(summing);
        backend_sequence_end(b);
        memcpy(s.out, g.out, (size_t)bytes_of(&gather));
        compare(&s, b);
        compare(&g, b);
    }
    trial_free(&s, b);
    trial_free(&g, b);
}
