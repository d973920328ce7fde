/* See evaluation.h. */
#include "eval/evaluation.h"
#include "data/image.h"
#include "data/sequence.h"
#include "fusion/describe.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- samples ----

typedef struct Decoding {
    Evaluation *evaluation;
    SampleBatch *batch;
    Error *errors; // (count)
} Decoding;

static int views_of(const Evaluation *e) {
    static const int count[] = {[VIEWS_ONE] = 1, [VIEWS_MIRRORED] = 2, [VIEWS_TEN] = 10};
    bool averaged = e->task->type == TASK_ZERO_SHOT || e->task->type == TASK_RETRIEVAL;
    return averaged ? count[e->task->views] : 1;
}

static size_t view_size(const Evaluation *e) {
    return 3 * (size_t)(e->model->config.vision.image_size * e->model->config.vision.image_size);
}
static size_t picture_size(const Evaluation *e) { return view_size(e) * (size_t)views_of(e); }

// View `view` of a picture, (S, S, 3). Every second one is the mirror image of the one before.
static void make_view(const Evaluation *e, const Image *image, int view, uint8_t *out) {
    static const double place[][2] = {{0, 0}, {1, 0}, {0, 1}, {1, 1}}; // of the corners
    int side = (int)e->model->config.vision.image_size;
    Crop crop = crop_center(image->width, image->height); // as joint_view
    if (views_of(e) == 10) {
        double length = crop.width * 7 / 8, x = image->width - length, y = image->height - length;
        crop = (Crop){x / 2, y / 2, length, length};
        if (view >= 2) crop.x = x * place[view / 2 - 1][0], crop.y = y * place[view / 2 - 1][1];
    }
    image_resize(image, crop, out, side, side, view % 2);
}

static void decode_one(void *context, int64_t task, int worker) {
    (void)worker;
    Decoding *d = context;
    const Evaluation *e = d->evaluation;
    const JointConfig *config = &e->model->config;
    const Buffer *bytes = &d->batch->samples[task].image;
    DecodeOptions options = {.least_side = DECODE_MARGIN * (int)config->vision.image_size};
    check(image_colour(e->task->background, options.background)); // task_read saw to it
    Image image = {0};
    if (!bytes->size)
        error_set(&d->errors[task], ERROR_FAILED, "it has no image");
    else if (image_decode(bytes->data, bytes->size, &options, &image, &d->errors[task]))
        for (int view = 0; view < views_of(e); view++)
            make_view(e, &image, view, d->batch->pixels + picture_size(e) * (size_t)task + view_size(e) * (size_t)view);
    image_free(&image);
}

static void make_room(Evaluation *e, SampleBatch *b) {
    if (b->samples) return;
    if (!b->capacity) b->capacity = (int)e->batch;
    b->samples = calloc((size_t)b->capacity, sizeof *b->samples);
    b->ids = calloc((size_t)b->capacity, sizeof *b->ids);
    b->pixels = malloc(picture_size(e) * (size_t)b->capacity + 1);
    check(b->samples && b->ids && b->pixels);
}

void sample_left_out(Evaluation *e, SampleBatch *b, const char *why) {
    enum { NAMED = 10 };
    if (!b->left_out++) snprintf(b->cause, sizeof b->cause, "%s", why);
    if (b->left_out <= NAMED)
        log_warning(e->log, "%s: left out: %s%s", e->task->name, why,
                    b->left_out == NAMED ? " (the last one named)" : "");
}

// Moves the samples that could be decoded to the front.
static void keep_decoded(Evaluation *e, SampleBatch *b, const Error *errors) {
    size_t size = picture_size(e);
    int kept = 0;
    for (int i = 0; i < b->count; i++) {
        if (errors[i].kind != ERROR_NONE) {
            Error named = errors[i];
            error_prefix(&named, "%s", b->samples[i].name);
            sample_left_out(e, b, named.message);
            continue;
        }
        if (kept < i) {
            Example swap = b->samples[kept];
            b->samples[kept] = b->samples[i];
            b->samples[i] = swap;
            b->ids[kept] = b->ids[i];
            memcpy(b->pixels + size * (size_t)kept, b->pixels + size * (size_t)i, size);
        }
        kept++;
    }
    b->count = kept;
}

