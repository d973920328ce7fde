/* JPEG through libjpeg-turbo: baseline, progressive and arithmetic; grey, YCbCr, RGB, CMYK and YCCK. A picture that is
 * wanted small is decoded small, by a shorter DCT (1/2, 1/4, 1/8), which costs less and antialiases on the way. What
 * the library only warns of but loses pixels (a cut file, a broken code) is an error here. */
#include "data/image_codec.h"
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>
#include <jerror.h>

enum {
    MOST_SCANS = 200,   // a progressive picture has about 10; thousands are an attack on time
    EXIF_PREFIX = 6,    // "Exif\0\0" before the TIFF block of an APP1 marker
    MOST_MARKER = 65535 // bytes of a marker that libjpeg keeps
};

typedef struct Reader {
    struct jpeg_error_mgr errors; // first: libjpeg hands back its address
    jmp_buf escape;
    struct jpeg_decompress_struct jpeg;
    struct jpeg_progress_mgr progress;
    Error *error;
    const uint8_t *bytes;
    size_t size;
    const DecodeOptions *options;
    uint8_t *pixels; // the picture being decoded
    uint8_t *line;   // a CMYK line
    int orientation;
} Reader;

_Noreturn static void on_error(j_common_ptr jpeg) {
    Reader *reader = (Reader *)jpeg->err;
    char text[JMSG_LENGTH_MAX];
    jpeg->err->format_message(jpeg, text);
    error_set(reader->error, ERROR_FAILED, "JPEG: %s", text);
    longjmp(reader->escape, 1);
}

_Noreturn static void refuse(Reader *reader) { longjmp(reader->escape, 1); }

// Warnings that mean lost pixels are errors; the rest (unknown Adobe flags, stuffing before a marker) is harmless.
static void on_message(j_common_ptr jpeg, int level) {
    if (level >= 0) return;
    switch (jpeg->err->msg_code) {
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_JPEG_EOF:
    case JWRN_MUST_RESYNC:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_BOGUS_PROGRESSION:
        on_error(jpeg);
    default:
        return;
    }
}

static void on_output(j_common_ptr jpeg) { (void)jpeg; }

static void on_progress(j_common_ptr jpeg) {
    Reader *reader = (Reader *)jpeg->err;
    if (reader->jpeg.input_scan_number <= MOST_SCANS) return;
    error_set(reader->error, ERROR_FAILED, "JPEG: more than %d scans; re-encode it", MOST_SCANS);
    refuse(reader);
}

static void reader_start(Reader *r, const uint8_t *bytes, size_t size, const DecodeOptions *options, Error *error) {
    *r = (Reader){.bytes = bytes, .size = size, .options = options, .error = error};
    r->jpeg.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = on_error;
    r->errors.emit_message = on_message;
    r->errors.output_message = on_output;
    r->progress.progress_monitor = on_progress;
}

static int orientation_of(const Reader *r) {
    for (jpeg_saved_marker_ptr m = r->jpeg.marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > EXIF_PREFIX && !memcmp(m->data, "Exif\0\0", EXIF_PREFIX))
            return exif_orientation(m->data + EXIF_PREFIX, m->data_length - EXIF_PREFIX);
    return 1;
}

static void read_header(Reader *r) {
    jpeg_create_decompress(&r->jpeg);
    r->jpeg.progress = &r->progress;
    jpeg_mem_src(&r->jpeg, r->bytes, r->size);
    jpeg_save_markers(&r->jpeg, JPEG_APP0 + 1, MOST_MARKER);
    jpeg_read_header(&r->jpeg, TRUE);
    if (!image_size_allowed(r->jpeg.image_width, r->jpeg.image_height, r->options, r->error)) refuse(r);
    r->orientation = orientation_of(r); // now: the markers are gone after decoding
}

// A Huffman-coded block takes a bit at the least, and each MCU has a block: a file with fewer bits is surely cut, and
// is refused before memory for its pixels is asked for.
static void require_enough_bytes(Reader *r) {
    const struct jpeg_decompress_struct *j = &r->jpeg;
    if (j->arith_code) return;
    uint64_t mcu_width = 8u * (uint64_t)j->max_h_samp_factor, mcu_height = 8u * (uint64_t)j->max_v_samp_factor;
    uint64_t mcus = (j->image_width / mcu_width) * (j->image_height / mcu_height);
    if (mcus / 8 <= r->size) return;
    error_set(r->error, ERROR_FAILED, "JPEG: %zu bytes cannot hold %u x %u pixels: the file is cut short", r->size,
              j->image_width, j->image_height);
    refuse(r);
}

