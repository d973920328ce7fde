/* PNG through libpng: palette, grey, RGB, with alpha or a transparent colour over the configured background, 1 to 16
 * bits, interlaced. Compressed text and profiles are skipped unread (they can unpack to gigabytes); a wrong CRC or a
 * missing end is an error. */
#include "data/image_codec.h"
#include <limits.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

enum {
    SIGNATURE_BYTES = 8,
    CHUNK_OVERHEAD = 12,         // length, type, CRC
    HEADER_BYTES = 13,           // of IHDR's data
    DEFLATE_RATIO = 1032,        // the most that deflate can shrink
    MOST_CHUNK_MEMORY = 1 << 20, // bytes libpng may allocate for an ancillary chunk
};

typedef struct Reader {
    png_structp png;
    png_infop info;
    jmp_buf escape;
    Error *error;
    const uint8_t *bytes; // what is left
    size_t left, size;
    const DecodeOptions *options;
    Image image;
    uint8_t *rgba; // a line, or the whole picture where it is interlaced
} Reader;

_Noreturn static void on_error(png_structp png, png_const_charp text) {
    Reader *r = png_get_error_ptr(png);
    error_set(r->error, ERROR_FAILED, "PNG: %s", text);
    longjmp(r->escape, 1);
}

static void on_warning(png_structp png, png_const_charp text) { (void)png, (void)text; }

static void on_read(png_structp png, png_bytep out, size_t count) {
    Reader *r = png_get_io_ptr(png);
    if (count > r->left) png_error(png, "the file is cut short");
    memcpy(out, r->bytes, count);
    r->bytes += count;
    r->left -= count;
}

static uint32_t big_u32(const uint8_t *b) {
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

// The orientation of an eXIf chunk, wherever it stands; 1 without.
static int find_orientation(const uint8_t *bytes, size_t size) {
    for (size_t at = SIGNATURE_BYTES; size - at >= CHUNK_OVERHEAD;) {
        size_t length = big_u32(bytes + at), left = size - at - CHUNK_OVERHEAD;
        if (length > left) break;
        if (!memcmp(bytes + at + 4, "eXIf", 4)) return exif_orientation(bytes + at + 8, length);
        at += CHUNK_OVERHEAD + length;
    }
    return 1;
}

// The header must be the first chunk: libpng would let others stand before it.
static bool read_header(const uint8_t *bytes, size_t size, uint32_t *width, uint32_t *height, Error *error) {
    if (size < SIGNATURE_BYTES + CHUNK_OVERHEAD + HEADER_BYTES || big_u32(bytes + 8) != HEADER_BYTES ||
        memcmp(bytes + 12, "IHDR", 4) != 0)
        return error_set(error, ERROR_FAILED, "PNG: no header (IHDR) at its start");
    *width = big_u32(bytes + 16);
    *height = big_u32(bytes + 20);
    if (*width && *height && *width <= INT_MAX && *height <= INT_MAX) return true;
    return error_set(error, ERROR_FAILED, "PNG: %u x %u is not a size", *width, *height);
}

bool png_probe(const uint8_t *bytes, size_t size, ImageInfo *info, Error *error) {
    uint32_t width, height;
    if (!read_header(bytes, size, &width, &height, error)) return false;
    *info = (ImageInfo){(int)width, (int)height, find_orientation(bytes, size), "png"};
    return true;
}

static void refuse_cut(Reader *r, png_uint_32 width, png_uint_32 height) {
    uint64_t raw = (uint64_t)png_get_rowbytes(r->png, r->info) * height;
    if (raw / DEFLATE_RATIO <= r->size) return;
    error_set(r->error, ERROR_FAILED, "PNG: %zu bytes cannot hold %u x %u pixels: the file is cut short", r->size,
              width, height);
    longjmp(r->escape, 1);
}

static void open_png(Reader *r) {
    static const png_byte skipped[] = "iCCP\0zTXt\0iTXt\0tEXt\0sPLT\0eXIf\0hIST";
    r->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, r, on_error, on_warning);
    check(r->png);
    r->info = png_create_info_struct(r->png);
    check(r->info);
    png_set_read_fn(r->png, r, on_read);
    png_set_crc_action(r->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, skipped, (int)(sizeof skipped / 5));
    png_set_chunk_malloc_max(r->png, MOST_CHUNK_MEMORY);
    png_set_user_limits(r->png, INT_MAX, INT_MAX);
    png_read_info(r->png, r->info);
}

// Everything becomes RGBA, 8 bits.
static void set_transforms(Reader *r) {
    int colour = png_get_color_type(r->png, r->info);
    png_set_expand(r->png); // palette to RGB, small grey to 8 bits, transparent colour to alpha
    png_set_scale_16(r->png);
    if (!(colour & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(r->png);
    png_set_add_alpha(r->png, 255, PNG_FILLER_AFTER); // only where there is none
}

// out = alpha x colour + (1 - alpha) x background, rounded.
static void composite(const uint8_t *rgba, uint8_t *rgb, size_t width, const uint8_t background[3]) {
    for (size_t x = 0; x < width; x++, rgba += 4, rgb += 3)
        for (int c = 0; c < 3; c++)
            rgb[c] = (uint8_t)((rgba[c] * (unsigned)rgba[3] + background[c] * (255u - rgba[3]) + 127) / 255);
}

static void read_pixels(Reader *r) {
    static const uint8_t black[3] = {0};
    const uint8_t *background = r->options ? r->options->background : black;
    png_uint_32 width = png_get_image_width(r->png, r->info), height = png_get_image_height(r->png, r->info);
    if (!image_size_allowed(width, height, r->options, r->error)) longjmp(r->escape, 1);
    refuse_cut(r, width, height);
    set_transforms(r);
    int passes = png_set_interlace_handling(r->png);
    png_read_update_info(r->png, r->info);
    size_t line = (size_t)width * 4, kept = passes > 1 ? line : 0; // distance between kept lines
    if (png_get_rowbytes(r->png, r->info) != line) png_error(r->png, "its layout is not understood");
    r->image = (Image){(int)width, (int)height, malloc((size_t)width * 3 * height)};
    r->rgba = malloc(passes > 1 ? line * height : line);
    check(r->image.pixels && r->rgba);
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < height; y++) {
            png_read_row(r->png, r->rgba + y * kept, NULL);
            if (pass == passes - 1) composite(r->rgba + y * kept, r->image.pixels + y * width * 3, width, background);
        }
    png_read_end(r->png, NULL);
}

// False where libpng jumped out; the message is set. The reader lives in the caller's frame.
static bool run_decode(Reader *r) {
    if (setjmp(r->escape)) return false;
    open_png(r);
    read_pixels(r);
    return true;
}

bool png_decode(const uint8_t *bytes, size_t size, const DecodeOptions *options, Image *out, int *orientation,
                Error *error) {
    Reader r = {.bytes = bytes, .left = size, .size = size, .options = options, .error = error};
    uint32_t width, height;
    bool ok = read_header(bytes, size, &width, &height, error) && run_decode(&r);
    if (ok) {
        *out = r.image;
        *orientation = find_orientation(bytes, size);
    } else {
        free(r.image.pixels);
    }
    free(r.rgba);
    png_destroy_read_struct(&r.png, &r.info, NULL);
    return ok;
}