bool sample_batch_next(Evaluation *e, SampleBatch *b, bool pictures, Error *error) {
    make_room(e, b);
    int64_t all = examples_count(e->examples);
    do {
        for (b->count = 0; b->count < b->capacity && b->next < all; b->next++) {
            Error damage = {0};
            if (examples_read(e->examples, b->next, &b->samples[b->count], &damage))
                b->ids[b->count++] = b->next;
            else
                sample_left_out(e, b, damage.message);
        }
        if (pictures && b->count) {
            Error *errors = calloc((size_t)b->count, sizeof *errors);
            check(errors);
            threads_run(e->threads, b->count, decode_one, &(Decoding){e, b, errors});
            keep_decoded(e, b, errors);
            free(errors);
        }
    } while (!b->count && b->next < all);
    if (b->next >= all && b->left_out == all)
        return error_set(error, ERROR_FAILED, "none of the %lld samples can be used; the first: %s", (long long)all,
                         b->cause);
    return true;
}

void sample_batch_free(SampleBatch *b) {
    for (int i = 0; b->samples && i < b->capacity; i++) example_free(&b->samples[i]);
    free(b->samples);
    free(b->ids);
    free(b->pixels);
    *b = (SampleBatch){0};
}

bool example_text(const Evaluation *e, const Example *x, int variant, Buffer *out, Error *error) {
    if (e->text)
        return template_expand(e->text, variant, x->fields, 0, out, error) || error_prefix(error, "%s", x->name);
    const char *field = json_get_string(x->fields, "caption", json_get_string(x->fields, "text", ""));
    if (x->text.size)
        buffer_append(out, x->text.data, x->text.size);
    else if (*field)
        buffer_text(out, field);
    else
        return error_set(error, ERROR_FAILED, "%s: it has no text; name its fields with `text` in the task", x->name);
    return true;
}

bool example_caption(const Evaluation *e, const Example *x, int variant, Buffer *out, Error *error) {
    check(!out->size);
    if (!example_text(e, x, variant, out, error)) return false;
    size_t from = 0, end = out->size;
    while (end && isspace((unsigned char)out->data[end - 1])) end--;
    while (from < end && isspace((unsigned char)out->data[from])) from++;
    memmove(out->data, out->data + from, end - from);
    out->size = end - from;
    out->data[out->size] = 0;
    return out->size > 0 || error_set(error, ERROR_FAILED, "%s: its caption is blank", x->name);
}

// ---- features ----

bool tape_passed(const Tape *tape, const char *doing, Error *error) {
    return !tape_error(tape) || error_set(error, ERROR_FAILED, "%s: %s", doing, tape_error(tape));
}

static bool text_batch(Evaluation *e, const TokenIds *ids, int rows, int length, float *out, Error *error) {
    ArenaMark mark = arena_mark(e->memory);
    SequenceIds special = sequence_ids(e->model->tokenizer);
    Sequences s;
    backend_sequence_begin(tape_backend(e->tape), "features of texts");
    tape_reset(e->tape);
    sequences_new(&s, e->memory, rows, length, special);
    for (int r = 0; r < rows; r++) sequence_put_contrastive(&s, r, ids[r].ids, ids[r].count, special);
    Tensor *features = joint_text_features(e->tape, e->model->joint, &s);
    bool ok = tape_passed(e->tape, "the features of texts", error);
    if (ok) tape_read(e->tape, features, out);
    backend_sequence_end(tape_backend(e->tape));
    arena_rewind(e->memory, mark);
    return ok;
}

bool text_features(Evaluation *e, const char *const *texts, int64_t count, float *out, Error *error) {
    const JointConfig *config = &e->model->config;
    TokenIds *ids = calloc((size_t)count + 1, sizeof *ids);
    check(ids);
    int64_t length = 0; // of the longest text: the same whatever the batches
    bool ok = true;
    for (int64_t i = 0; ok && i < count; i++) {
        ok = tokenizer_encode(e->model->tokenizer, texts[i], strlen(texts[i]), &ids[i], error);
        if (ids[i].count + 2 > length) length = ids[i].count + 2;
    }
    if (length > config->text.context) {
        log_warning(e->log, "%s: texts of up to %lld tokens are cut to the model's context of %lld", e->task->name,
                    (long long)length, (long long)config->text.context);
        length = config->text.context;
    }
    for (int64_t i = 0; ok && i < count; i += e->batch) {
        int rows = (int)(count - i < e->batch ? count - i : e->batch);
        ok = text_batch(e, ids + i, rows, (int)length, out + i * config->embedding, error);
    }
    for (int64_t i = 0; i < count; i++) token_ids_free(&ids[i]);
    free(ids);
    return ok;
}

