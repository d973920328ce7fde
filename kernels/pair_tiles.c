/* See pair_tiles.h. */
#include "kernels/pair_tiles.h"

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void pair_products(Backend *be, const PairTile *t, const float *a, const float *b, int64_t width) {
    be->matmul(be, &(Matmul){.m = t->rows,
                             .n = t->columns,
                             .k = width,
                             .batch = 1,
                             .a = a,
                             .a_row = width,
                             .a_column = 1,
                             .b = b,
                             .b_row = 1,
                             .b_column = width,
                             .c = t->z,
                             .c_row = t->stride,
                             .in = F32,
                             .out = F32});
}

void pair_spread_rows(Backend *be, const PairTile *t, float *da, bool add, const float *b, int64_t width) {
    be->matmul(be, &(Matmul){.m = t->rows,
                             .n = width,
                             .k = t->columns,
                             .batch = 1,
                             .a = t->z,
                             .a_row = t->stride,
                             .a_column = 1,
                             .b = b,
                             .b_row = width,
                             .b_column = 1,
                             .c = da,
                             .c_row = width,
                             .in = F32,
                             .out = F32,
                             .add = add});
}

void pair_spread_columns(Backend *be, const PairTile *t, float *db, bool add, const float *a, int64_t width) {
    be->matmul(be, &(Matmul){.m = t->columns,
                             .n = width,
                             .k = t->rows,
                             .batch = 1,
                             .a = t->z,
                             .a_row = 1,
                             .a_column = t->stride,
                             .b = a,
                             .b_row = width,
                             .b_column = 1,
                             .c = db,
                             .c_row = width,
                             .in = F32,
                             .out = F32,
                             .add = add});
}

// ---- all pairs of one process ----

PairSquare pair_square_of(Node *n, Tensor *a, Tensor *b) {
    int64_t pairs = a->shape[0], side = least(PAIR_SIDE, pairs), stride = pair_stride(side);
    float *z = tape_scratch(n, (size_t)(side * stride) * sizeof *z);
    return (PairSquare){tape_backend(n->tape), a->data, b->data, z, pairs, a->shape[1], stride};
}

static PairTile tile_at(const PairSquare *s, int64_t row, int64_t column) {
    int64_t columns = least(PAIR_SIDE, s->pairs - column);
    return (PairTile){.z = s->z,
                      .rows = least(PAIR_SIDE, s->pairs - row),
                      .columns = columns,
                      .stride = s->stride,
                      .offset = row - column,
                      .end = columns,
                      .add_rows = column > 0,
                      .add_columns = row > 0};
}

void pair_square(const PairSquare *s, PairTask task, void *context, Destination da, Destination db) {
    Backend *be = s->backend;
    bool same = da.data && da.data == db.data; // rows and columns then meet in an order of their own: start from zero
    if (same && !da.add) be->zero(be, da.data, (size_t)(s->pairs * s->width) * sizeof(float));
    for (int64_t row = 0; row < s->pairs; row += PAIR_SIDE)
        for (int64_t column = 0; column < s->pairs; column += PAIR_SIDE) {
            PairTile t = tile_at(s, row, column);
            const float *a = s->a + row * s->width, *b = s->b + column * s->width;
            pair_products(be, &t, a, b, s->width);
            task(context, &t, row, column);
            if (da.data)
                pair_spread_rows(be, &t, (float *)da.data + row * s->width, da.add || same || column, b, s->width);
            if (db.data)
                pair_spread_columns(be, &t, (float *)db.data + column * s->width, db.add || same || row, a, s->width);
        }
}
