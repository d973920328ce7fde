/* See synthetic.h. Places of a step are samples of its sources, in their order; each brings a row for every objective
 * of its source (data/loader_batch.c). */
#include "train/synthetic.h"
#include "base/philox.h"
#include "data/sequence.h"

static const SequenceIds special = {.pad = 0, .begin = 1, .end = 2};
enum { SEED = 1 };

static const SourceConfig *source_at(const TrainConfig *c, int i) { return (const SourceConfig *)c->data.items + i; }
static int64_t samples_of(const SourceConfig *s) { return *s->one_per ? 1 : s->batch; }
static bool has(const SourceConfig *s, Objective o) { return s->objectives >> o & 1; }

void synthetic_rows(const TrainConfig *c, int64_t rows[OBJECTIVES]) {
    for (int o = 0; o < OBJECTIVES; o++) rows[o] = 0;
    for (int i = 0; i < c->data.count; i++)
        for (int o = 0; o < OBJECTIVES; o++)
            if (has(source_at(c, i), (Objective)o)) rows[o] += samples_of(source_at(c, i));
}

// ---- places ----

typedef struct Walk {                         // over the places of a step
    int64_t all[OBJECTIVES], row[OBJECTIVES]; // rows of the step; numbers of the next ones
    int pieces;
} Walk;

typedef struct Place {
    int piece[OBJECTIVES]; // that its row of each objective is in; -1: it has none
} Place;

static Walk walk_begin(const TrainConfig *c, int pieces) {
    Walk w = {.pieces = pieces};
    synthetic_rows(c, w.all);
    return w;
}

// The piece p with batch_share(all, p, pieces) <= row < batch_share(all, p + 1, pieces).
static int piece_of(int64_t row, int64_t all, int pieces) { return (int)(((row + 1) * pieces + all - 1) / all - 1); }

static Place walk_next(Walk *w, const SourceConfig *s) {
    Place p;
    for (int o = 0; o < OBJECTIVES; o++)
        p.piece[o] = has(s, (Objective)o) ? piece_of(w->row[o]++, w->all[o], w->pieces) : -1;
    return p;
}

static bool looks(const Place *p, int piece) {
    return p->piece[OBJECTIVE_CAPTION] == piece || p->piece[OBJECTIVE_CONTRASTIVE] == piece;
}
static bool shows(const Place *p, int piece) { return looks(p, piece) || p->piece[OBJECTIVE_MAE] == piece; }

static void count_place(const Place *p, SyntheticShape *shapes) {
    for (int o = 0; o < OBJECTIVES; o++) {
        int piece = p->piece[o];
        bool first = true; // of the place's rows in this piece
        if (piece < 0) continue;
        shapes[piece].rows[o]++;
        for (int k = OBJECTIVE_LM + 1; k < o; k++) first &= p->piece[k] != piece;
        if (o == OBJECTIVE_LM || !first) continue;
        shapes[piece].images++;
        shapes[piece].seen += looks(p, piece);
    }
}

void synthetic_shapes(const TrainConfig *c, int pieces, SyntheticShape *shapes) {
    Walk w = walk_begin(c, pieces);
    for (int i = 0; i < pieces; i++) shapes[i] = (SyntheticShape){0};
    for (int i = 0; i < c->data.count; i++)
        for (int64_t k = 0; k < samples_of(source_at(c, i)); k++) {
            Place p = walk_next(&w, source_at(c, i));
            count_place(&p, shapes);
        }
}

// ---- its rows ----

static int32_t *draw_words(const TrainConfig *c, int64_t count, Arena *memory) {
    int32_t *ids = arena_array(memory, int32_t, count + 1);
    int64_t words = c->model.text.vocabulary - (special.end + 1);
    Rng rng = rng_for(SEED, PURPOSE_TEST, 0);
    for (int64_t i = 0; i < count; i++)
        ids[i] = special.end + 1 + (words > 0 ? (int32_t)rng_below(&rng, (uint64_t)words) : 0);
    return ids;
}

static void put_rows(const TrainConfig *c, Batch *b, Arena *memory) {
    int64_t longest = c->lm_length > c->caption_length ? c->lm_length : c->caption_length;
    if (longest < c->contrastive_length) longest = c->contrastive_length;
    const int32_t *words = draw_words(c, longest, memory);
    for (int r = 0; r < b->lm.rows; r++) sequence_put_piece(&b->lm, r, 0, words, b->lm.length, words[0]);
    for (int r = 0; r < b->contrastive.rows; r++)
        sequence_put_contrastive(&b->contrastive, r, words, (int)longest, special);
}

