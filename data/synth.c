/* See synth.h; scene.h makes the scenes. */
#include "data/synth.h"
#include "base/files.h"
#include "base/progress.h"
#include "base/threads.h"
#include "data/scene.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { JPEG_QUALITY = 92, BLOCK = 512, TEST_LEAST = 100 };
// Scenes of the parts are numbered far apart: none is in two of them.
static const uint64_t first_test = UINT64_C(1) << 40, first_text = UINT64_C(1) << 41;

typedef struct Part {
    const SynthOptions *options;
    const char *folder;
    uint64_t first;
    int64_t begin, count; // of the block at hand
    Buffer *rows;         // (BLOCK) a line of captions.jsonl each
    Error *errors;        // (BLOCK)
} Part;

// Plainly, without the sync that a file worth keeping gets: captions.jsonl comes last and says that all is there.
static bool write_plain(const char *path, const Buffer *bytes, Error *error) {
    FILE *file = fopen(path, "we");
    bool ok = file && fwrite(bytes->data, 1, bytes->size, file) == bytes->size;
    if (file && fclose(file) != 0) ok = false;
    return ok || error_set_errno(error, ERROR_FAILED, "%s: cannot write", path);
}

static void make_one(void *context, int64_t task, int worker) {
    Part *p = context;
    int64_t index = p->begin + task;
    Scene scene = scene_make(p->options->seed, p->first + (uint64_t)index);
    Image image = scene_draw(&scene);
    Buffer bytes = {0}, path = {0};
    Error *error = &p->errors[task];
    char name[40];
    bool jpeg = index % 2 == 0;
    (void)worker;
    snprintf(name, sizeof name, "images/%06lld.%s", (long long)index, jpeg ? "jpg" : "png");
    buffer_printf(&path, "%s/%s", p->folder, name);
    bool ok = jpeg ? image_encode_jpeg(&image, JPEG_QUALITY, &bytes, error) : image_encode_png(&image, &bytes, error);
    if (ok && write_plain(path.data, &bytes, error)) scene_row(&scene, name, &p->rows[task]);
    image_free(&image);
    buffer_free(&bytes);
    buffer_free(&path);
}

static bool make_block(Part *p, Threads *threads, AtomicFile *out, Error *error) {
    for (int64_t i = 0; i < p->count; i++) buffer_clear(&p->rows[i]);
    threads_run(threads, p->count, make_one, p);
    for (int64_t i = 0; i < p->count; i++) {
        if (p->errors[i].kind) {
            *error = p->errors[i];
            return false;
        }
        if (!atomic_write(out, p->rows[i].data, p->rows[i].size, error)) return false;
    }
    return true;
}

// One split: pictures first, captions.jsonl when all of them are there.
static bool make_part(const SynthOptions *o, const char *name, uint64_t first, int64_t count, Threads *threads,
                      Progress *progress, int64_t *done, Error *error) {
    Buffer folder = {0}, path = {0};
    Part p = {.options = o, .first = first};
    AtomicFile *out = NULL;
    bool ok = false;
    p.rows = calloc(BLOCK, sizeof *p.rows);
    p.errors = calloc(BLOCK, sizeof *p.errors);
    check(p.rows && p.errors);
    buffer_printf(&folder, "%s/%s", o->out, name);
    buffer_printf(&path, "%s/images", folder.data);
    p.folder = folder.data;
    if (!folder_create(path.data, error)) goto done;
    buffer_clear(&path);
    buffer_printf(&path, "%s/captions.jsonl", folder.data);
    if (!(out = atomic_open(path.data, error))) goto done;
    for (p.begin = 0; p.begin < count; p.begin += p.count) {
        p.count = count - p.begin < BLOCK ? count - p.begin : BLOCK;
        if (!make_block(&p, threads, out, error)) goto done;
        *done += p.count;
        progress_update(progress, *done, NULL);
    }
    AtomicFile *whole = out;
    out = NULL;
    ok = atomic_commit(whole, error);
done:
    atomic_abandon(out);
    for (int i = 0; i < BLOCK; i++) buffer_free(&p.rows[i]);
    free(p.rows);
    free(p.errors);
    buffer_free(&folder);
    buffer_free(&path);
    return ok;
}

// Plain text about other scenes, English and Chinese by turns.
static bool make_text(const SynthOptions *o, int64_t lines, Error *error) {
    Buffer path = {0}, line = {0};
    buffer_printf(&path, "%s/text.txt", o->out);
    AtomicFile *out = atomic_open(path.data, error);
    bool ok = out != NULL;
    for (int64_t i = 0; ok && i < lines; i++) {
        Scene scene = scene_make(o->seed, first_text + (uint64_t)i);
        buffer_clear(&line);
        scene_story(&scene, i % 2 ? CHINESE : ENGLISH, &line);
        ok = atomic_write(out, line.data, line.size, error);
    }
    if (ok)
        ok = atomic_commit(out, error);
    else
        atomic_abandon(out);
    buffer_free(&path);
    buffer_free(&line);
    return ok;
}

static bool is_ours(const char *name) {
    return strcmp(name, "train") == 0 || strcmp(name, "test") == 0 || strcmp(name, "text.txt") == 0;
}

static bool make_room(const SynthOptions *o, Error *error) {
    char **names = NULL;
    int count = 0;
    if (!folder_create(o->out, error) || !folder_list(o->out, &names, &count, error)) return false;
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        Buffer path = {0};
        buffer_printf(&path, "%s/%s", o->out, names[i]);
        if (!is_ours(names[i]))
            ok = error_set(error, ERROR_USAGE, "%s: holds %s, which this does not write: give a new folder", o->out,
                           names[i]);
        else if (!o->force)
            ok = error_set(error, ERROR_USAGE, "%s: is not empty: give another folder, or --force to replace it",
                           o->out);
        else if (folder_exists(path.data))
            ok = folder_remove(path.data, error);
        buffer_free(&path);
    }
    names_free(names, count);
    return ok;
}

bool synth_write(const SynthOptions *o, Log *log, SynthResult *result, Error *error) {
    int64_t train = o->samples ? o->samples : SYNTH_SAMPLES, test = train / 10 < TEST_LEAST ? TEST_LEAST : train / 10;
    int64_t done = 0;
    if (!o->out) return error_set(error, ERROR_USAGE, "--out DIR is missing: where the scenes go");
    if (!make_room(o, error)) return false;
    Threads *threads = threads_new(o->threads);
    Progress *progress = progress_start(log, "drawing", "scenes", train + test);
    bool ok = make_part(o, "train", 0, train, threads, progress, &done, error) &&
              make_part(o, "test", first_test, test, threads, progress, &done, error) && make_text(o, train, error);
    progress_end(progress);
    threads_free(threads);
    *result = (SynthResult){.train = train, .test = test, .text_lines = train, .classes = SCENE_COLOURS * SHAPES};
    return ok;
}
