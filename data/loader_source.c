/* See loader_source.h. */
#include "data/loader_source.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool source_has(const Source *s, Objective objective) { return s->data && s->config->objectives >> objective & 1; }

static bool has_images(const Source *s) {
    return source_has(s, OBJECTIVE_CAPTION) || source_has(s, OBJECTIVE_CONTRASTIVE) || source_has(s, OBJECTIVE_MAE);
}

bool source_asks(const Source *s) { return source_has(s, OBJECTIVE_CAPTION) && s->question && s->answer; }

bool source_says(const Source *s) {
    return source_has(s, OBJECTIVE_CONTRASTIVE) || (source_has(s, OBJECTIVE_CAPTION) && !source_asks(s));
}

// key: of the source's config, for the message.
static bool parse_template(const SourceConfig *c, const char *key, const char *text, Template **out, Error *error) {
    if (!text || !*text || (*out = template_parse(text, error))) return true;
    return error_prefix(error, "%s of the dataset %s", key, c->path);
}

// Decoded with the margin, or so that the smallest crop still covers the final size.
static void choose_decoding(Source *s, const LoaderConfig *loader) {
    double least = s->config->crop_scale[0];
    s->cropped = !s->validation && (least < 1 || s->config->crop_scale[1] < 1);
    s->side = loader->side;
    s->decode.least_side = (int)ceil(s->side * (s->cropped ? fmax(DECODE_MARGIN, 1 / sqrt(least)) : DECODE_MARGIN));
    memcpy(s->decode.background, loader->background, sizeof s->decode.background);
    s->most_images = 1;
    if (source_has(s, OBJECTIVE_CAPTION)) {
        int64_t fit = loader->image_tokens > 0 ? (loader->caption_length - 2) / loader->image_tokens : 1;
        s->most_images = (int)(fit < 1 ? 1 : fit > SAMPLE_MEMBERS ? SAMPLE_MEMBERS : fit);
    }
}

static bool has_texts(const Source *s, const Prepared *sample, Buffer *text, Error *error) {
    return (!source_says(s) || sample_text_draw(s->text, sample, 0, text, error)) &&
           (!source_asks(s) || (sample_text_draw(s->question, sample, 0, text, error) &&
                                sample_text_draw(s->answer, sample, 0, text, error)));
}

// A template over fields that the data does not have is found at the start: some of the first samples must do. Damaged
// ones say nothing.
static bool try_texts(const Source *s, Error *error) {
    enum { TRIED = 64 };
    Buffer bytes = {0}, text = {0};
    Error damage;
    bool found = !source_says(s) && !source_asks(s), read = false;
    for (int64_t i = 0; !found && i < TRIED && i < (int64_t)s->order.count; i++) {
        Sample sample;
        if (!dataset_sample(s->data, i, &sample, &bytes, &damage)) continue;
        Prepared prepared = sample_texts(&sample);
        read = true;
        buffer_clear(&text);
        found = has_texts(s, &prepared, &text, error);
    }
    buffer_free(&bytes);
    buffer_free(&text);
    if (found || !read) return true;
    error->kind = ERROR_USAGE;
    return error_prefix(error, "%s: none of its first samples has the text that is asked for", dataset_path(s->data));
}

static bool open_groups(Source *s, Error *error) {
    if (s->validation || !s->config->one_per || !*s->config->one_per || !has_images(s)) return true;
    if (!groups_read(&s->groups, s->data, s->config->one_per, error)) return false;
    if (s->groups.count == s->config->batch) return true;
    return error_set(error, ERROR_USAGE, "%s: one_per \"%s\" has %d values, but batch is %" PRId64 "; set batch to %d",
                     s->config->path, s->config->one_per, s->groups.count, s->config->batch, s->groups.count);
}

