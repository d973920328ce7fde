/* bifocal bench loader: how fast batches come out of a dataset, beside how fast its pictures decode on one core. Reads
 * first a whole epoch (nothing cached), then goes on for some seconds (what fits is cached). */
#include "base/clock.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "data/image.h"
#include "data/loader.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DECODED_ALONE = 256 }; // pictures

typedef struct Arguments {
    SourceConfig source;
    LoaderConfig loader;
    const char *tokenizer; // NULL: pictures alone
    double seconds;        // after the first epoch
    bool json;
} Arguments;

typedef struct Rate {
    int64_t images, batches;
    double seconds;
} Rate;

static void usage(FILE *out) {
    fputs("usage: bifocal bench loader DATASET [OPTION]...\n\n"
          "Images a second in the first epoch and, for some seconds, in later ones; beside it one core's decoding.\n\n"
          "  --side N           pixels of an image (64)\n"
          "  --batch N          samples of a step (64)\n"
          "  --threads N        workers (1)\n"
          "  --crop LEAST       random resized crops of at least this share of the area (1: none)\n"
          "  --cache MB         memory for decoded pictures (512)\n"
          "  --tokenizer FILE   captions too, with this model\n"
          "  --text TEMPLATE    how a caption is made (the sample's .txt)\n"
          "  --seconds S        how long later epochs are measured (3)\n"
          "  --json             one JSON object on stdout\n",
          out);
}

static const struct option OPTIONS[] = {
    {"side", required_argument, 0, 's'},
    {"batch", required_argument, 0, 'b'},
    {"threads", required_argument, 0, 't'},
    {"crop", required_argument, 0, 'c'},
    {"cache", required_argument, 0, 'm'},
    {"tokenizer", required_argument, 0, 'k'},
    {"text", required_argument, 0, 'x'},
    {"seconds", required_argument, 0, 'w'},
    {"json", no_argument, 0, 'j'},
    {"help", no_argument, 0, 'h'},
    {0},
};

static bool take_option(Arguments *a, int c, const char *value, Error *error) {
    double number = 0;
    bool ok = true;
    switch (c) {
    case 'k':
        a->tokenizer = value;
        return true;
    case 'x':
        a->source.text = value;
        return true;
    case 'j':
        return a->json = true;
    case 's':
        ok = option_number(value, 1, 4096, "--side", &number, error);
        a->loader.side = (int)number;
        return ok;
    case 'b':
        ok = option_number(value, 1, 1e6, "--batch", &number, error);
        a->source.batch = (int64_t)number;
        return ok;
    case 't':
        ok = option_number(value, 1, 256, "--threads", &number, error);
        a->loader.threads = (int)number;
        return ok;
    case 'c':
        return option_number(value, 0.01, 1, "--crop", &a->source.crop_scale[0], error);
    case 'w':
        return option_number(value, 0, 1e6, "--seconds", &a->seconds, error);
    case 'm':
        ok = option_number(value, 0, 1e9, "--cache", &number, error);
        a->loader.cache_bytes = (int64_t)(number * 1e6);
        return ok;
    default:
        return false;
    }
}

static bool parse(Arguments *a, int argc, char **argv, bool *help, Error *error) {
    for (int c; (c = option_next(argc, argv, OPTIONS, "bench loader", error)) != -1;) {
        if ((*help = c == 'h')) return true;
        if (c == '?' || !take_option(a, c, optarg, error)) return false;
    }
    if (optind + 1 != argc) return error_set(error, ERROR_USAGE, "name one dataset; see `bifocal bench loader --help`");
    a->source.path = argv[optind];
    return true;
}

