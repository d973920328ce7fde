/* Perplexity of documents by rolling windows, as lm-evaluation-harness scores them: the first window of L tokens is
 * predicted from <s> and what stands before each; later windows are disjoint, with one token of context. Reported per
 * word, per byte (in bits too) and per token. */
#include "data/sequence.h"
#include "eval/evaluation.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Document {
    double loss, words, bytes, tokens;
} Document; // loss: nats, summed

typedef struct Window { // of a document; its loss is there once it has run
    int64_t document;
    double loss;
} Window;

typedef struct Rows { // windows of similar length that wait to be run together
    Sequences sequences;
    Arena *memory;
    float *losses;    // (batch, length)
    int64_t *windows; // (batch) number of each row's window
    int used, length; // length: no window in it is longer
} Rows;

// Windows are padded to the next length of a few: their losses do not depend on it.
enum { LENGTHS = 12, SHORTEST = 16 };

typedef struct Rolling {
    Evaluation *e;
    Rows rows[LENGTHS]; // from the window of the task downwards, each half as long
    int lengths;
    Window *windows;
    int64_t count, capacity;
    Document *all;
} Rolling;

static void rolling_open(Rolling *r, Evaluation *e, int64_t length, int64_t documents) {
    *r = (Rolling){.e = e, .all = calloc((size_t)documents + 1, sizeof(Document))};
    check(r->all);
    for (bool more = true; more; length = (length + 1) / 2) {
        Rows *rows = &r->rows[r->lengths++];
        rows->length = (int)length;
        rows->memory = arena_new(1 << 16);
        rows->losses = malloc(sizeof(float) * (size_t)(e->batch * length));
        rows->windows = calloc((size_t)e->batch, sizeof(int64_t));
        check(rows->losses && rows->windows);
        more = r->lengths < LENGTHS && length > SHORTEST;
    }
}

static void rolling_close(Rolling *r) {
    for (int i = 0; i < r->lengths; i++) {
        arena_free(r->rows[i].memory);
        free(r->rows[i].losses);
        free(r->rows[i].windows);
    }
    free(r->windows);
    free(r->all);
}

static bool run_rows(Rolling *r, Rows *rows, Error *error) {
    if (!rows->used) return true;
    rows->sequences.rows = rows->used;
    tape_reset(r->e->tape);
    Tensor *losses = joint_token_losses(r->e->tape, r->e->model->joint, &rows->sequences, NULL);
    if (!tape_passed(r->e->tape, "the loss of text", error)) return false;
    tape_read(r->e->tape, losses, rows->losses);
    for (int row = 0; row < rows->used; row++) // 0 where there is no target
        for (int t = 0; t < rows->length; t++)
            r->windows[rows->windows[row]].loss += (double)rows->losses[row * rows->length + t];
    rows->used = 0;
    return true;
}

// Runs what waits, and adds up each document's windows in their order.
static bool run_rest(Rolling *r, Error *error) {
    for (int i = 0; i < r->lengths; i++)
        if (!run_rows(r, &r->rows[i], error)) return false;
    for (int64_t i = 0; i < r->count; i++) r->all[r->windows[i].document].loss += r->windows[i].loss;
    return true;
}

static int64_t new_window(Rolling *r, int64_t document) {
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 256;
        r->windows = realloc(r->windows, (size_t)r->capacity * sizeof *r->windows);
        check(r->windows);
    }
    r->windows[r->count] = (Window){.document = document};
    return r->count++;
}

// inputs: <s> and the document, so that input i predicts input i + 1; count: targets.
static bool add_window(Rolling *r, int64_t document, const int32_t *inputs, int count, Error *error) {
    Rows *rows = r->rows;
    while (rows + 1 < r->rows + r->lengths && rows[1].length >= count) rows++;
    if (rows->used == r->e->batch && !run_rows(r, rows, error)) return false;
    if (!rows->used) {
        arena_reset(rows->memory);
        sequences_new(&rows->sequences, rows->memory, (int)r->e->batch, rows->length,
                      sequence_ids(r->e->model->tokenizer));
    }
    sequence_put_piece(&rows->sequences, rows->used, 0, inputs, count, inputs[count]);
    rows->windows[rows->used++] = new_window(r, document);
    return true;
}