// out[i] = the mean of features[i], normalised: (count, views, width) -> (count, width)
static void average_views(const float *features, int64_t count, int views, int64_t width, float *out) {
    for (int64_t i = 0; i < count; i++) {
        double square = 0;
        for (int64_t c = 0; c < width; c++) {
            double sum = 0;
            for (int v = 0; v < views; v++) sum += (double)features[(i * views + v) * width + c];
            square += sum * sum;
            out[i * width + c] = (float)sum;
        }
        for (int64_t c = 0; c < width; c++) out[i * width + c] = (float)((double)out[i * width + c] / sqrt(square));
    }
}

// Of each view by itself: (count, views, E)
static bool view_features(Evaluation *e, const SampleBatch *b, float *out, Error *error) {
    backend_sequence_begin(tape_backend(e->tape), "features of pictures");
    tape_reset(e->tape);
    Tensor *images = joint_pixels(e->tape, e->model->joint, b->pixels, NULL, b->count * views_of(e));
    Tensor *features = joint_image_features(e->tape, e->model->joint, images);
    bool ok = tape_passed(e->tape, "the features of pictures", error);
    if (ok) tape_read(e->tape, features, out);
    backend_sequence_end(tape_backend(e->tape));
    return ok;
}

bool picture_features(Evaluation *e, const SampleBatch *b, float *out, Error *error) {
    int views = views_of(e);
    int64_t width = e->model->config.embedding;
    if (views == 1) return view_features(e, b, out, error);
    float *each = malloc((size_t)(b->count * views * width) * sizeof *each);
    check(each);
    bool ok = view_features(e, b, each, error);
    if (ok) average_views(each, b->count, views, width, out);
    free(each);
    return ok;
}

bool similarities(Evaluation *e, const float *a, int64_t rows, const float *b, int64_t columns, float *out,
                  Error *error) {
    int64_t width = e->model->config.embedding;
    tape_reset(e->tape);
    Tensor *left = tape_constant(e->tape, F32, SHAPE(rows, width), a);
    Tensor *right = tape_constant(e->tape, F32, SHAPE(columns, width), b);
    Tensor *product = linear(e->tape, left, right, NULL);
    if (!tape_passed(e->tape, "comparing features", error)) return false;
    tape_read(e->tape, product, out);
    return true;
}

int64_t rank_of(const float *scores, int64_t count, int64_t chosen) {
    int64_t rank = 0;
    float own = scores[chosen];
    for (int64_t i = 0; i < count; i++) rank += i != chosen && !(own > scores[i] || (own == scores[i] && chosen < i));
    return rank;
}

// ---- answers ----

void normalize_answer(const char *text, Buffer *out) {
    buffer_clear(out);
    buffer_text(out, "");
    for (; *text; text++) {
        bool blank = isspace((unsigned char)*text);
        char c = blank ? ' ' : (char)tolower((unsigned char)*text);
        if (!blank || (out->size && out->data[out->size - 1] != ' ')) buffer_append(out, &c, 1);
    }
    if (out->size && out->data[out->size - 1] == ' ') out->data[--out->size] = 0;
}

void log_sample(Evaluation *e, int64_t id, const Example *x, const char *target, json_t *response, const char *metric,
                double value) {
    if (e->samples) {
        json_t *line = json_pack("{s:I, s:O, s:s, s:[O], s:[O], s:f}", "doc_id", (json_int_t)id, "doc", x->fields,
                                 "target", target, "resps", response, "filtered_resps", response, metric, value);
        char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
        if (text) buffer_printf(e->samples, "%s\n", text);
        free(text);
        json_decref(line);
    }
    json_decref(response);
}
