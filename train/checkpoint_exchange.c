/* See checkpoint_copy.h: what other ranks write goes to them, and what this rank writes comes from those who hold it,
 * in rounds over buffers of a bounded size. A message is a row of pieces, each with a header that says where it
 * belongs: nobody needs to know how the sender shares the model. */
#include "train/checkpoint_copy.h"
#include <stdlib.h>
#include <string.h>

enum { ROUND_BYTES = 64 << 20, LEAST_SLICE = 4 << 10 }; // of a round's messages together; of one message

typedef struct Piece { // followed by its elements
    int64_t tensor, first, count;
} Piece;

typedef struct Cursor { // what has been sent to a rank
    int range;
    int64_t done; // elements of the range
} Cursor;

typedef struct Exchange {
    CheckpointCopy *copy;
    Comm *world;
    int ranks;
    int64_t slice;             // bytes of a message at the most
    Cursor *cursors;           // (ranks)
    int64_t *sizes, *received; // (ranks) bytes of this round's messages
    int64_t *eights;           // (ranks) 8 each: bytes of a size
    char *out, *in;
} Exchange;

// Writes what the rank `to` is still to get into `out`, up to a slice; returns the bytes.
static int64_t pack(Exchange *e, int to, char *out) {
    const CheckpointCopy *c = e->copy;
    Cursor *at = &e->cursors[to];
    int64_t used = 0;
    while (at->range < c->range_count) {
        const StateRange *r = &c->ranges[at->range];
        int64_t room = (e->slice - used - (int64_t)sizeof(Piece)) / (int64_t)sizeof(float);
        if (at->done == r->count || checkpoint_copy_writer(c, r) != to) {
            *at = (Cursor){at->range + 1, 0};
            continue;
        }
        if (room <= 0) break;
        Piece piece = {.tensor = checkpoint_copy_tensor(c, r)};
        checkpoint_copy_run(c, r, at->done, &piece.first, &piece.count);
        if (piece.count > room) piece.count = room;
        memcpy(out + used, &piece, sizeof piece);
        used += (int64_t)sizeof piece;
        c->backend->download(c->backend, out + used, r->data + at->done, (size_t)piece.count * sizeof(float));
        used += piece.count * (int64_t)sizeof(float);
        at->done += piece.count;
    }
    return used;
}

static void unpack(const Exchange *e, const char *in, int64_t size) {
    CheckpointCopy *c = e->copy;
    for (int64_t at = 0; at < size;) {
        Piece piece;
        check(size - at >= (int64_t)sizeof piece);
        memcpy(&piece, in + at, sizeof piece);
        at += (int64_t)sizeof piece;
        int64_t bytes = piece.count * (int64_t)sizeof(float);
        check(piece.tensor >= 0 && piece.tensor < c->layout->count && c->to[piece.tensor] && piece.count > 0);
        check(bytes <= size - at &&
              (piece.first + piece.count) * (int64_t)sizeof(float) <= c->layout->tensors[piece.tensor].bytes);
        memcpy(c->to[piece.tensor] + piece.first, in + at, (size_t)bytes);
        c->arrived[piece.tensor] += piece.count;
        at += bytes;
    }
}

// False where no rank had anything to send.
static bool run_round(Exchange *e) {
    int64_t sent = 0, total = 0;
    for (int to = 0; to < e->ranks; to++) {
        e->sizes[to] = to == e->copy->rank ? 0 : pack(e, to, e->out + sent);
        sent += e->sizes[to];
    }
    comm_all_reduce(e->world, &sent, 1, COMM_I64, COMM_MAX, COMM_FAST, "checkpoint");
    if (!sent) return false;
    comm_all_to_all(e->world, e->received, e->eights, e->sizes, e->eights, "checkpoint");
    comm_all_to_all(e->world, e->in, e->received, e->out, e->sizes, "checkpoint");
    for (int from = 0; from < e->ranks; from++) {
        unpack(e, e->in + total, e->received[from]);
        total += e->received[from];
    }
    return true;
}

static bool sends(const CheckpointCopy *c) {
    for (int i = 0; i < c->range_count; i++) {
        int writer = checkpoint_copy_writer(c, &c->ranges[i]);
        if (writer >= 0 && writer != c->rank) return true;
    }
    return false;
}

void checkpoint_copy_exchange(CheckpointCopy *c, Comm *world) {
    int ranks = comm_size(world);
    int64_t any = ranks > 1 && sends(c);
    comm_all_reduce(world, &any, 1, COMM_I64, COMM_MAX, COMM_FAST, "checkpoint");
    if (!any) return;
    Exchange e = {.copy = c, .world = world, .ranks = ranks, .slice = ROUND_BYTES / ranks};
    if (e.slice < LEAST_SLICE) e.slice = LEAST_SLICE;
    e.cursors = calloc((size_t)ranks, sizeof *e.cursors);
    e.sizes = calloc(3 * (size_t)ranks, sizeof *e.sizes);
    e.out = malloc((size_t)(e.slice * ranks));
    e.in = malloc((size_t)(e.slice * ranks));
    check(e.cursors && e.sizes && e.out && e.in);
    e.received = e.sizes + ranks;
    e.eights = e.received + ranks;
    for (int i = 0; i < ranks; i++) e.eights[i] = (int64_t)sizeof(int64_t);
    while (run_round(&e)) continue;
    free(e.cursors);
    free(e.sizes);
    free(e.out);
    free(e.in);
}
