/* See pair_ring.h. Tile t consists of rows [t c, (t + 1) c) of every piece, c rows a piece, so that every rank brings
 * the same number of rows to it, all ranks work on the same tile at the same time, and its makeup does not depend on
 * the ranks. While a tile is computed the next one is gathered, and what the one before gave is reduced.
 * P pieces, E feature width, N columns of a tile. */
#include "fusion/pair_ring.h"
#include "base/error.h"
#include "kernels/comm/comm_device.h"
#include "kernels/pair_tiles.h"
#include <stdlib.h>

enum { ALIGNMENT = 64 /* of parts of the work space, bytes */, LEVELS = 32 /* of a tree over pieces, at most */ };

typedef struct Ring {
    const PairRing *p;
    int ranks, first, end;  // own pieces: [first, end)
    int64_t own, most;      // own pairs; pairs of the largest piece
    int64_t chunk, wide;    // c; P c: columns of a tile at most
    int64_t tiles, stride;  // tiles; from one row of z to the next
    double factor;          // weight / all pairs
    float *images, *texts;  // (own, E)
    int64_t *place;         // host, (own pieces + 1) first row of each own piece
    int64_t *column;        // host, (P + 1) where each piece's columns begin in the tile at hand
    float *numbers;         // (3) log_scale, bias, factor
    int64_t tile, columns;  // at hand; N
    float *features[2];     // (wide, E): of the tile at hand and of the next, N rows close together
    float *z;               // (rows, stride), and large enough for the features of a tile whose rows move
    float *d_images;        // (own, E)
    float *d_texts[LEVELS]; // one (wide, E) for each level of the tree over pieces; level 0 has a second one,
    float *d_texts_sent;    // which is being reduced
    float *sums, *gathered; // (levels, 2, wide), (ranks, 2, wide): most and sum of exp of the columns' logits
    PairSums rows;          // (own)
    float *row_lse, *own_lse, *own_logit; // (own): of rows, of the own pairs' columns; s[i, i]
    float *column_lse;                    // (tiles, wide)
    double *loss, *d_scale, *d_bias;      // (own)
    CommRequest *sent;                    // what the tile before gave
    int64_t bytes;                        // of work space
} Ring;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- layout ----

// Depth of the tree over `pieces` pieces.
static int levels_of(int pieces) {
    int levels = 1;
    for (int n = 1; n < pieces; n *= 2) levels++;
    return levels;
}

static void choose_tiles(Ring *r) {
    int pieces = r->p->pieces;
    r->chunk = largest(1, least(PAIR_SIDE / largest(pieces, 1), r->most));
    r->wide = r->chunk * pieces;
    r->tiles = divide_up(r->most, r->chunk);
    r->stride = pair_stride(r->wide);
}

// Work space for `count` elements; only counted where there is none.
static void *take(Ring *r, int64_t count, size_t size) {
    char *at = r->p->space ? (char *)r->p->space + r->bytes : NULL;
    r->bytes += divide_up(largest(1, count) * (int64_t)size, ALIGNMENT) * ALIGNMENT;
    return at;
}

static void take_work_space(Ring *r) {
    int levels = levels_of(r->end - r->first);
    int64_t tile = r->wide * r->p->width, own = r->own;
    check(levels <= LEVELS);
    r->numbers = take(r, 3, sizeof(float));
    for (int i = 0; i < 2; i++) r->features[i] = take(r, tile, sizeof(float));
    r->z = take(r, largest(least(PAIR_SIDE, r->most) * r->stride, tile), sizeof(float));
    r->d_images = take(r, own * r->p->width, sizeof(float));
    for (int i = 0; i < levels; i++) r->d_texts[i] = take(r, tile, sizeof(float));
    r->d_texts_sent = take(r, tile, sizeof(float));
    r->loss = take(r, own, sizeof(double));
    r->d_scale = take(r, own, sizeof(double));
    r->d_bias = take(r, own, sizeof(double));
    if (r->p->sigmoid) return;
    r->sums = take(r, levels * 2 * r->wide, sizeof(float));
    r->gathered = take(r, r->ranks * 2 * r->wide, sizeof(float));
    r->rows = (PairSums){take(r, own, sizeof(float)), take(r, own, sizeof(float))};
    r->row_lse = take(r, own, sizeof(float));
    r->own_lse = take(r, own, sizeof(float));
    r->own_logit = take(r, own, sizeof(float));
    r->column_lse = take(r, r->tiles * r->wide, sizeof(float));
}

