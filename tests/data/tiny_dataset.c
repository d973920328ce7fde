/* See tiny_dataset.h. */
#include "tests/data/tiny_dataset.h"
#include "data/image.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int tiny_colour(int sample) { return sample % 251; }

static void encode_picture(int sample, int number, Buffer *out) {
    bool jpeg = sample & 1;
    Image image = {jpeg ? 33 : 20, jpeg ? 47 : 14, NULL};
    Error error;
    int count = image.width * image.height;
    image.pixels = malloc((size_t)count * 3);
    check(image.pixels);
    for (int i = 0; i < count; i++) {
        image.pixels[3 * i] = (uint8_t)tiny_colour(sample);
        image.pixels[3 * i + 1] = (uint8_t)(jpeg ? tiny_colour(sample) : i * 7);
        image.pixels[3 * i + 2] = (uint8_t)(jpeg ? tiny_colour(sample) : number * 80);
    }
    assert_done(jpeg ? image_encode_jpeg(&image, 95, out, &error) : image_encode_png(&image, out, &error), &error);
    free(image.pixels);
}

static void add_sample(DatasetWriter *writer, const TinyOptions *o, int i) {
    static const char *const extensions[2][3] = {{"png", "1.png", "2.png"}, {"jpg", "1.jpg", "2.jpg"}};
    Buffer pictures[3] = {{0}}, text = {0}, json = {0};
    NewSample sample = {.width = i & 1 ? 33 : 20, .height = i & 1 ? 47 : 14};
    Error error;
    for (int m = 0; m < o->images; m++) {
        encode_picture(i, m, &pictures[m]);
        if (o->damaged && i % o->damaged == 0) pictures[m].size /= 2;
        sample.members[sample.member_count++] =
            (NewMember){MEMBER_IMAGE, extensions[i & 1][m], pictures[m].data, pictures[m].size};
    }
    buffer_printf(&text, o->text_alone ? "text %d of several words\nand two lines" : "caption of picture %d", i);
    sample.members[sample.member_count++] = (NewMember){MEMBER_TEXT, "txt", text.data, text.size};
    buffer_printf(&json, "{\"class\": \"c%d\", \"question\": \"what is %d\", \"answer\": \"it is %d\"}", i % 5, i, i);
    if (!o->text_alone) sample.members[sample.member_count++] = (NewMember){MEMBER_JSON, "json", json.data, json.size};
    assert_done(dataset_add(writer, &sample, &error), &error);
    for (int m = 0; m < 3; m++) buffer_free(&pictures[m]);
    buffer_free(&text);
    buffer_free(&json);
}

char *tiny_dataset(const TinyOptions *o) {
    char *path = temporary_path(o->folder, o->name);
    DatasetOptions options = {.path = path, .name = o->name, .license = "", .source = "", .shard_size = o->shard_size};
    DatasetSummary summary;
    Error error;
    DatasetWriter *writer = dataset_create(&options, &error);
    assert_done(writer != NULL, &error);
    for (int i = 0; i < o->samples; i++) add_sample(writer, o, i);
    assert_done(dataset_finish(writer, &summary, &error), &error);
    assert_int_equal(summary.samples, o->samples);
    return path;
}

static const char *next_text(void *context, size_t *size) {
    static const char text[] = "caption of picture 0123456789\nwhat is it text of several words and two lines";
    int *left = context;
    *size = sizeof text - 1;
    return (*left)-- > 0 ? text : NULL;
}

Tokenizer *tiny_tokenizer(void) {
    TokenizerTraining training = {
        .type = TOKENIZER_CHAR, .vocabulary = 40, .character_coverage = 1, .keep_whitespace = true};
    Buffer model = {0};
    Error error;
    int left = 3;
    assert_done(tokenizer_train(&training, next_text, &left, &model, &error), &error);
    Tokenizer *tokenizer = tokenizer_from_bytes(model.data, model.size, "tiny", &error);
    assert_done(tokenizer != NULL, &error);
    buffer_free(&model);
    return tokenizer;
}
