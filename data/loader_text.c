/* See loader_text.h. Texts are read and encoded in fixed chunks on several threads and joined in order, so that nothing
 * depends on the number of threads. */
#include "data/loader_text.h"
#include "base/clock.h"
#include "data/sample_text.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 256, NAMED = 3 }; // samples of a task; unreadable samples named in the log

typedef struct Chunk { // what one task made
    TokenIds ids;
    int32_t *length; // (documents) tokens of each
    int documents, capacity, unreadable;
    Error first_error;
} Chunk;

typedef struct Reading {
    const Dataset *data;
    const LmOptions *options;
    Chunk *chunks;
    int64_t samples;
} Reading;

static void chunk_add(Chunk *c, int length) {
    if (c->documents == c->capacity) {
        c->capacity = c->capacity ? c->capacity * 2 : CHUNK;
        c->length = realloc(c->length, sizeof *c->length * (size_t)c->capacity);
        check(c->length);
    }
    c->length[c->documents++] = length;
}

// Every text of a sample becomes a document. In a stream a line end stands between two texts.
static bool encode_sample(Chunk *c, const LmOptions *o, const Sample *sample, bool last, Buffer *text, Error *error) {
    Prepared p = sample_texts(sample);
    bool any = false;
    int count = sample_text_count(o->text, &p);
    for (int v = 0; v < count; v++) {
        int before = c->ids.count;
        buffer_clear(text);
        if (!sample_text(o->text, &p, v, text, error)) continue;
        bool open = text->data[text->size - 1] != '\n' && !(last && v == count - 1);
        if (!o->documents && open) buffer_text(text, "\n");
        if (!tokenizer_encode(o->tokenizer, text->data, text->size, &c->ids, error)) return false;
        if (c->ids.count > before) chunk_add(c, c->ids.count - before);
        any = true;
    }
    if (!count) error_set(error, ERROR_FAILED, "it has no text");
    return any;
}

static bool read_text(const Reading *r, Chunk *c, int64_t number, Buffer *bytes, Buffer *text, Error *error) {
    Sample sample;
    if (!dataset_sample(r->data, number, &sample, bytes, error)) return false;
    return encode_sample(c, r->options, &sample, number == r->samples - 1, text, error) ||
           error_prefix(error, "sample %s", sample.key);
}

static void read_chunk(void *context, int64_t task, int worker) {
    const Reading *r = context;
    Chunk *c = &r->chunks[task];
    Buffer bytes = {0}, text = {0};
    (void)worker;
    for (int64_t i = task * CHUNK; i < (task + 1) * CHUNK && i < r->samples; i++) {
        Error error;
        if (!read_text(r, c, i, &bytes, &text, &error) && !c->unreadable++) c->first_error = error;
    }
    buffer_free(&bytes);
    buffer_free(&text);
}

static void join_chunks(LmText *lm, Chunk *chunks, int64_t count, const LmOptions *options) {
    int64_t tokens = 0;
    int named = 0;
    for (int64_t c = 0; c < count; c++) {
        tokens += chunks[c].ids.count;
        lm->documents += chunks[c].documents;
    }
    lm->ids = malloc(sizeof(int32_t) * (size_t)(tokens + 1));
    lm->first = malloc(sizeof(int64_t) * (size_t)(lm->documents + 1));
    check(lm->ids && lm->first);
    int64_t document = 0, at = 0;
    for (int64_t c = 0; c < count; c++) {
        if (chunks[c].ids.count) memcpy(lm->ids + at, chunks[c].ids.ids, sizeof(int32_t) * (size_t)chunks[c].ids.count);
        for (int d = 0; d < chunks[c].documents; d++) {
            lm->first[document++] = at;
            at += chunks[c].length[d];
        }
        lm->unreadable += chunks[c].unreadable;
        if (chunks[c].unreadable && named++ < NAMED)
            log_warning(options->log, "text left out: %s", chunks[c].first_error.message);
        token_ids_free(&chunks[c].ids);
        free(chunks[c].length);
    }
    lm->first[document] = at;
}

// Tokens of an epoch of documents: each has <s> in front and </s> behind.
static int64_t packed_tokens(const LmText *lm) { return lm->first[lm->documents] + 2 * lm->documents; }

// A stream keeps back one window, from which the epoch's offset is drawn.
static void count_rows(LmText *lm, const LmOptions *o) {
    int64_t tokens = lm->first[lm->documents], rows;
    if (lm->packed)
        rows = (packed_tokens(lm) + o->length - 1) / o->length;
    else if (!o->mixed)
        rows = (tokens - 1 + o->length - 1) / o->length;
    else
        rows = (tokens - 1) / o->length - 1;
    lm->rows = rows > 1 ? rows : 1;
    lm->order = (Order){.count = (uint64_t)(lm->packed ? lm->documents : lm->rows), .seed = o->seed, .mixed = o->mixed};
}