int64_t pair_ring_bytes(int64_t own_pairs, int64_t all_pairs, int pieces, int64_t width) {
    PairRing p = {.width = width, .pieces = pieces};
    int own = all_pairs ? (int)divide_up(pieces * own_pairs, all_pairs) : pieces;
    Ring r = {.p = &p, .end = own, .own = own_pairs, .most = divide_up(all_pairs, pieces)};
    r.ranks = (int)divide_up(pieces, largest(1, own));
    choose_tiles(&r);
    take_work_space(&r);
    return r.bytes;
}

static Ring shape_of(const PairRing *p) {
    int ranks = comm_size(p->data), rank = comm_rank(p->data);
    check(p->pieces % ranks == 0);
    Ring r = {.p = p, .ranks = ranks};
    r.first = p->pieces / ranks * rank;
    r.end = p->pieces / ranks * (rank + 1);
    int64_t all = 0;
    for (int i = 0; i < p->pieces; i++) {
        all += p->rows[i];
        r.most = largest(r.most, p->rows[i]);
        if (i >= r.first && i < r.end) r.own += p->rows[i];
    }
    r.factor = all ? p->weight / (double)all : 0;
    choose_tiles(&r);
    take_work_space(&r);
    return r;
}

int64_t pair_ring_space(const PairRing *p) {
    PairRing none = *p;
    none.space = NULL;
    Ring r = shape_of(&none);
    return r.bytes;
}

static Ring ring_new(const PairRing *p, float *images, float *texts) {
    Ring r = shape_of(p);
    Backend *be = p->backend;
    const float factor = (float)r.factor;
    r.images = images, r.texts = texts;
    r.place = calloc((size_t)(r.end - r.first + 1), sizeof *r.place);
    r.column = calloc((size_t)p->pieces + 1, sizeof *r.column);
    check(p->space && r.place && r.column);
    for (int i = r.first; i < r.end; i++) r.place[i - r.first + 1] = r.place[i - r.first] + p->rows[i];
    be->copy(be, r.numbers, p->log_scale, sizeof(float));
    if (p->sigmoid) be->copy(be, r.numbers + 1, p->bias, sizeof(float));
    be->upload(be, r.numbers + 2, &factor, sizeof factor);
    return r;
}

// Rows that a piece brings to a tile.
static int64_t share_of(const Ring *r, int piece, int64_t tile) {
    return largest(0, least(r->chunk, r->p->rows[piece] - tile * r->chunk));
}

static float *row_of(const Ring *r, float *x, int64_t row) { return x + row * r->p->width; }
static size_t row_bytes(const Ring *r, int64_t rows) { return (size_t)(rows * r->p->width) * sizeof(float); }

// First of the rows that an own piece brings to a tile.
static int64_t own_row(const Ring *r, int piece, int64_t tile) { return r->place[piece - r->first] + tile * r->chunk; }

// ---- tiles travel ----

static void copy(const Ring *r, void *to, const void *from, size_t bytes) {
    if (bytes) r->p->backend->copy(r->p->backend, to, from, bytes);
}
static void zero(const Ring *r, void *memory, size_t bytes) {
    if (bytes) r->p->backend->zero(r->p->backend, memory, bytes);
}

