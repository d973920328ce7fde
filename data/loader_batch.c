/* See loader_batch.h. A sample that cannot be used gives way to the next of its order, so a batch always has as many
 * as were asked for. */
#include "data/loader_batch.h"
#include "base/files.h"
#include <inttypes.h>
#include <string.h>

enum { MOST_ATTEMPTS = 1000 }; // samples in a row that cannot be used

typedef struct Builder {
    const BatchPlan *plan;
    BatchSpace *space;
    Scratch *scratch;
    BadSample **bad_end;
    int64_t step;
    uint8_t *images;                            // (places) pictures of each place of the step, source by source
    uint64_t *numbers;                          // (all images) of those that were put
    int64_t place, image;                       // numbers in the step: of the place in hand, of its first picture
    int64_t row[OBJECTIVES];                    // numbers in the step: of the next row of each objective
    int64_t begin[OBJECTIVES], end[OBJECTIVES]; // rows of this part
} Builder;

// What this part makes of one place of the step. Of the place's pictures, [mae_begin, mae_end) are repainted.
typedef struct Place {
    bool caption, pair;
    int images, mae_begin, mae_end;
    bool counted; // in this part: each place is, in one part
} Place;

static bool in_part(const Builder *b, Objective o) { return b->row[o] >= b->begin[o] && b->row[o] < b->end[o]; }

// Rows of every objective, and pictures, in the whole step.
static void count_rows(Builder *b, int64_t rows[OBJECTIVES], int64_t *images) {
    const BatchPlan *plan = b->plan;
    int64_t places = 0, place = 0;
    for (int i = 0; i < plan->config->source_count; i++) places += source_samples_at(&plan->sources[i], b->step);
    b->images = arena_allocate(b->space->arena, (size_t)places + 1);
    for (int i = 0; i < plan->config->source_count; i++) {
        const Source *s = &plan->sources[i];
        int64_t samples = source_samples_at(s, b->step), shown = 0;
        rows[OBJECTIVE_LM] += source_rows_at(s, b->step);
        for (int64_t k = 0; k < samples; k++) shown += b->images[place++] = (uint8_t)source_images_at(s, b->step, k);
        if (source_has(s, OBJECTIVE_CAPTION)) rows[OBJECTIVE_CAPTION] += samples;
        if (source_has(s, OBJECTIVE_CONTRASTIVE)) rows[OBJECTIVE_CONTRASTIVE] += samples;
        if (source_has(s, OBJECTIVE_MAE)) rows[OBJECTIVE_MAE] += shown;
        *images += shown;
    }
}

static void choose_part(Builder *b, Batch *batch) {
    const LoaderConfig *config = b->plan->config;
    batch->parts = config->parts > 1 ? config->parts : 1;
    batch->part = config->parts > 1 ? config->part : 0;
    for (int o = 0; o < OBJECTIVES; o++) {
        b->begin[o] = batch_share(batch->all_rows[o], batch->part, batch->parts);
        b->end[o] = batch_share(batch->all_rows[o], batch->part + 1, batch->parts);
        batch->first_row[o] = (uint64_t)(b->step * batch->all_rows[o] + b->begin[o]);
    }
}

// Arrays whose sizes are known beforehand; the pixels grow with the images.
static void start_batch(Builder *b) {
    const LoaderConfig *config = b->plan->config;
    BatchSpace *space = b->space;
    Batch *batch = &space->batch;
    if (!space->arena) space->arena = arena_new(1 << 20);
    arena_reset(space->arena);
    buffer_clear(&space->pixels);
    space->bad = NULL;
    space->draws = 0;
    *batch = (Batch){.step = b->step, .side = config->side};
    count_rows(b, batch->all_rows, &batch->all_images);
    choose_part(b, batch);
    Sequences *const sequences[] = {&batch->lm, &batch->caption, &batch->contrastive};
    const int64_t length[] = {config->text_length, config->caption_length, config->contrastive_length};
    for (int o = OBJECTIVE_LM; o <= OBJECTIVE_CONTRASTIVE; o++)
        sequences_new(sequences[o], space->arena, (int)(b->end[o] - b->begin[o]), (int)length[o], b->plan->ids);
    int64_t pairs = b->end[OBJECTIVE_CONTRASTIVE] - b->begin[OBJECTIVE_CONTRASTIVE];
    batch->contrastive_image = arena_array(space->arena, int32_t, pairs);
    batch->mae_image = arena_array(space->arena, int32_t, b->end[OBJECTIVE_MAE] - b->begin[OBJECTIVE_MAE]);
    batch->image_keys = arena_array(space->arena, uint64_t, batch->all_images);
    batch->mirrored = arena_array(space->arena, uint8_t, batch->all_images);
    batch->image_numbers = b->numbers = arena_array(space->arena, uint64_t, batch->all_images);
    batch->image_sources = arena_array(space->arena, const char *, batch->all_images);
}

