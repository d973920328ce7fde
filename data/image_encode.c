/* RGB pixels to PNG and JPEG bytes, appended to a buffer. */
#include "data/image.h"
#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <jpeglib.h>

typedef struct PngWriter {
    png_structp png;
    png_infop info;
    jmp_buf escape;
    Error *error;
    const Image *image;
    Buffer *out;
} PngWriter;

_Noreturn static void png_failed(png_structp png, png_const_charp text) {
    PngWriter *w = png_get_error_ptr(png);
    error_set(w->error, ERROR_FAILED, "PNG of %d x %d pixels not written: %s", w->image->width, w->image->height, text);
    longjmp(w->escape, 1);
}

static void png_warned(png_structp png, png_const_charp text) { (void)png, (void)text; }

static void png_put(png_structp png, png_bytep bytes, size_t count) {
    PngWriter *w = png_get_io_ptr(png);
    buffer_append(w->out, bytes, count);
}

static void png_flushed(png_structp png) { (void)png; }

static bool run_png(PngWriter *w) {
    if (setjmp(w->escape)) return false;
    w->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, w, png_failed, png_warned);
    check(w->png);
    w->info = png_create_info_struct(w->png);
    check(w->info);
    png_set_write_fn(w->png, w, png_put, png_flushed);
    png_set_IHDR(w->png, w->info, (png_uint_32)w->image->width, (png_uint_32)w->image->height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(w->png, w->info);
    for (int y = 0; y < w->image->height; y++)
        png_write_row(w->png, w->image->pixels + (size_t)y * (size_t)w->image->width * 3);
    png_write_end(w->png, NULL);
    return true;
}

bool image_encode_png(const Image *image, Buffer *out, Error *error) {
    PngWriter w = {.error = error, .image = image, .out = out};
    size_t before = out->size;
    bool ok = run_png(&w);
    if (!ok) out->size = before;
    png_destroy_write_struct(&w.png, &w.info);
    return ok;
}

typedef struct JpegWriter {
    struct jpeg_error_mgr errors; // first: libjpeg hands back its address
    jmp_buf escape;
    struct jpeg_compress_struct jpeg;
    Error *error;
    const Image *image;
    int quality;
    unsigned char *bytes; // malloced by libjpeg
    unsigned long size;
} JpegWriter;

_Noreturn static void jpeg_failed(j_common_ptr jpeg) {
    JpegWriter *w = (JpegWriter *)jpeg->err;
    char text[JMSG_LENGTH_MAX];
    jpeg->err->format_message(jpeg, text);
    error_set(w->error, ERROR_FAILED, "JPEG of %d x %d pixels not written: %s", w->image->width, w->image->height,
              text);
    longjmp(w->escape, 1);
}

static bool run_jpeg(JpegWriter *w) {
    if (setjmp(w->escape)) return false;
    jpeg_create_compress(&w->jpeg);
    jpeg_mem_dest(&w->jpeg, &w->bytes, &w->size);
    w->jpeg.image_width = (JDIMENSION)w->image->width;
    w->jpeg.image_height = (JDIMENSION)w->image->height;
    w->jpeg.input_components = 3;
    w->jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&w->jpeg);
    jpeg_set_quality(&w->jpeg, w->quality, TRUE);
    jpeg_start_compress(&w->jpeg, TRUE);
    while (w->jpeg.next_scanline < w->jpeg.image_height) {
        JSAMPROW row = w->image->pixels + (size_t)w->jpeg.next_scanline * (size_t)w->image->width * 3;
        jpeg_write_scanlines(&w->jpeg, &row, 1);
    }
    jpeg_finish_compress(&w->jpeg);
    return true;
}

bool image_encode_jpeg(const Image *image, int quality, Buffer *out, Error *error) {
    JpegWriter w = {.error = error, .image = image, .quality = quality};
    w.jpeg.err = jpeg_std_error(&w.errors);
    w.errors.error_exit = jpeg_failed;
    bool ok = run_jpeg(&w);
    if (ok) buffer_append(out, w.bytes, w.size);
    jpeg_destroy_compress(&w.jpeg);
    free(w.bytes);
    return ok;
}