// Own texts into their place of `out`, c rows a piece, and those of all ranks around them.
static CommRequest *start_tile(const Ring *r, int64_t tile, float *out) {
    for (int i = r->first; i < r->end; i++) {
        int64_t rows = share_of(r, i, tile);
        copy(r, row_of(r, out, i * r->chunk), rows ? row_of(r, r->texts, own_row(r, i, tile)) : NULL,
             row_bytes(r, rows));
        zero(r, row_of(r, out, i * r->chunk + rows), row_bytes(r, r->chunk - rows));
    }
    if (r->ranks == 1) return NULL;
    return comm_device_start_all_gather(r->p->backend, r->p->data, out, row_of(r, out, r->first * r->chunk), r->wide,
                                        (int64_t)row_bytes(r, 1), "text features");
}

// Where each piece's columns stand in a tile. Returns how many there are.
static int64_t place_columns(Ring *r, int64_t tile) {
    r->column[0] = 0;
    for (int i = 0; i < r->p->pieces; i++) r->column[i + 1] = r->column[i] + share_of(r, i, tile);
    return r->column[r->p->pieces];
}

// Rows of a tile that stand c apart for each piece move close together, or apart again, by way of z.
static void move_rows(const Ring *r, float *x, bool together) {
    bool moves = false;
    for (int i = 0; i < r->p->pieces; i++) moves |= r->column[i + 1] > r->column[i] && r->column[i] != i * r->chunk;
    if (!moves) return;
    copy(r, r->z, x, row_bytes(r, together ? r->wide : r->column[r->p->pieces]));
    for (int i = 0; i < r->p->pieces; i++) {
        int64_t close = r->column[i], apart = i * r->chunk;
        copy(r, row_of(r, x, together ? close : apart), row_of(r, r->z, together ? apart : close),
             row_bytes(r, r->column[i + 1] - close));
    }
}

// A tile that has come: its rows close together.
static void open_tile(Ring *r, int64_t tile) {
    r->tile = tile;
    r->columns = place_columns(r, tile);
    move_rows(r, r->features[tile % 2], true);
}

// Every tile in order: `work` on it, then `settle` the one before and `send` what this one gave.
static void walk(Ring *r, void (*work)(Ring *, int first, int end, int level), void (*settle)(Ring *, int64_t tile),
                 void (*send)(Ring *)) {
    CommRequest *next = r->tiles ? start_tile(r, 0, r->features[0]) : NULL;
    for (int64_t tile = 0; tile < r->tiles; tile++) {
        comm_wait(next);
        next = tile + 1 < r->tiles ? start_tile(r, tile + 1, r->features[(tile + 1) % 2]) : NULL;
        open_tile(r, tile);
        work(r, r->first, r->end, 0);
        comm_wait(r->sent);
        if (tile) settle(r, tile - 1);
        send(r);
    }
    comm_wait(r->sent);
    r->sent = NULL;
    if (r->tiles) settle(r, r->tiles - 1);
}

// Products of rows from `row` on of an own piece with the tile at hand.
static PairTile products(const Ring *r, int piece, int64_t row) {
    PairTile t = {.z = r->z,
                  .rows = least(PAIR_SIDE, r->p->rows[piece] - row),
                  .columns = r->columns,
                  .stride = r->stride,
                  .offset = r->column[piece] + row - r->tile * r->chunk,
                  .first = r->column[piece],
                  .end = r->column[piece + 1],
                  .add_rows = r->tile > 0,
                  .add_columns = row > 0};
    float *images = row_of(r, r->images, r->place[piece - r->first] + row);
    pair_products(r->p->backend, &t, images, r->features[r->tile % 2], r->p->width);
    return t;
}

// ---- sums of the softmax ----

static PairSums sums_of(const Ring *r, float *x, int number) {
    float *most = x + number * 2 * r->wide;
    return (PairSums){most, most + r->wide};
}

static void sum_piece(Ring *r, int piece, PairSums columns) {
    Backend *be = r->p->backend;
    for (int64_t row = 0; row < r->p->rows[piece]; row += PAIR_SIDE) {
        PairTile t = products(r, piece, row);
        int64_t at = r->place[piece - r->first] + row;
        be->clip_sums(be, (PairSums){r->rows.most + at, r->rows.sum + at}, columns, r->own_logit + at, &t, r->numbers);
    }
}