static bool open_text(Source *s, const LoaderConfig *loader, const Tokenizer *tokenizer, Log *log, Error *error) {
    if (!source_has(s, OBJECTIVE_LM)) return true;
    LmOptions options = {.text = s->text,
                         .tokenizer = tokenizer,
                         .log = log,
                         .seed = s->seed,
                         .length = loader->text_length,
                         .documents = s->config->documents,
                         .mixed = !s->validation,
                         .threads = loader->threads};
    return lm_text_open(&s->lm, s->data, &options, error);
}

bool source_open(Source *s, const LoaderConfig *loader, int index, int64_t cache_bytes, const Tokenizer *tokenizer,
                 Log *log, Error *error) {
    const SourceConfig *config = &loader->sources[index];
    const char *path = loader->validation ? config->validation : config->path;
    *s = (Source){.config = config, .index = index, .validation = loader->validation};
    if (loader->validation && (!path || !*path)) return true;
    if (!(s->data = dataset_open(path, error))) return false;
    const char *root = dataset_root(s->data);
    const uint64_t named[3] = {loader->seed, (uint64_t)index, hash_u64(root, strlen(root))};
    s->seed = hash_u64(named, sizeof named);
    if (!dataset_samples(s->data)) return error_set(error, ERROR_FAILED, "%s: an empty dataset", path);
    if (config->batch < 1)
        return error_set(error, ERROR_USAGE, "%s: batch is %" PRId64 ", below 1", path, config->batch);
    s->order = (Order){(uint64_t)dataset_samples(s->data), s->seed, !s->validation};
    choose_decoding(s, loader);
    s->cache = cache_new(dataset_samples(s->data), cache_bytes);
    return parse_template(config, "text", config->text, &s->text, error) &&
           parse_template(config, "question", config->question, &s->question, error) &&
           parse_template(config, "answer", config->answer, &s->answer, error) && try_texts(s, error) &&
           open_groups(s, error) && open_text(s, loader, tokenizer, log, error);
}

void source_close(Source *s) {
    lm_text_free(&s->lm);
    cache_free(s->cache);
    groups_free(&s->groups);
    template_free(s->text);
    template_free(s->question);
    template_free(s->answer);
    dataset_close(s->data);
    *s = (Source){0};
}

static void release_own(Scratch *scratch) {
    for (int i = 0; i < scratch->owned; i++) free(scratch->own[i]);
    scratch->owned = 0;
}

void scratch_free(Scratch *scratch) {
    release_own(scratch);
    for (int i = 0; i < scratch->sources; i++) free(scratch->plans[i].end);
    free(scratch->plans);
    token_ids_free(&scratch->ids);
    token_ids_free(&scratch->question);
    token_ids_free(&scratch->answer);
    buffer_free(&scratch->bytes);
    buffer_free(&scratch->text);
    *scratch = (Scratch){0};
}

static int64_t share_of_step(const Source *s, int64_t step, int64_t count) {
    int64_t batch = s->config->batch, left = count - step * batch;
    if (!s->validation) return batch;
    return left < 0 ? 0 : left < batch ? left : batch;
}

int64_t source_samples_at(const Source *s, int64_t step) {
    return has_images(s) ? share_of_step(s, step, (int64_t)s->order.count) : 0;
}

int64_t source_rows_at(const Source *s, int64_t step) {
    return source_has(s, OBJECTIVE_LM) ? share_of_step(s, step, s->lm.rows) : 0;
}

int64_t source_steps(const Source *s) {
    int64_t batch = s->config->batch;
    int64_t images = has_images(s) ? ((int64_t)s->order.count + batch - 1) / batch : 0;
    int64_t text = source_has(s, OBJECTIVE_LM) ? (s->lm.rows + batch - 1) / batch : 0;
    return images > text ? images : text;
}

uint64_t source_pick(const Source *s, int64_t step, int64_t i, uint64_t attempt, uint64_t *epoch) {
    if (s->groups.count) return groups_sample(&s->groups, (int)i, (uint64_t)step, attempt, s->seed, epoch);
    uint64_t place = (uint64_t)(step * s->config->batch + i);
    *epoch = place / s->order.count;
    return order_sample(&s->order, *epoch, (place + attempt) % s->order.count);
}