static void put_caption(const TrainConfig *c, Batch *b, int row, int image, const int32_t *words, int count) {
    Segment segments[] = {segment_image(image), {.image = -1, .ids = words, .count = count, .scored = true}};
    Error error;
    check(sequence_put(&b->caption, row, segments, 2, joint_image_tokens(&c->model), special, SEQUENCE_CLOSED, &error));
}

typedef struct Filled { // rows so far
    int caption, pairs;
} Filled;

// What the piece makes of a place: the picture, and the rows that look at it.
static void put_place(const TrainConfig *c, Batch *b, Filled *f, const Place *p, const int32_t *words) {
    if (!shows(p, b->part)) return;
    if (p->piece[OBJECTIVE_CAPTION] == b->part)
        put_caption(c, b, f->caption++, b->images, words, (int)c->caption_length);
    if (p->piece[OBJECTIVE_CONTRASTIVE] == b->part) b->contrastive_image[f->pairs++] = b->images;
    if (p->piece[OBJECTIVE_MAE] == b->part) b->mae_image[b->mae_images++] = b->images;
    b->seen += looks(p, b->part);
    b->images++;
}

static void put_places(const TrainConfig *c, Batch *b, uint64_t *numbers, Arena *memory) {
    const int32_t *words = draw_words(c, c->caption_length, memory);
    Walk w = walk_begin(c, b->parts);
    Filled f = {0};
    for (int i = 0; i < c->data.count; i++)
        for (int64_t k = 0; k < samples_of(source_at(c, i)); k++) {
            numbers[b->images] = (uint64_t)b->all_images;
            Place p = walk_next(&w, source_at(c, i));
            put_place(c, b, &f, &p, words);
            b->all_images +=
                p.piece[OBJECTIVE_CAPTION] >= 0 || p.piece[OBJECTIVE_CONTRASTIVE] >= 0 || p.piece[OBJECTIVE_MAE] >= 0;
        }
}

static Batch make_batch(const TrainConfig *c, int piece, int pieces, bool dry, Arena *memory) {
    SyntheticShape *shapes = arena_array(memory, SyntheticShape, pieces), *own = &shapes[piece];
    Batch b = {.part = piece, .parts = pieces, .side = c->model.has_vision ? (int)c->model.vision.image_size : 0};
    synthetic_shapes(c, pieces, shapes);
    synthetic_rows(c, b.all_rows);
    for (int o = 0; o < OBJECTIVES; o++) b.first_row[o] = (uint64_t)batch_share(b.all_rows[o], piece, pieces);
    sequences_new(&b.lm, memory, own->rows[OBJECTIVE_LM], (int)c->lm_length, special);
    sequences_new(&b.caption, memory, own->rows[OBJECTIVE_CAPTION], (int)c->caption_length, special);
    sequences_new(&b.contrastive, memory, own->rows[OBJECTIVE_CONTRASTIVE], (int)c->contrastive_length, special);
    uint64_t *numbers = arena_array(memory, uint64_t, own->images + 1);
    b.image_numbers = b.image_keys = numbers;
    b.mirrored = arena_array(memory, uint8_t, own->images + 1);
    b.contrastive_image = arena_array(memory, int32_t, own->rows[OBJECTIVE_CONTRASTIVE] + 1);
    b.mae_image = arena_array(memory, int32_t, own->rows[OBJECTIVE_MAE] + 1);
    size_t pixels = (size_t)own->images * (size_t)b.side * (size_t)b.side * 3 + 1;
    b.pixels = dry ? arena_allocate(memory, pixels) : arena_zeroed(memory, pixels);
    put_rows(c, &b, memory);
    put_places(c, &b, numbers, memory);
    check(b.images == own->images && b.seen == own->seen && b.mae_images == own->rows[OBJECTIVE_MAE]);
    return b;
}

Batch synthetic_batch(const TrainConfig *c, int piece, int pieces, Arena *memory) {
    return make_batch(c, piece, pieces, false, memory);
}

Batch synthetic_batch_dry(const TrainConfig *c, int piece, int pieces, Arena *memory) {
    return make_batch(c, piece, pieces, true, memory);
}