static bool any_rows(const Ring *r, int first, int end) {
    for (int i = first; i < end; i++)
        if (r->p->rows[i]) return true;
    return false;
}

// Sums over pieces [first, middle) at `a` and [middle, end) at `b` become those of both at `a`; pieces without rows
// have none.
static void join_sums(const Ring *r, PairSums a, PairSums b, int first, int middle, int end) {
    Backend *be = r->p->backend;
    if (!any_rows(r, middle, end)) return;
    if (any_rows(r, first, middle))
        be->clip_join(be, a, b, r->columns);
    else
        copy(r, a.most, b.most, (size_t)(2 * r->wide) * sizeof(float));
}

// Sums over the tile of pieces [first, end), along the tree; those of columns at `level`.
static void sum_pieces(Ring *r, int first, int end, int level) {
    int middle = first + (end - first) / 2;
    if (end - first == 1) return sum_piece(r, first, sums_of(r, r->sums, level));
    sum_pieces(r, first, middle, level);
    sum_pieces(r, middle, end, level + 1);
    join_sums(r, sums_of(r, r->sums, level), sums_of(r, r->sums, level + 1), first, middle, end);
}

static void send_sums(Ring *r) {
    int64_t bytes = 2 * r->wide * (int64_t)sizeof(float);
    float *mine = sums_of(r, r->gathered, comm_rank(r->p->data)).most;
    copy(r, mine, r->sums, (size_t)bytes);
    r->sent = r->ranks > 1 ? comm_device_start_all_gather(r->p->backend, r->p->data, r->gathered, mine, r->ranks, bytes,
                                                          "softmax sums")
                           : NULL;
}

static void add_ranks(const Ring *r, int first, int end) {
    int middle = first + (end - first) / 2, each = r->end - r->first; // pieces of a rank
    if (end - first == 1) return;
    add_ranks(r, first, middle);
    add_ranks(r, middle, end);
    join_sums(r, sums_of(r, r->gathered, first), sums_of(r, r->gathered, middle), first * each, middle * each,
              end * each);
}

static void settle_sums(Ring *r, int64_t tile) {
    float *lse = r->column_lse + tile * r->wide;
    r->columns = place_columns(r, tile);
    add_ranks(r, 0, r->ranks);
    r->p->backend->clip_logsumexp(r->p->backend, lse, sums_of(r, r->gathered, 0), r->columns);
    for (int i = r->first; i < r->end; i++) {
        int64_t rows = share_of(r, i, tile);
        if (rows) copy(r, r->own_lse + own_row(r, i, tile), lse + r->column[i], (size_t)rows * sizeof *lse);
    }
}

// ---- losses of the sigmoid, where no gradients are wanted ----

static void add_losses(Ring *r, int first, int end, int level) {
    (void)level;
    for (int piece = first; piece < end; piece++)
        for (int64_t row = 0; row < r->p->rows[piece]; row += PAIR_SIDE) {
            PairTile t = products(r, piece, row);
            r->p->backend->siglip_sums(r->p->backend, r->loss + r->place[piece - r->first] + row, &t, r->numbers,
                                       r->numbers + 1);
        }
}
static void send_nothing(Ring *r) { (void)r; }
static void settle_nothing(Ring *r, int64_t tile) { (void)r, (void)tile; }

// ---- gradients ----

