/* See samples.h. */
#include "tests/data/samples.h"
#include "base/files.h"
#include "data/image.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void put_bytes(const char *folder, const char *name, const void *bytes, size_t size) {
    Buffer path = {0}, parent = {0};
    Error error = {0};
    buffer_printf(&path, "%s/%s", folder, name);
    buffer_append(&parent, path.data, (size_t)(path_base(path.data) - path.data));
    check(folder_create(parent.data, &error) && file_write(path.data, bytes, size, &error));
    buffer_free(&path);
    buffer_free(&parent);
}

void put_file(const char *folder, const char *name, const char *text) { put_bytes(folder, name, text, strlen(text)); }

static void make_picture(Buffer *out, bool jpeg, int side, int shade) {
    Error error = {0};
    size_t size = (size_t)(side * side * 3);
    Image image = {side, side, malloc(size)};
    check(image.pixels);
    memset(image.pixels, shade, size);
    check(jpeg ? image_encode_jpeg(&image, 90, out, &error) : image_encode_png(&image, out, &error));
    image_free(&image);
}

void put_picture(const char *folder, const char *name, int side, int shade) {
    Buffer bytes = {0};
    make_picture(&bytes, strcmp(path_extension(name), "jpg") == 0, side, shade);
    put_bytes(folder, name, bytes.data, bytes.size);
    buffer_free(&bytes);
}

char *get_file(const char *folder, const char *name, size_t *size) {
    Buffer path = {0}, bytes = {0};
    Error error = {0};
    buffer_printf(&path, "%s/%s", folder, name);
    check(file_read(path.data, &bytes, &error));
    buffer_free(&path);
    *size = bytes.size;
    return bytes.data;
}

void put_dataset(const char *path, int count, int64_t shard_size, DatasetSummary *summary) {
    DatasetOptions options = {.path = path, .name = "test", .shard_size = shard_size, .force = true};
    Error error = {0};
    Buffer picture = {0};
    DatasetWriter *w = dataset_create(&options, &error);
    check(w);
    for (int i = 0; i < count; i++) {
        char text[32], json[32];
        buffer_clear(&picture);
        make_picture(&picture, false, 2 + i % 3, i * 7 % 256);
        snprintf(text, sizeof text, "caption %d", i);
        snprintf(json, sizeof json, "{\"n\": %d}", i);
        NewSample s = {.members = {{MEMBER_IMAGE, "png", picture.data, picture.size},
                                   {MEMBER_TEXT, "txt", text, strlen(text)},
                                   {MEMBER_JSON, "json", json, strlen(json)}},
                       .member_count = 3,
                       .width = 2 + i % 3,
                       .height = 2 + i % 3};
        check(dataset_add(w, &s, &error));
    }
    check(dataset_finish(w, summary, &error));
    buffer_free(&picture);
}
