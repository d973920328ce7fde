/* See image_files.h. */
#include "tests/data/image_files.h"
#include "base/files.h"
#include <stdlib.h>

void read_bytes(const char *folder, const char *name, Buffer *out) {
    Buffer path = {0};
    Error error;
    buffer_printf(&path, "%s%s", folder, name);
    assert_done(file_read(path.data, out, &error), &error);
    buffer_free(&path);
}

void read_picture(const char *folder, const char *name, Image *out) {
    Buffer bytes = {0};
    Error error;
    read_bytes(folder, name, &bytes);
    if (!image_decode(bytes.data, bytes.size, NULL, out, &error)) fail_msg("%s: %s", name, error.message);
    buffer_free(&bytes);
}

int pictures_differ(const Image *a, const Image *b, const char *name) {
    int most = 0;
    size_t count = (size_t)a->width * (size_t)a->height * 3;
    if (a->width != b->width || a->height != b->height)
        fail_msg("%s: %d x %d, not %d x %d", name, a->width, a->height, b->width, b->height);
    for (size_t i = 0; i < count; i++) {
        int difference = abs(a->pixels[i] - b->pixels[i]);
        if (difference > most) most = difference;
    }
    return most;
}
