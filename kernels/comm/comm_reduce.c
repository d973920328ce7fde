/* Sums over ranks. The elements are shared out; every rank is the owner of a share and takes the contributions to it.
 *
 * - Direct: each owner gets the p - 1 contributions to its share, chunk by chunk, and combines them along the tree: a
 *   fixed order, and as few bytes as around a ring.
 * - Ring: partial sums travel around the ring of neighbours, which crosses the link between two machines once, however
 *   many ranks they hold (Patarasuk and Yuan 2009). For COMM_FAST over several machines.
 * - Doubling: partial sums are exchanged at distance 1, 2, 4, ..., in the tree's order. For few bytes and p = 2^k.
 * - Gathered: everybody gets everything and combines it along the tree. For few bytes otherwise. */
#include "kernels/comm/comm_internal.h"
#include <stdlib.h>

enum { SMALL_BYTES = 32 << 10 };                      // up to this in one piece
enum { WORK_BYTES = 8 << 20, LEAST_CHUNK = 4 << 10 }; // work space of a group; it is more from 1,024 ranks on

static int64_t elements(const CommRequest *c, int64_t bytes) { return bytes / (int64_t)comm_type_size(c->type); }

static void combine_two(const CommRequest *c, char *out, const char *lower, const char *upper, int64_t bytes) {
    combine_tree(out, (const void *const[]){lower, upper}, 2, elements(c, bytes), c->type, c->reduction);
}

// Where this rank's chunk of the sum belongs.
static char *own_out(const CommRequest *c, int64_t chunk) { return c->out + chunk * c->chunk; }

// ---- direct ----

// Work space of the contributions of the other ranks to a chunk, two chunks in turn.
static char *contribution(const CommRequest *c, int q, int64_t chunk) {
    int p = c->comm->size, r = c->comm->rank;
    return c->comm->work + ((chunk & 1) * (p - 1) + (q < r ? q : q - 1)) * c->chunk;
}

static void direct_exchange(CommRequest *c, int64_t chunk) {
    int p = c->comm->size, r = c->comm->rank;
    for (int i = 1; i < p; i++) {
        int q = (r + p - i) % p;
        call_receive(c, q, contribution(c, q, chunk), chunk_bytes(c, r, chunk));
    }
    for (int i = 1; i < p; i++) {
        int q = (r + i) % p;
        call_send(c, q, c->in + chunk_begin(c, q, chunk), chunk_bytes(c, q, chunk));
    }
}

static void combine_contributions(CommRequest *c, int64_t chunk, char *out) {
    int p = c->comm->size, r = c->comm->rank;
    const void **parts = malloc((size_t)p * sizeof *parts);
    check(parts);
    for (int q = 0; q < p; q++) parts[q] = q == r ? c->in + chunk_begin(c, r, chunk) : contribution(c, q, chunk);
    combine_tree(out, parts, p, elements(c, chunk_bytes(c, r, chunk)), c->type, c->reduction);
    free(parts);
}

static void direct_scatter_round(CommRequest *c, int64_t round) {
    if (round < c->chunks) direct_exchange(c, round);
}

static void direct_scatter_compute(CommRequest *c, int64_t round) {
    if (round > 0) combine_contributions(c, round - 1, own_out(c, round - 1));
}

// Chunk k is exchanged in round k, combined in round k + 1 and handed out in round k + 2.
static void direct_all_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, r = c->comm->rank;
    int64_t ready = round - 2;
    for (int i = 1; i < p && ready >= 0; i++) {
        int q = (r + p - i) % p;
        call_receive(c, q, c->out + chunk_begin(c, q, ready), chunk_bytes(c, q, ready));
    }
    for (int i = 1; i < p && ready >= 0; i++)
        call_send(c, (r + i) % p, c->out + chunk_begin(c, r, ready), chunk_bytes(c, r, ready));
    if (round < c->chunks) direct_exchange(c, round);
}

static void direct_all_compute(CommRequest *c, int64_t round) {
    int64_t ready = round - 1;
    if (ready >= 0 && ready < c->chunks) combine_contributions(c, ready, c->out + chunk_begin(c, c->comm->rank, ready));
}

// ---- ring ----

// In step s a rank sends its partial sum of share r - s - 1 on and gets that of share r - s - 2; the last is its own.
static void ring_reduce_round(CommRequest *c, int64_t chunk, int step, char *sum) {
    int p = c->comm->size, r = c->comm->rank;
    int sent = (r + 2 * p - step - 1) % p, taken = (r + 2 * p - step - 2) % p;
    char *partial = c->comm->work, *arrived = c->comm->work + c->chunk;
    int64_t bytes = chunk_bytes(c, sent, chunk);
    if (step == 0)
        copy_bytes(partial, c->in + chunk_begin(c, sent, chunk), bytes);
    else // what has arrived is a partial sum of the share that is sent now
        combine_two(c, partial, arrived, c->in + chunk_begin(c, sent, chunk), bytes);
    if (step < p - 1) {
        call_receive(c, (r + p - 1) % p, arrived, chunk_bytes(c, taken, chunk));
        call_send(c, (r + 1) % p, partial, bytes);
    } else {
        copy_bytes(sum, partial, bytes);
    }
}

