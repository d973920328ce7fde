/* See requests.h. */
#include "cli/requests.h"
#include "base/files.h"
#include "base/json.h"
#include "data/image.h"
#include "fusion/describe.h"
#include <stdlib.h>
#include <string.h>

static const char IMAGE_MARK[] = "<image>"; // where in a prompt an image stands

static bool add_image(Request *r, const char *folder, const char *name, Error *error) {
    if (r->image_count == REQUEST_IMAGES) return error_set(error, ERROR_USAGE, "more than %d images", REQUEST_IMAGES);
    Buffer path = {0};
    buffer_printf(&path, "%s%s", name[0] == '/' ? "" : folder, name);
    r->images[r->image_count++] = path.data; // taken over
    return true;
}

static Request *request_push(Requests *r) {
    r->items = realloc(r->items, sizeof *r->items * ((size_t)r->count + 1));
    check(r->items);
    r->items[r->count] = (Request){0};
    return &r->items[r->count++];
}

bool requests_add(Requests *all, const char *text, const char *const *images, int image_count, Error *error) {
    Request *r = request_push(all);
    r->text = strdup(text ? text : "");
    check(r->text);
    for (int i = 0; i < image_count; i++)
        if (!add_image(r, "", images[i], error)) return false;
    return true;
}

static bool request_from_line(Request *r, const json_t *line, const char *folder, Error *error) {
    const json_t *image = json_object_get(line, "image");
    r->text = strdup(json_get_string(line, "prompt", ""));
    check(r->text);
    if (json_is_string(image)) return add_image(r, folder, json_string_value(image), error);
    for (size_t i = 0; i < json_array_size(image); i++) {
        const char *name = json_string_value(json_array_get(image, i));
        if (!name) return error_set(error, ERROR_FAILED, "'image' holds something that is not a file name");
        if (!add_image(r, folder, name, error)) return false;
    }
    return (*r->text || r->image_count) || error_set(error, ERROR_FAILED, "neither 'prompt' nor 'image'");
}

bool requests_read(Requests *all, const char *path, Error *error) {
    JsonLines *lines = json_lines_open(path, error);
    char *folder = strndup(path, (size_t)(path_base(path) - path));
    json_t *line = NULL;
    bool ok = lines != NULL;
    while (ok && (ok = json_lines_next(lines, &line, error)) && line) {
        ok = request_from_line(request_push(all), line, folder, error) ||
             error_prefix(error, "%s:%lld", path, (long long)json_lines_number(lines));
        json_decref(line);
    }
    json_lines_close(lines);
    free(folder);
    return ok;
}

static bool view_image(const JointConfig *config, const char *path, uint8_t *out, Error *error) {
    Buffer bytes = {0};
    Image image = {0};
    DecodeOptions options = {.least_side = DECODE_MARGIN * (int)config->vision.image_size,
                             .background = {255, 255, 255}};
    bool ok = file_read(path, &bytes, error) &&
              (image_decode(bytes.data, bytes.size, &options, &image, error) || error_prefix(error, "%s", path));
    if (ok) joint_view(config, &image, out);
    image_free(&image);
    buffer_free(&bytes);
    return ok;
}

static bool add_text(Request *r, const Tokenizer *t, const char *text, size_t size, Error *error) {
    if (!size) return true;
    int piece = 0; // the first that is free: there is at most one more text than images
    while (r->pieces[piece].count) piece++;
    if (!tokenizer_encode(t, text, size, &r->pieces[piece], error)) return false;
    r->segments[r->prompt.count++] = segment_text(&r->pieces[piece]);
    return true;
}

// Images at their marks; those without one in front.
static bool lay_out(Request *r, const Tokenizer *t, Error *error) {
    int marks = 0, image = 0;
    for (const char *at = r->text; (at = strstr(at, IMAGE_MARK)); at += strlen(IMAGE_MARK)) marks++;
    if (marks > r->image_count)
        return error_set(error, ERROR_USAGE, "%d %s in the prompt, but %d images", marks, IMAGE_MARK, r->image_count);
    while (image < r->image_count - marks) r->segments[r->prompt.count++] = segment_image(image++);
    const char *at = r->text;
    for (const char *mark; (mark = strstr(at, IMAGE_MARK)); at = mark + strlen(IMAGE_MARK)) {
        if (!add_text(r, t, at, (size_t)(mark - at), error)) return false;
        r->segments[r->prompt.count++] = segment_image(image++);
    }
    return add_text(r, t, at, strlen(at), error);
}

bool request_prepare(Request *r, uint64_t number, const LoadedModel *model, Error *error) {
    size_t side = (size_t)model->config.vision.image_size, size = 3 * side * side;
    if (r->image_count && !model->config.has_vision)
        return error_set(error, ERROR_USAGE, "this model does not see; leave the images out");
    r->pixels = malloc(size * (size_t)r->image_count + 1);
    check(r->pixels);
    for (int i = 0; i < r->image_count; i++)
        if (!view_image(&model->config, r->images[i], r->pixels + size * (size_t)i, error)) return false;
    if (!lay_out(r, model->tokenizer, error)) return false;
    r->prompt.segments = r->segments;
    r->prompt.pixels = r->pixels;
    r->prompt.images = r->image_count;
    r->prompt.number = number;
    return true;
}

static void request_free(Request *r) {
    for (int i = 0; i < r->image_count; i++) free(r->images[i]);
    for (int i = 0; i <= REQUEST_IMAGES; i++) token_ids_free(&r->pieces[i]);
    free(r->pixels);
    free(r->text);
}

void requests_free(Requests *all) {
    for (int i = 0; i < all->count; i++) request_free(&all->items[i]);
    free(all->items);
    *all = (Requests){0};
}
