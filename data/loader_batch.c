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
    int caption_row, contrastive_row;
} Builder;

static void count_rows(const BatchPlan *plan, int64_t step, int64_t rows[OBJECTIVES]) {
    for (int i = 0; i < plan->config->source_count; i++) {
        const Source *s = &plan->sources[i];
        if (!s->data) continue;
        rows[OBJECTIVE_LM] += source_rows_at(s, step);
        for (int o = OBJECTIVE_CAPTION; o < OBJECTIVES; o++)
            if (source_has(s, (Objective)o)) rows[o] += source_samples_at(s, step);
    }
}

// Arrays whose sizes are known beforehand; those that go by image grow with the images.
static void start_batch(Builder *b) {
    const LoaderConfig *config = b->plan->config;
    BatchSpace *space = b->space;
    int64_t rows[OBJECTIVES] = {0}, images = 0;
    if (!space->arena) space->arena = arena_new(1 << 20);
    arena_reset(space->arena);
    buffer_clear(&space->pixels);
    space->bad = NULL;
    space->draws = 0;
    count_rows(b->plan, b->step, rows);
    for (int i = 0; i < config->source_count; i++)
        images += source_samples_at(&b->plan->sources[i], b->step) * b->plan->sources[i].most_images;
    Batch *batch = &space->batch;
    *batch = (Batch){.step = b->step, .side = config->side};
    sequences_new(&batch->lm, space->arena, (int)rows[OBJECTIVE_LM], (int)config->text_length, b->plan->ids);
    sequences_new(&batch->caption, space->arena, (int)rows[OBJECTIVE_CAPTION], (int)config->caption_length,
                  b->plan->ids);
    sequences_new(&batch->contrastive, space->arena, (int)rows[OBJECTIVE_CONTRASTIVE], (int)config->contrastive_length,
                  b->plan->ids);
    batch->contrastive_image = arena_array(space->arena, int32_t, rows[OBJECTIVE_CONTRASTIVE]);
    batch->mae_image = arena_array(space->arena, int32_t, images);
    batch->image_keys = arena_array(space->arena, uint64_t, images);
    batch->image_sources = arena_array(space->arena, const char *, images);
    for (int o = 0; o < OBJECTIVES; o++) batch->first_row[o] = (uint64_t)(b->step * rows[o]);
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

static void put_caption(Builder *b, const Source *s, const Prepared *sample) {
    const Scratch *scratch = b->scratch;
    Segment segments[SAMPLE_MEMBERS + 2];
    int count = 0;
    Error error;
    for (int i = 0; i < sample->images; i++) segments[count++] = segment_image(b->space->batch.images + i);
    if (source_asks(s)) segments[count++] = segment_text(&scratch->question);
    segments[count++] = segment_scored(source_asks(s) ? &scratch->answer : &scratch->ids);
    check(sequence_put(&b->space->batch.caption, b->caption_row++, segments, count, b->plan->config->image_tokens,
                       b->plan->ids, SEQUENCE_CLOSED, &error)); // loader_open saw to it that slots fit
}

static void put_pair(Builder *b) {
    const TokenIds *text = &b->scratch->ids;
    Batch *batch = &b->space->batch;
    batch->contrastive_image[b->contrastive_row] = batch->images;
    sequence_put_contrastive(&batch->contrastive, b->contrastive_row++, text->ids, text->count, b->plan->ids);
}

static void put_images(Builder *b, const Source *s, const Prepared *sample, uint64_t number, uint64_t epoch) {
    Batch *batch = &b->space->batch;
    size_t bytes = (size_t)batch->side * (size_t)batch->side * 3;
    buffer_reserve(&b->space->pixels, b->space->pixels.size + bytes * (size_t)sample->images);
    const char *name = arena_printf(b->space->arena, "%s/%s", path_base(dataset_path(s->data)), sample->key.text);
    for (int i = 0; i < sample->images; i++) {
        uint64_t element = source_element(s, epoch, number, i);
        source_show(s, sample->pictures[i], element, (uint8_t *)b->space->pixels.data + b->space->pixels.size);
        b->space->pixels.size += bytes;
        batch->image_keys[batch->images] = element;
        batch->image_sources[batch->images] = name;
        if (source_has(s, OBJECTIVE_MAE)) batch->mae_image[batch->mae_images++] = batch->images;
        batch->images++;
    }
}

static bool put_sample(Builder *b, const Source *s, uint64_t number, uint64_t epoch, Error *error) {
    Prepared sample;
    Rng rng = rng_for(s->seed, PURPOSE_CAPTION_CHOICE, source_element(s, epoch, number, 0));
    if (!source_prepare(s, number, b->scratch, &sample, error)) return false;
    if (!encode_texts(b, s, &sample, rng_u64(&rng), error)) return error_prefix(error, "sample %s", sample.key.text);
    if (source_has(s, OBJECTIVE_CAPTION)) put_caption(b, s, &sample);
    if (source_has(s, OBJECTIVE_CONTRASTIVE)) put_pair(b);
    put_images(b, s, &sample, number, epoch);
    return true;
}

static bool put_samples(Builder *b, const Source *s, Error *error) {
    int64_t count = source_samples_at(s, b->step);
    uint64_t most = s->order.count < MOST_ATTEMPTS ? s->order.count : MOST_ATTEMPTS, epoch;
    for (int64_t i = 0; i < count; i++) {
        bool done = false;
        for (uint64_t attempt = 0; attempt < most && !done; attempt++) {
            uint64_t number = source_pick(s, b->step, i, attempt, &epoch);
            b->space->draws++;
            done = put_sample(b, s, number, epoch, error);
            if (!done) add_bad(b, s, number, error);
        }
        if (!done)
            return error_prefix(error, "%s: %" PRIu64 " samples in a row cannot be used, the last",
                                dataset_path(s->data), most);
    }
    return true;
}

static void put_text(Builder *b, const Source *s, int *row) {
    Scratch *scratch = b->scratch;
    int64_t count = source_rows_at(s, b->step);
    for (int64_t i = 0; i < count; i++) {
        uint64_t place = (uint64_t)(b->step * s->config->batch + i), rows = (uint64_t)s->lm.rows;
        lm_text_row(&s->lm, &scratch->plans[s->index], place / rows, place % rows, &b->space->batch.lm, (*row)++);
    }
}

bool batch_build(const BatchPlan *plan, int64_t step, BatchSpace *space, Scratch *scratch, Error *error) {
    Builder b = {.plan = plan, .space = space, .scratch = scratch, .step = step, .bad_end = &space->bad};
    int row = 0;
    start_batch(&b);
    for (int i = 0; i < plan->config->source_count; i++) {
        const Source *s = &plan->sources[i];
        if (!s->data) continue;
        put_text(&b, s, &row);
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