static bool decode_alone(const Arguments *a, Rate *rate, Error *error) {
    Buffer bytes = {0};
    Dataset *data = dataset_open(a->source.path, error);
    for (int64_t i = 0; data && i < dataset_samples(data) && rate->images < DECODED_ALONE; i++) {
        Sample sample;
        Image image;
        Error ignored;
        const Member *member;
        if (!dataset_sample(data, i, &sample, &bytes, &ignored)) continue;
        if (!(member = sample_member(&sample, MEMBER_IMAGE, 0))) continue;
        double start = clock_seconds();
        if (!image_decode(member->bytes, (size_t)member->size, NULL, &image, &ignored)) continue;
        rate->seconds += clock_seconds() - start;
        rate->images++;
        image_free(&image);
    }
    dataset_close(data);
    buffer_free(&bytes);
    return data != NULL;
}

// The first epoch, then later ones until the time is over.
static bool load(const Arguments *a, const Tokenizer *tokenizer, Log *log, Rate rates[2], Error *error) {
    Loader *loader = loader_open(&a->loader, tokenizer, log, error);
    bool ok = loader != NULL;
    int64_t epoch = ok ? loader_steps_per_epoch(loader) : 0;
    double start = clock_seconds();
    for (int64_t step = 0; ok && (step < epoch || rates[1].seconds < a->seconds); step++) {
        const Batch *batch = loader_next(loader, step, error);
        Rate *rate = &rates[step >= epoch];
        if (step == epoch) start = clock_seconds();
        if (!(ok = batch != NULL)) break;
        rate->images += batch->images;
        rate->batches++;
        rate->seconds = clock_seconds() - start;
    }
    loader_close(loader);
    return ok;
}

static double per_second(const Rate *rate) { return rate->seconds > 0 ? (double)rate->images / rate->seconds : 0; }

static void print(const Arguments *a, const Rate *alone, const Rate rates[2]) {
    if (a->json) {
        printf("{\"threads\": %d, \"side\": %d, \"batch\": %" PRId64 ", \"first_epoch_images_per_second\": %.1f, "
               "\"later_images_per_second\": %.1f, \"decode_images_per_second_per_core\": %.1f}\n",
               a->loader.threads, a->loader.side, a->source.batch, per_second(&rates[0]), per_second(&rates[1]),
               per_second(alone));
        return;
    }
    printf("first epoch    %10.0f images/s  (%" PRId64 " images, %d thread%s, %d pixels)\n", per_second(&rates[0]),
           rates[0].images, a->loader.threads, a->loader.threads == 1 ? "" : "s", a->loader.side);
    printf("later epochs   %10.0f images/s  (%" PRId64 " images)\n", per_second(&rates[1]), rates[1].images);
    printf("decoding alone %10.0f images/s  (one core, whole pictures)\n", per_second(alone));
}

static bool run(Arguments *a, Error *error) {
    Log *log = log_new(LOG_WARNING, stderr);
    Tokenizer *tokenizer = NULL;
    Rate alone = {0}, rates[2] = {{0}};
    bool ok = !a->tokenizer || (tokenizer = tokenizer_load(a->tokenizer, error));
    a->loader.sources = &a->source;
    a->source.objectives = 1u << OBJECTIVE_MAE | (a->tokenizer ? 1u << OBJECTIVE_CONTRASTIVE : 0);
    ok = ok && decode_alone(a, &alone, error) && load(a, tokenizer, log, rates, error);
    if (ok) print(a, &alone, rates);
    tokenizer_free(tokenizer);
    log_free(log);
    return ok;
}

int bench_loader_main(int argc, char **argv) {
    Arguments a = {.source = {.batch = 64, .text = "", .crop_scale = {1, 1}, .crop_ratio = {3.0 / 4, 4.0 / 3}},
                   .loader = {.source_count = 1,
                              .side = 64,
                              .contrastive_length = 64,
                              .cache_bytes = 512000000,
                              .threads = 1,
                              .ahead = 4,
                              .bad_samples_per_million = 1e6},
                   .seconds = 3};
    Error error = {0};
    bool help = false, ok = parse(&a, argc, argv, &help, &error);
    if (help) return usage(stdout), 0;
    if (ok && run(&a, &error)) return 0;
    fprintf(stderr, "bifocal bench loader: %s\n", error.message);
    return (int)error.kind;
}
