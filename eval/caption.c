/* Captions: the loss of the right caption given the picture, and how often greedy generation gives exactly it. */
#include "data/sequence.h"
#include "eval/answers.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Captions {
    Wanted *wanted;        // (capacity of the batch) the captions of each sample
    TokenIds *ids;         // (capacity) of the first
    double *loss, *tokens; // of every caption so far: nats, and tokens with </s>
    int64_t count;
} Captions;

static bool read_captions(Evaluation *e, SampleBatch *b, Captions *c, Error *error) {
    bool ok = true;
    for (int i = 0; ok && i < b->count; i++) {
        Error missing = {0};
        Wanted *w = &c->wanted[i];
        wanted_clear(w);
        c->ids[i].count = 0;
        for (int v = 0; v < e->text_variants && v < MOST_WANTED; v++) {
            Buffer text = {0};
            if (example_caption(e, &b->samples[i], v, &text, &missing))
                w->text[w->count++] = text.data; // taken over
            else
                buffer_free(&text);
        }
        if (w->count)
            ok = tokenizer_encode(e->model->tokenizer, w->text[0], strlen(w->text[0]), &c->ids[i], error);
        else
            sample_left_out(e, b, missing.message);
    }
    return ok;
}

// Rows [first, first + rows) of the batch: [image] <s> caption </s>, the caption and </s> predicted.
static bool caption_rows(Evaluation *e, const Captions *c, int first, int rows, Sequences *s, Error *error) {
    const JointConfig *config = &e->model->config;
    SequenceIds special = sequence_ids(e->model->tokenizer);
    int slots = joint_image_tokens(config), longest = 0;
    for (int r = 0; r < rows; r++)
        if (c->ids[first + r].count > longest) longest = c->ids[first + r].count;
    int64_t length = slots + longest + 2;
    sequences_new(s, e->memory, rows, (int)(length < config->text.context ? length : config->text.context), special);
    for (int r = 0; r < rows; r++) {
        Segment segments[] = {segment_image(r), segment_scored(&c->ids[first + r])};
        if (!sequence_put(s, r, segments, 2, slots, special, SEQUENCE_CLOSED, error)) return false;
    }
    return true;
}

static void add_losses(Captions *c, int first, const Sequences *s, const float *losses) {
    for (int r = 0; r < s->rows; r++) {
        if (!c->wanted[first + r].count) continue;
        double loss = 0, tokens = 0;
        for (int t = 0; t < s->length; t++) {
            loss += (double)losses[r * s->length + t];
            tokens += s->targets[r * s->length + t] != TOKEN_NONE;
        }
        c->loss[c->count] = loss;
        c->tokens[c->count++] = tokens;
    }
}

static bool score_rows(Evaluation *e, const SampleBatch *b, Captions *c, int first, int rows, Error *error) {
    size_t side = (size_t)e->model->config.vision.image_size;
    Sequences s;
    arena_reset(e->memory);
    tape_reset(e->tape);
    if (!caption_rows(e, c, first, rows, &s, error)) return false;
    Tensor *images = joint_pixels(e->tape, e->model->joint, b->pixels + 3 * side * side * (size_t)first, NULL, rows);
    Tensor *tokens = joint_image_tokens_forward(e->tape, e->model->joint, images);
    Tensor *losses = joint_token_losses(e->tape, e->model->joint, &s, tokens);
    if (!tape_passed(e->tape, "the loss of captions", error)) return false;
    float *host = arena_allocate(e->memory, sizeof(float) * (size_t)(s.rows * s.length));
    tape_read(e->tape, losses, host);
    add_losses(c, first, &s, host);
    return true;
}

static bool score_batch(Evaluation *e, SampleBatch *b, Captions *c, Answers *answers, Error *error) {
    if (!read_captions(e, b, c, error)) return false;
    for (int first = 0; first < b->count; first += (int)e->batch) {
        int rows = b->count - first < e->batch ? b->count - first : (int)e->batch;
        if (!score_rows(e, b, c, first, rows, error)) return false;
    }
    return answers_generate(e, b, NULL, c->wanted, answers, error);
}

static void add_metrics(Score *score, const Captions *c, const Answers *answers, int64_t vocabulary) {
    Metric loss = {.name = "loss", .chance = log((double)vocabulary)};
    ratio_with_error(c->loss, c->tokens, c->count, &loss.value, &loss.error);
    score_add(score, loss);
    score_add(score, (Metric){"perplexity", exp(loss.value), exp(loss.value) * loss.error, (double)vocabulary, false});
    score_add(score, answers_metric(answers));
}

bool score_caption(Evaluation *e, Score *score, Error *error) {
    size_t most = (size_t)examples_count(e->examples);
    SampleBatch batch = {.capacity = (int)e->batch * ANSWER_BATCHES};
    Captions c = {.wanted = calloc((size_t)batch.capacity, sizeof *c.wanted),
                  .ids = calloc((size_t)batch.capacity, sizeof *c.ids),
                  .loss = calloc(most, sizeof *c.loss),
                  .tokens = calloc(most, sizeof *c.tokens)};
    check(c.wanted && c.ids && c.loss && c.tokens);
    Answers answers = {0};
    bool ok = true;
    while ((ok = ok && sample_batch_next(e, &batch, true, error)) && batch.count)
        ok = score_batch(e, &batch, &c, &answers, error);
    if (ok && !c.count) ok = error_set(error, ERROR_FAILED, "no sample has a picture and a caption");
    if (ok) add_metrics(score, &c, &answers, e->model->config.text.vocabulary);
    score->effective = c.count;
    for (int i = 0; i < batch.capacity; i++) {
        wanted_clear(&c.wanted[i]);
        token_ids_free(&c.ids[i]);
    }
    free(c.wanted);
    free(c.ids);
    free(c.loss);
    free(c.tokens);
    answers_free(&answers);
    sample_batch_free(&batch);
    return ok;
}