bool lm_text_open(LmText *lm, const Dataset *data, const LmOptions *o, Error *error) {
    Reading r = {.data = data, .options = o, .samples = dataset_samples(data)};
    int64_t count = (r.samples + CHUNK - 1) / CHUNK;
    double start = clock_seconds();
    *lm = (LmText){.length = o->length, .packed = o->documents, .special = sequence_ids(o->tokenizer)};
    r.chunks = calloc((size_t)count + 1, sizeof *r.chunks);
    check(r.chunks);
    Threads *threads = threads_new(o->threads);
    threads_run(threads, count, read_chunk, &r);
    threads_free(threads);
    join_chunks(lm, r.chunks, count, o);
    free(r.chunks);
    int64_t tokens = lm->first[lm->documents];
    if (tokens < 2)
        return error_set(error, ERROR_FAILED, "%s: no text to model (%" PRId64 " samples could not be read)",
                         dataset_path(data), lm->unreadable);
    count_rows(lm, o);
    log_info(o->log, "%s: %" PRId64 " tokens in %" PRId64 " texts, %" PRId64 " rows of %" PRId64 " (%.1f s)",
             dataset_path(data), tokens, lm->documents, lm->rows, lm->length, clock_seconds() - start);
    return true;
}

void lm_text_free(LmText *lm) {
    free(lm->ids);
    free(lm->first);
    *lm = (LmText){0};
}

static int64_t document_tokens(const LmText *lm, uint64_t document) {
    return lm->first[document + 1] - lm->first[document] + 2;
}

static void make_plan(const LmText *lm, LmPlan *plan, uint64_t epoch) {
    if (plan->end && plan->epoch == epoch) return;
    if (!plan->end) plan->end = malloc(sizeof(int64_t) * (size_t)lm->documents);
    check(plan->end);
    int64_t end = 0;
    for (int64_t i = 0; i < lm->documents; i++)
        plan->end[i] = end += document_tokens(lm, order_sample(&lm->order, epoch, (uint64_t)i));
    plan->epoch = epoch;
}

// The document of the epoch's order that holds token `at`.
static int64_t find_document(const LmText *lm, const LmPlan *plan, int64_t at) {
    int64_t low = 0, high = lm->documents;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (plan->end[middle] <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Token `t` of <s> text </s>.
static int32_t token_of(const LmText *lm, uint64_t document, int64_t t) {
    if (t == 0) return lm->special.begin;
    if (t == document_tokens(lm, document) - 1) return lm->special.end;
    return lm->ids[lm->first[document] + t - 1];
}

static void packed_row(const LmText *lm, LmPlan *plan, uint64_t epoch, uint64_t row, Sequences *s, int at_row) {
    make_plan(lm, plan, epoch);
    int64_t at = (int64_t)row * lm->length, end = at + lm->length;
    int32_t *piece = malloc(sizeof(int32_t) * (size_t)lm->length);
    check(piece);
    for (int64_t d = find_document(lm, plan, at); d < lm->documents && at < end; d++) {
        uint64_t document = order_sample(&lm->order, epoch, (uint64_t)d);
        int64_t tokens = document_tokens(lm, document), from = at - (plan->end[d] - tokens);
        int64_t count = tokens - from < end - at ? tokens - from : end - at;
        for (int64_t t = 0; t < count; t++) piece[t] = token_of(lm, document, from + t);
        int32_t next = from + count < tokens ? token_of(lm, document, from + count) : TOKEN_NONE;
        sequence_put_piece(s, at_row, (int)(lm->length - (end - at)), piece, (int)count, next);
        at += count;
    }
    free(piece);
}

static void stream_row(const LmText *lm, uint64_t epoch, uint64_t row, Sequences *s, int at_row) {
    int64_t tokens = lm->first[lm->documents], offset = 0;
    uint64_t window = order_sample(&lm->order, epoch, row);
    if (lm->order.mixed && tokens - 1 > lm->rows * lm->length) {
        int64_t spare = tokens - 1 - lm->rows * lm->length + 1;
        uint64_t bound = (uint64_t)(spare < lm->length ? spare : lm->length);
        Rng rng = rng_for(lm->order.seed, PURPOSE_PACKING, epoch);
        offset = (int64_t)rng_below(&rng, bound);
    }
    int64_t at = offset + (int64_t)window * lm->length, left = tokens - 1 - at;
    int64_t count = left < lm->length ? left : lm->length;
    sequence_put_piece(s, at_row, 0, lm->ids + at, (int)count, lm->ids[at + count]);
}

void lm_text_row(const LmText *lm, LmPlan *plan, uint64_t epoch, uint64_t row, Sequences *s, int at) {
    if (lm->packed)
        packed_row(lm, plan, epoch, row, s, at);
    else
        stream_row(lm, epoch, row, s, at);
}