static void add_bad(Builder *b, const Source *s, uint64_t number, const Error *error) {
    BadSample *bad = arena_array(b->space->arena, BadSample, 1);
    *bad = (BadSample){s->index, number, arena_string(b->space->arena, error->message), NULL};
    *b->bad_end = bad;
    b->bad_end = &bad->next;
}

// The text that `template` makes of the sample, as ids.
static bool encode(Builder *b, const Template *template, const Prepared *sample, uint64_t draw, TokenIds *ids,
                   Error *error) {
    Buffer *text = &b->scratch->text;
    buffer_clear(text);
    ids->count = 0;
    if (!sample_text_draw(template, sample, draw, text, error)) return false;
    if (!tokenizer_encode(b->plan->tokenizer, text->data, text->size, ids, error)) return false;
    return ids->count || error_set(error, ERROR_FAILED, "its text has no tokens");
}

// All that can fail of a sample's rows, before anything of them is written.
static bool encode_texts(Builder *b, const Source *s, const Prepared *sample, uint64_t draw, Error *error) {
    Scratch *scratch = b->scratch;
    if (source_says(s) && !encode(b, s->text, sample, draw, &scratch->ids, error)) return false;
    return !source_asks(s) || (encode(b, s->question, sample, draw, &scratch->question, error) &&
                               encode(b, s->answer, sample, draw, &scratch->answer, error));
}

static void put_caption(Builder *b, const Source *s, const Place *place) {
    const Scratch *scratch = b->scratch;
    Batch *batch = &b->space->batch;
    Segment segments[SAMPLE_MEMBERS + 2];
    int count = 0, row = (int)(b->row[OBJECTIVE_CAPTION] - b->begin[OBJECTIVE_CAPTION]);
    Error error;
    for (int i = 0; i < place->images; i++) segments[count++] = segment_image(batch->images + i);
    if (source_asks(s)) segments[count++] = segment_text(&scratch->question);
    segments[count++] = segment_scored(source_asks(s) ? &scratch->answer : &scratch->ids);
    check(sequence_put(&batch->caption, row, segments, count, b->plan->config->image_tokens, b->plan->ids,
                       SEQUENCE_CLOSED, &error)); // loader_open saw to it that slots fit
}

static void put_pair(Builder *b) {
    const TokenIds *text = &b->scratch->ids;
    Batch *batch = &b->space->batch;
    int row = (int)(b->row[OBJECTIVE_CONTRASTIVE] - b->begin[OBJECTIVE_CONTRASTIVE]);
    batch->contrastive_image[row] = batch->images;
    sequence_put_contrastive(&batch->contrastive, row, text->ids, text->count, b->plan->ids);
}

// Those pictures of the place that a row of this part looks at: all for a caption, the first for a pair.
static void put_images(Builder *b, const Source *s, const Place *place, const Prepared *sample, uint64_t number,
                       uint64_t epoch) {
    Batch *batch = &b->space->batch;
    size_t bytes = (size_t)batch->side * (size_t)batch->side * 3;
    buffer_reserve(&b->space->pixels, b->space->pixels.size + bytes * (size_t)place->images);
    const char *name = arena_printf(b->space->arena, "%s/%s", path_base(dataset_path(s->data)), sample->key.text);
    for (int i = 0; i < place->images; i++) {
        bool repainted = i >= place->mae_begin && i < place->mae_end;
        if (!place->caption && !repainted && !(place->pair && i == 0)) continue;
        uint64_t element = source_element(s, epoch, number, i);
        const Picture *picture = sample->pictures[i % sample->images];
        batch->mirrored[batch->images] =
            source_show(s, picture, element, (uint8_t *)b->space->pixels.data + b->space->pixels.size);
        b->space->pixels.size += bytes;
        batch->image_keys[batch->images] = element;
        b->numbers[batch->images] = (uint64_t)(b->image + i);
        batch->image_sources[batch->images] = name;
        if (repainted) batch->mae_image[batch->mae_images++] = batch->images;
        batch->images++;
    }
}

