/* Calls that move bytes and add nothing: all-gather, all-to-all, broadcast, barrier, send, receive. Each is a row of
 * rounds; see comm_internal.h. */
#include "kernels/comm/comm_internal.h"

// Up to this, and on one machine, a rank sends its part to every other at once; else parts travel around a ring of
// neighbours, which crosses the link between two machines once, however many ranks they hold.
enum { SMALL_BYTES = 64 << 10 };

static void copy_own(const CommRequest *c) {
    int r = c->comm->rank;
    copy_bytes(c->out + c->at[r], c->in, c->at[r + 1] - c->at[r]);
}

// ---- all-gather ----

void ring_gather_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, r = c->comm->rank;
    int64_t chunk = round / (p - 1);
    int step = (int)(round % (p - 1));
    int from = (r + 2 * p - step - 1) % p, to = (r + p - step) % p; // whose parts come in and go on
    call_receive(c, (r + p - 1) % p, c->out + chunk_begin(c, from, chunk), chunk_bytes(c, from, chunk));
    call_send(c, (r + 1) % p, c->out + chunk_begin(c, to, chunk), chunk_bytes(c, to, chunk));
}

static void ring_all_gather(CommRequest *c, int64_t round) {
    if (round == 0) copy_own(c);
    ring_gather_round(c, round);
}

static void direct_all_gather(CommRequest *c, int64_t round) {
    int p = c->comm->size, r = c->comm->rank;
    if (round == 0) copy_own(c);
    for (int i = 1; i < p; i++) {
        int q = (r + p - i) % p;
        call_receive(c, q, c->out + chunk_begin(c, q, round), chunk_bytes(c, q, round));
    }
    for (int i = 1; i < p; i++) call_send(c, (r + i) % p, c->out + chunk_begin(c, r, round), chunk_bytes(c, r, round));
}

void plan_all_gather(CommRequest *c) {
    int p = c->comm->size;
    c->chunk = MESSAGE_BYTES;
    call_share_out(c);
    bool direct = p == 2 || c->at[p] <= SMALL_BYTES || engine_transport(c->comm->engine)->one_machine;
    c->round = direct ? direct_all_gather : ring_all_gather;
    c->rounds = direct ? c->chunks : c->chunks * (p - 1);
}

// ---- all-to-all ----

static void all_to_all_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, r = c->comm->rank;
    const int64_t *in_at = c->at, *out_at = c->at + p + 1;
    int64_t done = round * c->chunk;
    if (round == 0) copy_bytes(c->out + out_at[r], c->in + in_at[r], in_at[r + 1] - in_at[r]);
    for (int i = 1; i < p; i++) {
        int q = (r + p - i) % p;
        int64_t left = out_at[q + 1] - out_at[q] - done;
        if (left > 0) call_receive(c, q, c->out + out_at[q] + done, least(left, c->chunk));
    }
    for (int i = 1; i < p; i++) {
        int q = (r + i) % p;
        int64_t left = in_at[q + 1] - in_at[q] - done;
        if (left > 0) call_send(c, q, c->in + in_at[q] + done, least(left, c->chunk));
    }
}

// The caller has filled `at`. Two ranks agree on the messages between them; the number of rounds may differ.
void plan_all_to_all(CommRequest *c) {
    int p = c->comm->size, r = c->comm->rank;
    int64_t longest = 1; // a round, to copy what stays here
    for (int i = 0; i < 2 * p + 1; i++)
        if (i != p && i != r && i != p + 1 + r && c->at[i + 1] - c->at[i] > longest) longest = c->at[i + 1] - c->at[i];
    check(c->at[r + 1] - c->at[r] == c->at[p + 1 + r + 1] - c->at[p + 1 + r]); // to and from itself
    c->chunk = MESSAGE_BYTES;
    c->rounds = (longest + c->chunk - 1) / c->chunk;
    c->round = all_to_all_round;
}

// ---- broadcast: chunks in a row down a binomial tree ----

static void broadcast_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, place = (c->comm->rank + p - c->peer) % p; // the root's is 0
    int lowest = place ? place & -place : p; // the parent is place - lowest; children are place + 2^i below lowest
    int64_t sent = place ? round - 1 : round;
    if (place && round < c->chunks)
        call_receive(c, (place - lowest + c->peer) % p, c->out + round * c->chunk,
                     least(c->chunk, c->row_bytes - round * c->chunk));
    if (sent < 0 || sent >= c->chunks) return;
    for (int far = 1; far < lowest && place + far < p; far *= 2)
        call_send(c, (place + far + c->peer) % p, c->out + sent * c->chunk,
                  least(c->chunk, c->row_bytes - sent * c->chunk));
}

void plan_broadcast(CommRequest *c) {
    check(c->peer >= 0 && c->peer < c->comm->size);
    c->chunk = MESSAGE_BYTES;
    c->chunks = (c->row_bytes + c->chunk - 1) / c->chunk;
    c->rounds = c->chunks + 1;
    c->round = broadcast_round;
}

// ---- barrier: Hensgen, Finkel, Manber 1988 (dissemination) ----

static void barrier_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, r = c->comm->rank, far = 1 << round;
    call_receive(c, (r + p - far) % p, c->comm->work + 2 * round, 1);
    call_send(c, (r + far) % p, c->comm->work + 2 * round + 1, 1);
}

void plan_barrier(CommRequest *c) {
    c->rounds = 0;
    for (int far = 1; far < c->comm->size; far *= 2) c->rounds++;
    c->work_bytes = 2 * c->rounds;
    c->round = barrier_round;
}

// ---- send and receive: all messages at once, so that two calls of one tag keep their order ----

static void send_round(CommRequest *c, int64_t round) {
    (void)round;
    for (int64_t at = 0; at < c->row_bytes; at += MESSAGE_BYTES)
        call_send(c, c->peer, c->in + at, least(MESSAGE_BYTES, c->row_bytes - at));
}

static void receive_round(CommRequest *c, int64_t round) {
    (void)round;
    for (int64_t at = 0; at < c->row_bytes; at += MESSAGE_BYTES)
        call_receive(c, c->peer, c->out + at, least(MESSAGE_BYTES, c->row_bytes - at));
}

void plan_message(CommRequest *c, bool send) {
    check(c->peer >= 0 && c->peer < c->comm->size && c->tag >= 0 && c->tag < USER_TAGS);
    c->round = send ? send_round : receive_round;
    c->rounds = 1;
}