static void ring_scatter_round(CommRequest *c, int64_t round) {
    int64_t chunk = round / c->comm->size;
    ring_reduce_round(c, chunk, (int)(round % c->comm->size), own_out(c, chunk));
}

// Each chunk: p rounds to reduce, of which the last sends nothing, then p - 1 to gather.
static void ring_all_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, a_chunk = 2 * p - 1;
    int64_t chunk = round / a_chunk;
    int step = (int)(round % a_chunk);
    if (step < p)
        ring_reduce_round(c, chunk, step, c->out + chunk_begin(c, c->comm->rank, chunk));
    else
        ring_gather_round(c, chunk * (p - 1) + step - p);
}

// ---- few bytes ----

static void doubling_round(CommRequest *c, int64_t round) {
    int r = c->comm->rank, far = 1 << round;
    int64_t bytes = c->at[c->comm->size];
    if (round > 0) {
        bool other_is_lower = r & far >> 1;
        combine_two(c, c->out, other_is_lower ? c->comm->work : c->out, other_is_lower ? c->out : c->comm->work, bytes);
    }
    if (round == c->rounds - 1) return;
    call_receive(c, r ^ far, c->comm->work, bytes);
    call_send(c, r ^ far, c->out, bytes);
}

static void gathered_round(CommRequest *c, int64_t round) {
    int p = c->comm->size, r = c->comm->rank;
    int64_t bytes = c->at[p];
    if (round == 0) {
        for (int i = 1; i < p; i++) call_receive(c, (r + p - i) % p, c->comm->work + (r + p - i) % p * bytes, bytes);
        for (int i = 1; i < p; i++) call_send(c, (r + i) % p, c->out, bytes);
        return;
    }
    const void **parts = malloc((size_t)p * sizeof *parts);
    check(parts);
    for (int q = 0; q < p; q++) parts[q] = q == r ? c->out : c->comm->work + q * bytes;
    combine_tree(c->out, parts, p, elements(c, bytes), c->type, c->reduction);
    free(parts);
}

// ---- choice ----

// Sets the chunk so that two rounds' contributions of all others fit the work space.
static void plan_direct(CommRequest *c) {
    int64_t others = c->comm->size - 1, chunk = WORK_BYTES / (2 * others) / LEAST_CHUNK * LEAST_CHUNK;
    c->chunk = least(chunk < LEAST_CHUNK ? LEAST_CHUNK : chunk, MESSAGE_BYTES);
    c->work_bytes = 2 * others * c->chunk;
    call_share_out(c);
}

static void plan_ring(CommRequest *c) {
    c->chunk = MESSAGE_BYTES;
    c->work_bytes = 2 * c->chunk;
    call_share_out(c);
}

// A partial sum of bf16 would have to travel in f32: no ring.
static bool rings(const CommRequest *c, CommOrder order) {
    return order == COMM_FAST && c->comm->size > 2 && c->type != COMM_BF16 &&
           !engine_transport(c->comm->engine)->one_machine;
}

static bool plan_small(CommRequest *c) {
    int p = c->comm->size;
    int64_t bytes = c->rows * c->row_bytes;
    bool doubling = (p & (p - 1)) == 0 && c->type != COMM_BF16;
    if (bytes > SMALL_BYTES || (!doubling && bytes * p > WORK_BYTES)) return false;
    call_share_out(c);
    c->work_bytes = doubling ? bytes : bytes * p;
    c->round = doubling ? doubling_round : gathered_round;
    c->rounds = bytes > 0 ? 2 : 0;
    for (int far = 2; doubling && far < p && bytes > 0; far *= 2) c->rounds++;
    return true;
}

void plan_all_reduce(CommRequest *c, CommOrder order) {
    if (plan_small(c)) return;
    if (rings(c, order)) {
        plan_ring(c);
        c->round = ring_all_round;
        c->rounds = c->chunks * (2 * c->comm->size - 1);
        return;
    }
    plan_direct(c);
    c->round = direct_all_round;
    c->compute = direct_all_compute;
    c->rounds = c->chunks ? c->chunks + 2 : 0;
}

void plan_reduce_scatter(CommRequest *c, CommOrder order) {
    if (rings(c, order) && c->rows * c->row_bytes > SMALL_BYTES) {
        plan_ring(c);
        c->round = ring_scatter_round;
        c->rounds = c->chunks * c->comm->size;
        return;
    }
    plan_direct(c);
    c->round = direct_scatter_round;
    c->compute = direct_scatter_compute;
    c->rounds = c->chunks ? c->chunks + 1 : 0;
}