static void differentiate_piece(Ring *r, int piece, float *d_texts) {
    Backend *be = r->p->backend;
    const PairRing *p = r->p;
    const float *column_lse = p->sigmoid ? NULL : r->column_lse + r->tile * r->wide;
    if (!p->rows[piece]) zero(r, d_texts, row_bytes(r, r->columns));
    for (int64_t row = 0; row < p->rows[piece]; row += PAIR_SIDE) {
        PairTile t = products(r, piece, row);
        int64_t at = r->place[piece - r->first] + row;
        if (p->sigmoid) {
            be->siglip_sums(be, r->loss + at, &t, r->numbers, r->numbers + 1);
            be->siglip_gradient(be, r->d_scale + at, r->d_bias + at, &t, r->numbers, r->numbers + 1, r->numbers + 2);
        } else {
            be->clip_gradient(be, r->d_scale + at, &t, r->row_lse + at, column_lse, r->numbers, r->numbers + 2);
        }
        pair_spread_rows(be, &t, row_of(r, r->d_images, at), r->tile > 0, r->features[r->tile % 2], p->width);
        pair_spread_columns(be, &t, d_texts, row > 0, row_of(r, r->images, at), p->width);
    }
}

// Gradients of the tile's texts from pieces [first, end), along the tree, at `level`; those of the pieces' images.
static void differentiate_pieces(Ring *r, int first, int end, int level) {
    int middle = first + (end - first) / 2;
    if (end - first == 1) return differentiate_piece(r, first, r->d_texts[level]);
    differentiate_pieces(r, first, middle, level);
    differentiate_pieces(r, middle, end, level + 1);
    r->p->backend->add_in_place(r->p->backend, r->d_texts[level], r->d_texts[level + 1], r->columns * r->p->width, F32,
                                F32);
}

static void send_gradients(Ring *r) {
    float *d_texts = r->d_texts[0];
    r->d_texts[0] = r->d_texts_sent;
    r->d_texts_sent = d_texts;
    place_columns(r, r->tile);
    move_rows(r, d_texts, false);
    for (int i = 0; i < r->p->pieces; i++) {
        int64_t rows = r->column[i + 1] - r->column[i];
        zero(r, row_of(r, d_texts, i * r->chunk + rows), row_bytes(r, r->chunk - rows));
    }
    if (r->ranks == 1) return;
    r->sent =
        comm_device_start_reduce_scatter(r->p->backend, r->p->data, row_of(r, d_texts, r->first * r->chunk), d_texts,
                                         r->wide, r->p->width, COMM_F32, COMM_ORDERED, "text feature gradients");
}

static void settle_gradients(Ring *r, int64_t tile) {
    for (int i = r->first; i < r->end; i++) {
        float *sum = row_of(r, r->d_texts_sent, i * r->chunk);
        int64_t rows = share_of(r, i, tile);
        if (rows) copy(r, row_of(r, r->texts, own_row(r, i, tile)), sum, row_bytes(r, rows));
    }
}

// ---- the whole ----

// What each piece comes to: sums over its rows.
static void add_rows(const Ring *r, double *loss, float *d_scale, float *d_bias) {
    Backend *be = r->p->backend;
    for (int i = 0; i < r->end - r->first; i++) {
        int64_t first = r->place[i], rows = r->place[i + 1] - first;
        be->sum_doubles(be, &(DoubleSum){.x = r->loss + first, .out = loss + i, .n = rows}, 1);
        if (d_scale) be->sum_rows(be, d_scale + i, false, r->d_scale + first, rows);
        if (d_scale && r->p->sigmoid) be->sum_rows(be, d_bias + i, false, r->d_bias + first, rows);
    }
}

void pair_ring(const PairRing *p, float *images, float *texts, double *loss, float *d_scale, float *d_bias) {
    Backend *be = p->backend;
    Ring r = ring_new(p, images, texts);
    if (!p->sigmoid) {
        walk(&r, sum_pieces, settle_sums, send_sums);
        be->clip_logsumexp(be, r.row_lse, r.rows, r.own);
        be->clip_losses(be, r.loss, r.row_lse, r.own_lse, r.own_logit, r.own);
    } else if (!d_scale) {
        walk(&r, add_losses, settle_nothing, send_nothing);
    }
    if (d_scale) {
        walk(&r, differentiate_pieces, settle_gradients, send_gradients);
        copy(&r, images, r.d_images, row_bytes(&r, r.own));
    }
    add_rows(&r, loss, d_scale, d_bias);
    free(r.place);
    free(r.column);
}