// The least of 1/8, 1/4, 1/2, 1 that keeps both sides >= least_side.
static void choose_scale(Reader *r) {
    unsigned least = r->options && r->options->least_side > 0 ? (unsigned)r->options->least_side : UINT32_MAX;
    unsigned shorter = r->jpeg.image_width < r->jpeg.image_height ? r->jpeg.image_width : r->jpeg.image_height;
    r->jpeg.scale_denom = 8;
    r->jpeg.scale_num = 8;
    for (unsigned eighths = 1; eighths < 8; eighths *= 2) {
        if ((shorter * eighths + 7) / 8 < least) continue;
        r->jpeg.scale_num = eighths;
        return;
    }
}

static void choose_colour(Reader *r) {
    switch (r->jpeg.jpeg_color_space) {
    case JCS_CMYK:
    case JCS_YCCK:
        r->jpeg.out_color_space = JCS_CMYK;
        return;
    case JCS_GRAYSCALE:
    case JCS_YCbCr:
    case JCS_RGB:
        r->jpeg.out_color_space = JCS_RGB;
        return;
    default:
        error_set(r->error, ERROR_FAILED, "JPEG: %d colour components are not understood; convert it to RGB",
                  r->jpeg.num_components);
        refuse(r);
    }
}

static uint8_t scaled(unsigned a, unsigned b) { return (uint8_t)((a * b + 127) / 255); }

// Adobe's programs store ink inverted (255 is none); a file without their marker stores ink as it is.
static void cmyk_to_rgb(const uint8_t *cmyk, uint8_t *rgb, size_t width, bool inverted) {
    unsigned flip = inverted ? 0 : 255;
    for (size_t x = 0; x < width; x++, cmyk += 4, rgb += 3)
        for (int c = 0; c < 3; c++) rgb[c] = scaled(cmyk[c] ^ flip, cmyk[3] ^ flip);
}

static void read_pixels(Reader *r) {
    struct jpeg_decompress_struct *j = &r->jpeg;
    require_enough_bytes(r);
    choose_scale(r);
    choose_colour(r);
    jpeg_start_decompress(j);
    size_t width = j->output_width;
    bool cmyk = j->out_color_space == JCS_CMYK;
    r->pixels = malloc(width * 3 * j->output_height);
    if (cmyk) r->line = malloc(width * 4);
    check(r->pixels && (!cmyk || r->line));
    while (j->output_scanline < j->output_height) {
        uint8_t *row = r->pixels + width * 3 * j->output_scanline, *line = cmyk ? r->line : row;
        if (jpeg_read_scanlines(j, &line, 1) != 1) continue;
        if (cmyk) cmyk_to_rgb(line, row, width, j->saw_Adobe_marker);
    }
    jpeg_finish_decompress(j);
}

// Both return false where libjpeg jumped out; the message is set. The reader lives in the caller's frame, so what was
// written to it before the jump stands.
static bool run_probe(Reader *r) {
    if (setjmp(r->escape)) return false;
    read_header(r);
    return true;
}

static bool run_decode(Reader *r) {
    if (setjmp(r->escape)) return false;
    read_header(r);
    read_pixels(r);
    return true;
}

bool jpeg_probe(const uint8_t *bytes, size_t size, ImageInfo *info, Error *error) {
    Reader r;
    const DecodeOptions any = {.most_pixels = INT64_MAX};
    reader_start(&r, bytes, size, &any, error);
    bool ok = run_probe(&r);
    if (ok) *info = (ImageInfo){(int)r.jpeg.image_width, (int)r.jpeg.image_height, r.orientation, "jpeg"};
    jpeg_destroy_decompress(&r.jpeg);
    return ok;
}

bool jpeg_decode(const uint8_t *bytes, size_t size, const DecodeOptions *options, Image *out, int *orientation,
                 Error *error) {
    Reader r;
    reader_start(&r, bytes, size, options, error);
    bool ok = run_decode(&r);
    if (ok) {
        *out = (Image){(int)r.jpeg.output_width, (int)r.jpeg.output_height, r.pixels};
        *orientation = r.orientation;
    } else {
        free(r.pixels);
    }
    free(r.line);
    jpeg_destroy_decompress(&r.jpeg);
    return ok;
}