int source_images_at(const Source *s, int64_t step, int64_t i) {
    uint64_t epoch;
    if (s->most_images == 1) return 1;
    int images = dataset_images(s->data, (int64_t)source_pick(s, step, i, 0, &epoch));
    return images < 1 ? 1 : images > s->most_images ? s->most_images : images;
}

uint64_t source_element(const Source *s, uint64_t epoch, uint64_t sample, int image) {
    const uint64_t named[4] = {s->seed, epoch, sample, (uint64_t)image};
    return hash_u64(named, sizeof named);
}

// As decoded where it is cropped by draw, else the final square already. NULL: refused.
static Picture *picture_new(const Source *s, const Member *member, Error *error) {
    ImageInfo info;
    Image image;
    if (!image_probe(member->bytes, (size_t)member->size, &info, error)) return NULL;
    if (!image_decode(member->bytes, (size_t)member->size, &s->decode, &image, error)) return NULL;
    int width = s->cropped ? image.width : s->side, height = s->cropped ? image.height : s->side;
    size_t bytes = (size_t)width * (size_t)height * 3;
    Picture *picture = malloc(sizeof *picture + bytes);
    check(picture);
    *picture = (Picture){width, height, info.width, info.height};
    if (s->cropped)
        memcpy(picture->pixels, image.pixels, bytes);
    else
        image_resize(&image, crop_center(image.width, image.height), picture->pixels, width, height, false);
    image_free(&image);
    return picture;
}

static const Picture *picture_of(const Source *s, const Member *member, Scratch *scratch, Error *error) {
    uint64_t key = hash_u64(member->bytes, (uint64_t)member->size);
    const Picture *kept = cache_find_picture(s->cache, key);
    if (kept) return kept;
    Picture *made = picture_new(s, member, error);
    if (!made) return NULL;
    if ((kept = cache_keep_picture(s->cache, key, made))) return kept;
    return scratch->own[scratch->owned++] = made;
}

bool source_prepare(const Source *s, uint64_t number, Scratch *scratch, Prepared *out, Error *error) {
    const Prepared *kept = cache_find(s->cache, number);
    release_own(scratch);
    if (kept) {
        *out = *kept;
        return true;
    }
    Sample *sample = &scratch->sample;
    if (!dataset_sample(s->data, (int64_t)number, sample, &scratch->bytes, error)) return false;
    *out = sample_texts(sample);
    const Member *member;
    for (int i = 0; i < s->most_images && (member = sample_member(sample, MEMBER_IMAGE, i)); i++) {
        if (!(out->pictures[i] = picture_of(s, member, scratch, error)))
            return error_prefix(error, "%s: %s", sample->shard, member->name);
        out->images++;
    }
    if (!out->images) return error_set(error, ERROR_FAILED, "%s: sample %s has no picture", sample->shard, sample->key);
    if (!scratch->owned) cache_keep(s->cache, number, out);
    return true;
}

// The crop is drawn in pixels of the whole picture, so that it does not depend on the scale of decoding.
bool source_show(const Source *s, const Picture *picture, uint64_t element, uint8_t *out) {
    Rng rng = rng_for(s->seed, PURPOSE_AUGMENT, element);
    Image image = {picture->width, picture->height, (uint8_t *)picture->pixels};
    Crop crop = {0, 0, picture->width, picture->height};
    if (s->cropped) {
        double x = (double)picture->width / picture->full_width, y = (double)picture->height / picture->full_height;
        crop =
            crop_random(picture->full_width, picture->full_height, s->config->crop_scale, s->config->crop_ratio, &rng);
        crop = (Crop){crop.x * x, crop.y * y, crop.width * x, crop.height * y};
    }
    bool mirrored = !s->validation && rng_uniform(&rng) < s->config->flip;
    image_resize(&image, crop, out, s->side, s->side, false);
    if (!s->validation && s->config->jitter > 0)
        colour_jitter(out, (int64_t)s->side * s->side, s->config->jitter, &rng);
    return mirrored;
}