// Whether the sample can be used is found out as a whole, so that every part that needs it decides alike.
static bool put_sample(Builder *b, const Source *s, const Place *place, uint64_t number, uint64_t epoch, Error *error) {
    Prepared sample;
    Rng rng = rng_for(s->seed, PURPOSE_CAPTION_CHOICE, source_element(s, epoch, number, 0));
    if (!source_prepare(s, number, b->scratch, &sample, error)) return false;
    if (!encode_texts(b, s, &sample, rng_u64(&rng), error)) return error_prefix(error, "sample %s", sample.key.text);
    if (place->caption) put_caption(b, s, place);
    if (place->pair) put_pair(b);
    put_images(b, s, place, &sample, number, epoch);
    return true;
}

// A sample of the place's: the one whose turn it is, or the next of its order that can be used.
static bool fill_place(Builder *b, const Source *s, const Place *place, int64_t i, Error *error) {
    uint64_t most = s->order.count < MOST_ATTEMPTS ? s->order.count : MOST_ATTEMPTS, epoch;
    for (uint64_t attempt = 0; attempt < most; attempt++) {
        uint64_t number = source_pick(s, b->step, i, attempt, &epoch);
        b->space->draws += place->counted;
        if (put_sample(b, s, place, number, epoch, error)) return true;
        if (place->counted) add_bad(b, s, number, error);
    }
    return error_prefix(error, "%s: %" PRIu64 " samples in a row cannot be used, the last", dataset_path(s->data),
                        most);
}

static int clip(int64_t value, int most) { return value < 0 ? 0 : value > most ? most : (int)value; }

static Place place_of(const Builder *b, const Source *s) {
    int images = b->images[b->place];
    bool caption = source_has(s, OBJECTIVE_CAPTION), pair = source_has(s, OBJECTIVE_CONTRASTIVE);
    Place place = {.caption = caption && in_part(b, OBJECTIVE_CAPTION),
                   .pair = pair && in_part(b, OBJECTIVE_CONTRASTIVE),
                   .images = images};
    if (source_has(s, OBJECTIVE_MAE)) {
        place.mae_begin = clip(b->begin[OBJECTIVE_MAE] - b->row[OBJECTIVE_MAE], images);
        place.mae_end = clip(b->end[OBJECTIVE_MAE] - b->row[OBJECTIVE_MAE], images);
    }
    place.counted = caption ? place.caption : pair ? place.pair : in_part(b, OBJECTIVE_MAE);
    return place;
}

static bool put_samples(Builder *b, const Source *s, Error *error) {
    int64_t count = source_samples_at(s, b->step);
    for (int64_t i = 0; i < count; i++) {
        Place place = place_of(b, s);
        bool needed = place.caption || place.pair || place.mae_begin < place.mae_end;
        if (needed && !fill_place(b, s, &place, i, error)) return false;
        if (place.counted && source_has(s, OBJECTIVE_CAPTION))
            b->space->batch.seen += place.images;
        else if (place.counted && source_has(s, OBJECTIVE_CONTRASTIVE))
            b->space->batch.seen++;
        b->row[OBJECTIVE_CAPTION] += source_has(s, OBJECTIVE_CAPTION);
        b->row[OBJECTIVE_CONTRASTIVE] += source_has(s, OBJECTIVE_CONTRASTIVE);
        if (source_has(s, OBJECTIVE_MAE)) b->row[OBJECTIVE_MAE] += place.images;
        b->image += place.images;
        b->place++;
    }
    return true;
}

static void put_text(Builder *b, const Source *s) {
    Scratch *scratch = b->scratch;
    int64_t count = source_rows_at(s, b->step), first = b->begin[OBJECTIVE_LM];
    for (int64_t i = 0; i < count; i++, b->row[OBJECTIVE_LM]++) {
        if (!in_part(b, OBJECTIVE_LM)) continue;
        uint64_t place = (uint64_t)(b->step * s->config->batch + i), rows = (uint64_t)s->lm.rows;
        lm_text_row(&s->lm, &scratch->plans[s->index], place / rows, place % rows, &b->space->batch.lm,
                    (int)(b->row[OBJECTIVE_LM] - first));
    }
}

bool batch_build(const BatchPlan *plan, int64_t step, BatchSpace *space, Scratch *scratch, Error *error) {
    Builder b = {.plan = plan, .space = space, .scratch = scratch, .step = step, .bad_end = &space->bad};
    start_batch(&b);
    for (int i = 0; i < plan->config->source_count; i++) {
        const Source *s = &plan->sources[i];
        if (!s->data) continue;
        put_text(&b, s);
        if (!put_samples(&b, s, error)) return false;
    }
    space->batch.pixels = (uint8_t *)space->pixels.data;
    return true;
}

void batch_space_free(BatchSpace *space) {
    arena_free(space->arena);
    buffer_free(&space->pixels);
    *space = (BatchSpace){0};
}
