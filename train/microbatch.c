/* See microbatch.h. */
#include "train/microbatch.h"
#include "base/error.h"
#include <string.h>

typedef struct Range {
    int first, end;
} Range;

// Of the batch's own rows of an objective, those of the piece.
static Range share(const Batch *b, Objective o, int rows, int piece, int pieces) {
    int64_t all = b->parts > 1 ? b->all_rows[o] : rows;
    int64_t before = b->parts > 1 ? batch_share(all, b->part, b->parts) : 0;
    Range r = {(int)(batch_share(all, piece, pieces) - before), (int)(batch_share(all, piece + 1, pieces) - before)};
    check(r.first >= 0 && r.end <= rows); // the piece lies in the batch's part
    return r;
}

// Rows [first, end) as a view, with the counts of just these.
static Sequences rows_of(const Sequences *s, Range r) {
    Sequences out = *s;
    int64_t skip = (int64_t)r.first * s->length;
    out.rows = r.end - r.first;
    if (!out.rows) return (Sequences){.length = s->length};
    out.tokens += skip;
    out.targets += skip;
    out.positions += skip;
    out.range += 2 * skip;
    out.image_rows += skip;
    out.ends += r.first;
    out.target_count = out.token_count = 0;
    for (int row = 0; row < out.rows; row++) {
        const int32_t *range = out.range + 2 * (int64_t)row * s->length;
        for (int t = 0; t < s->length; t++) {
            int64_t at = (int64_t)row * s->length + t;
            out.target_count += out.targets[at] != TOKEN_NONE;
            out.token_count += out.tokens[at] != TOKEN_NONE && range[2 * t] < range[2 * t + 1];
        }
    }
    return out;
}

// Which pictures a piece needs, and where each goes: new_index[old] or -1. Order is kept.
static int32_t *needed_images(const Batch *b, const Sequences *caption, Range pairs, Range mae, int image_tokens,
                              int *count, Arena *memory) {
    int32_t *index = arena_array(memory, int32_t, b->images + 1);
    int64_t places = (int64_t)caption->rows * caption->length;
    for (int64_t i = 0; i < places; i++)
        if (caption->image_rows[i] >= 0) index[caption->image_rows[i] / image_tokens] = 1;
    for (int i = pairs.first; i < pairs.end; i++) index[b->contrastive_image[i]] = 1;
    for (int i = mae.first; i < mae.end; i++) index[b->mae_image[i]] = 1;
    *count = 0;
    for (int i = 0; i < b->images; i++) index[i] = index[i] ? (*count)++ : -1;
    return index;
}

static int32_t *renumber(const int32_t *images, Range r, const int32_t *index, Arena *memory) {
    int32_t *out = arena_array(memory, int32_t, r.end - r.first + 1);
    for (int i = r.first; i < r.end; i++) out[i - r.first] = index[images[i]];
    return out;
}

static void copy_images(Batch *out, const Batch *b, const int32_t *index, Arena *memory) {
    size_t bytes = (size_t)b->side * (size_t)b->side * 3;
    out->pixels = b->pixels ? arena_allocate(memory, bytes * (size_t)out->images + 1) : NULL;
    out->image_keys = arena_array(memory, uint64_t, out->images + 1);
    uint64_t *numbers = arena_array(memory, uint64_t, out->images + 1);
    out->image_numbers = numbers;
    out->mirrored = b->mirrored ? arena_array(memory, uint8_t, out->images + 1) : NULL;
    out->image_sources = b->image_sources ? arena_array(memory, const char *, out->images + 1) : NULL;
    for (int i = 0; i < b->images; i++) {
        if (index[i] < 0) continue;
        if (b->pixels) memcpy(out->pixels + bytes * (size_t)index[i], b->pixels + bytes * (size_t)i, bytes);
        out->image_keys[index[i]] = b->image_keys[i];
        numbers[index[i]] = b->image_numbers ? b->image_numbers[i] : (uint64_t)i;
        if (b->mirrored) out->mirrored[index[i]] = b->mirrored[i];
        if (b->image_sources) out->image_sources[index[i]] = b->image_sources[i];
    }
}

Batch microbatch(const Batch *b, int piece, int pieces, int image_tokens, Arena *memory) {
    if (pieces == 1) return *b;
    Range lm = share(b, OBJECTIVE_LM, b->lm.rows, piece, pieces);
    Range caption = share(b, OBJECTIVE_CAPTION, b->caption.rows, piece, pieces);
    Range pairs = share(b, OBJECTIVE_CONTRASTIVE, b->contrastive.rows, piece, pieces);
    Range mae = share(b, OBJECTIVE_MAE, b->mae_images, piece, pieces);
    Batch out = {.step = b->step,
                 .side = b->side,
                 .part = piece,
                 .parts = pieces,
                 .all_images = b->all_images,
                 .mae_images = mae.end - mae.first};
    memcpy(out.all_rows, b->all_rows, sizeof out.all_rows);
    out.lm = rows_of(&b->lm, lm);
    out.caption = rows_of(&b->caption, caption);
    out.contrastive = rows_of(&b->contrastive, pairs);
    int32_t *index = needed_images(b, &out.caption, pairs, mae, image_tokens, &out.images, memory);
    copy_images(&out, b, index, memory);
    out.contrastive_image = renumber(b->contrastive_image, pairs, index, memory);
    out.mae_image = renumber(b->mae_image, mae, index, memory);
    int64_t places = (int64_t)out.caption.rows * out.caption.length;
    int32_t *image_rows = arena_array(memory, int32_t, places + 1);
    for (int64_t i = 0; i < places; i++) {
        int32_t row = out.caption.image_rows[i];
        image_rows[i] = row < 0 ? row : index[row / image_tokens] * image_tokens + row % image_tokens;
    }
    out.caption.image_rows = image_rows;
    const int first[OBJECTIVES] = {lm.first, caption.first, pairs.first, mae.first};
    for (int o = 0; o < OBJECTIVES; o++) out.first_row[o] = b->first_row[o] + (uint64_t)first[o];
    return out;
}
