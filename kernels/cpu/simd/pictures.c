/* Pictures: bytes to normalised planes, and planes to patches and back. */
#include "base/error.h"
#include "kernels/cpu/ranges.h"
#include "kernels/cpu/simd/vec.h"

enum { CHANNELS = 3 };

// ---- pixels: (B, H, W, 3) bytes -> (B, 3, H, W) ----

typedef struct Pixels {
    void *y;
    const uint8_t *x;
    const uint8_t *mirrored; // (B) or NULL
    int64_t plane, width;    // H W, W
    float factor[CHANNELS], offset[CHANNELS];
    Dtype type;
} Pixels;

// Places [start, stop) of one channel of a mirrored picture.
INLINE void mirrored_span(const Pixels *j, const uint8_t *x, int64_t out, int64_t start, int64_t stop, int c, Dtype t) {
    for (int64_t i = start; i < stop; i++) {
        int64_t row = i / j->width, from = 2 * row * j->width + j->width - 1 - i;
        element_store(j->y, out + i, (float)x[from * CHANNELS] * j->factor[c] + j->offset[c], t);
    }
}

// Pixels [first, end) of all pictures together.
INLINE void pixels_span(const Pixels *j, int64_t first, int64_t end, Dtype t) {
    while (first < end) {
        int64_t picture = first / j->plane, start = first % j->plane;
        int64_t stop = end - picture * j->plane < j->plane ? end - picture * j->plane : j->plane;
        for (int c = 0; c < CHANNELS; c++) {
            const uint8_t *x = j->x + picture * j->plane * CHANNELS + c;
            int64_t out = (picture * CHANNELS + c) * j->plane;
            float factor = j->factor[c], offset = j->offset[c];
            if (j->mirrored && j->mirrored[picture]) {
                mirrored_span(j, x, out, start, stop, c, t);
                continue;
            }
            for (int64_t i = start; i < stop; i++)
                element_store(j->y, out + i, (float)x[i * CHANNELS] * factor + offset, t);
        }
        first = picture * j->plane + stop;
    }
}

static void pixels_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Pixels *j = context;
    if (j->type == F32)
        pixels_span(j, first, end, F32);
    else
        pixels_span(j, first, end, BF16);
}

static void pixels(Backend *b, void *y, const uint8_t *x, const uint8_t *mirrored, int64_t batch, int64_t height,
                   int64_t width, const double *mean, const double *std, Dtype t) {
    Pixels j = {.y = y, .x = x, .mirrored = mirrored, .plane = height * width, .width = width, .type = t};
    for (int c = 0; c < CHANNELS; c++) {
        j.factor[c] = (float)(1 / (255 * std[c]));
        j.offset[c] = (float)(-mean[c] / std[c]);
    }
    cpu_run_ranges(b, batch * height * width, RANGE_ELEMENTS / CHANNELS, pixels_task, &j);
}

// ---- patches: (B, 3, H, W) -> (B, M, 3 P P), a patch flattened (c, y, x) ----

typedef struct Patches {
    void *images, *patches;             // one of them is only read
    const int32_t *keep;                // (B, M) or NULL: all, in order
    int64_t height, width, patch, kept; // kept: M
    Dtype type;
    bool add;
} Patches;

// Element of the images where patch `number` of picture `b` begins.
INLINE int64_t patch_origin(const Patches *j, int64_t b, int64_t number) {
    int64_t across = j->width / j->patch;
    return b * CHANNELS * j->height * j->width + number / across * j->patch * j->width + number % across * j->patch;
}
INLINE int64_t patch_number(const Patches *j, int64_t m) {
    if (!j->keep) return m % j->kept;
    check(j->keep[m] >= 0 && j->keep[m] < j->height / j->patch * (j->width / j->patch));
    return j->keep[m];
}

static void patches_forward_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Patches *j = context;
    int64_t size = (int64_t)dtype_size(j->type), line = j->patch * size;
    char *out = (char *)j->patches + first * CHANNELS * j->patch * line;
    for (int64_t m = first; m < end; m++) {
        int64_t origin = patch_origin(j, m / j->kept, patch_number(j, m));
        for (int64_t c = 0; c < CHANNELS; c++)
            for (int64_t y = 0; y < j->patch; y++, out += line)
                memcpy(out, (const char *)j->images + (origin + (c * j->height + y) * j->width) * size, (size_t)line);
    }
}

static void patches_forward(Backend *b, void *y, const void *x, const int32_t *keep, int64_t batch, int64_t height,
                            int64_t width, int patch, int64_t kept, Dtype t) {
    Patches j = {.images = (void *)x,
                 .patches = y,
                 .keep = keep,
                 .height = height,
                 .width = width,
                 .patch = patch,
                 .kept = kept,
                 .type = t};
    cpu_run_ranges(b, batch * kept, range_rows((int64_t)CHANNELS * patch * patch, RANGE_ELEMENTS), patches_forward_task,
                   &j);
}

INLINE void add_patch(const Patches *j, int64_t m, Dtype t) {
    int64_t origin = patch_origin(j, m / j->kept, patch_number(j, m));
    int64_t in = m * CHANNELS * j->patch * j->patch;
    for (int64_t c = 0; c < CHANNELS; c++) {
        for (int64_t y = 0; y < j->patch; y++, in += j->patch) {
            void *line = row_at(j->images, origin + (c * j->height + y) * j->width, 1, t);
            const void *from = row_of(j->patches, in, 1, t);
            for (int64_t x = 0; x < j->patch; x += LANES)
                vec_write_within(line, x, j->patch, vec_load_within(from, x, j->patch, t), t, true);
        }
    }
}

// Pictures [first, end). A patch that was kept twice adds twice, in order.
static void patches_backward_task(void *context, int64_t first, int64_t end, int worker) {
    (void)worker;
    const Patches *j = context;
    int64_t picture = CHANNELS * j->height * j->width;
    if (!j->add)
        memset(row_at(j->images, first, picture, j->type), 0, (size_t)((end - first) * picture) * dtype_size(j->type));
    for (int64_t m = first * j->kept; m < end * j->kept; m++) {
        if (j->type == F32)
            add_patch(j, m, F32);
        else
            add_patch(j, m, BF16);
    }
}

static void patches_backward(Backend *b, void *dx, const void *dy, const int32_t *keep, int64_t batch, int64_t height,
                             int64_t width, int patch, int64_t kept, Dtype t, bool add) {
    Patches j = {.images = dx,
                 .patches = (void *)dy,
                 .keep = keep,
                 .height = height,
                 .width = width,
                 .patch = patch,
                 .kept = kept,
                 .type = t,
                 .add = add};
    cpu_run_ranges(b, batch, range_rows(CHANNELS * height * width, RANGE_ELEMENTS), patches_backward_task, &j);
}

void SIMD_NAME(install_pictures)(Backend *b) {
    b->pixels = pixels, b->patches_forward = patches_forward, b->patches_backward = patches_backward;
}