static double count_words(const char *text) {
    int64_t words = 0;
    bool inside = false;
    for (; *text; text++) {
        bool blank = isspace((unsigned char)*text);
        words += !blank && !inside;
        inside = !blank;
    }
    return (double)(words ? words : 1);
}

static bool add_document(Rolling *r, int64_t number, const Buffer *text, Error *error) {
    int most = r->rows[0].length;
    const Tokenizer *tokenizer = r->e->model->tokenizer;
    TokenIds ids = {0};
    token_ids_push(&ids, tokenizer_begin(tokenizer));
    bool ok = tokenizer_encode(tokenizer, text->data, text->size, &ids, error);
    r->all[number] = (Document){0, count_words(text->data), (double)text->size, ids.count - 1};
    for (int at = 0; ok && at < ids.count - 1; at += most) {
        int count = ids.count - 1 - at;
        ok = add_window(r, number, ids.ids + at, count < most ? count : most, error);
    }
    token_ids_free(&ids);
    return ok;
}

static Metric metric_of_rate(const char *name, const Document *all, const double *count, int64_t n, double unit,
                             bool exponential) {
    double *loss = malloc(sizeof *loss * (size_t)n), ratio, error;
    check(loss);
    for (int64_t i = 0; i < n; i++) loss[i] = all[i].loss;
    ratio_with_error(loss, count, n, &ratio, &error);
    free(loss);
    ratio /= unit;
    error /= unit;
    if (exponential) return (Metric){name, exp(ratio), exp(ratio) * error, NAN, false};
    return (Metric){name, ratio, error, NAN, false};
}

static void add_metrics(Score *score, const Document *all, int64_t n, int64_t vocabulary) {
    double *words = malloc(sizeof *words * (size_t)(3 * n)), *bytes = words + n, *tokens = words + 2 * n;
    check(words);
    for (int64_t i = 0; i < n; i++) {
        words[i] = all[i].words;
        bytes[i] = all[i].bytes;
        tokens[i] = all[i].tokens;
    }
    score_add(score, metric_of_rate("word_perplexity", all, words, n, 1, true));
    score_add(score, metric_of_rate("byte_perplexity", all, bytes, n, 1, true));
    score_add(score, metric_of_rate("bits_per_byte", all, bytes, n, log(2), false));
    Metric loss = metric_of_rate("loss", all, tokens, n, 1, false);
    loss.chance = log((double)vocabulary);
    score_add(score, loss);
    free(words);
}

static bool log_documents(Evaluation *e, const Document *all, const int64_t *ids, int64_t n, Error *error) {
    Example x = {0};
    bool ok = true;
    for (int64_t i = 0; ok && e->samples && i < n; i++)
        if ((ok = examples_read(e->examples, ids[i], &x, error)))
            log_sample(e, ids[i], &x, "", json_pack("[f, f]", -all[i].loss, all[i].tokens), "bits_per_byte",
                       all[i].loss / all[i].bytes / log(2));
    example_free(&x);
    return ok;
}

bool score_perplexity(Evaluation *e, Score *score, Error *error) {
    int64_t context = e->model->config.text.context, most = examples_count(e->examples);
    if (e->task->window > context)
        return error_set(error, ERROR_USAGE, "window %lld is longer than the model's context of %lld",
                         (long long)e->task->window, (long long)context);
    int64_t *ids = calloc((size_t)most, sizeof *ids), n = 0;
    check(ids);
    Rolling r;
    rolling_open(&r, e, e->task->window ? e->task->window : context, most);
    SampleBatch batch = {0};
    Buffer text = {0};
    bool ok = true;
    while ((ok = ok && sample_batch_next(e, &batch, false, error)) && batch.count)
        for (int i = 0; ok && i < batch.count; i++) {
            Error missing = {0};
            buffer_clear(&text);
            if (!example_text(e, &batch.samples[i], 0, &text, &missing)) {
                sample_left_out(e, &batch, missing.message);
                continue;
            }
            ids[n] = batch.ids[i];
            ok = add_document(&r, n++, &text, error);
        }
    ok = ok && run_rest(&r, error) && log_documents(e, r.all, ids, n, error);
    if (ok && !n) ok = error_set(error, ERROR_FAILED, "no sample has a text");
    if (ok) add_metrics(score, r.all, n, e->model->config.text.vocabulary);
    score->effective = n;
    buffer_free(&text);
    sample_batch_free(&batch);
    free(ids);
    rolling_close(&r);
    return ok;
}
