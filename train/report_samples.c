/* See report_samples.h. */
#include "train/report_samples.h"
#include "base/json.h"
#include "data/image.h"
#include "data/template.h"
#include "fusion/describe.h"
#include "fusion/model_files.h"
#include "kernels/cpu/cpu.h"
#include "train/train_config.h"
#include <stdlib.h>
#include <string.h>

enum { THUMBNAIL = 128 }; // pixels

typedef struct Sampler {
    Arena *memory;
    TrainConfig config;
    const SourceConfig *source; // the first with pictures
    const SourceConfig *asking; // the first with questions, or NULL
    bool captions;              // whether it was trained to say captions
    Dataset *dataset;
    Backend *backend;
    LoadedModel model;
    Tape *tape;
    Template *question, *answer; // NULL where the data has none
} Sampler;

static void base64(Buffer *out, const unsigned char *bytes, size_t count) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < count; i += 3) {
        unsigned v = (unsigned)bytes[i] << 16 | (i + 1 < count ? (unsigned)bytes[i + 1] << 8 : 0) |
                     (i + 2 < count ? bytes[i + 2] : 0);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63], i + 1 < count ? digits[v >> 6 & 63] : '=',
                        i + 2 < count ? digits[v & 63] : '='};
        buffer_append(out, four, 4);
    }
}

// The picture, at most THUMBNAIL pixels high and wide, as a data: URL.
static char *picture_url(const Image *image, Error *error) {
    int most = image->width > image->height ? image->width : image->height;
    int width = most > THUMBNAIL ? image->width * THUMBNAIL / most : image->width;
    int height = most > THUMBNAIL ? image->height * THUMBNAIL / most : image->height;
    Image small = {width ? width : 1, height ? height : 1, NULL};
    Buffer png = {0}, url = {0};
    small.pixels = malloc((size_t)small.width * (size_t)small.height * 3);
    check(small.pixels);
    image_resize(image, (Crop){0, 0, image->width, image->height}, small.pixels, small.width, small.height, false);
    if (image_encode_png(&small, &png, error)) {
        buffer_text(&url, "data:image/png;base64,");
        base64(&url, (const unsigned char *)png.data, png.size);
    }
    buffer_free(&png);
    image_free(&small);
    return url.data;
}

static bool open_model(Sampler *s, const char *run, Log *log, Error *error) {
    char path[4096];
    ConfigSchema schema = train_schema(s->memory);
    snprintf(path, sizeof path, "%s/config.yaml", run);
    if (!config_read(&schema, path, NULL, 0, &s->config, s->memory, error)) return false;
    for (int i = s->config.data.count - 1; i >= 0; i--) {
        const SourceConfig *source = (const SourceConfig *)s->config.data.items + i;
        if (!(source->objectives & ~(1u << OBJECTIVE_LM))) continue;
        s->source = source;
        if (*source->question)
            s->asking = source;
        else
            s->captions |= source->objectives >> OBJECTIVE_CAPTION & 1;
    }
    if (!s->source || s->config.model.weight[OBJECTIVE_CAPTION] <= 0) return true;
    s->dataset = dataset_open(*s->source->validation ? s->source->validation : s->source->path, error);
    if (!s->dataset) return false;
    if (s->asking && !(s->question = template_parse(s->asking->question, error))) return false;
    if (s->asking && !(s->answer = template_parse(s->asking->answer, error))) return false;
    s->backend = cpu_backend_new((int)s->config.threads, NULL, NULL);
    s->tape = tape_new(s->backend, false);
    return model_load(&s->model, s->backend, run, s->config.precision ? BF16 : F32, log, error);
}

static void close_model(Sampler *s) {
    tape_free(s->tape);
    model_unload(&s->model);
    backend_free(s->backend);
    dataset_close(s->dataset);
    template_free(s->question);
    template_free(s->answer);
    arena_free(s->memory);
}

static char *expanded(const Template *t, const json_t *fields, Error *error) {
    Buffer text = {0};
    if (t && fields && template_draw(t, fields, 0, &text, error)) return text.data;
    buffer_free(&text);
    return NULL;
}

static char *said(Sampler *s, const Image *image, const char *question, Error *error) {
    Buffer text = {0};
    tape_reset(s->tape);
    if (!describe_image(s->tape, s->model.joint, s->model.tokenizer, image, question, &text, error)) {
        buffer_free(&text);
        return NULL;
    }
    if (!text.data) buffer_text(&text, "");
    return text.data;
}

static void sample_clear(ReportSample *s) {
    char *const owned[] = {s->picture, s->truth, s->says, s->question, s->answer, s->model_answer};
    for (int k = 0; k < 6; k++) free(owned[k]);
    *s = (ReportSample){0};
}

// False where the sample is no use (damaged, or without a picture): the next is taken.
static bool one_sample(Sampler *s, int64_t number, ReportSample *out, Error *error) {
    Sample sample;
    Image image = {0};
    Buffer bytes = {0};
    bool ok = dataset_sample(s->dataset, number, &sample, &bytes, error);
    const Member *picture = ok ? sample_member(&sample, MEMBER_IMAGE, 0) : NULL;
    const Member *text = ok ? sample_member(&sample, MEMBER_TEXT, 0) : NULL,
                 *json = ok ? sample_member(&sample, MEMBER_JSON, 0) : NULL;
    ok = picture && image_decode(picture->bytes, (size_t)picture->size, &(DecodeOptions){.background = {255, 255, 255}},
                                 &image, error);
    if (ok) {
        json_t *fields = json ? json_parse((const char *)json->bytes, (size_t)json->size, sample.key, error) : NULL;
        *out = (ReportSample){.picture = picture_url(&image, error)};
        out->truth = text ? strndup((const char *)text->bytes, (size_t)text->size) : NULL;
        out->question = expanded(s->question, fields, error);
        out->answer = expanded(s->answer, fields, error);
        if (s->captions) out->says = said(s, &image, NULL, error);
        if (out->question) out->model_answer = said(s, &image, out->question, error);
        json_decref(fields);
    }
    image_free(&image);
    buffer_free(&bytes);
    if (ok && out->picture) return true;
    sample_clear(out);
    return false;
}

bool report_samples(const char *run, int most, ReportSample **out, int *count, Log *log, Error *error) {
    Sampler s = {.memory = arena_new(1 << 16)};
    *out = calloc((size_t)(most > 0 ? most : 1), sizeof **out);
    *count = 0;
    check(*out);
    bool ok = open_model(&s, run, log, error);
    int64_t samples = ok && s.dataset ? dataset_samples(s.dataset) : 0;
    for (int64_t i = 0; ok && i < samples && *count < most; i++) {
        Error one = {0};
        int64_t number =
            (int64_t)permute_index((uint64_t)i, (uint64_t)samples, (uint64_t)s.config.seed, PURPOSE_SAMPLING, 0);
        if (one_sample(&s, number, &(*out)[*count], &one))
            ++*count;
        else
            log_warning(log, "sample %lld left out of the report: %s", (long long)number, one.message);
    }
    close_model(&s);
    return ok;
}

void report_samples_free(ReportSample *samples, int count) {
    for (int i = 0; samples && i < count; i++) sample_clear(&samples[i]);
    free(samples);
}
